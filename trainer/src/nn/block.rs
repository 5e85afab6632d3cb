//! timm's vision transformer block: pre-norm self-attention and feed-forward, each on a residual branch.

use candle_core::Tensor;

use super::attention::Attention;
use super::mlp::Mlp;
use super::norm::LayerNorm;
use super::params::Params;
use super::pass::Pass;
use crate::error::Result;
use crate::{ops, tape};

/// Width of the feed-forward part over the width of the block, in every model here.
pub(crate) const MLP_RATIO: usize = 4;

/// The encoder's block, and the block of MAE's own decoder.
#[derive(Debug, Clone)]
pub struct Block {
    path: String,
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
    drop_path: f64,
}

impl Block {
    /// Registers `{path}.norm1`, `.attn`, `.norm2`, `.mlp`. `drop_path`: probability of dropping a branch.
    ///
    /// # Errors
    /// If `dim` is not a multiple of `num_heads`.
    pub fn new(
        params: &mut Params,
        path: &str,
        dim: usize,
        num_heads: usize,
        drop_path: f64,
    ) -> Result<Block> {
        Ok(Block {
            path: path.to_owned(),
            norm1: LayerNorm::new(params, &format!("{path}.norm1"), dim)?,
            attn: Attention::new(params, &format!("{path}.attn"), dim, num_heads)?,
            norm2: LayerNorm::new(params, &format!("{path}.norm2"), dim)?,
            mlp: Mlp::new(params, &format!("{path}.mlp"), dim, MLP_RATIO * dim)?,
            drop_path,
        })
    }

    /// `[B, N, D]` to `[B, N, D]`.
    ///
    /// # Errors
    /// If the width is not `D`.
    pub fn forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        pass.see(&self.path, "norm1", &normed);
        let drop = pass.drop_path_mask(&self.path, "drop_path1", self.drop_path)?;
        let branch = self.attn.forward(&normed)?;
        let (x, normed) = self.norm2.forward_sum(x, &branch, drop.as_ref())?;
        pass.see(&self.path, "norm2", &normed);
        let drop = pass.drop_path_mask(&self.path, "drop_path2", self.drop_path)?;
        let x = ops::add(&x, &self.mlp.forward(&normed)?, drop.as_ref())?;
        pass.see(&self.path, "", &x);
        Ok(x)
    }

    /// The weights of its attention for `normed` `[B, N, D]`, which the block's `norm1` made: `[B, H, N, N]`.
    ///
    /// # Errors
    /// If the width is not `D`.
    pub fn attention_weights(&self, normed: &Tensor) -> Result<Tensor> {
        self.attn.weights(normed)
    }

    /// As [`Block::forward`], but of what it computes nothing is kept for the backward pass, which computes it again.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn forward_checkpointed(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        let (block, pass) = (self.clone(), pass.kept());
        tape::checkpointed(&[x], move |inputs| block.forward(&inputs[0], pass.pass()))
    }
}
