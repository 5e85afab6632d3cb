//! The vision transformer that all methods train.
//!
//! Letters: B batch, N patches, K kept patches, P values of a patch, D width.

use candle_core::Tensor;

use super::config::Sizes;
use super::tokens::EncoderTokens;
use crate::error::{Error, Result};
use crate::masking::Masking;
use crate::nn::block::Block;
use crate::nn::norm::LayerNorm;
use crate::nn::params::Params;
use crate::nn::pass::{Pass, Probe};
use crate::nn::patch_embed::PatchEmbed;
use crate::nn::pos_embed::{PositionScale, resample_pos_embed_by};
use crate::ops;

/// Patch embedding, blocks and final norm. The model around it registers the tokens, before those of a decoder, as the
/// reference does.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokens: EncoderTokens,
    patch_embed: PatchEmbed,
    blocks: Vec<Block>,
    norm: LayerNorm,
    checkpoint_blocks: bool,
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
            checkpoint_blocks: false,
        })
    }

    /// The same encoder, whose backward pass computes every block again if `checkpoint_blocks`.
    pub fn checkpointed(self, checkpoint_blocks: bool) -> Encoder {
        Encoder {
            checkpoint_blocks,
            ..self
        }
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

    /// How the class token looks at the patches in the last block: `[B, H, N]` for all `patches` `[B, N, P]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn class_attention(&self, patches: &Tensor) -> Result<Tensor> {
        let probe = Probe::default();
        self.forward(patches, Pass::evaluation().watched(&probe))?;
        let name = format!("blocks.{}.norm1", self.blocks.len() - 1);
        let seen = probe.into_seen();
        let normed = seen.iter().find(|(path, _)| *path == name);
        let (Some((_, normed)), Some(last)) = (normed, self.blocks.last()) else {
            return Err(Error::Config("an encoder without blocks".to_owned()));
        };
        let weights = last.attention_weights(normed)?; // [B, H, 1 + N, 1 + N]
        let n_patches = patches.dim(1)?;
        Ok(weights
            .narrow(2, 0, 1)?
            .narrow(3, 1, n_patches)?
            .squeeze(2)?)
    }

    /// Encodes all `patches` `[B, N, P]`; returns `[B, 1 + N, D]`, the class token first.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, patches: &Tensor, pass: Pass) -> Result<Tensor> {
        let tokens = self.patch_embed.forward(patches)?;
        pass.see("patch_embed", "", &tokens);
        self.transform(&tokens, &self.tokens.pos_embed, pass)
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
        let positions = masking.gather_table(&self.tokens.pos_embed.squeeze(0)?)?; // [B, 1 + K, D]
        self.transform(&tokens, &positions, pass)
    }

    /// Class token in front, positions, blocks, norm.
    fn transform(&self, tokens: &Tensor, positions: &Tensor, pass: Pass) -> Result<Tensor> {
        let mut x = ops::class_in_front(tokens, &self.tokens.cls_token, positions)?;
        for block in &self.blocks {
            x = match self.checkpoint_blocks {
                true => block.forward_checkpointed(&x, pass)?,
                false => block.forward(&x, pass)?,
            };
        }
        let x = self.norm.forward(&x)?;
        pass.see("norm", "", &x);
        Ok(x)
    }

    /// As [`Encoder::forward`], but with a gradient for the position table, for those who train it; without the final norm
    /// unless `normed`.
    ///
    /// For candle's own backward pass: on a tape, candle's operations in here would cut the gradient. Every block keeps what
    /// it computed, also in an encoder that is [`Encoder::checkpointed`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_training_positions(
        &self,
        patches: &Tensor,
        normed: bool,
        pass: Pass,
    ) -> Result<Tensor> {
        let tokens = self.patch_embed.forward(patches)?; // [B, N, D]
        let (batch, _, width) = tokens.dims3()?;
        let class = self.tokens.cls_token.broadcast_as((batch, 1, width))?;
        let x = Tensor::cat(&[&class, &tokens], 1)?;
        let mut x = x.broadcast_add(&self.tokens.pos_embed)?;
        for block in &self.blocks {
            x = block.forward(&x, pass)?;
        }
        if normed { self.norm.forward(&x) } else { Ok(x) }
    }
}
