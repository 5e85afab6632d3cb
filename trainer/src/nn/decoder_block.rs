//! The siamese decoder's block: cross-attention, feed-forward, self-attention, each followed by its norm.

use candle_core::Tensor;

use super::attention::MultiheadAttention;
use super::dropout::KeepMask;
use super::linear::Linear;
use super::norm::LayerNorm;
use super::params::Params;
use super::pass::Pass;
use crate::error::Result;
use crate::{ops, tape};

/// Width of the feed-forward part, whatever the decoder's width.
pub(crate) const FEED_FORWARD_WIDTH: usize = 2048;

/// One block. Everything is post-norm, `x = norm(x + branch(x))`; the norms are used in the order 2, 3, 1.
///
/// Source: CropMAE, `models/components/DecoderBlock.py`.
#[derive(Debug, Clone)]
pub struct DecoderBlock {
    path: String,
    self_attn: MultiheadAttention,
    multihead_attn: MultiheadAttention,
    linear1: Linear,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    norm3: LayerNorm,
    dropout: f64,
}

impl DecoderBlock {
    /// Registers the block's parameters under `path`. `dropout` (the reference's 0.1) acts on attention weights, inside
    /// the feed-forward part and on all three branches, in training only.
    ///
    /// # Errors
    /// If `dim` is not a multiple of `num_heads`.
    pub fn new(
        params: &mut Params,
        path: &str,
        dim: usize,
        num_heads: usize,
        dropout: f64,
    ) -> Result<DecoderBlock> {
        let name = |part: &str| format!("{path}.{part}");
        Ok(DecoderBlock {
            path: path.to_owned(),
            self_attn: MultiheadAttention::new(
                params,
                &name("self_attn"),
                dim,
                num_heads,
                dropout,
            )?,
            multihead_attn: MultiheadAttention::new(
                params,
                &name("multihead_attn"),
                dim,
                num_heads,
                dropout,
            )?,
            linear1: Linear::new(params, &name("linear1"), dim, FEED_FORWARD_WIDTH)?,
            linear2: Linear::new(params, &name("linear2"), FEED_FORWARD_WIDTH, dim)?,
            norm1: LayerNorm::new(params, &name("norm1"), dim)?,
            norm2: LayerNorm::new(params, &name("norm2"), dim)?,
            norm3: LayerNorm::new(params, &name("norm3"), dim)?,
            dropout,
        })
    }

    /// `x` `[B, N, D]` (the masked view) attends to `memory` `[B, M, D]` (the whole view); returns `[B, N, D]`.
    ///
    /// # Errors
    /// If a width is not `D`.
    pub fn forward(&self, x: &Tensor, memory: &Tensor, pass: Pass) -> Result<Tensor> {
        let branch = self.multihead_attn.cross_attention(x, memory, pass)?;
        let x = self
            .norm2
            .forward(&self.add(x, &branch, "dropout2", pass)?)?;
        pass.see(&self.path, "norm2", &x);

        let branch = self.feed_forward(&x, pass)?;
        let x = self
            .norm3
            .forward(&self.add(&x, &branch, "dropout3", pass)?)?;
        pass.see(&self.path, "norm3", &x);

        let branch = self.self_attn.self_attention(&x, pass)?;
        let x = self
            .norm1
            .forward(&self.add(&x, &branch, "dropout1", pass)?)?;
        pass.see(&self.path, "norm1", &x);
        pass.see(&self.path, "", &x);
        Ok(x)
    }

    /// As [`DecoderBlock::forward`], but of what it computes nothing is kept for the backward pass, which computes it
    /// again.
    ///
    /// # Errors
    /// As [`DecoderBlock::forward`].
    pub fn forward_checkpointed(&self, x: &Tensor, memory: &Tensor, pass: Pass) -> Result<Tensor> {
        let (block, pass) = (self.clone(), pass.kept());
        tape::checkpointed(&[x, memory], move |inputs| {
            block.forward(&inputs[0], &inputs[1], pass.pass())
        })
    }

    fn feed_forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        if let Some(activated) = self.linear1.forward_and_gelu(x)? {
            let drop = self.drop("dropout", &activated, pass)?;
            let activated = match drop {
                Some(mask) => ops::dropout(&activated, &mask)?,
                None => activated,
            };
            return self.linear2.forward(&activated);
        }
        let hidden = self.linear1.forward(x)?; // [B, N, 2048]
        pass.see(&self.path, "linear1", &hidden);
        let drop = self.drop("dropout", &hidden, pass)?;
        let y = self.linear2.forward_gelu(&hidden, drop.as_ref())?;
        pass.see(&self.path, "linear2", &y);
        Ok(y)
    }

    /// `x` and a branch with dropout.
    fn add(&self, x: &Tensor, branch: &Tensor, part: &str, pass: Pass) -> Result<Tensor> {
        ops::add(x, branch, self.drop(part, branch, pass)?.as_ref())
    }

    /// The draw over the elements of `like`.
    fn drop(&self, part: &str, like: &Tensor, pass: Pass) -> Result<Option<KeepMask>> {
        let per_sample = like.dims().iter().skip(1).product();
        pass.keep_mask(&self.path, part, per_sample, self.dropout)
    }
}
