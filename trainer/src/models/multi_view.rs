//! Multi-View MAE (Ji, Han and Rhee, 2023): two masked views of an image, each reconstructed, and a contrastive loss
//! between their encodings.
//!
//! Established from the article: two views by random cropping, a mask ratio of 0.8, a reconstruction loss, a contrastive
//! loss on the encoder's outputs whose best weight was 2.0, and "two different targets". The rest is this project's
//! reading, each choice an option of [`ModelConfig`](super::ModelConfig): see [`Targets`] and [`ContrastiveConfig`].
//!
//! The contrastive term alone (`reconstruction_weight = 0`, `mask_ratio = 0`) is SimCLR's scheme, with `predictor` and
//! `momentum` MoCo v3's: the baselines of the paper's tables.
//!
//! Letters: B batch, N patches, K kept patches, P values of a patch, D width, Z width of the projection.

use candle_core::{DType, Tensor};

use super::config::{ContrastiveConfig, ModelConfig, Pool, Targets};
use super::encoder::Encoder;
use super::mae::MaeDecoder;
use super::tokens::{DecoderTokens, EncoderTokens};
use super::{Forward, Pretrain, split_views};
use crate::distributed::Ranks;
use crate::error::Result;
use crate::loss::{Keys, info_nce};
use crate::masking::{Masking, StepRandomness};
use crate::nn::linear::Linear;
use crate::nn::norm::{BatchNorm, unit_length};
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::patchify;
use crate::tape;

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

    /// `[B, in]` to `[B, out]`; statistics are those of this batch of one view, over all ranks.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2
            .forward(&self.norm.forward(&self.fc1.forward(x)?)?.relu()?)
    }
}

/// The heads that only the contrastive loss needs, and the momentum branch.
#[derive(Debug, Clone)]
struct Contrastive {
    config: ContrastiveConfig,
    projector: Projector,
    predictor: Option<Projector>,
    momentum: Option<Momentum>,
    ranks: Ranks,
}

/// Encoder and projector once more, as running means of the trained ones ([`Params::follow`]): they make the keys, and
/// take no gradient.
#[derive(Debug, Clone)]
struct Momentum {
    encoder: Encoder,
    projector: Projector,
}

/// Start of the names of the momentum branch's parameters.
pub const MOMENTUM: &str = "momentum";

impl Contrastive {
    fn new(config: &ModelConfig, params: &mut Params) -> Result<Contrastive> {
        let (sizes, part) = (config.sizes(), &config.contrastive);
        let (hidden, out) = (part.projector_hidden_dim, part.projector_dim);
        let projector =
            |params: &mut Params| Projector::new(params, "projector", sizes.embed_dim, hidden, out);
        Ok(Contrastive {
            config: part.clone(),
            projector: projector(params)?,
            predictor: match part.predictor {
                true => Some(Projector::new(params, "predictor", out, hidden, out)?),
                false => None,
            },
            momentum: match part.momentum {
                Some(_) => Some(params.following(MOMENTUM, |params| {
                    let tokens = EncoderTokens::new(params, &sizes)?;
                    Ok(Momentum {
                        encoder: Encoder::new(params, &sizes, tokens, config.drop_path)?,
                        projector: projector(params)?,
                    })
                })?),
                None => None,
            },
            ranks: params.ranks().clone(),
        })
    }

