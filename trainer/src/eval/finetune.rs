//! Fine-tuning: the whole encoder and a linear classifier, trained with labels.
//!
//! Source: MAE, `main_finetune.py`, `models_vit.py` and `FINETUNE.md`; its augmentations are timm 0.4.5's.
//!
//! Letters: B batch, C classes, D width, S side of a view.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use pipeline::Stop;
use pipeline::config::{DataConfig, Interpolation, RandAugmentConfig, Sampler, ViewsKind};
use pipeline::loader::Batch;
use serde::{Deserialize, Serialize};

use super::accuracy::Hits;
use super::encoder::CheckpointId;
use super::erasing::erase;
use super::labelled::{
    LOOK_BATCH, LabelledData, LabelledSet, Progress, add_hits, data_id, identity, pooled,
};
use super::mixing::MixingSettings;
use super::probe::LARGE_WIDTH;
use super::results::{Failed, RESULTS_FORMAT, Results, Versions};
use super::supervised::{Course, Learner, SupervisedScores};
use crate::error::{Error, Result};
use crate::exchange::{Read, Tensors};
use crate::loss::soft_cross_entropy;
use crate::masking::StepRandomness;
use crate::models::encoder::Encoder;
use crate::models::tokens::EncoderTokens;
use crate::models::{Pool, Sizes};
use crate::nn::init::Init;
use crate::nn::norm::LayerNorm;
use crate::nn::params::Params;
use crate::nn::pass::Pass;
use crate::nn::patch_embed::patchify;
use crate::ops;
use crate::optim::{AdamW, AdamWOptions, Gradients, LayerGroups, Schedule, layer_groups, schedule};

/// Standard deviation of the head's first weights.
const HEAD_STD: f64 = 2e-5;
/// AdamW's betas, torch's default.
const BETAS: AdamWOptions = AdamWOptions {
    beta1: 0.9,
    beta2: 0.999,
};
/// Width from which MAE drops paths more often still.
const HUGE_WIDTH: usize = 1280;
/// Width for which MAE has a layer decay of its own.
const BASE_WIDTH: usize = 768;

/// Everything the numbers depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneSettings {
    /// The splits.
    pub data: LabelledData,
    /// What the classifier sees: the mean of the patches' tokens, under a norm of its own (MAE), or the class token under the
    /// encoder's.
    pub pool: Pool,
    /// Epochs (MAE: 100, and 50 for ViT-L and ViT-H).
    pub epochs: u64,
    /// Epochs of linear warm-up (5).
    pub warmup_epochs: u64,
    /// Pictures of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step (MAE: 1024 pictures a step).
    pub accum_steps: u64,
    /// Learning rate of 256 pictures a step (MAE: 5e-4 for ViT-B, 1e-3 for ViT-L and ViT-H).
    pub base_lr: f64,
    /// Learning rate at the end, before the layers' decay (1e-6).
    pub min_lr: f64,
    /// By what each layer learns slower than the one above it (MAE: 0.65 for ViT-B, 0.75 for ViT-L and ViT-H).
    pub layer_decay: f64,
    /// Weight decay (0.05).
    pub weight_decay: f64,
    /// Largest probability of dropping a residual branch, that of the last block (MAE: 0.1, 0.2, 0.3 for ViT-B, L, H).
    pub drop_path: f64,
    /// Mixup, CutMix and label smoothing.
    pub mixing: MixingSettings,
    /// Probability that a rectangle of a picture is erased (0.25).
    pub erase_p: f64,
    /// RandAugment; none is off.
    pub rand_augment: Option<RandAugmentConfig>,
    /// Seed of everything random.
    pub seed: u64,
}

