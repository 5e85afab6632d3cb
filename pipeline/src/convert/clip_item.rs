//! One clip: decoded frame by frame, each frame made smaller and coded as JPEG at once.

use std::fs::File;
use std::io::{ErrorKind, Read};

use shards::{ClipRow, FrameRow};

use super::coding::Coding;
use super::error::{Error, Result};
use super::image_item::{reduced, skip_unread, skip_unreadable};
use super::options::KineticsOptions;
use super::outcome::{Outcome, Scratch, pixels};
use super::source::{Item, Listing};
use crate::codec::ImageFormat;
use crate::codec::video::VideoReader;
use crate::stop::Stop;

/// Converts one clip. Frames are those that decode; what a container says about their number plays no part.
///
/// A clip that is damaged in the middle keeps the frames that decode; one without any is left out.
///
/// # Errors
/// Only what is not the clip's fault; [`Error::Stopped`] soon after a stop is asked for.
pub(crate) fn convert_clip(
    listing: &Listing,
    item: &Item,
    options: &KineticsOptions,
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<Outcome> {
    if let Some(outcome) = skip_unread(item) {
        return Ok(outcome);
    }
    let path = listing
        .path(item)
        .ok_or_else(|| Error::Internal(format!("{} is no file", item.key)))?;
    // The video library does not tell a disk's fault from a clip's, so the file is opened here first.
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Ok(skip_unreadable(item, &error));
        }
        Err(source) => return Err(Error::Read { path, source }),
    };
    let n_bytes = file
        .metadata()
        .map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?
        .len();
    if n_bytes != item.bytes {
        let reason = format!(
            "it had {} bytes when it was listed and has {n_bytes} now",
            item.bytes
        );
        return Err(Error::Changed { path, reason });
    }
    if n_bytes == 0 {
        return Ok(Outcome::skip(item, "empty", "empty: 0 bytes".into()));
    }
    if let Some(format) = still_picture(&file).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })? {
        let reason = format!("a still picture ({format}) and no clip");
        return Ok(Outcome::skip(item, "still picture", reason));
    }
    let mut reader = match VideoReader::open(&path) {
        Ok(reader) => reader,
        Err(error) => return Outcome::refused(item, error),
    };
    let coding = Coding::of(options.quality, options.min_psnr);
    let mut frames = Vec::new();
    let mut fault = None;
    for number in 0.. {
        if stop.is_requested() {
            return Err(Error::Stopped {
                done: 0,
                planned: 0,
            });
        }
        if options.frame_range.is_past(number) {
            break;
        }
        let is_wanted = number
            .checked_sub(options.frame_range.start)
            .is_some_and(|since_start| since_start % u64::from(options.frame_stride) == 0);
        let read = if is_wanted {
            reader.read_into(&mut scratch.image)
        } else {
            reader.skip_frame()
        };
        let time_us = match read {
            Ok(Some(time_us)) => time_us,
            Ok(None) => break,
            Err(error) => {
                fault = Some(error);
                break;
            }
        };
        if !is_wanted {
            continue;
        }
        let short_side = options.short_side.unwrap_or(u32::MAX);
        match reduced(scratch, short_side, coding)? {
            Ok(jpeg) => frames.push(FrameRow {
                time_us,
                bytes: jpeg.bytes.into(),
                width: pixels(jpeg.width),
                height: pixels(jpeg.height),
            }),
            Err(error) => return Outcome::refused(item, error),
        }
    }
    let damage = match (&fault, reader.damage()) {
        (Some(error), _) => Some(error.to_string()),
        (None, damage) => damage.map(|damage| damage.to_string()),
    };
    if frames.is_empty() {
        return match fault {
            Some(error) => Outcome::refused(item, error),
            None => {
                let reason = damage.map_or_else(
                    || "no frame in range".to_owned(),
                    |damage| format!("no frame: {damage}"),
                );
                Ok(Outcome::skip(item, "no frames", reason))
            }
        };
    }
    let damage = damage.map(|damage| format!("{damage}; kept {} frames", frames.len()));
    Ok(Outcome::Clip {
        row: ClipRow {
            clip: item.key.to_string(),
            label: item.label,
            frames,
        },
        damage,
    })
}

/// The format of a file that holds a still picture, which the video library would take for a clip of one frame. A GIF
/// may well be a clip.
fn still_picture(file: &File) -> std::io::Result<Option<ImageFormat>> {
    let mut head = Vec::new();
    file.take(16).read_to_end(&mut head)?;
    Ok(ImageFormat::guess(&head).filter(|&format| format != ImageFormat::Gif))
}
