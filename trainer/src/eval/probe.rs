//! A linear classifier on frozen features.
//!
//! Source: MAE, `main_linprobe.py` and `FINETUNE.md`; the head's batch normalisation after Doersch et al., 2015.
//!
//! Letters: B batch, C classes, D width, N pictures.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use pipeline::Stop;
use pipeline::config::{DataConfig, Interpolation, Sampler, ViewsKind};
use pipeline::loader::Batch;
use pipeline::loader::order::Permutation;
use pipeline::rng::{Purpose, SampleRng};
use serde::{Deserialize, Serialize};

use super::accuracy::Hits;
use super::encoder::{CheckpointId, FrozenEncoder};
use super::labelled::{
    LOOK_BATCH, LabelledData, LabelledSet, Progress, add_hits, data_id, features, identity,
};
use super::mixing::soft_targets;
use super::results::{Failed, RESULTS_FORMAT, Results, Versions};
use super::supervised::{Course, EpochScore, Learner, SupervisedScores};
use crate::error::{Error, Result};
use crate::loss::soft_cross_entropy;
use crate::models::Pool;
use crate::nn::init::Init;
use crate::nn::params::Params;
use crate::ops;
use crate::optim::{AdamW, AdamWOptions, Gradients, Lars, Schedule, param_groups, schedule};

/// Added to the variance by the head's normalisation.
const NORM_EPS: f64 = 1e-6;
/// Share of the running statistics that a batch replaces; torch's default.
const NORM_MOMENTUM: f64 = 0.1;
/// Standard deviation of the head's first weights.
const HEAD_STD: f64 = 0.01;
/// Features scored at once.
const SCORE_ROWS: usize = 4096;
/// AdamW's betas for the fast probe, torch's default.
const FAST_BETAS: AdamWOptions = AdamWOptions {
    beta1: 0.9,
    beta2: 0.999,
};

/// Everything the numbers depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeSettings {
    /// The splits.
    pub data: LabelledData,
    /// What the classifier sees (MAE: the class token).
    pub pool: Pool,
    /// Whether the train pictures are seen once, as evaluations see them, and AdamW trains on their features; otherwise they
    /// are cropped and flipped anew in every epoch, and LARS trains.
    pub fast: bool,
    /// Epochs (MAE: 90, and 50 for ViT-L and ViT-H).
    pub epochs: u64,
    /// Epochs of linear warm-up (MAE: 10).
    pub warmup_epochs: u64,
    /// Pictures, or features, of a micro-batch, over which the head's normalisation is taken (MAE: 512).
    pub batch_size: usize,
    /// Micro-batches of a step (MAE: 16,384 pictures a step, on 32 GPUs of 512 each).
    pub accum_steps: u64,
    /// Learning rate of 256 pictures a step (MAE: 0.1).
    pub base_lr: f64,
    /// Weight decay (MAE: 0).
    pub weight_decay: f64,
    /// Seed of the head's first weights, the order, crops and flips.
    pub seed: u64,
}

impl ProbeSettings {
    /// MAE's protocol for an encoder of that width.
    pub fn mae(data: LabelledData, width: usize) -> Self {
        Self {
            data,
            pool: Pool::Cls,
            fast: false,
            epochs: if width < LARGE_WIDTH { 90 } else { 50 },
            warmup_epochs: 10,
            batch_size: 512,
            accum_steps: 32,
            base_lr: 0.1,
            weight_decay: 0.0,
            seed: 0,
        }
    }

    /// The fast variant: a number to compare checkpoints by, not with the papers'.
    pub fn fast(data: LabelledData) -> Self {
        Self {
            data,
            pool: Pool::Cls,
            fast: true,
            epochs: 100,
            warmup_epochs: 0,
            batch_size: 256,
            accum_steps: 1,
            base_lr: 1e-3,
            weight_decay: 0.0,
            seed: 0,
        }
    }

