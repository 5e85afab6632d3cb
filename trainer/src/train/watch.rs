//! Losses of a step and of the run, and the checks that stop a run before it spoils its weights.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use candle_core::{DType, Tensor};

use crate::checkpoint::{Checkpoints, LossBits};
use crate::distributed::Ranks;
use crate::error::{Error, Result};
use crate::files;
use crate::models::Forward;
use crate::nn::params::Params;
use crate::optim::clip::GradNorms;

/// Steps at each end of a run whose mean loss its summary gives.
const ENDS: usize = 10;

/// Keys that an error message names; the file beside the run has all of this rank's.
const KEYS_NAMED: usize = 8;

/// The loss of one optimizer step: sums over its micro-batches, already divided by their number.
#[derive(Debug, Default)]
pub(super) struct StepLoss {
    total: f64,
    parts: BTreeMap<String, f64>,
    /// Keys of all samples that this rank saw in this step.
    pub keys: Vec<String>,
}

impl StepLoss {
    /// Adds one micro-batch of `accum_steps`.
    pub fn add(&mut self, forward: &Forward, accum_steps: u64) -> Result<()> {
        let share = |tensor: &Tensor| -> Result<f64> {
            Ok(f64::from(tensor.to_dtype(DType::F32)?.to_scalar::<f32>()?) / accum_steps as f64)
        };
        self.total += share(&forward.loss)?;
        for (name, part) in &forward.parts {
            *self.parts.entry((*name).to_string()).or_default() += share(part)?;
        }
        Ok(())
    }

    /// Makes it the mean over the ranks, which have equal shares of the batch.
    ///
    /// # Errors
    /// If the ranks have lost each other.
    pub fn average(&mut self, ranks: &Ranks) -> Result<()> {
        let own = [&mut self.total].into_iter().chain(self.parts.values_mut());
        let mut own: Vec<&mut f64> = own.collect();
        // As bits: a number's text might not come back the same.
        let bits: Vec<u64> = own.iter().map(|value| value.to_bits()).collect();
        let all = ranks.exchange(&bits)?;
        for (i, value) in own.iter_mut().enumerate() {
            let of_ranks = all.iter().filter_map(|bits| bits.get(i));
            let sum: f64 = of_ranks.map(|&bits| f64::from_bits(bits)).sum();
            **value = sum / all.len() as f64;
        }
        Ok(())
    }

    /// The step's loss.
    pub fn mean(&self) -> f32 {
        self.total as f32
    }

    /// Its terms by name.
    pub fn parts(&self) -> BTreeMap<String, f32> {
        self.parts
            .iter()
            .map(|(name, &value)| (name.clone(), value as f32))
            .collect()
    }
}

/// The losses at both ends of a run.
#[derive(Debug, Default)]
pub(super) struct Losses {
    first: Vec<f32>,
    last: VecDeque<f32>,
}

impl Losses {
    pub fn push(&mut self, loss: f32) {
        if self.first.len() < ENDS {
            self.first.push(loss);
        }
        if self.last.len() == ENDS {
            self.last.pop_front();
        }
        self.last.push_back(loss);
    }

    pub fn first_mean(&self) -> Option<f32> {
        mean(self.first.iter())
    }

    pub fn last_mean(&self) -> Option<f32> {
        mean(self.last.iter())
    }

    pub fn to_bits(&self) -> LossBits {
        let bits = |loss: &f32| loss.to_bits();
        LossBits {
            first: self.first.iter().map(bits).collect(),
            last: self.last.iter().map(bits).collect(),
        }
    }

    pub fn from_bits(bits: &LossBits) -> Self {
        let losses = |bits: &[u32]| {
            bits.iter()
                .map(|&bits| f32::from_bits(bits))
                .collect::<Vec<_>>()
        };
        Self {
            first: losses(&bits.first),
            last: losses(&bits.last).into(),
        }
    }
}

fn mean<'a>(values: impl ExactSizeIterator<Item = &'a f32>) -> Option<f32> {
    let n = values.len();
    (n > 0).then(|| (values.map(|&value| f64::from(value)).sum::<f64>() / n as f64) as f32)
}

/// # Errors
/// [`Error::NotFinite`] if the loss of the step is NaN or infinite.
pub(super) fn check_loss(
    step: u64,
    loss: &StepLoss,
    ranks: &Ranks,
    run_dir: &Path,
    checkpoints: &Checkpoints,
) -> Result<()> {
    if loss.total.is_finite() {
        return Ok(());
    }
    Err(not_finite(
        step,
        "the loss".to_string(),
        loss.total,
        &loss.keys,
        ranks,
        run_dir,
        checkpoints,
    ))
}

/// # Errors
/// [`Error::NotFinite`] naming the first parameter whose gradient is NaN or infinite.
pub(super) fn check_gradients(
    step: u64,
    norms: &GradNorms,
    loss: &StepLoss,
    ranks: &Ranks,
    run_dir: &Path,
    checkpoints: &Checkpoints,
) -> Result<()> {
    let Some((name, norm)) = norms.first_not_finite() else {
        return Ok(());
    };
    let what = format!("the gradient of {name}");
    Err(not_finite(
        step,
        what,
        norm,
        &loss.keys,
        ranks,
        run_dir,
        checkpoints,
    ))
}

