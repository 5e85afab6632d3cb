//! Frames and label maps of an evaluation's data: read, sized and normalised as the reference's loaders do.
//!
//! Letters: H, W the network's input, p its patch, L labels.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use pipeline::codec::{Rgb8Image, decode_rgb8};
use pipeline::config::Interpolation;
use pipeline::views::{CropBox, CropResizer, RgbRef};
use serde::{Deserialize, Serialize};

use super::sampling::{Size, bilinear, resize_nearest};
use crate::device::{IMAGENET_MEAN, IMAGENET_STD};
use crate::error::{Error, Result};
use crate::files;

/// What the network's input is sized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputSize {
    /// This size, whatever the aspect.
    Exactly(Size),
    /// The longer side becomes this many pixels; the other one keeps the aspect, rounded down to a multiple of 64.
    LongSide(usize),
}

/// A one-number size rounds the shorter side down to a multiple of this.
const SIDE_STEP: usize = 64;

impl InputSize {
    /// The input for a frame of size `frame`.
    pub fn of(self, frame: Size) -> Size {
        match self {
            InputSize::Exactly(size) => size,
            InputSize::LongSide(long) => {
                let short =
                    |side: usize, longer: usize| side * long / longer / SIDE_STEP * SIDE_STEP;
                if frame.width > frame.height {
                    Size {
                        height: short(frame.height, frame.width),
                        width: long,
                    }
                } else {
                    Size {
                        height: long,
                        width: short(frame.width, frame.height),
                    }
                }
            }
        }
    }
}

/// How frames become the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameFilter {
    /// Bilinear without antialiasing, on floats: the reference's (`cv2.resize`).
    #[default]
    Sampled,
    /// Bilinear with antialiasing, on bytes, as training views are made.
    Antialiased,
}

/// How label maps become the first labels on the patch grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelFilter {
    /// Bilinear sample of each label's mask at the middle of a patch, four pixels at patches of 16: the reference's.
    #[default]
    Sampled,
    /// Share of the patch's pixels.
    Mean,
}

/// An 8-bit RGB frame.
#[derive(Debug, Clone)]
pub struct FramePicture(Rgb8Image);

impl FramePicture {
    /// Reads and decodes a JPEG, PNG or other picture.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Evaluation`] naming the file if it does not decode.
    pub fn read(path: &Path) -> Result<FramePicture> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let picture = decode_rgb8(&bytes).map_err(|error| Error::evaluation(path, error))?;
        Ok(FramePicture(picture))
    }

    /// Its size.
    pub fn size(&self) -> Size {
        Size {
            height: self.0.height as usize,
            width: self.0.width as usize,
        }
    }

    /// Normalised planes `[3, H, W]`.
    ///
    /// # Errors
    /// If the size is 0.
    ///
    /// Source: CropMAE, `downstreams/propagation/src/data/vos.py`: to [0, 1] first, then resized, then mean and deviation.
    pub fn planes(&self, input: Size, filter: FrameFilter) -> Result<Vec<f32>> {
        let to_unit = |bytes: &[u8]| -> Vec<f32> {
            let table: Vec<f32> = (0..=255u8).map(|value| f32::from(value) / 255.0).collect();
            bytes.iter().map(|&b| table[usize::from(b)]).collect()
        };
        let pixels = match filter {
            _ if self.size() == input => to_unit(&self.0.data),
            FrameFilter::Sampled => bilinear(&to_unit(&self.0.data), self.size(), 3, input),
            FrameFilter::Antialiased => {
                let whole = CropBox::whole(self.0.width, self.0.height);
                let mut resized = vec![0; input.area() * 3];
                CropResizer::new().resize_crop(
                    RgbRef::from(&self.0),
                    whole,
                    input.width as u32,
                    input.height as u32,
                    Interpolation::Bilinear,
                    &mut resized,
                )?;
                to_unit(&resized)
            }
        };
        let mut planes = vec![0f32; pixels.len()];
        for (channel, plane) in planes.chunks_exact_mut(input.area().max(1)).enumerate() {
            for (value, pixel) in plane.iter_mut().zip(pixels.as_chunks::<3>().0) {
                *value = (pixel[channel] - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel];
            }
        }
        Ok(planes)
    }
}

