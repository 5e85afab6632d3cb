//! Contact sheets: what a shard set holds, and what a configuration makes of it, as one picture.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use shards::{Kind, ShardSet};

use crate::codec::{self, CodecError, Rgb8Image};
use crate::config::{DataConfig, Interpolation};
use crate::error::{Error, Result};
use crate::loader::{Loader, LoaderState, Rank};
use crate::views::{CropBox, CropResizer};

/// Pixels between cells, and around them.
const GAP: u32 = 4;
/// Colour between cells.
const GROUND: u8 = 32;
/// Frames shown of a clip.
const FRAMES_SHOWN: u32 = 6;

/// A picture of equal cells, filled one by one.
pub struct Grid {
    picture: Rgb8Image,
    columns: u32,
    cell: u32,
}

impl Grid {
    /// `columns` times `rows` cells of `cell` by `cell` pixels.
    pub fn new(columns: u32, rows: u32, cell: u32) -> Grid {
        let side = |n: u32| n * (cell + GAP) + GAP;
        let mut picture = Rgb8Image::new(side(columns), side(rows));
        picture.data.fill(GROUND);
        Grid {
            picture,
            columns,
            cell,
        }
    }

    /// Fits `image` into cell number `index` (row by row), keeping its shape.
    ///
    /// # Errors
    /// [`Error::Codec`] if the picture is empty.
    pub fn put(&mut self, index: u32, image: &Rgb8Image) -> Result<()> {
        let fitted = fit(image, self.cell)?;
        let left = GAP + index % self.columns * (self.cell + GAP) + (self.cell - fitted.width) / 2;
        let top = GAP + index / self.columns * (self.cell + GAP) + (self.cell - fitted.height) / 2;
        let stride = self.picture.width as usize * 3;
        let row = fitted.width as usize * 3;
        for (y, line) in fitted.data.chunks_exact(row).enumerate() {
            let at = (top as usize + y) * stride + left as usize * 3;
            if let Some(place) = self.picture.data.get_mut(at..at + row) {
                place.copy_from_slice(line);
            }
        }
        Ok(())
    }

    /// The picture so far.
    pub fn into_picture(self) -> Rgb8Image {
        self.picture
    }
}

/// `n` samples spread evenly over the set, `cell` pixels each: a picture a cell, or a clip a row of frames.
///
/// # Errors
/// Whatever reading or decoding a sample meets.
pub fn samples(set: &ShardSet, n: u64, cell: u32) -> Result<Rgb8Image> {
    let total = set.n_samples();
    let n = n.min(total);
    let chosen = (0..n).map(|i| i * total / n.max(1));
    match set.kind() {
        Kind::Images => {
            let columns = (n as f64).sqrt().ceil().max(1.0) as u64;
            let mut grid = Grid::new(columns as u32, n.div_ceil(columns) as u32, cell);
            for (index, sample) in chosen.enumerate() {
                grid.put(index as u32, &picture(set, sample, 0)?)?;
            }
            Ok(grid.into_picture())
        }
        Kind::Clips => {
            let mut grid = Grid::new(FRAMES_SHOWN, n as u32, cell);
            for (row, sample) in chosen.enumerate() {
                let n_frames = set.n_frames(sample)?;
                for column in 0..FRAMES_SHOWN.min(n_frames) {
                    let frame = (u64::from(column) * u64::from(n_frames)
                        / u64::from(FRAMES_SHOWN.min(n_frames)))
                        as u32;
                    grid.put(
                        row as u32 * FRAMES_SHOWN + column,
                        &picture(set, sample, frame)?,
                    )?;
                }
            }
            Ok(grid.into_picture())
        }
    }
}

