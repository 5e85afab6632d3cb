//! The affine map `y = x Wᵀ + b`.

use candle_core::Tensor;

use super::dropout::KeepMask;
use super::init::Init;
use super::params::Params;
use crate::error::Result;
use crate::ops;

/// A linear layer in torch's layout: `weight` is `[out, in]`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Registers `{path}.weight` (xavier uniform) and `{path}.bias` (zeros).
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(params: &mut Params, path: &str, n_in: usize, n_out: usize) -> Result<Linear> {
        Ok(Linear {
            weight: params.trainable(
                &format!("{path}.weight"),
                &[n_out, n_in],
                Init::XavierUniform,
            )?,
            bias: params.trainable(&format!("{path}.bias"), &[n_out], Init::Zeros)?,
        })
    }

    /// `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// If the last dimension is not `in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, &self.bias)
    }

    /// The same of `gelu(h)`, whose elements `drop` drops.
    ///
    /// # Errors
    /// As [`Linear::forward`], and if the mask does not fit.
    pub fn forward_gelu(&self, h: &Tensor, drop: Option<&KeepMask>) -> Result<Tensor> {
        ops::gelu_linear(h, drop, &self.weight, &self.bias)
    }

    /// GELU of this map where that is better done at once, on a GPU; elsewhere `None`, and [`Linear::forward_gelu`] of
    /// the next map is better.
    ///
    /// # Errors
    /// If the last dimension is not `in`.
    pub fn forward_and_gelu(&self, x: &Tensor) -> Result<Option<Tensor>> {
        ops::linear_gelu(x, &self.weight, &self.bias)
    }
}
