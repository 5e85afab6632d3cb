//! SiamMAE and CropMAE: one encoder for a whole and a masked view; a decoder in which the masked view attends to the
//! whole one. The two methods differ in where the views come from alone.
//!
//! Letters: B batch, N patches, K kept patches, P values of a patch, D width.

use candle_core::Tensor;

use super::config::ModelConfig;
use super::encoder::Encoder;
use super::predictor::Predictor;
use super::tokens::{DecoderTokens, EncoderTokens};
use super::{Forward, Pretrain, split_views};
use crate::error::Result;
use crate::masking::{Masking, StepRandomness};
use crate::nn::decoder_block::DecoderBlock;
use crate::nn::linear::Linear;
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::patchify;

/// The siamese masked autoencoder.
///
/// Source: CropMAE, `models/SiamMAE.py`.
#[derive(Debug, Clone)]
pub struct Siamese {
    config: ModelConfig,
    encoder: Encoder,
    decoder_tokens: DecoderTokens,
    decoder_embed: Linear,
    decoder_blocks: Vec<DecoderBlock>,
    predictor: Predictor,
}

impl Siamese {
    /// Registers all parameters in the reference's order.
    ///
    /// # Errors
    /// If the configuration's sizes do not fit each other.
    pub fn new(config: &ModelConfig, params: &mut Params) -> Result<Siamese> {
        let sizes = config.sizes();
        let tokens = EncoderTokens::new(params, &sizes)?;
        let decoder_tokens = DecoderTokens::new(params, &sizes)?;
        let encoder = Encoder::new(params, &sizes, tokens, config.drop_path)?
            .checkpointed(config.checkpoint_blocks);
        let width = sizes.decoder_embed_dim;
        let decoder_embed = Linear::new(params, "decoder_embed", sizes.embed_dim, width)?;
        let decoder_blocks = (0..sizes.decoder_depth)
            .map(|i| {
                let path = format!("decoder_blocks.{i}");
                DecoderBlock::new(
                    params,
                    &path,
                    width,
                    sizes.decoder_num_heads,
                    config.decoder_dropout,
                )
            })
            .collect::<Result<_>>()?;
        Ok(Siamese {
            config: config.clone(),
            encoder,
            decoder_tokens,
            decoder_embed,
            decoder_blocks,
            predictor: Predictor::new(params, config)?,
        })
    }

    /// The forward pass under a given mask of view 2.
    ///
    /// # Errors
    /// If `views` is not `[B, 2, 3, H, W]` with the mask's B and the model's H and W.
    pub fn forward_masked(&self, views: &Tensor, masking: &Masking, pass: Pass) -> Result<Forward> {
        let sizes = self.config.sizes();
        let [whole, masked] = split_views(views, &sizes)?;
        let memory = self
            .encoder
            .forward(&patchify(&whole, sizes.patch_size)?, pass.in_view("view1"))?;
        let patches = patchify(&masked, sizes.patch_size)?; // [B, N, P]
        let kept = self
            .encoder
            .forward_masked(&patches, masking, pass.in_view("view2"))?; // [B, 1 + K, D]
        let x = self.decode(&memory, &kept, masking, pass)?; // [B, 1 + N, D]
        let (loss, reconstruction) = self.predictor.loss(&x, &patches, masking, 1, pass)?;
        Ok(Forward {
            loss,
            parts: Vec::new(),
            reconstruction,
        })
    }

    /// The memory keeps its class token and gets no positions; the masked view gets mask tokens, then positions.
    fn decode(
        &self,
        memory: &Tensor,
        kept: &Tensor,
        masking: &Masking,
        pass: Pass,
    ) -> Result<Tensor> {
        let memory = self.decoder_embed.forward(memory)?; // [B, 1 + N, D]
        pass.in_view("view1").see("decoder_embed", "", &memory);
        let kept = self.decoder_embed.forward(kept)?; // [B, 1 + K, D]
        pass.in_view("view2").see("decoder_embed", "", &kept);
        let tokens = &self.decoder_tokens;
        let mut x = masking.restore(&kept, &tokens.mask_token, &tokens.decoder_pos_embed)?; // [B, 1 + N, D]
        pass.see("decoder_in", "", &x);
        for block in &self.decoder_blocks {
            x = match self.config.checkpoint_blocks {
                true => block.forward_checkpointed(&x, &memory, pass)?,
                false => block.forward(&x, &memory, pass)?,
            };
        }
        Ok(x)
    }
}

impl Pretrain for Siamese {
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
