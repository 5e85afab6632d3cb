//! Made pictures, clips and masks with known answers, for the demo and the tests: textured shapes moving over textured
//! grounds.
//!
//! Reading order: [`SynthOptions`] (what to make) and the three writers here, [`Scene`] (what moves where, and its
//! pixels), `shape` and `texture` (what it looks like), `number` (the frame number in the pixels), `davis` (the folder
//! layout and palette masks of DAVIS).
//!
//! Everything is a function of the options. Only additions and multiplications make the pixels, so that no library's sine
//! can change them.

mod davis;
mod number;
mod scene;
mod shape;
mod texture;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use davis::DAVIS_PALETTE;
pub use number::{MAX_FRAME_NUMBER, frame_number};
pub use scene::{Scene, SynthFrame, SynthKind};

use crate::codec::{Rgb8Image, encode_rgb8, write_video};
use crate::error::{Error, Result};

/// Quality of the JPEG files.
const JPEG_QUALITY: u8 = 92;
/// Frames a second of the clips.
const FPS: u32 = 25;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SynthOptions {
    /// The same seed gives the same files.
    pub seed: u64,
    /// Classes, told apart by shape and texture: 1 to [`MAX_CLASSES`].
    pub n_classes: u32,
    /// Pictures of each class.
    pub images_per_class: u32,
    /// Clips of each class; sequences with masks too.
    pub clips_per_class: u32,
    /// Frames of a clip or sequence: 1 to [`MAX_FRAME_NUMBER`].
    pub frames: u32,
    /// Short side in pixels: even, 64 to 2048.
    pub size: u32,
    /// Standard deviation in levels of the grain that each value of each frame has of its own, 0 to 255. What a patch shows
    /// by itself says the less the more there is.
    pub grain: u32,
}

/// Most classes there are names for.
pub const MAX_CLASSES: u32 = shape::Shape::ALL.len() as u32 * texture::Texture::ALL.len() as u32;

impl Default for SynthOptions {
    fn default() -> SynthOptions {
        SynthOptions {
            seed: 0,
            n_classes: 6,
            images_per_class: 20,
            clips_per_class: 4,
            frames: 60,
            size: 128,
            grain: 0,
        }
    }
}

impl SynthOptions {
    /// Checks the ranges that the fields' documentation gives.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let check = |name, value: u32, ok: bool, expected: String| match ok {
            true => Ok(()),
            false => Err(Error::Invalid {
                name,
                value: value.to_string(),
                expected,
            }),
        };
        let n = self.n_classes;
        check(
            "synth.n_classes",
            n,
            (1..=MAX_CLASSES).contains(&n),
            format!("1 to {MAX_CLASSES}"),
        )?;
        let n = self.frames;
        check(
            "synth.frames",
            n,
            (1..=MAX_FRAME_NUMBER).contains(&n),
            format!("1 to {MAX_FRAME_NUMBER}"),
        )?;
        let n = self.size;
        check(
            "synth.size",
            n,
            (64..=2048).contains(&n) && n.is_multiple_of(2),
            "an even number, 64 to 2048".to_owned(),
        )?;
        let n = self.grain;
        check("synth.grain", n, n <= 255, "0 to 255".to_owned())
    }

    /// Name of a class, also its folder's, such as `ring_checked`. Sorted names do not follow the numbers.
    pub fn class_name(&self, class: u32) -> String {
        let (shape, texture) = scene::looks(class);
        format!("{}_{}", shape.name(), texture.name())
    }
}

/// Writes `DIR/CLASS/CLASS_00000.JPEG` and so on; the number in the pixels is the picture's.
///
/// Returns how many files there are.
///
/// # Errors
/// [`Error::Invalid`] options, [`Error::Io`].
pub fn write_images(dir: &Path, options: &SynthOptions) -> Result<u32> {
    options.validate()?;
    for (class, index) in pairs(options.n_classes, options.images_per_class) {
        let name = options.class_name(class);
        let folder = make_dir(dir.join(&name))?;
        let image = Scene::new(options, SynthKind::Image, class, index)
            .render(index)
            .image;
        write_jpeg(&folder.join(format!("{name}_{index:05}.JPEG")), &image)?;
    }
    Ok(options.n_classes * options.images_per_class)
}

/// Writes `DIR/CLASS/CLASS_000.mp4` and so on; the number in the pixels is the frame's.
///
/// Returns how many files there are.
///
/// # Errors
/// [`Error::Invalid`] options, [`Error::Io`], [`Error::Codec`] if the video library cannot write.
pub fn write_clips(dir: &Path, options: &SynthOptions) -> Result<u32> {
    options.validate()?;
    for (class, index) in pairs(options.n_classes, options.clips_per_class) {
        let name = options.class_name(class);
        let path = make_dir(dir.join(&name))?.join(format!("{name}_{index:03}.mp4"));
        let scene = Scene::new(options, SynthKind::Clip, class, index);
        let frames = (0..options.frames).map(|frame| scene.render(frame).image);
        write_video(&path, FPS, frames).map_err(Error::codec(path.display().to_string()))?;
    }
    Ok(options.n_classes * options.clips_per_class)
}