    fn validate(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Config(text));
        if self.epochs == 0 || self.accum_steps == 0 {
            return wrong("epochs or accum_steps is 0, expected at least 1".to_owned());
        }
        if self.batch_size < 2 {
            return wrong(format!(
                "batch_size is {}, expected at least 2, over which features are normalised",
                self.batch_size
            ));
        }
        if self.warmup_epochs >= self.epochs {
            return wrong(format!(
                "warmup_epochs is {}, expected less than the {} epochs",
                self.warmup_epochs, self.epochs
            ));
        }
        for (name, value) in [
            ("base_lr", self.base_lr),
            ("weight_decay", self.weight_decay),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return wrong(format!("{name} is {value}, expected a number from 0"));
            }
        }
        if self.fast && self.accum_steps != 1 {
            return wrong(format!(
                "accum_steps is {}, expected 1 for the fast probe",
                self.accum_steps
            ));
        }
        Ok(())
    }

    fn schedule(&self, effective_batch: u64) -> Schedule {
        Schedule {
            lr: schedule::scaled_lr(self.base_lr, effective_batch),
            min_lr: 0.0,
            warmup_epochs: self.warmup_epochs as f64,
            epochs: self.epochs as f64,
        }
    }
}

/// Width from which MAE trains shorter.
pub(super) const LARGE_WIDTH: usize = 1024;

