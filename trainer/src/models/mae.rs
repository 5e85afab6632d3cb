//! MAE (He et al., 2022): a masked view reconstructs itself.
//!
//! Letters: B batch, N patches, K kept patches, P values of a patch, D width.

use candle_core::Tensor;

use super::config::ModelConfig;
use super::encoder::Encoder;
use super::predictor::Predictor;
use super::tokens::{DecoderTokens, EncoderTokens};
use super::{Forward, Pretrain, Reconstruction, split_views};
use crate::error::Result;
use crate::masking::{Masking, StepRandomness};
use crate::nn::block::Block;
use crate::nn::linear::Linear;
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::patchify;

/// MAE's decoder: mask tokens and positions, then plain pre-norm blocks over all tokens.
#[derive(Debug, Clone)]
pub struct MaeDecoder {
    tokens: DecoderTokens,
    decoder_embed: Linear,
    decoder_blocks: Vec<Block>,
    predictor: Predictor,
    checkpoint_blocks: bool,
}

impl MaeDecoder {
    /// Registers `decoder_embed`, `decoder_blocks`, `decoder_norm` and `decoder_pred`.
    ///
    /// # Errors
    /// If the sizes do not fit each other.
    pub fn new(
        params: &mut Params,
        config: &ModelConfig,
        tokens: DecoderTokens,
    ) -> Result<MaeDecoder> {
        let sizes = config.sizes();
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
            predictor: Predictor::new(params, config)?,
            checkpoint_blocks: config.checkpoint_blocks,
        })
    }

    /// The loss of reconstructing the removed ones of `patches` `[B, N, P]`, which are of view `target_view`, from the
    /// encoded tokens `kept` `[B, 1 + K, D]`; what was predicted beside it unless a tape records.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn loss(
        &self,
        kept: &Tensor,
        patches: &Tensor,
        masking: &Masking,
        target_view: usize,
        pass: Pass,
    ) -> Result<(Tensor, Option<Reconstruction>)> {
        let kept = self.decoder_embed.forward(kept)?;
        pass.see("decoder_embed", "", &kept);
        let tokens = &self.tokens;
        let mut x = masking.restore(&kept, &tokens.mask_token, &tokens.decoder_pos_embed)?; // [B, 1 + N, D]
        pass.see("decoder_in", "", &x);
        for block in &self.decoder_blocks {
            x = match self.checkpoint_blocks {
                true => block.forward_checkpointed(&x, pass)?,
                false => block.forward(&x, pass)?,
            };
        }
        self.predictor.loss(&x, patches, masking, target_view, pass)
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
            encoder: Encoder::new(params, &sizes, tokens, config.drop_path)?
                .checkpointed(config.checkpoint_blocks),
            decoder: MaeDecoder::new(params, config, decoder_tokens)?,
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
        let (loss, reconstruction) = self.decoder.loss(&kept, &patches, masking, 0, pass)?;
        Ok(Forward {
            loss,
            parts: Vec::new(),
            reconstruction,
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