/// The first `n` samples (all of a smaller set) that a run with this configuration and seed trains on, one a row pair: its views side by side,
/// four samples across.
///
/// # Errors
/// As [`Loader::new`] and [`Loader::next_batch`].
pub fn views(config: &DataConfig, seed: u64, n: usize, cell: u32) -> Result<Rgb8Image> {
    let n_samples = ShardSet::open(&config.path, &config.split)?.n_samples();
    let n = n.min(usize::try_from(n_samples).unwrap_or(usize::MAX));
    let config = DataConfig {
        batch_size: config.batch_size.min(n),
        ..config.clone()
    };
    let mut loader = Loader::new(&config, seed, Rank::SINGLE, LoaderState::default())?;
    let mut shown: Vec<Rgb8Image> = Vec::new();
    let mut n_views = 1;
    while shown.len() < n * n_views {
        let batch = loader.next_batch()?;
        n_views = batch.n_views;
        let size = batch.size as u32;
        shown.extend(
            batch
                .views
                .chunks_exact(batch.size * batch.size * 3)
                .map(|view| Rgb8Image {
                    width: size,
                    height: size,
                    data: view.to_vec(),
                }),
        );
    }
    let across = 4 * n_views as u32;
    let mut grid = Grid::new(across, ((n * n_views) as u32).div_ceil(across), cell);
    for (index, view) in shown.iter().take(n * n_views).enumerate() {
        grid.put(index as u32, view)?;
    }
    Ok(grid.into_picture())
}

/// Writes `image` as PNG.
///
/// # Errors
/// [`Error::Io`] naming the file; [`Error::Codec`] if the picture cannot be encoded.
pub fn write_png(path: &Path, image: &Rgb8Image) -> Result<()> {
    let file = File::create(path).map_err(Error::io("creating", path))?;
    let encoder = image::codecs::png::PngEncoder::new(BufWriter::new(file));
    image::ImageEncoder::write_image(
        encoder,
        &image.data,
        image.width,
        image.height,
        image::ExtendedColorType::Rgb8,
    )
    .map_err(|error| match error {
        image::ImageError::IoError(source) => Error::Io {
            doing: "writing",
            path: path.to_path_buf(),
            source,
        },
        other => Error::codec(path.display().to_string())(unencodable(image, other.to_string())),
    })
}

fn picture(set: &ShardSet, sample: u64, frame: u32) -> Result<Rgb8Image> {
    let bytes = set.picture(sample, frame)?;
    codec::decode_rgb8(&bytes).map_err(Error::codec(set.sample(sample)?.key))
}

/// The picture shrunk or enlarged so that its longer side is `cell`.
fn fit(image: &Rgb8Image, cell: u32) -> Result<Rgb8Image> {
    let longer = image.width.max(image.height);
    if image.width.min(image.height) == 0 {
        return Err(Error::codec("contact sheet")(unencodable(
            image,
            "it has no pixels".into(),
        )));
    }
    let scaled = |side: u32| (u64::from(side) * u64::from(cell) / u64::from(longer)).max(1) as u32;
    let mut fitted = Rgb8Image::new(scaled(image.width), scaled(image.height));
    CropResizer::new().resize_crop(
        image.into(),
        CropBox::whole(image.width, image.height),
        fitted.width,
        fitted.height,
        Interpolation::Bilinear,
        &mut fitted.data,
    )?;
    Ok(fitted)
}

fn unencodable(image: &Rgb8Image, reason: String) -> CodecError {
    CodecError::Encode {
        format: "PNG",
        width: image.width,
        height: image.height,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_land_in_their_cells() {
        let mut grid = Grid::new(2, 1, 10);
        let white = Rgb8Image {
            width: 20,
            height: 10,
            data: vec![255; 600],
        };
        grid.put(1, &white).unwrap();
        let picture = grid.into_picture();
        assert_eq!((picture.width, picture.height), (32, 18));
        assert_eq!(picture.pixel(5, 9), [GROUND; 3], "cell 0 is empty");
        assert_eq!(picture.pixel(20, 9), [255; 3], "cell 1 holds the picture");
        assert_eq!(picture.pixel(20, 5), [GROUND; 3], "which keeps its shape");
    }

    #[test]
    fn an_empty_picture_is_an_error() {
        assert!(Grid::new(1, 1, 10).put(0, &Rgb8Image::default()).is_err());
    }
}
