//! The frames of one clip: decoded one by one, each made smaller and coded as JPEG at once.

use std::path::Path;

use serde::{Deserialize, Serialize};
use shards::{FrameRow, MAX_ROW_GROUP_BYTES};

use super::coding::Coding;
use super::error::{Error, Result};
use super::image_item::reduced;
use super::options::KineticsOptions;
use super::outcome::{Scratch, fault, pixels};
use crate::codec::CodecError;
use crate::codec::video::VideoReader;

/// What decoding came to with one more frame.
#[derive(Debug)]
pub(crate) enum Step {
    /// A frame that is wanted.
    Frame(FrameRow),
    /// One that is passed over.
    Passed,
}

/// How the reading of a clip ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    /// The frames given are those to keep; `damage` says what could not be used.
    Kept { damage: Option<String> },
    /// The clip is left out.
    Refused { fault: String, reason: String },
    /// The clip is left out: it wanted more memory than there is.
    OutOfMemory,
    /// The clip was not at fault.
    Failed { reason: String },
}

impl Ending {
    fn refused(error: CodecError) -> Self {
        match (&error, fault(&error)) {
            (CodecError::OutOfMemory { .. }, _) => Self::OutOfMemory,
            (_, Some(fault)) => Self::refused_as(fault, error.to_string()),
            (_, None) => Self::Failed {
                reason: error.to_string(),
            },
        }
    }

    fn refused_as(fault: &str, reason: String) -> Self {
        Self::Refused {
            fault: fault.to_owned(),
            reason,
        }
    }
}

/// Reads the frames of a clip and gives them to `each` in order. Frames are those that decode; what a container says
/// about their number plays no part.
///
/// A clip that is damaged in the middle keeps the frames that decode; one without any is left out.
///
/// # Errors
/// The first one of `each`.
pub(crate) fn read_frames(
    path: &Path,
    options: &KineticsOptions,
    scratch: &mut Scratch,
    each: &mut dyn FnMut(Step) -> Result<()>,
) -> Result<Ending> {
    let mut reader = match VideoReader::open(path) {
        Ok(reader) => reader,
        Err(error) => return Ok(Ending::refused(error)),
    };
    let coding = Coding::of(options.quality, options.min_psnr);
    let (mut n_kept, mut kept_bytes, mut stopped_by) = (0_u64, 0_u64, None);
    for number in 0.. {
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
            Err(error @ CodecError::OutOfMemory { .. }) => return Ok(Ending::refused(error)),
            Err(error) => {
                stopped_by = Some(error);
                break;
            }
        };
        if !is_wanted {
            each(Step::Passed)?;
            continue;
        }
        let short_side = options.short_side.unwrap_or(u32::MAX);
        let jpeg = match reduced(scratch, short_side, coding) {
            Ok(Ok(jpeg)) => jpeg,
            Ok(Err(error)) => return Ok(Ending::refused(error)),
            Err(error) => {
                let reason = match error {
                    Error::Internal(reason) => reason,
                    other => other.to_string(),
                };
                return Ok(Ending::Failed { reason });
            }
        };
        n_kept += 1;
        kept_bytes += jpeg.bytes.len() as u64;
        if kept_bytes > MAX_ROW_GROUP_BYTES {
            let reason = format!(
                "more than {MAX_ROW_GROUP_BYTES} bytes of frames, the most that a row group holds"
            );
            return Ok(Ending::refused_as("cannot be stored", reason));
        }
        each(Step::Frame(FrameRow {
            time_us,
            bytes: jpeg.bytes.into(),
            width: pixels(jpeg.width),
            height: pixels(jpeg.height),
        }))?;
    }
    let damage = match (&stopped_by, reader.damage()) {
        (Some(error), _) => Some(error.to_string()),
        (None, damage) => damage,
    };
    if n_kept == 0 {
        return Ok(match stopped_by {
            Some(error) => Ending::refused(error),
            None => {
                let reason = damage.map_or_else(
                    || "no frame in range".to_owned(),
                    |damage| format!("no frame: {damage}"),
                );
                Ending::refused_as("no frames", reason)
            }
        });
    }
    Ok(Ending::Kept {
        damage: damage.map(|damage| format!("{damage}; kept {n_kept} frames")),
    })
}