impl FinetuneSettings {
    /// MAE's protocol for an encoder of that width.
    pub fn mae(data: LabelledData, width: usize) -> Self {
        let is_large = width >= LARGE_WIDTH;
        Self {
            data,
            pool: Pool::Mean,
            epochs: if is_large { 50 } else { 100 },
            warmup_epochs: 5,
            batch_size: 64,
            accum_steps: 16,
            base_lr: if is_large { 1e-3 } else { 5e-4 },
            min_lr: 1e-6,
            layer_decay: if width == BASE_WIDTH { 0.65 } else { 0.75 },
            weight_decay: 0.05,
            drop_path: match width {
                HUGE_WIDTH.. => 0.3,
                LARGE_WIDTH.. => 0.2,
                _ => 0.1,
            },
            mixing: MixingSettings {
                mixup: 0.8,
                cutmix: 1.0,
                cutmix_p: 0.5,
                label_smoothing: 0.1,
            },
            erase_p: 0.25,
            rand_augment: Some(RandAugmentConfig::default()),
            seed: 0,
        }
    }

    fn validate(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Config(text));
        if self.epochs == 0 || self.accum_steps == 0 || self.batch_size == 0 {
            return wrong("epochs, accum_steps or batch_size is 0, expected at least 1".to_owned());
        }
        if self.warmup_epochs >= self.epochs {
            return wrong(format!(
                "warmup_epochs is {}, expected less than the {} epochs",
                self.warmup_epochs, self.epochs
            ));
        }
        let MixingSettings {
            mixup,
            cutmix,
            cutmix_p,
            label_smoothing,
        } = self.mixing;
        for (name, value, low, high) in [
            ("base_lr", self.base_lr, 0.0, f64::MAX),
            ("min_lr", self.min_lr, 0.0, f64::MAX),
            ("weight_decay", self.weight_decay, 0.0, f64::MAX),
            ("layer_decay", self.layer_decay, f64::MIN_POSITIVE, 1.0),
            ("drop_path", self.drop_path, 0.0, 0.999),
            ("mixup", mixup, 0.0, 4.0),
            ("cutmix", cutmix, 0.0, 4.0),
            ("cutmix_p", cutmix_p, 0.0, 1.0),
            ("label_smoothing", label_smoothing, 0.0, 0.999),
            ("erase_p", self.erase_p, 0.0, 1.0),
        ] {
            if !(low..=high).contains(&value) {
                let expected = match high {
                    f64::MAX => "a number from 0".to_owned(),
                    _ => format!("{} to {high}", if low > 0.0 { 0.0 } else { low }),
                };
                return wrong(format!("{name} is {value}, expected {expected}"));
            }
        }
        Ok(())
    }
}

