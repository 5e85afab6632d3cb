//! Clips: the one room that links a video library (FFmpeg).
//!
//! Reading order: [`VideoReader`] (frames out), `rgb` (a decoded frame to upright RGB), [`write_video`] (frames in), `ffi`
//! (the calls that have no safe wrapper).
//!
//! What a frame is, measured against the frames that PyAV gives:
//!
//! - The best video stream as FFmpeg ranks them, in presentation order, every frame that really decodes. What the header
//!   says about their number plays no part. Edit lists are followed: what a player would not show is not there.
//! - Colours by the matrix of the frame's tag, BT.601 if it has none, and by its range tag; swscale's default chroma
//!   interpolation.
//! - Turned upright by the container's rotation tag. Pixel aspect ratio and interlacing are left alone.
//! - One thread a reader: conversion runs many readers at once, and one thread cannot change the result.

mod ffi;
mod read;
mod rgb;
mod write;

pub use read::{VideoInfo, VideoReader};
pub use write::write_video;

/// The libraries that decide what a clip's frames are: their versions, as `libavcodec 59.37.100, ...`.
pub fn library_versions() -> String {
    let named = |name, version: u32| {
        let [_, major, minor, micro] = version.to_be_bytes();
        format!("{name} {major}.{minor}.{micro}")
    };
    [
        named("libavformat", ffmpeg_next::format::version()),
        named("libavcodec", ffmpeg_next::codec::version()),
        named("libswscale", ffmpeg_next::software::scaling::version()),
    ]
    .join(", ")
}

use super::Rgb8Image;

/// A frame of a clip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When it is shown, in microseconds of the clip's own clock, which need not start at 0.
    pub time_us: i64,
    /// The picture, upright.
    pub image: Rgb8Image,
}

/// What a reader refuses, so that no single file can take a conversion down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoLimits {
    /// Most frames of a clip: default 200 000, about two hours at 30 a second. Kinetics clips have about 300.
    pub max_frames: u64,
    /// Most pixels of a frame: default 2^26, twice an 8K picture.
    pub max_pixels: u64,
}

impl Default for VideoLimits {
    fn default() -> VideoLimits {
        VideoLimits {
            max_frames: 200_000,
            max_pixels: 1 << 26,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::PathBuf;

    use super::*;
    use crate::codec::CodecError;

    /// A grey that says which frame it is, with a bright left half and a red top.
    fn frame(number: u32) -> Rgb8Image {
        let mut image = Rgb8Image::new(48, 32);
        for (i, pixel) in image.data.chunks_exact_mut(3).enumerate() {
            let grey = 40 + 3 * number as u8 + if i % 48 < 24 { 60 } else { 0 };
            pixel.copy_from_slice(&if i / 48 < 8 { [220, 30, 30] } else { [grey; 3] });
        }
        image
    }

    fn clip(dir: &tempfile::TempDir, name: impl AsRef<std::path::Path>, n_frames: u32) -> PathBuf {
        let plain = dir.path().join("plain.mp4");
        let frames: Vec<Rgb8Image> = (0..n_frames).map(frame).collect();
        write_video(&plain, 25, &frames).unwrap();
        let path = dir.path().join(name);
        std::fs::rename(plain, &path).unwrap();
        path
    }

    fn assert_is_frame(found: &Frame, number: u32) {
        assert_eq!(found.time_us, i64::from(number) * 40_000);
        for (x, y) in [(10, 20), (40, 20), (10, 2), (40, 28)] {
            let (a, b) = (found.image.pixel(x, y), frame(number).pixel(x, y));
            assert!(
                a.iter().zip(b).all(|(a, b)| a.abs_diff(b) <= 6),
                "frame {number} at {x}, {y}: {a:?} for {b:?}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = clip(&dir, "a.mp4", 30);
        let mut reader = VideoReader::open(&path).unwrap();
        assert_eq!(
            (reader.info().width, reader.info().height, reader.info().fps),
            (48, 32, Some(25.0))
        );
        let frames: Vec<Frame> = reader.by_ref().collect::<Result<_, _>>().unwrap();
        assert_eq!(
            (frames.len(), reader.n_frames(), reader.damage()),
            (30, 30, None)
        );
        frames
            .iter()
            .zip(0..)
            .for_each(|(found, number)| assert_is_frame(found, number));
        assert!(reader.next().is_none());
        let again = clip(&dir, "b.mp4", 30);
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(again).unwrap());
    }

    #[test]
    fn strides_pass_over_frames() {
        let dir = tempfile::tempdir().unwrap();
        let path = clip(&dir, "a.mp4", 14);
        let found: Vec<Frame> = VideoReader::open(&path)
            .unwrap()
            .step_by(4)
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(found.len(), 4);
        found
            .iter()
            .zip([0, 4, 8, 12])
            .for_each(|(found, number)| assert_is_frame(found, number));
        assert!(VideoReader::open(&path).unwrap().nth(14).is_none());
    }

    #[test]
    fn limits_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = clip(&dir, "a.mp4", 5);
        let few = VideoLimits {
            max_frames: 3,
            ..VideoLimits::default()
        };
        let found: Vec<_> = VideoReader::open_with(&path, few).unwrap().collect();
        assert_eq!(found.len(), 4);
        assert_eq!(found[3], Err(CodecError::TooManyFrames { limit: 3 }));
        let small = VideoLimits {
            max_pixels: 48 * 32 - 1,
            ..VideoLimits::default()
        };
        let refused = VideoReader::open_with(&path, small).err().unwrap();
        assert!(
            matches!(
                refused,
                CodecError::TooLarge {
                    width: 48,
                    height: 32,
                    ..
                }
            ),
            "{refused}"
        );
    }

    #[test]
    fn any_file_name_is_only_a_name() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            OsStr::new("http:a.mp4"),
            OsStr::new("concat:b|c"),
            OsStr::from_bytes(b"caf\xe9 %20.mp4"),
        ] {
            let path = clip(&dir, name, 3);
            assert_eq!(VideoReader::open(&path).unwrap().count(), 3, "{name:?}");
        }
    }

