//! Multi-head attention in the two layouts of the reference's checkpoints.

use candle_core::{D, Tensor};

use super::init::Init;
use super::linear::Linear;
use super::params::Params;
use super::pass::Pass;
use crate::error::{Error, Result};
use crate::ops;

/// timm's self-attention: `qkv` (packed, with bias) and `proj`, no dropout.
#[derive(Debug, Clone)]
pub struct Attention {
    qkv: Linear,
    proj: Linear,
    num_heads: usize,
}

impl Attention {
    /// Registers `{path}.qkv` and `{path}.proj`.
    ///
    /// # Errors
    /// [`Error::Config`] if `dim` is not a multiple of `num_heads`.
    pub fn new(params: &mut Params, path: &str, dim: usize, num_heads: usize) -> Result<Attention> {
        expect_divisible(dim, num_heads)?;
        Ok(Attention {
            qkv: Linear::new(params, &format!("{path}.qkv"), dim, 3 * dim)?,
            proj: Linear::new(params, &format!("{path}.proj"), dim, dim)?,
            num_heads,
        })
    }

    /// `[B, N, D]` to `[B, N, D]`.
    ///
    /// # Errors
    /// If the width is not `D`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // [B, N, 3 D]
        self.proj
            .forward(&ops::self_attention(&qkv, self.num_heads, None)?)
    }

    /// With which weight each token looks at each, `[B, H, N, N]`, for a person to see.
    ///
    /// # Errors
    /// If the width is not `D`.
    pub fn weights(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, n, width) = x.dims3()?;
        let head = width / self.num_heads;
        let qkv = self.qkv.forward(x)?;
        let part = |index: usize| -> Result<Tensor> {
            let heads =
                qkv.narrow(2, index * width, width)?
                    .reshape((batch, n, self.num_heads, head))?;
            Ok(heads.transpose(1, 2)?.contiguous()?) // [B, H, N, head]
        };
        let scores = part(0)?.matmul(&part(1)?.t()?)?;
        let scaled = (scores / (head as f64).sqrt())?;
        Ok(candle_nn::ops::softmax(&scaled, D::Minus1)?)
    }
}

/// torch's `MultiheadAttention` with its packed `in_proj_weight` `[3 D, D]` and dropout on the attention weights.
#[derive(Debug, Clone)]
pub struct MultiheadAttention {
    path: String,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    num_heads: usize,
    dropout: f64,
}

impl MultiheadAttention {
    /// Registers `{path}.in_proj_weight` (xavier over the whole matrix), `{path}.in_proj_bias` and `{path}.out_proj`.
    ///
    /// # Errors
    /// [`Error::Config`] if `dim` is not a multiple of `num_heads`.
    pub fn new(
        params: &mut Params,
        path: &str,
        dim: usize,
        num_heads: usize,
        dropout: f64,
    ) -> Result<MultiheadAttention> {
        expect_divisible(dim, num_heads)?;
        Ok(MultiheadAttention {
            path: path.to_owned(),
            in_proj_weight: params.trainable(
                &format!("{path}.in_proj_weight"),
                &[3 * dim, dim],
                Init::XavierUniform,
            )?,
            in_proj_bias: params.trainable(
                &format!("{path}.in_proj_bias"),
                &[3 * dim],
                Init::Zeros,
            )?,
            out_proj: Linear::new(params, &format!("{path}.out_proj"), dim, dim)?,
            num_heads,
            dropout,
        })
    }

    /// Attention of `x` `[B, N, D]` to itself.
    ///
    /// # Errors
    /// If the width is not `D`.
    pub fn self_attention(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        let qkv = ops::linear(x, &self.in_proj_weight, &self.in_proj_bias)?; // [B, N, 3 D]
        let n = x.dim(1)?;
        let drop = pass.keep_mask(&self.path, "weights", self.num_heads * n * n, self.dropout)?;
        let y =
            self.out_proj
                .forward(&ops::self_attention(&qkv, self.num_heads, drop.as_ref())?)?;
        pass.see(&self.path, "", &y);
        Ok(y)
    }

    /// Attention of `x` `[B, N, D]` to `memory` `[B, M, D]`.
    ///
    /// # Errors
    /// If a width is not `D`.
    pub fn cross_attention(&self, x: &Tensor, memory: &Tensor, pass: Pass) -> Result<Tensor> {
        let dim = self.in_proj_weight.dim(1)?;
        let project = |input: &Tensor, first_row: usize, n_rows: usize| {
            let weight = self.in_proj_weight.narrow(0, first_row, n_rows)?;
            ops::linear(
                input,
                &weight,
                &self.in_proj_bias.narrow(0, first_row, n_rows)?,
            )
        };
        let q = project(x, 0, dim)?; // [B, N, D]
        let kv = project(memory, dim, 2 * dim)?; // [B, M, 2 D]
        let per_sample = self.num_heads * x.dim(1)? * memory.dim(1)?;
        let drop = pass.keep_mask(&self.path, "weights", per_sample, self.dropout)?;
        let y = self.out_proj.forward(&ops::cross_attention(
            &q,
            &kv,
            self.num_heads,
            drop.as_ref(),
        )?)?;
        pass.see(&self.path, "", &y);
        Ok(y)
    }
}

fn expect_divisible(dim: usize, num_heads: usize) -> Result<()> {
    if num_heads > 0 && dim.is_multiple_of(num_heads) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "width is {dim} with {num_heads} heads, expected a multiple of the number of heads"
    )))
}