/// Trains a checkpoint's encoder with labels and scores it after every epoch.
///
/// * `read`, `checkpoint`: as [`super::encoder::read`] gives them. Pictures have the size of pre-training.
/// * `dir`: where the run is kept after each epoch, and goes on from. The weights in it have the names of MAE's fine-tuned
///   checkpoints.
///
/// # Errors
/// [`Error::Config`] for settings without sense; [`Error::Stopped`], after saving; [`Error::ConfigChanged`] if `dir` holds
/// another run; whatever the data report.
pub fn finetune(
    settings: &FinetuneSettings,
    read: &Read,
    checkpoint: CheckpointId,
    device: &Device,
    dir: &Path,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Results<FinetuneSettings, SupervisedScores>> {
    settings.validate()?;
    let [train, val] = settings.data.open()?;
    let data = data_id(&train, &val);
    let sizes = read.model.sizes();

    let model = Classifier::new(settings, &sizes, &read.encoder, train.n_classes(), device)?;
    let trainable = model.trainable();
    let layers = layer_groups(
        trainable.clone(),
        sizes.depth,
        settings.layer_decay,
        settings.weight_decay,
    );
    let layers = layers.into_iter().map(|layer| {
        let LayerGroups { lr_scale, groups } = layer;
        Ok((lr_scale, AdamW::new(groups, BETAS)?))
    });
    let mut learner = Finetune {
        settings,
        layers: layers.collect::<Result<_>>()?,
        grads: Gradients::new(trainable),
        model,
        val: &val,
        failed: Vec::new(),
    };
    let effective_batch = settings.batch_size as u64 * settings.accum_steps;
    let course = Course {
        stage: "fine-tuning",
        seed: settings.seed,
        epochs: settings.epochs,
        accum_steps: settings.accum_steps,
        schedule: Schedule {
            lr: schedule::scaled_lr(settings.base_lr, effective_batch),
            min_lr: settings.min_lr,
            warmup_epochs: settings.warmup_epochs as f64,
            epochs: settings.epochs as f64,
        },
        views: DataConfig {
            batch_size: settings.batch_size,
            views: ViewsKind::Single,
            size: sizes.img_size as u32,
            view_area: [0.08, 1.0],
            interpolation: Interpolation::Bicubic,
            sampler: Sampler::Torchvision,
            rand_augment: settings.rand_augment,
            ..DataConfig::default()
        },
        device: device.clone(),
        dir,
        identity: identity(settings, &settings.data, &checkpoint, &data)?,
    };
    let epochs = course.run(&train, &mut learner, stop, progress)?;
    Ok(Results {
        format: RESULTS_FORMAT,
        protocol: "finetune".to_owned(),
        complete: learner.failed.is_empty(),
        checkpoint,
        data,
        settings: settings.clone(),
        scores: SupervisedScores::new(epochs, &train)?,
        failed: learner.failed,
        versions: Versions::here(device),
    })
}

/// An encoder and a linear layer.
struct Classifier {
    params: Params,
    sizes: Sizes,
    encoder: Encoder,
    pool: Pool,
    /// Of the mean of the patches' tokens; the class token has the encoder's own.
    fc_norm: Option<LayerNorm>,
    weight: Tensor,
    bias: Tensor,
}

impl Classifier {
    /// Everything is trained, the position table too, but for the encoder's final norm where another one is in its place.
    fn new(
        settings: &FinetuneSettings,
        sizes: &Sizes,
        start: &Tensors,
        n_classes: usize,
        device: &Device,
    ) -> Result<Classifier> {
        let mut params = Params::new(settings.seed, DType::F32, device);
        let width = sizes.embed_dim;
        let n_tokens = 1 + sizes.n_patches();
        let tokens = EncoderTokens {
            cls_token: params.trainable("cls_token", &[1, 1, width], Init::Zeros)?,
            pos_embed: params.trainable("pos_embed", &[1, n_tokens, width], Init::Zeros)?,
        };
        let encoder = Encoder::new(&mut params, sizes, tokens, settings.drop_path)?;
        let by_name: HashMap<String, Tensor> = start
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        params.load(&by_name)?;
        let fc_norm = match settings.pool {
            Pool::Mean => Some(LayerNorm::new(&mut params, "fc_norm", width)?),
            Pool::Cls => None,
        };
        let normal = Init::Normal { std: HEAD_STD };
        Ok(Classifier {
            weight: params.trainable("head.weight", &[n_classes, width], normal)?,
            bias: params.trainable("head.bias", &[n_classes], Init::Zeros)?,
            sizes: *sizes,
            encoder,
            pool: settings.pool,
            fc_norm,
            params,
        })
    }

    fn trainable(&self) -> Vec<(String, Var)> {
        self.params
            .iter_trainable()
            .filter(|param| self.fc_norm.is_none() || !param.name.starts_with("norm."))
            .map(|param| (param.name.clone(), param.var.clone()))
            .collect()
    }

    /// Logits `[B, C]` of `[B, 3, S, S]`.
    fn forward(&self, pixels: &Tensor, pass: Pass) -> Result<Tensor> {
        let patches = patchify(pixels, self.sizes.patch_size)?;
        let tokens =
            self.encoder
                .forward_training_positions(&patches, self.fc_norm.is_none(), pass)?;
        let mut pooled = pooled(&tokens, self.pool)?;
        if let Some(norm) = &self.fc_norm {
            pooled = norm.forward(&pooled)?;
        }
        ops::linear(&pooled, &self.weight, &self.bias)
    }
}

struct Finetune<'a> {
    settings: &'a FinetuneSettings,
    model: Classifier,
    /// Share of the learning rate and optimizer of each layer.
    layers: Vec<(f64, AdamW)>,
    grads: Gradients,
    val: &'a LabelledSet,
    /// Pictures that could not be read when it was last scored.
    failed: Vec<Failed>,
}

