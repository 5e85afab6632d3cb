//! Dropout, drawn on the device: the same draws as the host's, so a run drops the same elements on either.

use candle_core::{DType, Result, Tensor};

use super::buffer::{Launch, Output, address, type_code};
use super::node::node;
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
    let bits = keep_bits(mask, x)?;
    let (scale, per_sample) = (mask.scale(), mask.draws().per_sample);
    let y = apply(x, &bits, per_sample, scale)?;
    node("dropout", &[x], y, move |_, dy| {
        Ok(vec![Some(
            apply(dy, &bits, per_sample, scale)?.into_tensor(),
        )])
    })
}

fn apply(x: &Tensor, bits: &Tensor, per_sample: usize, scale: f32) -> Result<Output> {
    let mut y = Output::like(x)?;
    let n_samples = bits.dim(0)?;
    let launch = Launch::on(x.device())?;
    let (code, x, bits, y_out) = (type_code(x)?, address(x)?, address(bits)?, y.address()?);
    launch.run("dropout", |kernels, stream| {
        // SAFETY: the mask was checked to have the elements of x.
        unsafe {
            (kernels.pairquet_dropout)(
                code,
                x,
                bits,
                y_out,
                n_samples as i64,
                per_sample as i64,
                scale,
                stream,
            )
        }
    })?;
    Ok(y)
}