/// To be called before a checkpoint: weights that an update has spoiled are not saved over those that it found.
///
/// * `keys`: of this rank's samples of the step.
///
/// # Errors
/// [`Error::NotFinite`] naming the first parameter with a NaN or an infinity.
pub(super) fn check_weights(
    step: u64,
    params: &Params,
    keys: &[String],
    ranks: &Ranks,
    run_dir: &Path,
    checkpoints: &Checkpoints,
) -> Result<()> {
    let Some(name) = params.first_not_finite()? else {
        return Ok(());
    };
    let what = format!("a value of {name} after the update");
    Err(not_finite(
        step,
        what,
        f64::NAN,
        keys,
        ranks,
        run_dir,
        checkpoints,
    ))
}

/// Every parameter must learn from the first step on: a layer without a backward pass cuts the gradient of all before
/// it without a word. (The key third of an attention bias has a gradient of zero but for rounding; the whole bias,
/// which is what is looked at, has not.)
///
/// With stochastic depth a branch may be dropped for all of a small batch, so that is a sentence to warn with.
///
/// # Errors
/// Without it, [`Error::GradientCoverage`] naming each parameter without a finite gradient other than zero.
pub(super) fn check_coverage(norms: &GradNorms, drop_path: f64) -> Result<Option<String>> {
    let uncovered = norms.uncovered();
    if uncovered.is_empty() {
        return Ok(None);
    }
    let error = Error::GradientCoverage(uncovered.join(", "));
    if drop_path > 0.0 {
        return Ok(Some(format!(
            "{error}; model.drop_path is {drop_path}, which may have dropped their branch for the whole step"
        )));
    }
    Err(error)
}

/// Writes the keys of all this rank's samples of the step beside the run and names the first of them. Each of several
/// ranks has a file of its own: a gradient, summed over them, is not finite on any.
fn not_finite(
    step: u64,
    what: String,
    value: f64,
    keys: &[String],
    ranks: &Ranks,
    run_dir: &Path,
    checkpoints: &Checkpoints,
) -> Error {
    let (of_rank, whose) = match ranks.size() {
        1 => (String::new(), String::new()),
        _ => (
            format!("-rank-{}", ranks.rank()),
            format!(" of rank {}", ranks.rank()),
        ),
    };
    let path = run_dir.join(format!("not-finite-step-{step:08}{of_rank}.txt"));
    let mut named = keys[..keys.len().min(KEYS_NAMED)].join(", ");
    if keys.len() > KEYS_NAMED {
        named.push_str(&format!(", and {} more", keys.len() - KEYS_NAMED));
    }
    if files::replace(&path, (keys.join("\n") + "\n").as_bytes()).is_ok() {
        named.push_str(&format!(" (all{whose} in {})", path.display()));
    }
    let saved_before = |step| checkpoints.latest_before(step).ok().flatten();
    let last_checkpoint = match saved_before(step) {
        None => "none".to_string(),
        Some((saved, dir)) => {
            let mut named = dir.display().to_string();
            // Its weights are finite, but the very next step was not: they may be what is wrong.
            if saved + 1 == step
                && let Some((_, earlier)) = saved_before(saved)
            {
                named.push_str(&format!(
                    " (right before this step; the one before it: {})",
                    earlier.display()
                ));
            }
            named
        }
    };
    Error::NotFinite {
        step,
        what,
        value,
        keys: named,
        last_checkpoint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::in_threads::on_ranks;

    #[test]
    fn every_rank_leaves_the_keys_of_its_own_samples() {
        let run = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(run.path()).unwrap();
        let messages = on_ranks(2, |ranks| {
            let loss = StepLoss {
                total: f64::NAN,
                keys: vec![format!("key-{}", ranks.rank())],
                ..StepLoss::default()
            };
            let checked = check_loss(7, &loss, &ranks, run.path(), &checkpoints);
            checked.unwrap_err().to_string()
        });
        for (rank, message) in messages.iter().enumerate() {
            let name = format!("not-finite-step-00000007-rank-{rank}.txt");
            let keys = std::fs::read_to_string(run.path().join(&name)).unwrap();
            assert_eq!(keys, format!("key-{rank}\n"));
            assert!(
                message.contains(&format!("all of rank {rank} in ")),
                "{message}"
            );
            assert!(message.contains(&name), "{message}");
        }
    }

    #[test]
    fn a_parameter_that_does_not_learn_is_fatal_unless_chance_or_nature_explains_it() {
        let norms = |names: &[&str]| GradNorms {
            per_param: names
                .iter()
                .map(|name| ((*name).to_string(), Some(0.0)))
                .collect(),
            global: 0.0,
        };
        let idle = norms(&["blocks.1.mlp.fc1.weight"]);
        assert!(matches!(
            check_coverage(&idle, 0.0),
            Err(Error::GradientCoverage(_))
        ));
        let warning = check_coverage(&idle, 0.1).unwrap().unwrap();
        assert!(
            warning.contains("blocks.1.mlp.fc1.weight (zero)"),
            "{warning}"
        );
        let nature = norms(&["projector.fc1.bias", "predictor.fc1.bias"]);
        assert_eq!(check_coverage(&nature, 0.0).unwrap(), None);
    }

    #[test]
    fn both_ends_survive_their_bits() {
        let mut losses = Losses::default();
        assert_eq!((losses.first_mean(), losses.last_mean()), (None, None));
        (0..25).for_each(|i| losses.push(i as f32));
        let again = Losses::from_bits(&losses.to_bits());
        assert_eq!(
            (again.first_mean(), again.last_mean()),
            (Some(4.5), Some(19.5))
        );
    }
}
