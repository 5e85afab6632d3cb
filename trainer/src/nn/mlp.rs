//! The two-layer feed-forward part of a transformer block.

use candle_core::Tensor;

use super::linear::Linear;
use super::params::Params;
use crate::error::Result;

/// `fc1`, exact GELU, `fc2`.
#[derive(Debug, Clone)]
pub struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    /// Registers `{path}.fc1` and `{path}.fc2`.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(params: &mut Params, path: &str, dim: usize, hidden: usize) -> Result<Mlp> {
        Ok(Mlp {
            fc1: Linear::new(params, &format!("{path}.fc1"), dim, hidden)?,
            fc2: Linear::new(params, &format!("{path}.fc2"), hidden, dim)?,
        })
    }

    /// `[B, N, D]` to `[B, N, D]`.
    ///
    /// # Errors
    /// If the width is not `D`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.fc1.forward_and_gelu(x)? {
            Some(activated) => self.fc2.forward(&activated),
            None => self.fc2.forward_gelu(&self.fc1.forward(x)?, None),
        }
    }
}