/// RGB colours of label indices.
pub type Palette = [[u8; 3]; 256];

/// DAVIS's palette: the bits of the first 22 indices spread over the colours, then greys.
///
/// Index 7 and index 128 are the same grey, so a file without a palette cannot hold index 128.
pub fn davis_palette() -> Palette {
    const COLOURS: usize = 22;
    let level = |low: usize, high: usize| match (low, high) {
        (0, 0) => 0,
        (1, 0) => 128,
        (0, _) => 64,
        _ => 191,
    };
    std::array::from_fn(|index| {
        let bit = |n: usize| index >> n & 1;
        match index {
            0..COLOURS => std::array::from_fn(|channel| level(bit(channel), bit(channel + 3))),
            grey => [grey as u8; 3],
        }
    })
}

/// Labels of every pixel.
#[derive(Debug, Clone)]
pub struct LabelMap {
    /// Its size.
    pub size: Size,
    /// `[height, width]`.
    pub labels: Vec<u8>,
    /// What its labels look like.
    pub palette: Box<Palette>,
}

impl LabelMap {
    /// Reads a PNG: of a palette or grey, whose values are the labels, or of colours, which must be DAVIS's.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Evaluation`] naming the file, and the colour that stands for no label.
    pub fn read(path: &Path) -> Result<LabelMap> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        LabelMap::decode(&bytes).map_err(|problem| Error::evaluation(path, problem))
    }

    fn decode(bytes: &[u8]) -> std::result::Result<LabelMap, String> {
        let unreadable = |error: png::DecodingError| format!("is no readable PNG: {error}");
        let mut reader = png::Decoder::new(Cursor::new(bytes))
            .read_info()
            .map_err(unreadable)?;
        let info = reader.info();
        let (color, depth) = (info.color_type, info.bit_depth);
        let mut palette = match color {
            png::ColorType::Grayscale => std::array::from_fn(|grey| [grey as u8; 3]),
            _ => davis_palette(),
        };
        if let Some(stored) = &info.palette {
            for (colour, stored) in palette.iter_mut().zip(stored.as_chunks::<3>().0) {
                *colour = *stored;
            }
        }
        let length = reader
            .output_buffer_size()
            .ok_or("is too large for this machine")?;
        let mut data = vec![0; length];
        let frame = reader.next_frame(&mut data).map_err(unreadable)?;
        let size = Size {
            height: frame.height as usize,
            width: frame.width as usize,
        };
        let row = |y: usize| &data[y * frame.line_size..][..frame.line_size];
        let labels = match (color, depth) {
            (png::ColorType::Indexed | png::ColorType::Grayscale, depth) if depth as usize <= 8 => {
                let bits = depth as usize;
                let label = |y: usize, x: usize| {
                    let at = x * bits;
                    row(y)[at / 8] >> (8 - bits - at % 8) & (0xff >> (8 - bits)) as u8
                };
                (0..size.area())
                    .map(|i| label(i / size.width, i % size.width))
                    .collect()
            }
            (png::ColorType::Rgb, png::BitDepth::Eight) => {
                let pixels = (0..size.height).flat_map(|y| row(y).as_chunks::<3>().0);
                by_colour(pixels, &palette)?
            }
            (color, depth) => {
                return Err(format!(
                    "is a PNG of {color:?} with {depth:?} bits, expected a palette, grey or 8-bit RGB"
                ));
            }
        };
        Ok(LabelMap {
            size,
            labels,
            palette: Box::new(palette),
        })
    }

    /// The same map at another size, nearest neighbours as OpenCV takes them.
    pub fn resized(&self, to: Size) -> Vec<u8> {
        resize_nearest(&self.labels, self.size, to)
    }

    /// The largest label, 255 (void) counting as background.
    pub fn largest(&self) -> u8 {
        self.labels
            .iter()
            .copied()
            .filter(|&label| label != VOID)
            .max()
            .unwrap_or(0)
    }
}

/// Pixels that belong to nothing.
pub const VOID: u8 = 255;

