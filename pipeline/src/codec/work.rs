//! What decoding a picture may take: a file of a few bytes can claim any size.

use std::sync::OnceLock;

use super::CodecError;

/// Pictures of more pixels than this are refused before anything is allocated for them (805 MB as RGB), unless
/// [`MAX_PIXELS_VARIABLE`] says otherwise.
///
/// Pillow refuses from 179 million pixels on; this is the next power of two, so nothing that it reads is lost.
pub const MAX_PIXELS: u64 = 1 << 28;

/// The variable of the environment that replaces all limits of a picture's size by a number of pixels.
pub const MAX_PIXELS_VARIABLE: &str = "PAIRQUET_MAX_PIXELS";

/// Decoding may take this much memory however short the file is: 67 million pixels of RGB.
const FREE_BYTES: u64 = 192 << 20;

/// And for each of its bytes this many more: pictures with less than half a bit a pixel are drawings, or bombs.
const BYTES_PER_BYTE: u64 = 48;

/// A progressive JPEG goes over its pixels once a scan; over more than this in all only for [`FEW_SCANS`].
const SCANNED_PIXELS: u64 = 1 << 31;

/// Scans that any JPEG may have. Encoders write about ten.
const FEW_SCANS: u64 = 64;

/// Scans that no JPEG may exceed: a hostile file of a few kilobytes can ask for hours of work with thousands.
pub(super) const MAX_SCANS: u64 = 500;

/// What a picture is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    max_pixels: u64,
    /// `None` where the environment decides.
    max_bytes: Option<u64>,
    n_bytes: u64,
}

impl Grant {
    /// For a file of so many bytes.
    pub(super) fn of(n_bytes: usize) -> Self {
        Self::with(n_bytes, said())
    }

    fn with(n_bytes: usize, said: Option<u64>) -> Self {
        let n_bytes = n_bytes as u64;
        Grant {
            max_pixels: said.unwrap_or(MAX_PIXELS),
            max_bytes: match said {
                Some(_) => None,
                None => Some(FREE_BYTES.saturating_add(BYTES_PER_BYTE.saturating_mul(n_bytes))),
            },
            n_bytes,
        }
    }

    /// Whether a picture may be decoded that takes `pixel_bytes` of memory for each pixel.
    pub(super) fn check(
        &self,
        width: u32,
        height: u32,
        pixel_bytes: u64,
    ) -> Result<(), CodecError> {
        let (width, height) = (u64::from(width), u64::from(height));
        let n_pixels = width * height;
        if n_pixels > self.max_pixels {
            return Err(CodecError::TooLarge {
                width,
                height,
                limit: self.max_pixels,
            });
        }
        let needed_bytes = n_pixels.saturating_mul(pixel_bytes);
        match self.max_bytes {
            Some(limit_bytes) if needed_bytes > limit_bytes => Err(CodecError::Bomb {
                n_bytes: self.n_bytes,
                width,
                height,
                needed_bytes,
                limit_bytes,
            }),
            _ => Ok(()),
        }
    }

    /// Most memory that a decoder may take: where the environment decides, enough for its pixels at 16-bit RGBA, for as much
    /// again that is being worked on, and for half of both.
    pub(super) fn memory_bytes(&self) -> u64 {
        let all = self.max_pixels.saturating_mul(32);
        self.max_bytes.unwrap_or(all)
    }
}

/// Scans that a JPEG of this size may have.
pub(super) fn max_scans(width: u32, height: u32) -> u64 {
    let n_pixels = (u64::from(width) * u64::from(height)).max(1);
    (SCANNED_PIXELS / n_pixels).clamp(FEW_SCANS, MAX_SCANS)
}

/// What the environment says; what is no number says nothing.
fn said() -> Option<u64> {
    static SAID: OnceLock<Option<u64>> = OnceLock::new();
    *SAID.get_or_init(|| std::env::var(MAX_PIXELS_VARIABLE).ok()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_files_get_little_and_long_ones_more() {
        let check = |n_bytes, width, height| Grant::with(n_bytes, None).check(width, height, 3);
        assert!(check(100, 8192, 8192).is_ok());
        let message = check(100, 8192, 8193).unwrap_err().to_string();
        for part in [
            "for its 100 bytes",
            "8192 x 8193",
            "the limit is 201331392",
            "PAIRQUET_MAX_PIXELS=67117056",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(check(20 << 20, 16384, 16384).is_ok());
        let beyond = check(usize::MAX, 16384, 16385);
        assert!(matches!(beyond, Err(CodecError::TooLarge { .. })));
        assert!(check(usize::MAX, u32::MAX, u32::MAX).is_err());
    }

    #[test]
    fn the_environment_takes_the_place_of_both_limits() {
        let grant = Grant::with(100, Some(1 << 30));
        assert!(grant.check(32768, 32768, 8).is_ok());
        assert!(grant.check(32768, 32769, 1).is_err());
        assert!(Grant::with(100, Some(10)).check(11, 1, 1).is_err());
        assert_eq!(grant.memory_bytes(), 32 << 30);
    }

    #[test]
    fn large_pictures_have_fewer_scans() {
        assert_eq!([max_scans(500, 500), max_scans(8192, 8192)], [500, 64]);
        assert_eq!(max_scans(4096, 2048), 256);
    }
}