    #[test]
    fn files_that_are_no_clips_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.mp4");
        let open = |path: &std::path::Path| VideoReader::open(path).err().unwrap();
        assert!(matches!(open(&path), CodecError::Io { .. }));
        assert!(matches!(open(dir.path()), CodecError::Io { .. }));
        std::fs::write(&path, b"").unwrap();
        assert_eq!(open(&path), CodecError::Empty);
        std::fs::write(&path, "not a video, only words\n".repeat(50)).unwrap();
        let error = open(&path).to_string();
        assert!(
            error.contains("not a video,") && error.contains("Invalid data"),
            "{error}"
        );
        // A playlist must not lead the reader elsewhere.
        let list = format!(
            "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
            clip(&dir, "a.ts", 3).display()
        );
        std::fs::write(&path, list).unwrap();
        let _ = VideoReader::open(&path).map(Iterator::count);
    }

    #[test]
    fn damage_never_panics() {
        let dir = tempfile::tempdir().unwrap();
        let sound = std::fs::read(clip(&dir, "a.mp4", 30)).unwrap();
        let path = dir.path().join("broken.mp4");
        for step in 0..40 {
            let mut bytes = sound.clone();
            let at = bytes.len() * step / 40;
            if step % 3 == 0 {
                bytes.truncate(at);
            } else {
                let end = (at + 9).min(bytes.len());
                bytes[at..end].fill(if step % 3 == 1 { 0xff } else { 0x00 });
            }
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(reader) = VideoReader::open(&path) {
                assert!(reader.filter(Result::is_ok).count() <= 60);
            }
        }
    }

    #[test]
    fn impossible_clips_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.mp4");
        let (even, odd) = (Rgb8Image::new(32, 16), Rgb8Image::new(32, 15));
        let lying = Rgb8Image {
            width: 32,
            height: 16,
            data: vec![0; 5],
        };
        for (fps, frames) in [
            (25, vec![]),
            (25, vec![&odd]),
            (0, vec![&even]),
            (25, vec![&even, &odd]),
            (25, vec![&even, &lying]),
        ] {
            assert!(matches!(
                write_video(&path, fps, frames),
                Err(CodecError::Encode { .. })
            ));
        }
        for name in ["no/such/folder.mp4", "a\0b.mp4"] {
            assert!(write_video(&dir.path().join(name), 25, [&even]).is_err());
        }
    }

    #[test]
    fn readers_move_between_threads() {
        fn check<T: Send>() {}
        check::<VideoReader>();
    }
}
