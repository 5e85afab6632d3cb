//! Layer and batch normalisation, both with gradients.

use candle_core::{D, Tensor};

use super::dropout::KeepMask;
use super::init::Init;
use super::params::Params;
use crate::distributed::Ranks;
use crate::error::Result;
use crate::ops;

/// Added to the variance by every LayerNorm of the reference.
pub const LAYER_NORM_EPS: f64 = 1e-6;

/// Added to the variance by [`BatchNorm`], torch's default.
const BATCH_NORM_EPS: f64 = 1e-5;

/// Normalisation over the last dimension with a learned scale and shift.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// Registers `{path}.weight` (ones) and `{path}.bias` (zeros).
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(params: &mut Params, path: &str, width: usize) -> Result<LayerNorm> {
        Ok(LayerNorm {
            weight: params.trainable(&format!("{path}.weight"), &[width], Init::Ones)?,
            bias: params.trainable(&format!("{path}.bias"), &[width], Init::Zeros)?,
        })
    }

    /// `[.., width]` to the same shape.
    ///
    /// # Errors
    /// If the last dimension is not `width`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, LAYER_NORM_EPS)
    }

    /// The sum `x + branch` and its normalisation; `drop` as [`ops::add`] takes it.
    ///
    /// # Errors
    /// If the shapes differ or their last dimension is not `width`.
    pub fn forward_sum(
        &self,
        x: &Tensor,
        branch: &Tensor,
        drop: Option<&KeepMask>,
    ) -> Result<(Tensor, Tensor)> {
        let params = (&self.weight, &self.bias);
        ops::add_layer_norm(x, branch, drop, params, LAYER_NORM_EPS)
    }
}

/// Normalisation of each feature over the batch of all ranks, always with the batch's own statistics.
///
/// There are no running statistics: it only serves projection heads, which are thrown away after pre-training.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    ranks: Ranks,
}

impl BatchNorm {
    /// Registers `{path}.weight` (ones) and `{path}.bias` (zeros).
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(params: &mut Params, path: &str, width: usize) -> Result<BatchNorm> {
        Ok(BatchNorm {
            weight: params.trainable(&format!("{path}.weight"), &[width], Init::Ones)?,
            bias: params.trainable(&format!("{path}.bias"), &[width], Init::Zeros)?,
            ranks: params.ranks().clone(),
        })
    }

    /// `[B, width]` to the same shape, with the biased variance as torch in training. Each rank brings the same B.
    ///
    /// # Errors
    /// If the shape is not `[B, width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&self.mean(x)?)?;
        let var = self.mean(&centred.sqr()?)?; // [1, width]
        let normed = centred.broadcast_div(&(var + BATCH_NORM_EPS)?.sqrt()?)?;
        Ok(normed
            .broadcast_mul(&self.weight)?
            .broadcast_add(&self.bias)?)
    }

    /// Over the ranks' `[B, width]`, `[1, width]`.
    fn mean(&self, x: &Tensor) -> Result<Tensor> {
        let mean = x.mean_keepdim(0)?;
        match self.ranks.size() {
            1 => Ok(mean),
            n_ranks => Ok((self.ranks.sum(&mean)? / n_ranks as f64)?),
        }
    }
}

/// `x` divided by its length along the last dimension (at least 1e-12, torch's default).
pub(crate) fn unit_length(x: &Tensor) -> Result<Tensor> {
    let squared = x.sqr()?.sum_keepdim(D::Minus1)?;
    Ok(x.broadcast_div(&(squared + 1e-24)?.sqrt()?)?)
}