fn by_colour<'a>(
    pixels: impl Iterator<Item = &'a [u8; 3]>,
    palette: &Palette,
) -> std::result::Result<Vec<u8>, String> {
    let mut last = (palette[0], 0);
    pixels
        .map(|&colour| {
            if colour != last.0 {
                let index = palette
                    .iter()
                    .position(|&known| known == colour)
                    .ok_or_else(|| {
                        format!(
                            "has the colour {colour:?}, expected the colours of DAVIS's palette"
                        )
                    })?;
                last = (colour, index as u8);
            }
            Ok(last.1)
        })
        .collect()
}

/// Writes a label map as a palette PNG, in one go.
///
/// # Errors
/// [`Error::Png`], [`Error::Io`].
pub fn write_labels(path: &Path, labels: &[u8], size: Size, palette: &Palette) -> Result<()> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size.width as u32, size.height as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(palette.concat());
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(labels))
        .map_err(|source| Error::Png {
            path: path.to_owned(),
            source,
        })?;
    files::replace(path, &bytes)
}

/// Labels on the patch grid, `[rows, columns, L]`, from a map at the network's size.
///
/// * `set`: the labels that count, in the order of the channels.
/// * `grid`: the patch grid.
///
/// Source: CropMAE, `downstreams/propagation/src/data/vos.py`.
pub fn first_labels(
    map: &[u8],
    input: Size,
    set: &[u8],
    grid: Size,
    filter: LabelFilter,
) -> Vec<f32> {
    let one_hot: Vec<f32> = map
        .iter()
        .flat_map(|label| set.iter().map(move |of| f32::from(u8::from(label == of))))
        .collect();
    match filter {
        LabelFilter::Sampled => bilinear(&one_hot, input, set.len(), grid),
        LabelFilter::Mean => {
            let (down, across) = (input.height / grid.height, input.width / grid.width);
            let mut labels = vec![0f32; grid.area() * set.len()];
            for (pixel, values) in one_hot.chunks_exact(set.len()).enumerate() {
                let (y, x) = (pixel / input.width / down, pixel % input.width / across);
                let cell = &mut labels[(y * grid.width + x) * set.len()..][..set.len()];
                for (sum, value) in cell.iter_mut().zip(values) {
                    *sum += value / (down * across) as f32;
                }
            }
            labels
        }
    }
}

/// The label of each pixel at `to` of soft labels `[rows, columns, L]`: sampled, then the first of the largest.
///
/// Source: CropMAE, `downstreams/propagation/src/utils/test_utils.py`, `dump_predictions`.
pub fn hard_labels(soft: &[f32], grid: Size, set: &[u8], to: Size) -> Vec<u8> {
    bilinear(soft, grid, set.len(), to)
        .chunks_exact(set.len())
        .map(|values| set[first_largest(values)])
        .collect()
}