/// Writes sequences in the layout of DAVIS 2017: `DIR/JPEGImages/480p/NAME/00000.jpg`,
/// `DIR/Annotations/480p/NAME/00000.png` (palette masks: 0 ground, 1 and 2 the objects) and the list
/// `DIR/ImageSets/2017/val.txt`. Two objects a sequence, the first in front of the second.
///
/// Returns how many sequences there are.
///
/// # Errors
/// [`Error::Invalid`] options, [`Error::Io`].
pub fn write_sequences(dir: &Path, options: &SynthOptions) -> Result<u32> {
    options.validate()?;
    let mut list = String::new();
    for (class, index) in pairs(options.n_classes, options.clips_per_class) {
        let name = format!("{}_{index:03}", options.class_name(class));
        let frames_dir = make_dir(dir.join("JPEGImages/480p").join(&name))?;
        let masks_dir = make_dir(dir.join("Annotations/480p").join(&name))?;
        let scene = Scene::new(options, SynthKind::Sequence, class, index);
        for frame in 0..options.frames {
            let SynthFrame { image, mask } = scene.render(frame);
            write_jpeg(&frames_dir.join(format!("{frame:05}.jpg")), &image)?;
            let png = davis::palette_png(&mask, image.width, image.height)?;
            write_file(&masks_dir.join(format!("{frame:05}.png")), &png)?;
        }
        list.push_str(&name);
        list.push('\n');
    }
    write_file(
        &make_dir(dir.join("ImageSets/2017"))?.join("val.txt"),
        list.as_bytes(),
    )?;
    Ok(options.n_classes * options.clips_per_class)
}

fn pairs(n_classes: u32, n_each: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..n_classes).flat_map(move |class| (0..n_each).map(move |index| (class, index)))
}

fn make_dir(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).map_err(Error::io("making the folder", &path))?;
    Ok(path)
}

fn write_jpeg(path: &Path, image: &Rgb8Image) -> Result<()> {
    let bytes =
        encode_rgb8(image, JPEG_QUALITY).map_err(Error::codec(path.display().to_string()))?;
    write_file(path, &bytes)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(Error::io("writing", path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::codec::{VideoReader, decode_rgb8};

    fn options() -> SynthOptions {
        SynthOptions {
            seed: 1,
            n_classes: 2,
            images_per_class: 2,
            clips_per_class: 1,
            frames: 15,
            size: 64,
            grain: 0,
        }
    }

    fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in walkdir::WalkDir::new(dir) {
            let entry = entry.unwrap();
            if entry.file_type().is_file() {
                found.insert(
                    entry.path().strip_prefix(dir).unwrap().to_owned(),
                    fs::read(entry.path()).unwrap(),
                );
            }
        }
        found
    }

    #[test]
    fn files_are_numbered_and_repeatable() {
        let (dir, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [dir.path(), again.path()] {
            assert_eq!(write_images(&dir.join("images"), &options()).unwrap(), 4);
            assert_eq!(write_clips(&dir.join("clips"), &options()).unwrap(), 2);
            assert_eq!(
                write_sequences(&dir.join("sequences"), &options()).unwrap(),
                2
            );
        }
        let found = files(dir.path());
        let other = files(again.path());
        let differing: Vec<_> = found
            .iter()
            .filter(|(path, bytes)| other.get(*path) != Some(bytes))
            .map(|(path, bytes)| {
                let at = other
                    .get(path)
                    .and_then(|other| bytes.iter().zip(other).position(|(one, two)| one != two));
                (path, at)
            })
            .collect();
        assert!(
            differing.is_empty(),
            "made twice, and not the same: {differing:?}"
        );
        assert_eq!(found.len(), 4 + 2 + 2 * 2 * 15 + 1);
        assert_eq!(
            found[Path::new("sequences/ImageSets/2017/val.txt")],
            b"disc_striped_000\nsquare_checked_000\n"
        );

        for (path, bytes) in found
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "JPEG" || e == "jpg"))
        {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let number: u32 = stem[stem.len() - 5..].parse().unwrap();
            assert_eq!(
                frame_number(&decode_rgb8(bytes).unwrap()),
                Some(number),
                "{}",
                path.display()
            );
        }
        for path in found
            .keys()
            .filter(|path| path.extension().is_some_and(|e| e == "mp4"))
        {
            let reader = VideoReader::open(&dir.path().join(path)).unwrap();
            let numbers: Vec<Option<u32>> = reader
                .map(|frame| frame_number(&frame.unwrap().image))
                .collect();
            assert_eq!(
                numbers,
                (0..15).map(Some).collect::<Vec<_>>(),
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn impossible_options_are_named() {
        for (options, name) in [
            (
                SynthOptions {
                    n_classes: 0,
                    ..options()
                },
                "synth.n_classes",
            ),
            (
                SynthOptions {
                    n_classes: MAX_CLASSES + 1,
                    ..options()
                },
                "synth.n_classes",
            ),
            (
                SynthOptions {
                    frames: 0,
                    ..options()
                },
                "synth.frames",
            ),
            (
                SynthOptions {
                    frames: 5000,
                    ..options()
                },
                "synth.frames",
            ),
            (
                SynthOptions {
                    size: 65,
                    ..options()
                },
                "synth.size",
            ),
            (
                SynthOptions {
                    grain: 256,
                    ..options()
                },
                "synth.grain",
            ),
            (
                SynthOptions {
                    size: 32,
                    ..options()
                },
                "synth.size",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let error = write_images(dir.path(), &options).unwrap_err();
            assert!(
                matches!(error, Error::Invalid { name: found, .. } if found == name),
                "{error}"
            );
        }
    }
}
