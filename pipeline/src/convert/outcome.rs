//! What becomes of one item.

use shards::{ClipRow, ImageRow};

use super::contain::Host;
use super::error::Error;
use super::report::Skipped;
use super::source::Item;
use crate::codec::{CodecError, JpegDecoder, Rgb8Image};

/// What a thread uses again and again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub decoder: JpegDecoder,
    pub image: Rgb8Image,
    /// What a picture coded anew looks like.
    pub recoded: Rgb8Image,
    /// Whatever decodes the thread's clips, if that is not the thread itself.
    pub host: Host,
}

/// What becomes of one item.
#[derive(Debug)]
pub(crate) enum Outcome {
    Image(ImageRow),
    /// `damage` says what could not be used of the clip.
    Clip {
        row: ClipRow,
        damage: Option<String>,
    },
    Skip(Skipped),
}

impl Outcome {
    /// Bytes of the pictures.
    pub fn image_bytes(&self) -> u64 {
        match self {
            Self::Image(row) => row.bytes.len() as u64,
            Self::Clip { row, .. } => row
                .frames
                .iter()
                .map(|frame| frame.bytes.len() as u64)
                .sum(),
            Self::Skip(_) => 0,
        }
    }

    /// Whether something of the item is missing.
    pub fn is_less_than_whole(&self) -> bool {
        match self {
            Self::Image(_) => false,
            Self::Clip { damage, .. } => damage.is_some(),
            Self::Skip(_) => true,
        }
    }

    /// An item that is left out.
    pub fn skip(item: &Item, fault: &str, reason: String) -> Self {
        Self::Skip(Skipped {
            key: item.key.to_string(),
            fault: fault.to_owned(),
            reason,
        })
    }

    /// An item that a codec refuses.
    ///
    /// # Errors
    /// [`Error::Internal`] if it was not the item's fault: a machine without memory must not thin out a set.
    pub fn refused(item: &Item, error: CodecError) -> Result<Self, Error> {
        match fault(&error) {
            Some(fault) => Ok(Self::skip(item, fault, error.to_string())),
            None => Err(Error::Internal(format!("{}: {error}", item.key))),
        }
    }
}

/// The kind of fault in a word or two; `None` if it is not the data's.
pub(crate) fn fault(error: &CodecError) -> Option<&'static str> {
    match error {
        CodecError::Empty => Some("empty"),
        CodecError::UnknownFormat { .. } => Some("unknown format"),
        CodecError::Truncated { .. } => Some("truncated"),
        CodecError::Corrupt { .. } => Some("corrupt"),
        CodecError::Unsupported { .. } => Some("unsupported"),
        CodecError::TooLarge { .. } | CodecError::Bomb { .. } => Some("too large"),
        CodecError::Encode { .. } => Some("cannot be encoded"),
        CodecError::NotAVideo { .. } => Some("not a video"),
        CodecError::NoVideoStream { .. } => Some("no video stream"),
        CodecError::TooManyFrames { .. } => Some("too long"),
        CodecError::OutOfMemory { .. } => Some("out of memory"),
        CodecError::Io { .. } | CodecError::Library { .. } => None,
    }
}

/// Width or height as the row holds it. Codecs refuse pictures long before this could overflow.
pub(crate) fn pixels(side: u32) -> i32 {
    i32::try_from(side).unwrap_or(i32::MAX)
}
