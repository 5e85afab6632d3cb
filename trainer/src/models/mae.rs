//! MAE (He et al., 2022): a masked view reconstructs itself.
//!
//! Letters: B batch, N patches, K kept patches, P values of a patch, D width.

use candle_core::Tensor;

use super::config::{ModelConfig, Sizes};
use super::encoder::Encoder;
use super::tokens::{DecoderTokens, EncoderTokens};
use super::{Forward, Pretrain, Reconstruction, split_views};
use crate::error::Result;
use crate::loss::{masked_patch_mse, pixel_targets};
use crate::masking::{Masking, StepRandomness};
use crate::nn::block::Block;
use crate::nn::linear::Linear;
use crate::nn::norm::LayerNorm;
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::patchify;

/// MAE's decoder: mask tokens and positions, then plain pre-norm blocks over all tokens.
#[derive(Debug, Clone)]
pub struct MaeDecoder {
    tokens: DecoderTokens,
    decoder_embed: Linear,
    decoder_blocks: Vec<Block>,
    decoder_norm: LayerNorm,
    decoder_pred: Linear,
}

impl MaeDecoder {
    /// Registers `decoder_embed`, `decoder_blocks`, `decoder_norm` and `decoder_pred`.
    ///
    /// # Errors
    /// If the sizes do not fit each other.
    pub fn new(params: &mut Params, sizes: &Sizes, tokens: DecoderTokens) -> Result<MaeDecoder> {
        let width = sizes.decoder_embed_dim;
        Ok(MaeDecoder {
            tokens,
            decoder_embed: Linear::new(params, "decoder_embed", sizes.embed_dim, width)?,
            decoder_blocks: (0..sizes.decoder_depth)
                .map(|i| {
                    Block::new(
                        params,
                        &format!("decoder_blocks.{i}"),
                        width,
                        sizes.decoder_num_heads,
                        0.0,
                    )
                })
                .collect::<Result<_>>()?,
            decoder_norm: LayerNorm::new(params, "decoder_norm", width)?,
            decoder_pred: Linear::new(params, "decoder_pred", width, sizes.patch_values())?,
        })
    }

    /// Encoded tokens `[B, 1 + K, D]` to predicted patches `[B, N, P]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, kept: &Tensor, masking: &Masking, pass: Pass) -> Result<Tensor> {
        let kept = self.decoder_embed.forward(kept)?;
        pass.see("decoder_embed", "", &kept);
        let x = masking.restore(&kept, &self.tokens.mask_token)?; // [B, 1 + N, D]
        let mut x = x.broadcast_add(&self.tokens.decoder_pos_embed)?;
        pass.see("decoder_in", "", &x);
        for block in &self.decoder_blocks {
            x = block.forward(&x, pass)?;
        }
        let x = self.decoder_norm.forward(&x)?;
        pass.see("decoder_norm", "", &x);
        // The class token predicts nothing.
        let pred = self
            .decoder_pred
            .forward(&x.narrow(1, 1, x.dim(1)? - 1)?.contiguous()?)?;
        pass.see("decoder_pred", "", &pred);
        Ok(pred)
    }
}

/// The masked autoencoder.
///
/// Source: MAE, `models_mae.py`.
#[derive(Debug, Clone)]
pub struct Mae {
    config: ModelConfig,
    encoder: Encoder,
    decoder: MaeDecoder,
}

impl Mae {
    /// Registers all parameters in the reference's order.
    ///
    /// # Errors
    /// If the configuration's sizes do not fit each other.
    pub fn new(config: &ModelConfig, params: &mut Params) -> Result<Mae> {
        let sizes = config.sizes();
        let tokens = EncoderTokens::new(params, &sizes)?;
        let decoder_tokens = DecoderTokens::new(params, &sizes)?;
        Ok(Mae {
            config: config.clone(),
            encoder: Encoder::new(params, &sizes, tokens, config.drop_path)?,
            decoder: MaeDecoder::new(params, &sizes, decoder_tokens)?,
        })
    }

    /// The forward pass under a given mask.
    ///
    /// # Errors
    /// If `views` is not `[B, 1, 3, H, W]` with the mask's B and the model's H and W.
    pub fn forward_masked(&self, views: &Tensor, masking: &Masking, pass: Pass) -> Result<Forward> {
        let sizes = self.config.sizes();
        let [view] = split_views(views, &sizes)?;
        let patches = patchify(&view, sizes.patch_size)?; // [B, N, P]
        let kept = self.encoder.forward_masked(&patches, masking, pass)?; // [B, 1 + K, D]
        let pred = self.decoder.forward(&kept, masking, pass)?; // [B, N, P]

        let mask = masking.mask(pred.dtype(), pred.device())?;
        let target = pixel_targets(&patches, self.config.norm_pix_loss)?;
        let loss = masked_patch_mse(&pred, &target, &mask)?;
        Ok(Forward {
            loss,
            parts: Vec::new(),
            reconstruction: Some(Reconstruction {
                pred,
                mask,
                target_view: 0,
            }),
        })
    }
}

impl Pretrain for Mae {
    fn forward(&self, views: &Tensor, step: &StepRandomness, train: bool) -> Result<Forward> {
        let sizes = self.config.sizes();
        let masks = step.masks(1, sizes.n_patches(), sizes.mask_ratio)?;
        let pass = if train {
            Pass::training(step)
        } else {
            Pass::evaluation()
        };
        self.forward_masked(views, &masks[0], pass)
    }
}
