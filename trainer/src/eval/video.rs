//! One video through the encoder and the propagation: what DAVIS, VIP and JHMDB have in common.
//!
//! Letters: H, W the network's input, N patches, D width, L labels.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use pipeline::{Stop, stall};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::encoder::{FrozenEncoder, PositionScale};
use super::frames::{FrameFilter, FramePicture, InputSize, LabelFilter};
use super::propagate::{Propagation, Propagator};
use super::results::{DataHash, DataId};
use super::sampling::Size;
use crate::error::{Error, Result};

/// How the network looks at frames, and at the labels of the first one. Defaults are the reference's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Size of the network's input.
    pub size: InputSize,
    /// How frames become it.
    pub frame_filter: FrameFilter,
    /// How the first frame's map becomes labels of patches.
    pub label_filter: LabelFilter,
    /// How the position table is resampled for the grid.
    pub position_scale: PositionScale,
}

impl Input {
    /// The reference's, at this size.
    pub fn at(size: InputSize) -> Input {
        Input {
            size,
            frame_filter: FrameFilter::default(),
            label_filter: LabelFilter::default(),
            position_scale: PositionScale::default(),
        }
    }
}

/// Frames that the encoder looks at together, if not said otherwise. More only take memory.
pub const BATCH_FRAMES: usize = 4;

/// What an evaluation of videos works with.
#[derive(Debug, Clone, Copy)]
pub struct Worker<'a> {
    /// The weights.
    pub encoder: &'a FrozenEncoder,
    /// How labels travel.
    pub propagation: &'a Propagation,
    /// How frames are seen.
    pub input: &'a Input,
    /// Frames that the encoder looks at together.
    pub batch: usize,
    /// Whether to stop.
    pub stop: &'a Stop,
}

/// The sizes that a video is worked on at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Of its frames.
    pub frame: Size,
    /// Of the network's input.
    pub input: Size,
    /// Patches of the input.
    pub grid: Size,
}

impl Worker<'_> {
    /// The sizes for a video whose first frame is at `path`.
    ///
    /// # Errors
    /// [`Error::Evaluation`] if the frame does not decode; [`Error::Config`] if the input is not whole patches.
    pub fn canvas(&self, path: &Path) -> Result<Canvas> {
        let frame = FramePicture::read(path)?.size();
        let input = self.input.size.of(frame);
        let patch = self.encoder.sizes().patch_size;
        if input.area() == 0
            || !input.height.is_multiple_of(patch)
            || !input.width.is_multiple_of(patch)
        {
            return Err(Error::Config(format!(
                "the input for {} of {frame} px is {input} px, expected multiples of the patch, {patch}, more than 0",
                path.display()
            )));
        }
        Ok(Canvas {
            frame,
            input,
            grid: Size {
                height: input.height / patch,
                width: input.width / patch,
            },
        })
    }

    /// Carries `labels` `[N, L]` of the first frame through the video and shows every frame's soft labels `[N, L]`, the
    /// first one's as they were given.
    ///
    /// # Errors
    /// [`Error::Evaluation`] naming a frame that does not decode or has another size; [`Error::Stopped`]; what `see`
    /// returns.
    pub fn carry(
        &self,
        frames: &[PathBuf],
        canvas: Canvas,
        labels: &[f32],
        mut see: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let mut propagator = None;
        let batch = self.batch.max(1);
        for (i, paths) in frames.chunks(batch).enumerate() {
            if self.stop.is_requested() {
                return Err(Error::Stopped);
            }
            let _busy = stall::busy("evaluation", paths[0].display().to_string());
            for (j, features) in self.features(paths, canvas)?.into_iter().enumerate() {
                let soft = match &mut propagator {
                    None => {
                        let start =
                            Propagator::new(self.propagation, canvas.grid, features, labels)?;
                        propagator = Some(start);
                        labels.to_vec()
                    }
                    Some(propagator) => propagator.push(features)?,
                };
                see(i * batch + j, &soft)?;
            }
        }
        Ok(())
    }

    /// Normed patch tokens `[N, D]` of each frame, the class token left out.
    fn features(&self, paths: &[PathBuf], canvas: Canvas) -> Result<Vec<Vec<f32>>> {
        let planes = paths
            .par_iter()
            .map(|path| {
                let picture = FramePicture::read(path)?;
                if picture.size() != canvas.frame {
                    return Err(Error::evaluation(
                        path,
                        format!(
                            "has {} px, expected {} as the first frame",
                            picture.size(),
                            canvas.frame
                        ),
                    ));
                }
                picture.planes(canvas.input, self.input.frame_filter)
            })
            .collect::<Result<Vec<_>>>()?
            .concat();
        let Size { height, width } = canvas.input;
        let pixels = Tensor::from_vec(
            planes,
            (paths.len(), 3, height, width),
            self.encoder.device(),
        )?;
        let tokens = self
            .encoder
            .tokens_with(&pixels, self.input.position_scale)?; // [B, 1 + N, D]
        let patches = tokens.narrow(1, 1, canvas.grid.area())?;
        let patches = patches.to_dtype(DType::F32)?.flatten_from(1)?; // [B, N * D]
        Ok(patches.to_vec2()?)
    }
}

/// Reads files once, to know what was scored.
///
/// * `root`: names are relative to it, where they lie below it.
///
/// # Errors
/// [`Error::Io`] naming a file that cannot be read.
pub fn identify<'a>(root: &Path, files: impl IntoIterator<Item = &'a PathBuf>) -> Result<DataId> {
    let mut hash = DataHash::default();
    for path in files {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let name = path.strip_prefix(root).unwrap_or(path);
        hash.file(&name.to_string_lossy(), &bytes);
    }
    Ok(hash.finish())
}

/// The pairs of a list in the reference's form: two paths a line, relative to `root`.
///
/// # Errors
/// [`Error::Io`]; [`Error::Evaluation`] naming a line that is not two paths, or a list without any.
pub fn read_list(list: &Path, root: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let text = std::fs::read_to_string(list).map_err(Error::io(list))?;
    let mut pairs = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            [a, b] => pairs.push((root.join(a), root.join(b))),
            _ => {
                let problem = format!("line {}: {line:?}, expected two paths", i + 1);
                return Err(Error::evaluation(list, problem));
            }
        }
    }
    if pairs.is_empty() {
        return Err(Error::evaluation(
            list,
            "names nothing, expected two paths a line",
        ));
    }
    Ok(pairs)
}
