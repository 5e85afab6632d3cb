//! Evaluations along a training run: it is trained in portions, and evaluated after each.
//!
//! A portion ends in a checkpoint and the next one goes on from it, so the weights are those of an undisturbed run, to the
//! last bit, and a kill costs no evaluation that was finished.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use pipeline::Stop;
use pipeline::loader::{Loader, LoaderState, Rank};
use serde::{Deserialize, Serialize};

use super::encoder::{CheckpointId, FrozenEncoder};
use crate::config::TrainConfig;
use crate::device;
use crate::error::{Error, Result};
use crate::exchange::ReadOptions;
use crate::train::{self, Progress, Summary};

/// One line an evaluation, in the run folder.
pub const EVALUATIONS_FILE: &str = "evaluations.jsonl";

/// Folder of the evaluations' own folders, in the run folder.
pub const EVALUATIONS_DIR: &str = "eval";

/// The `[eval]` table of a run: what is evaluated, and when. The last step always is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Epochs between evaluations; 0: only at the end.
    pub every_epochs: u64,
    /// Steps between evaluations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Evaluations spread evenly over the run, in place of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// Whether pictures are drawn too: masks over frames, features as colours, attention.
    pub pictures: bool,
}

/// One evaluation of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Optimizer steps made before it.
    pub step: u64,
    /// The protocol: `davis`, `vip`, `jhmdb`, `knn`, ...
    pub protocol: String,
    /// Its numbers by name, such as `jf_mean`, in percent.
    pub numbers: BTreeMap<String, f64>,
    /// The evaluation's folder, below the run's.
    pub dir: PathBuf,
}

/// What happens in a run with evaluations.
#[derive(Debug)]
pub enum Event<'a> {
    /// In training.
    Training(&'a Progress<'a>),
    /// An evaluation begins: its protocol, and the steps made.
    Evaluating(&'a str, u64),
    /// It is done.
    Evaluated(&'a Score),
}

/// What came of a run with evaluations.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// Of the last session.
    pub training: Summary,
    /// Whether the run is at its end and evaluated there.
    pub complete: bool,
}

impl EvalConfig {
    /// Whether anything is evaluated.
    pub fn is_on(&self) -> bool {
        !self.protocols().is_empty()
    }

    /// # Errors
    /// [`Error::Config`] naming a value and what was expected.
    pub fn validate(&self) -> Result<()> {
        for (name, count) in [("every_steps", self.every_steps), ("times", self.times)] {
            if count == Some(0) {
                return Err(Error::Config(format!("eval.{name} is 0, expected at least 1")));
            }
        }
        Ok(())
    }

    /// The steps that are followed by an evaluation, in order, the last one at the end.
    fn due(&self, total_steps: u64, batches_per_epoch: u64, accum_steps: u64) -> Vec<u64> {
        let mut due = Vec::new();
        if let Some(times) = self.times {
            due.extend((1..times).map(|i| (total_steps * i).div_ceil(times)));
        } else {
            if let Some(every) = self.every_steps {
                due.extend((1..).map(|i| i * every).take_while(|&step| step < total_steps));
            }
            if self.every_epochs > 0 {
                let batches = self.every_epochs * batches_per_epoch;
                let step = |i: u64| (i * batches).div_ceil(accum_steps);
                due.extend((1..).map(step).take_while(|&step| step < total_steps));
            }
        }
        due.push(total_steps);
        due.sort_unstable();
        due.dedup();
        due.retain(|&step| step > 0);
        due
    }
}

/// Trains, and evaluates on the way and at the end.
///
/// # Errors
/// As [`train::train`], and whatever an evaluation meets that is no fault of a single sequence.
pub fn train(
    config: &TrainConfig,
    run_dir: &Path,
    stop: &Stop,
    see: &mut dyn FnMut(Event),
) -> Result<Evaluated> {
    let config = config.resolved()?;
    let loader = Loader::new(&config.data, config.seed, Rank::SINGLE, LoaderState::default())?;
    let batches_per_epoch = loader.batches_per_epoch();
    drop(loader);
    let optim = &config.optim;
    let total_steps = optim.total_steps(batches_per_epoch)?;
    let due = config
        .eval
        .due(total_steps, batches_per_epoch, optim.accum_steps);
    let done = scores(run_dir)?;
    let mut training = None;
    for step in due {
        if config.eval.is_done(&done, step) && step < total_steps {
            continue;
        }
        let mut portion = config.clone();
        portion.run.stop_after = (step < total_steps).then_some(step);
        let summary = train::train(&portion, run_dir, stop, &mut |progress| {
            see(Event::Training(progress));
        })?;
        let reached = summary.steps;
        training = Some(summary);
        if reached == step && !config.eval.is_done(&done, step) {
            let device = device::open(&config.device)?;
            let (encoder, id) = FrozenEncoder::load(run_dir, &ReadOptions::default(), &device)?;
            evaluate(&config.eval, &encoder, &id, step, run_dir, stop, see)?;
        }
        if stop.is_requested() {
            break;
        }
    }
    let training = training.ok_or_else(|| Error::Config("a run has no steps".to_string()))?;
    let complete = training.steps == total_steps && config.eval.is_done(&scores(run_dir)?, total_steps);
    Ok(Evaluated { training, complete })
}

/// Reads what was evaluated, in the order it was.
///
/// # Errors
/// [`Error::Io`] and [`Error::Json`] naming the file.
pub fn scores(run_dir: &Path) -> Result<Vec<Score>> {
    let path = run_dir.join(EVALUATIONS_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(&path)(error)),
    };
    // A last line that a kill cut short belongs to an evaluation that is made again.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole
        .map(|line| {
            serde_json::from_str(line).map_err(|source| Error::Json {
                path: path.clone(),
                source,
            })
        })
        .collect()
}

fn append(run_dir: &Path, score: &Score) -> Result<()> {
    let path = run_dir.join(EVALUATIONS_FILE);
    let mut lines = String::new();
    for known in scores(run_dir)?.iter().chain([score]) {
        let line = serde_json::to_string(known).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        lines.push_str(&line);
        lines.push('\n');
    }
    crate::files::replace(&path, lines.as_bytes())
}
