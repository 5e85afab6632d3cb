//! Bytes of pictures and clips to 8-bit RGB, and back.
//!
//! Still pictures decode as Pillow's `Image.open(f).convert("RGB")` does, because that is what published results were
//! computed with: EXIF orientation and colour profiles are ignored, alpha is dropped and not blended, CMYK is converted
//! by plain arithmetic, 16-bit grey is clipped. Where Pillow raises, so do we.
//!
//! Reading order: [`jpeg`], [`still`] (every other picture format), [`part`] (only what is needed of a picture), `turbo`
//! (the safe wrapper of libjpeg-turbo), `work` (what a picture of so many bytes may ask for), [`video`].

pub mod jpeg;
pub mod part;
pub mod still;
mod turbo;
pub mod video;
mod work;

pub use jpeg::{Chroma, JpegDecoder, OpenJpeg, encode_jpeg, encode_rgb8};
pub use part::{CropBox, OpenPicture, PartDecoder, PicturePart};
pub use video::{Frame, VideoLimits, VideoReader, write_video};

pub use work::{MAX_PIXELS, MAX_PIXELS_VARIABLE};

/// A picture in memory: 8-bit RGB, rows from the top, no padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rgb8Image {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `[height, width, 3]`, so `len == width * height * 3`.
    pub data: Vec<u8>,
}

impl Rgb8Image {
    /// A black picture.
    pub fn new(width: u32, height: u32) -> Rgb8Image {
        Rgb8Image {
            width,
            height,
            data: vec![0; width as usize * height as usize * 3],
        }
    }

    /// Colour of the pixel in column `x` of row `y`; black outside of the picture.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let at = (y as usize * self.width as usize + x as usize) * 3;
        match self.data.get(at..at + 3) {
            Some(&[r, g, b]) if x < self.width => [r, g, b],
            _ => [0; 3],
        }
    }
}

/// Container formats of still pictures, told apart by their first bytes; file names play no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// JPEG, baseline or progressive; grey, YCbCr, RGB, CMYK or YCCK.
    Jpeg,
    /// PNG.
    Png,
    /// GIF; the first frame counts.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// WebP, lossy or lossless; the first frame counts.
    WebP,
    /// TIFF; the first page counts.
    Tiff,
}

impl ImageFormat {
    /// The format whose signature `bytes` start with.
    pub fn guess(bytes: &[u8]) -> Option<ImageFormat> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(ImageFormat::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(ImageFormat::Png),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageFormat::Gif),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(ImageFormat::WebP),
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some(ImageFormat::Tiff),
            [b'B', b'M', ..] => Some(ImageFormat::Bmp),
            _ => None,
        }
    }
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ImageFormat::Jpeg => "JPEG",
            ImageFormat::Png => "PNG",
            ImageFormat::Gif => "GIF",
            ImageFormat::Bmp => "BMP",
            ImageFormat::WebP => "WebP",
            ImageFormat::Tiff => "TIFF",
        })
    }
}

