//! How long a run is, its learning rate, and what is said of both before it starts.

use candle_core::Device;

use super::Progress;
use crate::checkpoint::Found;
use crate::config::TrainConfig;
use crate::device;
use crate::error::{Error, Result};
use crate::models::{EncoderPreset, ModelConfig, ModelKind};
use crate::nn::params::Params;
use crate::optim::schedule::{LrOrder, Schedule};

/// Trainable values of the reference's ViT-S/16 with its decoder of width 256, depth 4 and 8 heads.
const REFERENCE_VITS16_TRAINABLE: usize = 28_201_728;

/// Everything about a run's length that does not change while it runs.
#[derive(Debug)]
pub(super) struct Plan {
    pub total_steps: u64,
    /// Where this session ends: earlier than the run with `run.stop_after`.
    pub last_step: u64,
    pub accum_steps: u64,
    pub batches_per_epoch: u64,
    schedule: Schedule,
    lr_order: LrOrder,
}

impl Plan {
    pub fn new(config: &TrainConfig, batches_per_epoch: u64) -> Result<Self> {
        let optim = &config.optim;
        let total_steps = optim.total_steps(batches_per_epoch)?;
        Ok(Self {
            total_steps,
            last_step: config
                .run
                .stop_after
                .map_or(total_steps, |steps| steps.min(total_steps)),
            accum_steps: optim.accum_steps,
            batches_per_epoch,
            schedule: optim.schedule(config.effective_batch(), batches_per_epoch),
            lr_order: optim.lr_order,
        })
    }

    /// The learning rate of a step counted from 1.
    pub fn lr(&self, step: u64) -> f64 {
        self.schedule.at_step(
            self.lr_order,
            step - 1,
            self.accum_steps,
            self.batches_per_epoch,
        )
    }

    /// Epochs seen after this many steps.
    pub fn epochs_after(&self, steps: u64) -> f64 {
        steps.saturating_mul(self.accum_steps) as f64 / self.batches_per_epoch as f64
    }

    /// Whether a checkpoint is due after this many steps: where the configuration says, and at the end.
    pub fn checkpoint_due(&self, steps: u64, config: &TrainConfig) -> bool {
        let run = &config.run;
        steps == self.last_step
            || run.checkpoint_due(steps, self.accum_steps, self.batches_per_epoch)
    }

    /// Whether the checkpoint after this many steps is kept for ever.
    pub fn is_milestone(&self, steps: u64, config: &TrainConfig) -> bool {
        config
            .run
            .is_milestone(steps, self.accum_steps, self.batches_per_epoch)
    }

    /// A set of another size under the same configuration is not the set that the run began with.
    pub fn check_data(&self, found: &Found) -> Result<()> {
        let (then, now) = (found.state.batches_per_epoch, self.batches_per_epoch);
        if then == now {
            return Ok(());
        }
        let differences = format!("micro-batches in an epoch of the data: {then} -> {now}");
        Err(Error::ConfigChanged {
            path: found.dir.clone(),
            differences,
        })
    }

    /// Says what is about to run, and warns of what may not be meant.
    pub fn announce(
        &self,
        config: &TrainConfig,
        params: &Params,
        device: &Device,
        start: u64,
        progress: &mut dyn FnMut(&Progress),
    ) {
        let mut note = |text: String| progress(&Progress::Note(&text));
        note(format!("{} on {}", config.name, device::describe(device)));
        let (trainable, frozen) = params.counts();
        let reference = reference_trainable(&config.model);
        let beside =
            reference.map(|count| format!("; the reference has {} trainable", grouped(count)));
        note(format!(
            "parameters: {} trainable, {} not trained{}",
            grouped(trainable),
            grouped(frozen),
            beside.unwrap_or_default()
        ));
        let optim = &config.optim;
        let scaled = format!(
            "base_lr {:e} x {} / 256",
            optim.base_lr,
            config.effective_batch()
        );
        note(format!(
            "effective batch {} ({} x {} accumulated), peak lr {:e} ({})",
            config.effective_batch(),
            config.data.batch_size,
            optim.accum_steps,
            self.schedule.lr,
            optim.lr.map_or(scaled, |_| "optim.lr".to_string())
        ));
        note(format!(
            "{} steps = {:.2} epochs of {} batches, {:.2} of warm-up; going on after step {start}",
            self.total_steps,
            self.epochs_after(self.total_steps),
            self.batches_per_epoch,
            self.schedule.warmup_epochs
        ));
        if reference.is_some_and(|count| count != trainable) {
            progress(&Progress::Warning(
                "the number of parameters is not the reference's",
            ));
        }
        for departure in config.departures() {
            progress(&Progress::Warning(&departure));
        }
    }
}

/// The reference's count, if this is its model.
fn reference_trainable(model: &ModelConfig) -> Option<usize> {
    let sizes = model.sizes();
    let encoder = (
        sizes.embed_dim,
        sizes.depth,
        sizes.num_heads,
        sizes.patch_size,
    );
    let decoder = (
        sizes.decoder_embed_dim,
        sizes.decoder_depth,
        sizes.decoder_num_heads,
    );
    let same = model.kind == ModelKind::Siamese
        && encoder == EncoderPreset::VitS16.sizes()
        && decoder == (256, 4, 8);
    same.then_some(REFERENCE_VITS16_TRAINABLE)
}

/// Digits in groups of three: `28,201,728`.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 28_201_728].map(grouped),
            ["0", "999", "1,000", "28,201,728"]
        );
    }

    #[test]
    fn a_portion_ends_early_and_keeps_the_schedule() {
        let mut config = TrainConfig::default();
        config.optim.epochs = 10;
        config.run.stop_after = Some(7);
        let plan = Plan::new(&config, 5).unwrap();
        assert_eq!((plan.total_steps, plan.last_step), (50, 7));
        config.run.stop_after = None;
        assert_eq!(Plan::new(&config, 5).unwrap().lr(7), plan.lr(7));
    }
}
