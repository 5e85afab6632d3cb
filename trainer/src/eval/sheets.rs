//! Contact sheets of videos: masks over frames, features as colours, attention of the class token.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use pipeline::codec::Rgb8Image;
use pipeline::sheet::{self, Grid};

use super::davis::Sequence;
use super::encoder::FrozenEncoder;
use super::frames::{FrameFilter, FramePicture, LabelMap};
use super::sampling::Size;
use super::show::{heat, mosaic, overlay, principal_colours};
use crate::error::Result;

/// Videos, one a row.
const ROWS: usize = 6;
/// Frames of a video, spread evenly from the first to the last.
const COLUMNS: usize = 6;
/// Side of a cell in pixels.
const CELL: u32 = 160;

/// The videos that a sheet shows: the first ones.
pub fn shown<T>(videos: &[T]) -> &[T] {
    &videos[..videos.len().min(ROWS)]
}

/// The frames of a video that a sheet shows.
fn columns<T>(frames: &[T]) -> impl Iterator<Item = &T> {
    let n = frames.len().min(COLUMNS);
    (0..n).map(move |i| &frames[i * (frames.len() - 1) / n.saturating_sub(1).max(1)])
}

/// Masks laid over the frames that they belong to: one row a sequence.
///
/// * `masks`: folder with `SEQUENCE/FRAME.png`, as [`super::davis::evaluate`] writes them.
///
/// # Errors
/// Naming a file that cannot be read.
pub fn masks(sequences: &[&Sequence], masks: &Path) -> Result<Rgb8Image> {
    grid(sequences, |sequence| {
        columns(&sequence.frames)
            .map(|path| {
                let name = Path::new(path.file_name().unwrap_or_default()).with_extension("png");
                let map = LabelMap::read(&masks.join(&sequence.name).join(name))?;
                let frame = FramePicture::read(path)?;
                let labels = map.resized(frame.size());
                Ok(overlay(frame.pixels(), &labels, &map.palette))
            })
            .collect()
    })
}

/// The three principal components of patch features, found over all frames of a row: one row a video.
///
/// * `input`: size that frames are looked at.
///
/// # Errors
/// Naming a file that cannot be read; [`crate::Error::Shape`] if the size is not whole patches.
pub fn features(
    encoder: &FrozenEncoder,
    videos: &[Vec<PathBuf>],
    input: Size,
) -> Result<Rgb8Image> {
    let patch = encoder.sizes().patch_size;
    grid(videos, |frames| {
        let mut features = Vec::new();
        for path in columns(frames) {
            let tokens = encoder.tokens(&pixels(encoder, path, input)?)?; // [1, 1 + N, D]
            let patches = tokens.narrow(1, 1, tokens.dim(1)? - 1)?;
            features.extend(
                patches
                    .to_dtype(DType::F32)?
                    .flatten_all()?
                    .to_vec1::<f32>()?,
            );
        }
        let colours = principal_colours(&features, encoder.sizes().embed_dim);
        let n = input.area() / (patch * patch);
        Ok(colours
            .chunks_exact(n)
            .map(|colours| mosaic(colours, input.width / patch, patch))
            .collect())
    })
}

/// Attention of the class token, the mean over the heads of the last block: one row a video.
///
/// # Errors
/// As [`features`].
pub fn attention(
    encoder: &FrozenEncoder,
    videos: &[Vec<PathBuf>],
    input: Size,
) -> Result<Rgb8Image> {
    let patch = encoder.sizes().patch_size;
    grid(videos, |frames| {
        columns(frames)
            .map(|path| {
                let weights = encoder.class_attention(&pixels(encoder, path, input)?)?; // [1, H, N]
                let mean = weights.mean(1)?.to_dtype(DType::F32)?.flatten_all()?;
                let colours = heat(&mean.to_vec1::<f32>()?);
                Ok(mosaic(&colours, input.width / patch, patch))
            })
            .collect()
    })
}

/// A frame as the network gets it: `[1, 3, H, W]`.
fn pixels(encoder: &FrozenEncoder, path: &Path, input: Size) -> Result<Tensor> {
    let planes = FramePicture::read(path)?.planes(input, FrameFilter::default())?;
    let shape = (1, 3, input.height, input.width);
    Ok(Tensor::from_vec(planes, shape, encoder.device())?)
}

fn grid<T>(rows: &[T], draw: impl Fn(&T) -> Result<Vec<Rgb8Image>>) -> Result<Rgb8Image> {
    let rows = shown(rows);
    let drawn: Vec<Vec<Rgb8Image>> = rows.iter().map(draw).collect::<Result<_>>()?;
    let columns = drawn.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let mut grid = Grid::new(columns as u32, rows.len() as u32, CELL);
    for (row, pictures) in drawn.iter().enumerate() {
        for (column, picture) in pictures.iter().enumerate() {
            grid.put((row * columns + column) as u32, picture)?;
        }
    }
    Ok(grid.into_picture())
}

/// Writes a sheet as PNG.
///
/// # Errors
/// Naming the file.
pub fn write(path: &Path, picture: &Rgb8Image) -> Result<()> {
    Ok(sheet::write_png(path, picture)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_and_last_frame_are_shown() {
        let frames: Vec<usize> = (0..25).collect();
        assert_eq!(
            columns(&frames).copied().collect::<Vec<_>>(),
            [0, 4, 9, 14, 19, 24]
        );
        assert_eq!(columns(&frames[..2]).copied().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(columns(&frames[..1]).count(), 1);
        assert_eq!(columns(&frames[..0]).count(), 0);
        assert_eq!(shown(&frames).len(), ROWS);
        assert_eq!(shown(&frames[..2]).len(), 2);
    }
}