    /// The loss between two views, symmetric: the mean of the first's queries among the second's keys and the reverse.
    ///
    /// * `encoded`: their encodings, `[B, 1 + K, D]`.
    /// * `inputs`, `masks`: their patches `[B, N, P]` and which of them were kept, for the momentum branch.
    fn loss(
        &self,
        encoded: [&Tensor; 2],
        inputs: [&Tensor; 2],
        masks: [&Masking; 2],
        pass: Pass,
    ) -> Result<Tensor> {
        let side = |i: usize, view: &'static str| -> Result<(Tensor, Keys)> {
            let projected = self.projector.forward(&self.pool(encoded[i])?)?; // [B, Z]
            let query = match &self.predictor {
                Some(predictor) => predictor.forward(&projected)?,
                None => projected.clone(),
            };
            let key = match &self.momentum {
                Some(momentum) => {
                    let pass = pass.in_view(view);
                    let encoded = momentum.encoder.forward_masked(inputs[i], masks[i], pass)?;
                    momentum.projector.forward(&self.pool(&encoded)?)?
                }
                None if self.predictor.is_some() => projected.detach(),
                None => projected,
            };
            Ok((unit_length(&query)?, self.keys(&unit_length(&key)?)?))
        };
        let (first, second) = (side(0, "momentum1")?, side(1, "momentum2")?);
        let temperature = self.config.temperature;
        let forth = info_nce(&first.0, &second.1, temperature)?;
        let back = info_nce(&second.0, &first.1, temperature)?;
        Ok(((forth + back)? * 0.5)?)
    }

    /// This rank's keys `[B, Z]` with those of the others.
    fn keys(&self, own: &Tensor) -> Result<Keys> {
        if self.ranks.size() == 1 {
            return Ok(Keys::local(own.clone()));
        }
        let all = self.ranks.gather_rows(own)?;
        Ok(Keys::gathered(all, self.ranks.rank(), own.dim(0)?))
    }

    fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        let pooled = match self.config.pool {
            Pool::Cls => tokens.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            Pool::Mean => tokens.narrow(1, 1, tokens.dim(1)? - 1)?.mean(1)?,
        };
        // The heads are small, and statistics and similarities of a batch are sums: they stay out of bf16.
        match pooled.dtype() {
            DType::BF16 => Ok(pooled.to_dtype(DType::F32)?),
            _ => Ok(pooled),
        }
    }
}

/// The two-view masked autoencoder. Without the contrastive loss (weight 0) it has no projector, without reconstruction
/// (weight 0) no decoder.
#[derive(Debug, Clone)]
pub struct MultiView {
    config: ModelConfig,
    encoder: Encoder,
    decoder: Option<MaeDecoder>,
    contrastive: Option<Contrastive>,
}

impl MultiView {
    /// Registers MAE's parameters, then `projector`, `predictor` and `momentum`.
    ///
    /// # Errors
    /// If the configuration's sizes do not fit each other.
    pub fn new(config: &ModelConfig, params: &mut Params) -> Result<MultiView> {
        let sizes = config.sizes();
        let tokens = EncoderTokens::new(params, &sizes)?;
        let decoder_tokens = match config.reconstruction_weight > 0.0 {
            true => Some(DecoderTokens::new(params, &sizes)?),
            false => None,
        };
        Ok(MultiView {
            config: config.clone(),
            encoder: Encoder::new(params, &sizes, tokens, config.drop_path)?
                .checkpointed(config.checkpoint_blocks),
            decoder: match decoder_tokens {
                Some(tokens) => Some(MaeDecoder::new(params, config, tokens)?),
                None => None,
            },
            contrastive: match config.contrastive.weight > 0.0 {
                true => Some(Contrastive::new(config, params)?),
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
        let passes = [pass.in_view("view1"), pass.in_view("view2")];
        let encode = |i: usize| self.encoder.forward_masked(inputs[i], masks[i], passes[i]);
        let encoded = [encode(0)?, encode(1)?]; // [B, 1 + K, D]

        let mut parts = Vec::new();
        let mut terms = Vec::new();
        let mut reconstruction = None;
        if let Some(decoder) = &self.decoder {
            let target_view = usize::from(self.config.targets == Targets::Cross);
            let branch =
                |i: usize| decoder.loss(&encoded[i], targets[i], masks[i], target_view, passes[i]);
            let ((one, shown), (two, _)) = (branch(0)?, branch(1)?);
            let loss = tape::composed(&[&one, &two], |t| Ok(((&t[0] + &t[1])? * 0.5)?))?;
            terms.push((loss.clone(), self.config.reconstruction_weight));
            parts.push(("reconstruction", loss));
            reconstruction = shown;
        }
        if let Some(part) = &self.contrastive {
            let loss = tape::composed(&[&encoded[0], &encoded[1]], |encoded| {
                part.loss([&encoded[0], &encoded[1]], inputs, masks, pass)
            })?;
            terms.push((loss.clone(), part.config.weight));
            parts.push(("contrastive", loss));
        }
        let losses: Vec<&Tensor> = terms.iter().map(|(loss, _)| loss).collect();
        let loss = tape::composed(&losses, |losses| {
            let weighted = losses.iter().zip(&terms);
            let weighted = weighted.map(|(loss, (_, weight))| loss * *weight);
            let weighted = weighted.collect::<candle_core::Result<Vec<_>>>()?;
            Ok(Tensor::stack(&weighted, 0)?.sum_all()?)
        })?;
        Ok(Forward {
            loss,
            parts,
            reconstruction,
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