/// What the header of a picture says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Container format.
    pub format: ImageFormat,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Why a picture or a clip does not decode or encode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Zero bytes.
    #[error("empty: 0 bytes")]
    Empty,
    /// The first bytes are nobody's signature.
    #[error("not a picture: starts with {start:?}, expected JPEG, PNG, GIF, BMP, WebP or TIFF")]
    UnknownFormat {
        /// The first bytes, unprintable ones escaped.
        start: String,
    },
    /// The data ends before the picture does.
    #[error("truncated {format}: {reason}")]
    Truncated {
        /// Format of the data.
        format: String,
        /// Where the decoder ran dry.
        reason: String,
    },
    /// The data contradicts itself or its format.
    #[error("corrupt {format}: {reason}")]
    Corrupt {
        /// Format of the data.
        format: String,
        /// What the decoder said.
        reason: String,
    },
    /// A valid file of a kind that is not read.
    #[error("unsupported {format}: {reason}")]
    Unsupported {
        /// Format of the data.
        format: String,
        /// What is missing.
        reason: String,
    },
    /// More pixels than the limit.
    #[error("too large: {width} x {height} pixels, the limit is {limit} in all")]
    TooLarge {
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
        /// Most pixels that are accepted.
        limit: u64,
    },
    /// A picture that would take far more memory than its file has bytes: most likely a bomb.
    #[error(
        "too large for its {n_bytes} bytes: {width} x {height} pixels take {needed_bytes} bytes to decode, the limit is \
         {limit_bytes}; {MAX_PIXELS_VARIABLE}={} in the environment raises it",
        width.saturating_mul(*height)
    )]
    Bomb {
        /// Bytes of the file.
        n_bytes: u64,
        /// Columns.
        width: u64,
        /// Rows.
        height: u64,
        /// Bytes of memory that decoding takes.
        needed_bytes: u64,
        /// Most that are granted to a file of so many bytes.
        limit_bytes: u64,
    },
    /// A picture that cannot be encoded.
    #[error("cannot encode {width} x {height} as {format}: {reason}")]
    Encode {
        /// Format that was asked for.
        format: &'static str,
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Why not.
        reason: String,
    },
    /// A file that FFmpeg cannot open as a clip.
    #[error("not a readable video: {reason}")]
    NotAVideo {
        /// What was found instead.
        reason: String,
    },
    /// A container with sound or subtitles only.
    #[error("no video stream in a {container} file")]
    NoVideoStream {
        /// FFmpeg's name of the container.
        container: String,
    },
    /// A clip over the limit.
    #[error("too long: more than {limit} frames")]
    TooManyFrames {
        /// Most frames that are accepted.
        limit: u64,
    },
    /// The file system refused.
    #[error("cannot be read: {reason}")]
    Io {
        /// The system's reason.
        reason: String,
    },
    /// The library wanted more memory than there is, or than it may have: data can ask for any amount.
    #[error("{library} found no memory for it")]
    OutOfMemory {
        /// Which library.
        library: &'static str,
    },
    /// The library failed for a reason that is not the data's fault.
    #[error("{library}: {reason}")]
    Library {
        /// Which library.
        library: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Decodes a picture of any format in [`ImageFormat`], as Pillow's `Image.open(f).convert("RGB")`.
///
/// # Errors
/// Empty, foreign, truncated, corrupt, unsupported or too large input; see [`CodecError`].
pub fn decode_rgb8(bytes: &[u8]) -> Result<Rgb8Image, CodecError> {
    match format_of(bytes)? {
        ImageFormat::Jpeg => JpegDecoder::new().decode(bytes),
        format => still::decode(bytes, format),
    }
}

/// Reads format and size from the header, without decoding.
///
/// # Errors
/// As [`decode_rgb8`], as far as the header shows it.
pub fn probe(bytes: &[u8]) -> Result<ImageInfo, CodecError> {
    let format = format_of(bytes)?;
    let (width, height) = match format {
        ImageFormat::Jpeg => jpeg::size(bytes)?,
        _ => still::size(bytes, format)?,
    };
    Ok(ImageInfo {
        format,
        width,
        height,
    })
}

fn format_of(bytes: &[u8]) -> Result<ImageFormat, CodecError> {
    if bytes.is_empty() {
        return Err(CodecError::Empty);
    }
    ImageFormat::guess(bytes).ok_or_else(|| CodecError::UnknownFormat {
        start: bytes[..bytes.len().min(12)].escape_ascii().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_bytes_are_named() {
        assert_eq!(decode_rgb8(b""), Err(CodecError::Empty));
        assert_eq!(probe(b""), Err(CodecError::Empty));
        let message = decode_rgb8(b"<html>\x00hello, world")
            .unwrap_err()
            .to_string();
        assert!(message.contains(r"<html>\\x00hello"), "{message}");
        for garbage in [
            &b"\xff"[..],
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"BM",
            b"II*\0",
            b"RIFF1234WEBP",
        ] {
            assert!(decode_rgb8(garbage).is_err(), "{garbage:?}");
            assert!(probe(garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn pixels_outside_are_black() {
        let image = Rgb8Image {
            width: 2,
            height: 1,
            data: vec![1, 2, 3, 4, 5, 6],
        };
        assert_eq!(
            [image.pixel(1, 0), image.pixel(2, 0), image.pixel(0, 1)],
            [[4, 5, 6], [0; 3], [0; 3]]
        );
    }
}
