//! The learning rate of a step: linear warm-up, then half a cosine, as a pure function of the place in the run.
//!
//! Source: MAE, `util/lr_sched.py`, `adjust_learning_rate`; CropMAE, `train_*.py`, for the order.

use serde::{Deserialize, Serialize};

/// When the schedule is applied, seen from the optimizer step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrOrder {
    /// Before the step, at the step's own place (MAE's order).
    #[default]
    Standard,
    /// After the step, as CropMAE's code does: the first step runs at the full peak rate, the second at
    /// the schedule's start, and every later one lags by a step. Needed to reproduce its numbers.
    Reference,
}

/// A micro-batch's place in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Micro-batch within the epoch, from 0.
    pub idx: u64,
}

/// Peak, floor and length of a schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Peak learning rate, reached at the end of the warm-up.
    pub lr: f64,
    /// The rate at the very end.
    pub min_lr: f64,
    /// Length of the linear warm-up in epochs.
    pub warmup_epochs: f64,
    /// Length of the whole run in epochs.
    pub epochs: f64,
}

/// The linear scaling rule: `base_lr * effective batch / 256`.
///
/// * `effective_batch`: pairs per optimizer step, over all ranks and accumulated micro-batches.
///   With 2048 pairs and `base_lr` 1e-4 the result is the papers' 8e-4.
pub fn scaled_lr(base_lr: f64, effective_batch: u64) -> f64 {
    base_lr * effective_batch as f64 / 256.0
}

/// Warm-up in whole epochs, truncated as the reference does: 20 of 400 at 0.05, and 0 of 10.
pub fn warmup_epochs(warmup_ratio: f64, epochs: u64) -> u64 {
    (warmup_ratio * epochs as f64) as u64
}

impl Schedule {
    /// The rate at a fractional epoch.
    pub fn at_epoch(&self, epoch: f64) -> f64 {
        if epoch < self.warmup_epochs {
            return self.lr * epoch / self.warmup_epochs;
        }
        let done = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs);
        self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }

    /// The rate in force during one optimizer step.
    ///
    /// * `first`: the first micro-batch that the step sees.
    /// * `before`: the last micro-batch of the step before it; `None` for the first step of a run.
    /// * `batches_per_epoch`: micro-batches in an epoch.
    pub fn in_force(
        &self,
        order: LrOrder,
        first: Place,
        before: Option<Place>,
        batches_per_epoch: u64,
    ) -> f64 {
        let at = |place: Place| {
            self.at_epoch(place.idx as f64 / batches_per_epoch as f64 + place.epoch as f64)
        };
        match (order, before) {
            (LrOrder::Standard, _) => at(first),
            (LrOrder::Reference, None) => self.lr,
            (LrOrder::Reference, Some(before)) => at(before),
        }
    }

    /// The rate of optimizer step `step` (from 0) when each step takes the next `accum_steps` micro-batches
    /// of one endless stream, so that a step may straddle two epochs and no micro-batch is left over.
    pub fn at_step(
        &self,
        order: LrOrder,
        step: u64,
        accum_steps: u64,
        batches_per_epoch: u64,
    ) -> f64 {
        let place = |micro: u64| Place {
            epoch: micro / batches_per_epoch,
            idx: micro % batches_per_epoch,
        };
        let first = step * accum_steps;
        self.in_force(
            order,
            place(first),
            first.checked_sub(1).map(place),
            batches_per_epoch,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The published ImageNet recipe: 2048 pairs, base_lr 1e-4, 400 epochs, 5 % warm-up.
    fn paper() -> Schedule {
        let warmup_epochs = warmup_epochs(0.05, 400) as f64;
        Schedule {
            lr: scaled_lr(1e-4, 2048),
            min_lr: 0.0,
            warmup_epochs,
            epochs: 400.0,
        }
    }

    #[test]
    fn the_papers_values() {
        let schedule = paper();
        assert_eq!(schedule.warmup_epochs, 20.0);
        assert!((schedule.lr - 8e-4).abs() < 1e-18);
        for (epoch, lr) in [
            (0.0, 0.0),
            (10.0, 4e-4),
            (20.0, 8e-4),
            (210.0, 4e-4),
            (400.0, 0.0),
        ] {
            assert!(
                (schedule.at_epoch(epoch) - lr).abs() < 1e-15,
                "lr({epoch}) = {}",
                schedule.at_epoch(epoch)
            );
        }
        assert_eq!(warmup_epochs(0.05, 10), 0);
    }

    #[test]
    fn the_reference_order_starts_at_the_peak_and_lags_by_one() {
        let schedule = Schedule {
            lr: 1e-3,
            min_lr: 0.0,
            warmup_epochs: 1.0,
            epochs: 4.0,
        };
        let reference = |step| schedule.at_step(LrOrder::Reference, step, 1, 5);
        let standard = |step| schedule.at_step(LrOrder::Standard, step, 1, 5);
        assert_eq!(reference(0), 1e-3);
        assert_eq!(reference(1), 0.0);
        for step in 0..19 {
            assert_eq!(reference(step + 1), standard(step));
        }
    }

    #[test]
    fn accumulation_takes_the_place_of_the_first_micro_batch_or_of_the_last_before_it() {
        let schedule = Schedule {
            lr: 1e-3,
            min_lr: 0.0,
            warmup_epochs: 1.0,
            epochs: 3.0,
        };
        assert_eq!(schedule.at_step(LrOrder::Standard, 1, 2, 4), 5e-4);
        assert_eq!(schedule.at_step(LrOrder::Reference, 1, 2, 4), 2.5e-4);
    }

    proptest! {
        #[test]
        fn the_rate_stays_between_zero_and_the_peak(epoch in 0.0..400.0f64, min_ratio in 0.0..1.0f64) {
            let schedule = Schedule { min_lr: min_ratio * 8e-4, ..paper() };
            let lr = schedule.at_epoch(epoch);
            prop_assert!((0.0..=schedule.lr * (1.0 + 1e-12)).contains(&lr));
            prop_assert!(epoch < 20.0 || lr >= schedule.min_lr * (1.0 - 1e-12));
        }
    }
}
