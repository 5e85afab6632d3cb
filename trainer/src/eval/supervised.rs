//! Training with labels, epoch by epoch, each scored on the val split: what the linear probe and fine-tuning share.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use pipeline::Stop;
use pipeline::config::DataConfig;
use pipeline::loader::{Batch, LoaderState};
use pipeline::stall::Task;
use serde::{Deserialize, Serialize};

use super::accuracy::{Accuracy, Hits};
use super::labelled::{LabelledSet, Progress};
use super::saved::{STATE_FILE, Saved, SavedEpoch};
use crate::device::Uploader;
use crate::error::{Error, Result};
use crate::optim::Schedule;
use crate::train::lock;

/// An epoch of training and what it led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochScore {
    /// Epochs trained, from 1.
    pub epoch: u64,
    /// Mean training loss.
    pub loss: f64,
    /// On the val split.
    pub val: Accuracy,
}

/// The numbers of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SupervisedScores {
    /// On the val split, after the last epoch.
    pub val: Accuracy,
    /// The epoch after which top-1 was best, which is what MAE's scripts print; chosen on the val split itself.
    pub best_epoch: u64,
    /// Top-1 after it, in percent.
    pub best_top1: f64,
    /// Every epoch.
    pub epochs: Vec<EpochScore>,
    /// Pictures of the train split.
    pub n_train: u64,
    /// Classes.
    pub n_classes: usize,
}

impl SupervisedScores {
    /// Of a run of at least one epoch.
    pub(super) fn new(epochs: Vec<EpochScore>, train: &LabelledSet) -> Result<Self> {
        let better = |best: &'_ EpochScore, score: &'_ EpochScore| {
            score.val.top1.percent > best.val.top1.percent
        };
        let (Some(first), Some(last)) = (epochs.first(), epochs.last()) else {
            return Err(Error::Config("epochs is 0, expected at least 1".to_owned()));
        };
        let best = epochs.iter().fold(
            first,
            |best, score| {
                if better(best, score) { score } else { best }
            },
        );
        Ok(Self {
            val: last.val,
            best_epoch: best.epoch,
            best_top1: best.val.top1.percent,
            n_train: train.n_samples(),
            n_classes: train.n_classes(),
            epochs,
        })
    }
}

/// What is trained.
pub(super) trait Learner {
    /// Adds `share` of a micro-batch's gradient; returns its loss.
    ///
    /// * `pixels`: `[B, 3, S, S]`, normalised.
    fn learn(
        &mut self,
        batch: &Batch,
        pixels: &Tensor,
        labels: &[usize],
        share: f64,
    ) -> Result<f64>;

    /// One optimizer step with the gradients added since the last one.
    fn step(&mut self, lr: f64) -> Result<()>;

    /// Scores the val split.
    fn score(&mut self, stop: &Stop) -> Result<Hits>;

    /// Everything that [`Learner::restore`] needs, f32.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Takes over what [`Learner::state`] gave after `steps` steps.
    fn restore(&mut self, steps: u64, state: &HashMap<String, Tensor>) -> Result<()>;
}

/// How a run goes.
pub(super) struct Course<'a> {
    pub(super) stage: &'static str,
    pub(super) seed: u64,
    pub(super) epochs: u64,
    /// Micro-batches of a step.
    pub(super) accum_steps: u64,
    pub(super) schedule: Schedule,
    /// Views of the train split, and pictures in a micro-batch.
    pub(super) views: DataConfig,
    pub(super) device: Device,
    /// Where the run is kept.
    pub(super) dir: &'a Path,
    /// What the result depends on.
    pub(super) identity: serde_json::Map<String, serde_json::Value>,
}

