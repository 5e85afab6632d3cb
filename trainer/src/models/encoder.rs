//! The vision transformer that all methods train.
//!
//! Letters: B batch, N patches, K kept patches, P values of a patch, D width.

use candle_core::Tensor;

use super::config::Sizes;
use super::tokens::EncoderTokens;
use crate::error::Result;
use crate::masking::Masking;
use crate::nn::block::Block;
use crate::nn::norm::LayerNorm;
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::PatchEmbed;
use crate::nn::pos_embed::{PositionScale, resample_pos_embed_by};

/// Patch embedding, blocks and final norm. The model around it registers the tokens, before those of a decoder, as the
/// reference does.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokens: EncoderTokens,
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Encoder {
    /// Registers `patch_embed`, `blocks` and `norm`.
    ///
    /// * `drop_path`: stochastic depth of the last block, rising linearly from 0 at the first.
    ///
    /// # Errors
    /// If the sizes do not fit each other.
    pub fn new(
        params: &mut Params,
        sizes: &Sizes,
        tokens: EncoderTokens,
        drop_path: f64,
    ) -> Result<Encoder> {
        let patch_embed =
            PatchEmbed::new(params, "patch_embed", sizes.patch_size, sizes.embed_dim)?;
        let last = (sizes.depth - 1).max(1) as f64;
        let blocks = (0..sizes.depth)
            .map(|i| {
                let rate = drop_path * i as f64 / last;
                Block::new(
                    params,
                    &format!("blocks.{i}"),
                    sizes.embed_dim,
                    sizes.num_heads,
                    rate,
                )
            })
            .collect::<Result<_>>()?;
        let norm = LayerNorm::new(params, "norm", sizes.embed_dim)?;
        Ok(Encoder {
            tokens,
            patch_embed,
            blocks,
            norm,
        })
    }

    /// The same encoder for pictures of `rows` x `columns` patches, its position table resampled; weights are shared.
    ///
    /// # Errors
    /// If the table is not that of a square grid.
    pub fn at_grid(&self, rows: usize, columns: usize, scale: PositionScale) -> Result<Encoder> {
        let mut encoder = self.clone();
        encoder.tokens.pos_embed =
            resample_pos_embed_by(&self.tokens.pos_embed, rows, columns, scale)?;
        Ok(encoder)
    }

    /// Encodes all `patches` `[B, N, P]`; returns `[B, 1 + N, D]`, the class token first.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, patches: &Tensor, pass: Pass) -> Result<Tensor> {
        self.norm_of(self.forward_before_norm(patches, pass)?, pass)
    }

    /// As [`Encoder::forward`], without the final norm: what a classifier with a norm of its own begins with.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_before_norm(&self, patches: &Tensor, pass: Pass) -> Result<Tensor> {
        let tokens = self.patch_embed.forward(patches)?;
        pass.see("patch_embed", "", &tokens);
        let n_patches = tokens.dim(1)?;
        let tokens = tokens.broadcast_add(&self.tokens.pos_embed.narrow(1, 1, n_patches)?)?;
        self.transform(tokens, pass)
    }

    /// Encodes the kept ones of `patches` `[B, N, P]`; returns `[B, 1 + K, D]`. Removed patches are not even embedded.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_masked(
        &self,
        patches: &Tensor,
        masking: &Masking,
        pass: Pass,
    ) -> Result<Tensor> {
        let tokens = self.patch_embed.forward(&masking.gather(patches)?)?; // [B, K, D]
        pass.see("patch_embed", "", &tokens);
        let n_patches = patches.dim(1)?;
        let positions =
            masking.gather_table(&self.tokens.pos_embed.narrow(1, 1, n_patches)?.squeeze(0)?)?; // [B, K, D]
        self.norm_of(self.transform((tokens + positions)?, pass)?, pass)
    }

    /// Class token in front, blocks.
    fn transform(&self, tokens: Tensor, pass: Pass) -> Result<Tensor> {
        let (batch, _, width) = tokens.dims3()?;
        let class = (&self.tokens.cls_token + self.tokens.pos_embed.narrow(1, 0, 1)?)?
            .broadcast_as((batch, 1, width))?;
        let mut x = Tensor::cat(&[&class, &tokens], 1)?;
        for block in &self.blocks {
            x = block.forward(&x, pass)?;
        }
        Ok(x)
    }

    fn norm_of(&self, x: Tensor, pass: Pass) -> Result<Tensor> {
        let x = self.norm.forward(&x)?;
        pass.see("norm", "", &x);
        Ok(x)
    }
}