impl Learner for Finetune<'_> {
    fn learn(
        &mut self,
        batch: &Batch,
        pixels: &Tensor,
        labels: &[usize],
        share: f64,
    ) -> Result<f64> {
        let FinetuneSettings { mixing, seed, .. } = self.settings;
        let step = StepRandomness {
            seed: *seed,
            epoch: batch.epoch,
            samples: batch.samples.clone(),
        };
        let pixels = erase(pixels, &step, self.settings.erase_p)?;
        let mix = mixing.draw(*seed, batch.epoch, batch.index, batch.size);
        let logits = self
            .model
            .forward(&mix.apply(&pixels)?, Pass::training(&step))?;
        let targets = mixing.targets(&mix, labels, logits.dim(1)?);
        let targets = Tensor::from_vec(targets, logits.shape(), logits.device())?;
        let loss = soft_cross_entropy(&logits, &targets)?;
        self.grads.accumulate((&loss * share)?.backward()?)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn step(&mut self, lr: f64) -> Result<()> {
        for (lr_scale, optim) in &mut self.layers {
            optim.step(&self.grads, lr * *lr_scale)?;
        }
        self.grads.clear();
        Ok(())
    }

    fn score(&mut self, stop: &Stop) -> Result<Hits> {
        let mut hits = Hits::default();
        let model = &self.model;
        let (device, size) = (model.weight.device(), model.sizes.img_size);
        self.failed = self
            .val
            .visit(size, LOOK_BATCH, device, stop, &mut |pixels, labels| {
                let logits = model.forward(pixels, Pass::evaluation())?;
                add_hits(&mut hits, &logits, labels)
            })?;
        Ok(hits)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let params = self.model.params.iter();
        let mut state: BTreeMap<String, Tensor> = params
            .map(|param| (param.name.clone(), param.var.as_detached_tensor()))
            .collect();
        for (_, optim) in &self.layers {
            state.extend(optim.state()?);
        }
        Ok(state)
    }

    fn restore(&mut self, steps: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        let missing = |name: &str| Error::Parameter {
            name: name.to_owned(),
            problem: "is not in the saved state".to_owned(),
        };
        let report = self.model.params.load_partial(state)?;
        if let Some(name) = report.missing.first() {
            return Err(missing(name));
        }
        for (_, optim) in &mut self.layers {
            optim.restore(steps, &mut |name| {
                state.get(name).cloned().ok_or_else(|| missing(name))
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ModelConfig;

    fn data() -> LabelledData {
        LabelledData {
            train: String::new(),
            train_split: String::new(),
            val: String::new(),
            val_split: String::new(),
            n_classes: None,
            threads: 1,
        }
    }

    #[test]
    fn the_settings_are_maes() {
        let of = |width| {
            let it = FinetuneSettings::mae(data(), width);
            it.validate().unwrap();
            (it.epochs, it.base_lr, it.layer_decay, it.drop_path)
        };
        assert_eq!(of(384), (100, 5e-4, 0.75, 0.1));
        assert_eq!(of(768), (100, 5e-4, 0.65, 0.1));
        assert_eq!(of(1024), (50, 1e-3, 0.75, 0.2));
        assert_eq!(of(1280), (50, 1e-3, 0.75, 0.3));
    }

    #[test]
    fn settings_without_sense_are_named() {
        type Spoil = fn(&mut FinetuneSettings);
        let cases: [(&str, Spoil); 7] = [
            ("epochs", |s| s.epochs = 0),
            ("warmup_epochs is 100", |s| s.warmup_epochs = 100),
            ("layer_decay is 0", |s| s.layer_decay = 0.0),
            ("drop_path is 1", |s| s.drop_path = 1.0),
            ("mixup is -1", |s| s.mixing.mixup = -1.0),
            ("erase_p is NaN", |s| s.erase_p = f64::NAN),
            ("min_lr is inf", |s| s.min_lr = f64::INFINITY),
        ];
        for (word, spoil) in cases {
            let mut settings = FinetuneSettings::mae(data(), 768);
            spoil(&mut settings);
            let message = settings.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    fn model() -> ModelConfig {
        ModelConfig {
            img_size: Some(16),
            patch_size: Some(4),
            embed_dim: Some(8),
            depth: Some(2),
            num_heads: Some(2),
            ..ModelConfig::default()
        }
    }

    fn start() -> Tensors {
        let sizes = model().sizes();
        let mut params = Params::new(5, DType::F32, &Device::Cpu);
        let tokens = EncoderTokens::new(&mut params, &sizes).unwrap();
        Encoder::new(&mut params, &sizes, tokens, 0.0).unwrap();
        params
            .iter()
            .map(|param| (param.name.clone(), param.var.as_tensor().copy().unwrap()))
            .collect()
    }

    #[test]
    fn every_trained_parameter_has_a_gradient_after_a_step() {
        for pool in [Pool::Mean, Pool::Cls] {
            let settings = FinetuneSettings {
                pool,
                drop_path: 0.0,
                ..FinetuneSettings::mae(data(), 8)
            };
            let sizes = model().sizes();
            let model = Classifier::new(&settings, &sizes, &start(), 3, &Device::Cpu).unwrap();
            // The head begins near 0, and so do all gradients below it.
            let head = model.params.get("head.weight").unwrap();
            let ones = head.var.as_detached_tensor().affine(1e4, 0.1).unwrap();
            head.var.set(&ones).unwrap();
            let trainable = model.trainable();
            let n_left_out = if pool == Pool::Mean { 2 } else { 0 };
            assert_eq!(trainable.len() + n_left_out, model.params.iter().count());

            let values = (0..2 * 3 * 16 * 16).map(|i| (i * 29 % 61) as f32 / 30.0 - 1.0);
            let pixels = Tensor::from_iter(values, &Device::Cpu).unwrap();
            let pixels = pixels.reshape((2, 3, 16, 16)).unwrap();
            let logits = model.forward(&pixels, Pass::evaluation()).unwrap();
            assert_eq!(logits.dims(), [2, 3]);
            let targets = Tensor::new(&[[1f32, 0.0, 0.0], [0.0, 0.5, 0.5]], &Device::Cpu).unwrap();
            let loss = soft_cross_entropy(&logits, &targets).unwrap();
            let mut grads = Gradients::new(trainable);
            grads.accumulate(loss.backward().unwrap()).unwrap();
            let norms = crate::optim::clip::norms(&grads).unwrap();
            // Keys' biases shift all of a query's scores alike, but they share a tensor with others that count.
            assert_eq!(norms.uncovered(), Vec::<String>::new(), "{pool:?}");
        }
    }

    #[test]
    fn with_the_mean_the_encoders_norm_plays_no_part() {
        let settings = FinetuneSettings::mae(data(), 8);
        let sizes = model().sizes();
        let logits = |start: &Tensors| {
            let model = Classifier::new(&settings, &sizes, start, 3, &Device::Cpu).unwrap();
            let pixels = Tensor::ones((1, 3, 16, 16), DType::F32, &Device::Cpu).unwrap();
            let logits = model.forward(&pixels, Pass::evaluation()).unwrap();
            logits.to_vec2::<f32>().unwrap()
        };
        let mut other = start();
        other.insert(
            "norm.weight".into(),
            other["norm.weight"].affine(3.0, 1.0).unwrap(),
        );
        assert_eq!(logits(&start()), logits(&other));
        other.insert(
            "pos_embed".into(),
            other["pos_embed"].affine(3.0, 1.0).unwrap(),
        );
        assert_ne!(logits(&start()), logits(&other));
    }
}