impl Course<'_> {
    /// Trains, from where an earlier run in the folder stopped if there is one, and scores every epoch.
    ///
    /// The learning rate is set before each step, at the place of its first micro-batch; micro-batches at an epoch's end
    /// that do not fill a step are left out, as MAE's scripts do. After each epoch, and where it is asked to stop, the run is
    /// saved; the result is the same however often it was stopped.
    ///
    /// # Errors
    /// [`Error::Stopped`] after saving; [`Error::ConfigChanged`] if the folder holds another run; [`Error::NotFinite`] if the
    /// loss is not a number; [`Error::RunBusy`]; whatever data and device report.
    pub(super) fn run(
        &self,
        train: &LabelledSet,
        learner: &mut dyn Learner,
        stop: &Stop,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Vec<EpochScore>> {
        let _lock = lock::lock(self.dir)?;
        let path = self.dir.join(STATE_FILE);
        let mut place = Saved {
            identity: self.identity.clone(),
            ..Saved::default()
        };
        if let Some((saved, state)) = Saved::read(&path, &self.device)? {
            saved.check(&path, &self.identity)?;
            learner.restore(saved.steps, &state)?;
            progress(&Progress::Note(&format!(
                "going on after {} epochs and {} steps from {}",
                saved.epochs.len(),
                saved.steps_of_epoch,
                path.display()
            )));
            place = saved;
        }
        let n_done = |place: &Saved| place.epochs.len() as u64;
        let start = LoaderState {
            epoch: n_done(&place),
            batch: place.steps_of_epoch * self.accum_steps,
        };
        let mut loader = train.training_loader(&self.views, self.seed, start)?;
        let n_batches = loader.batches_per_epoch();
        let n_steps = n_batches / self.accum_steps;
        if n_steps == 0 {
            return Err(Error::Config(format!(
                "accum_steps is {}, expected at most the {n_batches} batches of an epoch",
                self.accum_steps
            )));
        }
        let mut uploader = Uploader::new(&self.device)?;
        let stage = self.stage;
        let mut computing = Task::new("computing", move |step| format!("step {step} of {stage}"));
        let save = |place: &Saved, learner: &dyn Learner| place.write(&path, &learner.state()?);
        while n_done(&place) < self.epochs {
            let epoch = n_done(&place);
            while place.steps_of_epoch < n_steps {
                let first = place.steps_of_epoch * self.accum_steps;
                let lr = self
                    .schedule
                    .at_epoch(first as f64 / n_batches as f64 + epoch as f64);
                let mut loss = 0.0;
                for _ in 0..self.accum_steps {
                    if stop.is_requested() {
                        save(&place, learner)?;
                        return Err(Error::Stopped);
                    }
                    let batch = loader.next_batch()?;
                    let _busy = computing.begin(place.steps + 1);
                    let labels = (0..batch.len())
                        .map(|row| train.label(&batch, row))
                        .collect::<Result<Vec<_>>>()?;
                    let pixels = uploader.upload(&batch)?.squeeze(1)?;
                    let share = 1.0 / self.accum_steps as f64;
                    let of_batch = learner.learn(&batch, &pixels, &labels, share)?;
                    self.check_finite(of_batch, place.steps + 1, &batch)?;
                    loss += share * of_batch;
                    loader.recycle(batch);
                }
                learner.step(lr)?;
                place.steps += 1;
                place.steps_of_epoch += 1;
                place.loss_sum_bits = (f64::from_bits(place.loss_sum_bits) + loss).to_bits();
                progress(&Progress::Done {
                    stage: self.stage,
                    done: epoch * n_steps + place.steps_of_epoch,
                    total: self.epochs * n_steps,
                    note: format!("epoch {}  loss {loss:.4}  lr {lr:.2e}", epoch + 1),
                });
            }
            while loader.state().epoch == epoch {
                let batch = loader.next_batch()?;
                loader.recycle(batch);
            }
            let hits = match learner.score(stop) {
                Err(Error::Stopped) => {
                    save(&place, learner)?;
                    return Err(Error::Stopped);
                }
                scored => scored?,
            };
            let loss = f64::from_bits(place.loss_sum_bits) / n_steps as f64;
            place.epochs.push(SavedEpoch {
                loss_bits: loss.to_bits(),
                hits,
            });
            (place.steps_of_epoch, place.loss_sum_bits) = (0, 0.0f64.to_bits());
            save(&place, learner)?;
            let top1 = hits.accuracy().top1.percent;
            progress(&Progress::Note(&format!(
                "epoch {}: loss {loss:.4}, top-1 {top1:.2} %",
                epoch + 1
            )));
        }
        Ok(scores(&place.epochs))
    }

    fn check_finite(&self, loss: f64, step: u64, batch: &Batch) -> Result<()> {
        if loss.is_finite() {
            return Ok(());
        }
        Err(Error::NotFinite {
            step,
            what: "the loss".to_owned(),
            value: loss,
            keys: batch.keys.join(", "),
            last_checkpoint: self.dir.join(STATE_FILE).display().to_string(),
        })
    }
}

fn scores(epochs: &[SavedEpoch]) -> Vec<EpochScore> {
    let score = |(epoch, saved): (u64, &SavedEpoch)| EpochScore {
        epoch,
        loss: f64::from_bits(saved.loss_bits),
        val: saved.hits.accuracy(),
    };
    (1..).zip(epochs).map(score).collect()
}