/// Trains and scores a linear classifier on an encoder's features.
///
/// * `dir`: where MAE's protocol keeps its state after each epoch, and goes on from; the fast variant keeps nothing.
///
/// # Errors
/// [`Error::Config`] for settings without sense; [`Error::Stopped`], after saving; [`Error::ConfigChanged`] if `dir` holds
/// another run; whatever the data report.
pub fn probe(
    settings: &ProbeSettings,
    encoder: &FrozenEncoder,
    checkpoint: CheckpointId,
    dir: &Path,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Results<ProbeSettings, SupervisedScores>> {
    settings.validate()?;
    let [train, val] = settings.data.open()?;
    let data = data_id(&train, &val);

    let mut cache =
        |stage, set: &LabelledSet| Features::of(stage, set, encoder, settings.pool, stop, progress);
    let (val_features, mut failed) = cache("val features", &val)?;
    let width = encoder.sizes().embed_dim;
    let head = Head::new(settings.seed, width, train.n_classes(), encoder.device())?;
    let epochs = if settings.fast {
        let (train_features, unread) = cache("train features", &train)?;
        failed.extend(unread);
        fast(
            settings,
            head,
            &train_features,
            &val_features,
            stop,
            progress,
        )?
    } else {
        let trainable = head.trainable();
        let mut learner = Probe {
            encoder,
            pool: settings.pool,
            optim: Lars::new(trainable.clone(), settings.weight_decay)?,
            grads: Gradients::new(trainable),
            head,
            val: val_features,
        };
        let effective_batch = settings.batch_size as u64 * settings.accum_steps;
        let course = Course {
            stage: "probe",
            seed: settings.seed,
            epochs: settings.epochs,
            accum_steps: settings.accum_steps,
            schedule: settings.schedule(effective_batch),
            views: DataConfig {
                batch_size: settings.batch_size,
                views: ViewsKind::Single,
                size: encoder.sizes().img_size as u32,
                view_area: [0.08, 1.0],
                interpolation: Interpolation::Bicubic,
                sampler: Sampler::Byol, // MAE's own RandomResizedCrop
                ..DataConfig::default()
            },
            device: encoder.device().clone(),
            dir,
            identity: identity(settings, &settings.data, &checkpoint, &data)?,
        };
        course.run(&train, &mut learner, stop, progress)?
    };
    Ok(Results {
        format: RESULTS_FORMAT,
        protocol: "probe".to_owned(),
        complete: failed.is_empty(),
        checkpoint,
        data,
        settings: settings.clone(),
        scores: SupervisedScores::new(epochs, &train)?,
        failed,
        versions: Versions::here(encoder.device()),
    })
}

/// Features of a split, as evaluations see it.
struct Features {
    /// `[N, D]`.
    rows: Tensor,
    labels: Vec<usize>,
}

impl Features {
    fn of(
        stage: &'static str,
        set: &LabelledSet,
        encoder: &FrozenEncoder,
        pool: Pool,
        stop: &Stop,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<(Self, Vec<Failed>)> {
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        let total = set.n_samples();
        let size = encoder.sizes().img_size;
        let failed = set.visit(
            size,
            LOOK_BATCH,
            encoder.device(),
            stop,
            &mut |pixels, right| {
                rows.push(features(encoder, pixels, pool)?);
                labels.extend_from_slice(right);
                progress(&Progress::Done {
                    stage,
                    done: labels.len() as u64,
                    total,
                    note: String::new(),
                });
                Ok(())
            },
        )?;
        if rows.is_empty() {
            return Err(set.refused("has no picture that can be read, expected some".to_owned()));
        }
        let rows = Tensor::cat(&rows, 0)?;
        Ok((Self { rows, labels }, failed))
    }
}

/// Normalisation of each feature without learned scale and shift, then a linear layer.
#[derive(Debug)]
struct Head {
    params: Params,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl Head {
    fn new(seed: u64, width: usize, n_classes: usize, device: &Device) -> Result<Head> {
        let mut params = Params::new(seed, DType::F32, device);
        let normal = Init::Normal { std: HEAD_STD };
        Ok(Head {
            weight: params.trainable("head.weight", &[n_classes, width], normal)?,
            bias: params.trainable("head.bias", &[n_classes], Init::Zeros)?,
            params,
            running_mean: Tensor::zeros(width, DType::F32, device)?,
            running_var: Tensor::ones(width, DType::F32, device)?,
        })
    }

    fn trainable(&self) -> Vec<(String, Var)> {
        let params = self.params.iter_trainable();
        params.map(|p| (p.name.clone(), p.var.clone())).collect()
    }

    /// Logits `[B, C]` of features `[B, D]`, normalised by their own statistics, which are remembered: the mean and the
    /// unbiased variance, as torch does.
    fn train(&mut self, features: &Tensor) -> Result<Tensor> {
        let n = features.dim(0)? as f64;
        let mean = features.mean(0)?;
        let centred = features.broadcast_sub(&mean)?;
        let var = centred.sqr()?.mean(0)?;
        let follow = |running: &Tensor, new: &Tensor, factor: f64| -> Result<Tensor> {
            let kept = running.affine(1.0 - NORM_MOMENTUM, 0.0)?;
            Ok((kept + new.affine(NORM_MOMENTUM * factor, 0.0)?)?)
        };
        self.running_mean = follow(&self.running_mean, &mean, 1.0)?;
        self.running_var = follow(&self.running_var, &var, n / (n - 1.0))?;
        let normed = centred.broadcast_div(&(var + NORM_EPS)?.sqrt()?)?;
        ops::linear(&normed, &self.weight, &self.bias)
    }

    /// Logits `[B, C]` of features `[B, D]`, normalised by the running statistics.
    fn classify(&self, features: &Tensor) -> Result<Tensor> {
        let centred = features.broadcast_sub(&self.running_mean)?;
        let normed = centred.broadcast_div(&(&self.running_var + NORM_EPS)?.sqrt()?)?;
        ops::linear(&normed, &self.weight.detach(), &self.bias.detach())
    }

    fn score(&self, features: &Features) -> Result<Hits> {
        let mut hits = Hits::default();
        for (tile, labels) in features.labels.chunks(SCORE_ROWS).enumerate() {
            let rows = features.rows.narrow(0, tile * SCORE_ROWS, labels.len())?;
            add_hits(&mut hits, &self.classify(&rows)?, labels)?;
        }
        Ok(hits)
    }

    /// Mean cross-entropy of logits `[B, C]`.
    fn loss(&self, logits: &Tensor, labels: &[usize]) -> Result<Tensor> {
        soft_cross_entropy(
            logits,
            &soft_targets(labels, logits.dim(1)?, logits.device())?,
        )
    }
}

/// MAE's protocol.
struct Probe<'a> {
    encoder: &'a FrozenEncoder,
    pool: Pool,
    head: Head,
    optim: Lars,
    grads: Gradients,
    val: Features,
}

impl Learner for Probe<'_> {
    fn learn(&mut self, _: &Batch, pixels: &Tensor, labels: &[usize], share: f64) -> Result<f64> {
        let features = features(self.encoder, pixels, self.pool)?;
        let logits = self.head.train(&features)?;
        let loss = self.head.loss(&logits, labels)?;
        self.grads.accumulate((&loss * share)?.backward()?)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn step(&mut self, lr: f64) -> Result<()> {
        self.optim.step(&self.grads, lr)?;
        self.grads.clear();
        Ok(())
    }

    fn score(&mut self, _: &Stop) -> Result<Hits> {
        self.head.score(&self.val)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let params = self.head.params.iter();
        let mut state: BTreeMap<String, Tensor> = params
            .map(|param| (param.name.clone(), param.var.as_detached_tensor()))
            .collect();
        state.insert(MEAN.to_owned(), self.head.running_mean.clone());
        state.insert(VAR.to_owned(), self.head.running_var.clone());
        state.extend(self.optim.state());
        Ok(state)
    }

    fn restore(&mut self, _: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        let missing = |name: &str| Error::Parameter {
            name: name.to_owned(),
            problem: "is not in the saved state".to_owned(),
        };
        let get = |name: &str| state.get(name).cloned().ok_or_else(|| missing(name));
        (self.head.running_mean, self.head.running_var) = (get(MEAN)?, get(VAR)?);
        let report = self.head.params.load_partial(state)?;
        if let Some(name) = report.missing.first() {
            return Err(missing(name));
        }
        self.optim.restore(state)
    }
}

/// Names of the running statistics in a saved state.
const MEAN: &str = "head.running_mean";
const VAR: &str = "head.running_var";

/// The fast variant: AdamW on features that stay the same.
fn fast(
    settings: &ProbeSettings,
    mut head: Head,
    train: &Features,
    val: &Features,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Vec<EpochScore>> {
    let n = train.labels.len();
    let batch_size = settings.batch_size.min(n);
    // A batch of one has no variance.
    let n_batches = n / batch_size + usize::from(n % batch_size > 1);
    let schedule = settings.schedule(batch_size as u64);
    let groups = param_groups(head.trainable(), settings.weight_decay);
    let mut optim = AdamW::new(groups, FAST_BETAS)?;
    let mut grads = Gradients::new(head.trainable());
    let mut scores = Vec::new();
    for epoch in 0..settings.epochs {
        let mut rng = SampleRng::new(settings.seed, epoch, 0, Purpose::Order);
        let order = Permutation::new(n as u64, &mut rng);
        let mut loss_sum = 0.0;
        for batch in 0..n_batches {
            if stop.is_requested() {
                return Err(Error::Stopped);
            }
            let places = batch * batch_size..((batch + 1) * batch_size).min(n);
            let chosen: Vec<u32> = places.map(|at| order.apply(at as u64) as u32).collect();
            let labels: Vec<usize> = chosen.iter().map(|&at| train.labels[at as usize]).collect();
            let chosen = Tensor::new(chosen, train.rows.device())?;
            let logits = head.train(&train.rows.index_select(&chosen, 0)?)?;
            let loss = head.loss(&logits, &labels)?;
            grads.clear();
            grads.accumulate(loss.backward()?)?;
            optim.step(
                &grads,
                schedule.at_epoch(epoch as f64 + batch as f64 / n_batches as f64),
            )?;
            loss_sum += f64::from(loss.to_scalar::<f32>()?);
        }
        scores.push(EpochScore {
            epoch: epoch + 1,
            loss: loss_sum / n_batches as f64,
            val: head.score(val)?.accuracy(),
        });
        progress(&Progress::Done {
            stage: "probe",
            done: epoch + 1,
            total: settings.epochs,
            note: format!("loss {:.4}", loss_sum / n_batches as f64),
        });
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heads_statistics_are_torchs() {
        let mut head = Head::new(0, 2, 3, &Device::Cpu).unwrap();
        let features =
            Tensor::new(&[[1f32, 10.0], [3.0, 10.0], [8.0, 40.0]], &Device::Cpu).unwrap();
        let trained = head.train(&features).unwrap();
        // BatchNorm1d(2, affine=False, eps=1e-6) after this batch: 0.1 of means 4 and 20 and of variances 13 and 300.
        let close = |tensor: &Tensor, expected: [f32; 2]| {
            for (got, expected) in tensor.to_vec1::<f32>().unwrap().iter().zip(expected) {
                assert!((got - expected).abs() < 1e-5, "{got}, expected {expected}");
            }
        };
        close(&head.running_mean, [0.4, 2.0]);
        close(&head.running_var, [0.9 + 1.3, 0.9 + 30.0]);
        // Inside of a batch the biased variance counts: 26 / 3 and 200.
        let normed = |x: f32, mean: f32, var: f32| (x - mean) / (var + 1e-6).sqrt();
        let weight = head.weight.to_vec2::<f32>().unwrap();
        let expected =
            weight[1][0] * normed(8.0, 4.0, 26.0 / 3.0) + weight[1][1] * normed(40.0, 20.0, 200.0);
        let got = trained.to_vec2::<f32>().unwrap()[2][1];
        assert!((got - expected).abs() < 1e-6, "{got}, expected {expected}");
        // In evaluation the running ones do, whatever the batch.
        let expected =
            weight[1][0] * normed(8.0, 0.4, 2.2) + weight[1][1] * normed(40.0, 2.0, 30.9);
        let alone = head.classify(&features.narrow(0, 2, 1).unwrap()).unwrap();
        let got = alone.to_vec2::<f32>().unwrap()[0][1];
        assert!((got - expected).abs() < 1e-5, "{got}, expected {expected}");
    }

    #[test]
    fn separable_features_are_learned_by_the_fast_probe() {
        let mut rng = SampleRng::new(0, 0, 0, Purpose::Synth);
        let mut split = |n: usize| {
            let labels: Vec<usize> = (0..n).map(|i| i % 4).collect();
            let values: Vec<f32> = labels
                .iter()
                .flat_map(|&label| (0..8).map(move |at| (label, at)))
                .map(|(label, at)| {
                    f32::from(u8::from(at == label)) + 0.3 * rng.standard_normal() as f32
                })
                .collect();
            let rows = Tensor::from_vec(values, (n, 8), &Device::Cpu).unwrap();
            Features { rows, labels }
        };
        let (train, val) = (split(201), split(100));
        let data = LabelledData {
            train: String::new(),
            train_split: String::new(),
            val: String::new(),
            val_split: String::new(),
            n_classes: None,
            threads: 1,
        };
        let settings = ProbeSettings {
            batch_size: 50, // the last batch is of one, and left out
            base_lr: 0.05,
            epochs: 20,
            ..ProbeSettings::fast(data)
        };
        settings.validate().unwrap();
        let run = || {
            let head = Head::new(0, 8, 4, &Device::Cpu).unwrap();
            fast(&settings, head, &train, &val, &Stop::new(), &mut |_| {}).unwrap()
        };
        let scores = run();
        assert!(scores[19].val.top1.percent > 90.0, "{:?}", scores[19]);
        assert!(scores[19].loss < scores[0].loss);
        assert_eq!(scores, run());
        let stop = Stop::new();
        stop.request();
        let head = Head::new(0, 8, 4, &Device::Cpu).unwrap();
        let stopped = fast(&settings, head, &train, &val, &stop, &mut |_| {});
        assert!(matches!(stopped, Err(Error::Stopped)));
    }
}
