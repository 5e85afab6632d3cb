//! One clip: looked at, its frames read here or by a worker, and kept.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use shards::{ClipRow, FrameRow};

use super::clip_frames::{Ending, Step, read_frames};
use super::error::{Error, Result};
use super::image_item::{skip_unread, skip_unreadable};
use super::options::KineticsOptions;
use super::outcome::{Outcome, Scratch};
use super::source::{Item, Listing};
use crate::codec::{CodecError, ImageFormat};
use crate::stop::Stop;

/// Converts one clip: see [`read_frames`] for which frames it gets.
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
    let (frames, ending) = match &options.containment {
        Some(containment) => scratch
            .host
            .read_frames(containment, &path, options, stop)?,
        None => read_frames_here(&path, options, scratch, stop)?,
    };
    match ending {
        Ending::Kept { damage } => Ok(Outcome::Clip {
            row: ClipRow {
                clip: item.key.to_string(),
                label: item.label,
                frames,
            },
            damage,
        }),
        Ending::Refused { fault, reason } => Ok(Outcome::skip(item, &fault, reason)),
        Ending::OutOfMemory => {
            Outcome::refused(item, CodecError::OutOfMemory { library: "FFmpeg" })
        }
        Ending::Failed { reason } => Err(Error::Internal(format!("{}: {reason}", item.key))),
    }
}

fn read_frames_here(
    path: &Path,
    options: &KineticsOptions,
    scratch: &mut Scratch,
    stop: &Stop,
) -> Result<(Vec<FrameRow>, Ending)> {
    let mut frames = Vec::new();
    let ending = read_frames(path, options, scratch, &mut |step| {
        if stop.is_requested() {
            return Err(Error::Stopped {
                done: 0,
                planned: 0,
            });
        }
        if let Step::Frame(frame) = step {
            frames.push(frame);
        }
        Ok(())
    })?;
    Ok((frames, ending))
}

/// The format of a file that holds a still picture, which the video library would take for a clip of one frame. A GIF
/// may well be a clip.
fn still_picture(file: &File) -> std::io::Result<Option<ImageFormat>> {
    let mut head = Vec::new();
    file.take(16).read_to_end(&mut head)?;
    Ok(ImageFormat::guess(&head).filter(|&format| format != ImageFormat::Gif))
}
