//! Multi-View MAE (Ji, Han and Rhee, 2023): two masked views of an image, each reconstructed, and a contrastive loss
//! between their encodings.
//!
//! Established from the article: two views by random cropping, a mask ratio of 0.8, a reconstruction loss, a contrastive
//! loss on the encoder's outputs whose best weight was 2.0, and "two different targets". The rest is this project's
//! reading, each choice an option of [`ModelConfig`](super::ModelConfig): see [`Targets`] and [`ContrastiveConfig`].
//!
//! Letters: B batch, N patches, K kept patches, P values of a patch, D width, Z width of the projection.

use candle_core::Tensor;

use super::config::{ContrastiveConfig, ModelConfig, Pool, Targets};
use super::encoder::Encoder;
use super::mae::MaeDecoder;
use super::tokens::Tokens;
use super::{Forward, Pretrain, split_views};
use crate::error::Result;
use crate::loss::{info_nce, masked_patch_mse, pixel_targets};
use crate::masking::{Masking, StepRandomness};
use crate::nn::linear::Linear;
use crate::nn::norm::{BatchNorm, unit_length};
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::patchify;

/// Linear, batch normalisation, ReLU, linear.
#[derive(Debug, Clone)]
struct Projector {
    fc1: Linear,
    norm: BatchNorm,
    fc2: Linear,
}

impl Projector {
    fn new(
        params: &mut Params,
        path: &str,
        n_in: usize,
        hidden: usize,
        n_out: usize,
    ) -> Result<Projector> {
        Ok(Projector {
            fc1: Linear::new(params, &format!("{path}.fc1"), n_in, hidden)?,
            norm: BatchNorm::new(params, &format!("{path}.norm"), hidden)?,
            fc2: Linear::new(params, &format!("{path}.fc2"), hidden, n_out)?,
        })
    }

    /// `[B, in]` to `[B, out]`; statistics are those of this batch of one view.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2
            .forward(&self.norm.forward(&self.fc1.forward(x)?)?.relu()?)
    }
}

/// The heads that only the contrastive loss needs.
#[derive(Debug, Clone)]
struct Contrastive {
    config: ContrastiveConfig,
    projector: Projector,
    predictor: Option<Projector>,
}

impl Contrastive {
    fn new(
        config: &ContrastiveConfig,
        params: &mut Params,
        embed_dim: usize,
    ) -> Result<Contrastive> {
        let (hidden, out) = (config.projector_hidden_dim, config.projector_dim);
        Ok(Contrastive {
            config: config.clone(),
            projector: Projector::new(params, "projector", embed_dim, hidden, out)?,
            predictor: match config.predictor {
                true => Some(Projector::new(params, "predictor", out, hidden, out)?),
                false => None,
            },
        })
    }

    /// The loss between two views' encodings `[B, 1 + K, D]`.
    fn loss(&self, encoded: [&Tensor; 2]) -> Result<Tensor> {
        let project = |tokens: &Tensor| self.projector.forward(&self.pool(tokens)?);
        let [z1, z2] = [project(encoded[0])?, project(encoded[1])?]; // [B, Z]
        let temperature = self.config.temperature;
        match &self.predictor {
            None => info_nce(&unit_length(&z1)?, &unit_length(&z2)?, temperature),
            Some(predictor) => {
                let queries = |z: &Tensor| unit_length(&predictor.forward(z)?);
                let keys = |z: &Tensor| unit_length(&z.detach());
                let forth = info_nce(&queries(&z1)?, &keys(&z2)?, temperature)?;
                let back = info_nce(&queries(&z2)?, &keys(&z1)?, temperature)?;
                Ok(((forth + back)? * 0.5)?)
            }
        }
    }

    fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        match self.config.pool {
            Pool::Cls => Ok(tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?),
            Pool::Mean => Ok(tokens.narrow(1, 1, tokens.dim(1)? - 1)?.mean(1)?),
        }
    }
}

/// The two-view masked autoencoder. Without the contrastive loss (weight 0) it has no projector.
#[derive(Debug, Clone)]
pub struct MultiView {
    config: ModelConfig,
    encoder: Encoder,
    decoder: MaeDecoder,
    contrastive: Option<Contrastive>,
}

