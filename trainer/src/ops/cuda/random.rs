//! Dropout, drawn on the device: the same draws as the host's, so a run drops the same elements on either.

use candle_core::{DType, Result, Tensor};

use super::buffer::{Launch, Output, address, none, type_code};
use super::node::{Keeps, node};
use crate::nn::dropout::KeepMask;

/// Elements that one word of a mask holds.
const WORD: usize = 32;

/// A mask on the device, one bit an element: `[samples, words]`.
pub(super) fn keep_bits(mask: &KeepMask, like: &Tensor) -> Result<Tensor> {
    let draws = mask.draws();
    let samples: Vec<i64> = draws.samples.iter().map(|&id| id.cast_signed()).collect();
    let n_samples = samples.len();
    let samples = Tensor::from_vec(samples, n_samples, like.device())?;
    let shape = (n_samples, draws.per_sample.div_ceil(WORD));
    let mut bits = Output::new(shape, DType::U32, like.device())?;
    let (samples, out) = (address(&samples)?, bits.address()?);
    Launch::on(like.device())?.run("a dropout mask", |kernels, stream| {
        // SAFETY: as many ids as samples, and whole words for each.
        unsafe {
            (kernels.pairquet_keep_bits)(
                samples,
                n_samples as i64,
                draws.per_sample as i64,
                draws.seed,
                draws.epoch,
                draws.purpose as u64,
                draws.threshold,
                out,
                stream,
            )
        }
    })?;
    Ok(bits.into_tensor())
}

/// Drops single elements of `x` and scales the others.
pub(crate) fn dropout(x: &Tensor, mask: &KeepMask) -> Result<Tensor> {
    let dropping = Dropping::new(mask, x)?;
    let y = dropping.apply(x, None)?;
    node("dropout", &[x], y, Keeps::Nothing, move |_, dy| {
        Ok(vec![Some(dropping.apply(dy, None)?.into_tensor())])
    })
}

/// `x + branch`, elements of the branch (or, with a mask of one element a sample, whole samples of it) being dropped.
pub(crate) fn add_dropped(x: &Tensor, branch: &Tensor, mask: &KeepMask) -> Result<Tensor> {
    let dropping = Dropping::new(mask, branch)?;
    let y = dropping.apply(branch, Some(x))?;
    node(
        "add-dropped",
        &[x, branch],
        y,
        Keeps::Nothing,
        move |_, dy| {
            let dbranch = dropping.apply(dy, None)?.into_tensor();
            Ok(vec![Some(dy.clone()), Some(dbranch)])
        },
    )
}

/// A mask for tensors of one shape.
struct Dropping {
    bits: Tensor,
    scale: f32,
    per_sample: usize,
    /// Whether all elements of a sample share one bit.
    whole_samples: bool,
}

impl Dropping {
    fn new(mask: &KeepMask, like: &Tensor) -> Result<Dropping> {
        let bits = keep_bits(mask, like)?;
        let n_samples = bits.dim(0)?;
        Ok(Dropping {
            scale: mask.scale(),
            per_sample: like.elem_count() / n_samples.max(1),
            whole_samples: mask.len() != like.elem_count(),
            bits,
        })
    }

    /// What is left of `x`, added to `to` if that is given.
    fn apply(&self, x: &Tensor, to: Option<&Tensor>) -> Result<Output> {
        let mut y = Output::like(x)?;
        let n_samples = self.bits.dim(0)?;
        let launch = Launch::on(x.device())?;
        let (code, x, bits, y_out) = (
            type_code(x)?,
            address(x)?,
            address(&self.bits)?,
            y.address()?,
        );
        let to = to.map_or(Ok(none()), address)?;
        launch.run("dropout", |kernels, stream| {
            // SAFETY: the mask was checked to have the elements of x, or one for each sample.
            unsafe {
                (kernels.pairquet_dropout)(
                    code,
                    x,
                    to,
                    bits,
                    y_out,
                    n_samples as i64,
                    self.per_sample as i64,
                    i32::from(self.whole_samples),
                    self.scale,
                    stream,
                )
            }
        })?;
        Ok(y)
    }
}