/// Index of the first of the largest values.
pub fn first_largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// Pictures of a folder with the number that each is called by, in the order of the numbers.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be listed; [`Error::Evaluation`] naming a picture that is not called by a number,
/// or that has the number of another one.
pub fn numbered_pictures(folder: &Path, extensions: &[&str]) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if !extensions.iter().any(|known| extension == *known) {
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let number = stem.parse().map_err(|_| {
            Error::evaluation(&path, "is not called by a number, expected one as in 00000")
        })?;
        found.push((number, path));
    }
    found.sort();
    for pair in found.windows(2) {
        if pair[0].0 == pair[1].0 {
            let problem = format!("has the number of {}", pair[0].1.display());
            return Err(Error::evaluation(&pair[1].1, problem));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(height: usize, width: usize) -> Size {
        Size { height, width }
    }

    #[test]
    fn one_number_sizes_are_floored_to_64() {
        let rule = InputSize::LongSide(880);
        assert_eq!(rule.of(size(1080, 1920)), size(448, 880));
        assert_eq!(rule.of(size(1920, 1080)), size(880, 448));
        assert_eq!(rule.of(size(500, 500)), size(880, 832));
        let exact = InputSize::Exactly(size(480, 880));
        assert_eq!(exact.of(size(1, 2)), size(480, 880));
    }

    #[test]
    fn the_palette_is_the_one_of_davis() {
        let palette = davis_palette();
        for (index, colour) in [
            (1, [128, 0, 0]),
            (6, [0, 128, 128]),
            (9, [191, 0, 0]),
            (15, [191, 128, 128]),
            (18, [0, 191, 0]),
            (21, [128, 64, 128]),
            (22, [22, 22, 22]),
            (255, [255; 3]),
        ] {
            assert_eq!(palette[index], colour, "{index}");
        }
    }

    #[test]
    fn label_maps_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let labels = [0, 1, 2, 3, 21, 255];
        write_labels(&path, &labels, size(2, 3), &davis_palette()).unwrap();
        let map = LabelMap::read(&path).unwrap();
        assert_eq!((map.size, &map.labels[..]), (size(2, 3), &labels[..]));
        assert_eq!(map.largest(), 21);
        assert_eq!(map.resized(size(1, 3)), [0, 1, 2]);
    }

    #[test]
    fn small_depths_and_colours_are_labels_too() {
        let encode = |color, depth, width, data: &[u8]| {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, width, 1);
            encoder.set_color(color);
            encoder.set_depth(depth);
            let mut writer = encoder.write_header().unwrap();
            writer.write_image_data(data).unwrap();
            writer.finish().unwrap();
            bytes
        };
        let bits = encode(
            png::ColorType::Grayscale,
            png::BitDepth::Two,
            5,
            &[0b00_01_10_11, 0b10_000000],
        );
        assert_eq!(LabelMap::decode(&bits).unwrap().labels, [0, 1, 2, 3, 2]);
        let colours = encode(
            png::ColorType::Rgb,
            png::BitDepth::Eight,
            2,
            &[0, 128, 0, 191, 0, 0],
        );
        assert_eq!(LabelMap::decode(&colours).unwrap().labels, [2, 9]);
        let foreign = encode(png::ColorType::Rgb, png::BitDepth::Eight, 1, &[1, 2, 3]);
        let problem = LabelMap::decode(&foreign).unwrap_err();
        assert!(problem.contains("[1, 2, 3]"), "{problem}");
        assert!(
            LabelMap::decode(b"nonsense")
                .unwrap_err()
                .contains("no readable PNG")
        );
    }

    #[test]
    fn first_labels_are_samples_or_shares() {
        // a patch of 4 x 4 whose middle is label 5 and whose rim is label 0
        let map: Vec<u8> = (0..16)
            .map(|i| {
                if (1..3).contains(&(i / 4)) && (1..3).contains(&(i % 4)) {
                    5
                } else {
                    0
                }
            })
            .collect();
        let labels = |filter| first_labels(&map, size(4, 4), &[0, 5], size(1, 1), filter);
        assert_eq!(labels(LabelFilter::Sampled), [0.0, 1.0]);
        assert_eq!(labels(LabelFilter::Mean), [0.75, 0.25]);
    }

    #[test]
    fn the_first_of_equal_labels_wins() {
        let soft = [0.5, 0.5, 0.4, 0.6];
        assert_eq!(hard_labels(&soft, size(1, 2), &[3, 7], size(1, 2)), [3, 7]);
    }

    #[test]
    fn names_that_are_no_numbers_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["00010.jpg", "9.jpg", "notes.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let numbers = |found: Vec<(u64, PathBuf)>| -> Vec<u64> {
            found.into_iter().map(|(number, _)| number).collect()
        };
        let found = numbered_pictures(dir.path(), &["jpg"]).unwrap();
        assert_eq!(numbers(found), [9, 10]);
        fs::write(dir.path().join("10.jpg"), "").unwrap();
        let twice = numbered_pictures(dir.path(), &["jpg"]).unwrap_err();
        assert!(twice.to_string().contains("has the number of"), "{twice}");
        fs::write(dir.path().join("cover.jpg"), "").unwrap();
        let error = numbered_pictures(dir.path(), &["jpg"]).unwrap_err();
        assert!(error.to_string().contains("cover.jpg"), "{error}");
    }
}