/// What one view gives.
struct Branch {
    /// `[B, 1 + K, D]`.
    encoded: Tensor,
    /// `[B, N, P]`.
    pred: Tensor,
    /// `[B, N]`.
    mask: Tensor,
    loss: Tensor,
}

impl MultiView {
    /// Registers MAE's parameters, then `projector` and `predictor`.
    ///
    /// # Errors
    /// If the configuration's sizes do not fit each other.
    pub fn new(config: &ModelConfig, params: &mut Params) -> Result<MultiView> {
        let sizes = config.sizes();
        let Tokens {
            cls_token,
            pos_embed,
            mask_token,
            decoder_pos_embed,
        } = Tokens::new(params, &sizes)?;
        Ok(MultiView {
            config: config.clone(),
            encoder: Encoder::new(params, &sizes, cls_token, pos_embed, config.drop_path)?,
            decoder: MaeDecoder::new(params, &sizes, mask_token, decoder_pos_embed)?,
            contrastive: match config.contrastive.weight > 0.0 {
                true => Some(Contrastive::new(
                    &config.contrastive,
                    params,
                    sizes.embed_dim,
                )?),
                false => None,
            },
        })
    }

    /// The forward pass under given masks of the two branches.
    ///
    /// # Errors
    /// If `views` is not `[B, 2, 3, H, W]` with the masks' B and the model's H and W; with the contrastive loss, if B is
    /// below 2.
    pub fn forward_masked(
        &self,
        views: &Tensor,
        masks: [&Masking; 2],
        pass: Pass,
    ) -> Result<Forward> {
        let sizes = self.config.sizes();
        let [first, second] = split_views(views, &sizes)?;
        let first = patchify(&first, sizes.patch_size)?; // [B, N, P]
        let second = patchify(&second, sizes.patch_size)?;
        // What each branch sees, and what it must predict.
        let (inputs, targets) = match self.config.targets {
            Targets::Own => ([&first, &second], [&first, &second]),
            Targets::Shared => ([&first, &first], [&first, &first]),
            Targets::Cross => ([&first, &second], [&second, &first]),
        };

        let branch = |i: usize, view: &'static str| -> Result<Branch> {
            let pass = pass.in_view(view);
            let encoded = self.encoder.forward_masked(inputs[i], masks[i], pass)?; // [B, 1 + K, D]
            let pred = self.decoder.forward(&encoded, masks[i], pass)?; // [B, N, P]
            let mask = masks[i].mask(pred.dtype(), pred.device())?;
            let target = pixel_targets(targets[i], self.config.norm_pix_loss)?;
            let loss = masked_patch_mse(&pred, &target, &mask)?;
            Ok(Branch {
                encoded,
                pred,
                mask,
                loss,
            })
        };
        let (one, two) = (branch(0, "view1")?, branch(1, "view2")?);
        let reconstruction = ((one.loss + two.loss)? * 0.5)?;

        let (loss, parts) = match &self.contrastive {
            None => (
                reconstruction.clone(),
                vec![("reconstruction", reconstruction)],
            ),
            Some(part) => {
                let contrastive = part.loss([&one.encoded, &two.encoded])?;
                let loss = (&reconstruction + (&contrastive * part.config.weight)?)?;
                (
                    loss,
                    vec![
                        ("reconstruction", reconstruction),
                        ("contrastive", contrastive),
                    ],
                )
            }
        };
        let target_view = if self.config.targets == Targets::Cross {
            1
        } else {
            0
        };
        Ok(Forward {
            loss,
            parts,
            pred: one.pred,
            mask: one.mask,
            target_view,
        })
    }
}

impl Pretrain for MultiView {
    fn forward(&self, views: &Tensor, step: &StepRandomness, train: bool) -> Result<Forward> {
        let sizes = self.config.sizes();
        let masks = step.masks(2, sizes.n_patches(), sizes.mask_ratio)?;
        let pass = if train {
            Pass::training(step)
        } else {
            Pass::evaluation()
        };
        self.forward_masked(views, [&masks[0], &masks[1]], pass)
    }
}
