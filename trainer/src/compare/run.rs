//! Runs a comparison, one run after the other, each to its end; what is complete is left alone.

use std::fs;
use std::path::Path;

use candle_core::DType;
use pipeline::Stop;
use pipeline::convert::Part;

use super::COMPARE_FILE;
use super::config::{CompareConfig, RunSpec};
use super::cost::forward_cost;
use super::record::{Machine, RECORD_FORMAT, Record};
use crate::config::{TrainConfig, differences};
use crate::device;
use crate::distributed::Ranks;
use crate::error::{Error, Result};
use crate::eval::during::{self, Event};
use crate::eval::encoder::{CheckpointId, FrozenEncoder};
use crate::files;
use crate::models;
use crate::nn::params::Params;
use crate::train::{self, Progress, Summary};

/// Steps that a budget in hours is measured by, after as many to warm up.
const MEASURED_STEPS: u64 = 20;

/// Where the steps that fit the hours are kept, in the run folder.
const MEASURED_FILE: &str = "measured_steps";

/// Which runs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// All.
    #[default]
    All,
    /// The one at this place in the list.
    One(usize),
    /// Those of one machine out of several.
    Part(Part),
}

impl Which {
    fn has(self, run: &RunSpec) -> bool {
        match self {
            Which::All => true,
            Which::One(index) => run.index == index,
            Which::Part(part) => part.has(run.index as u64),
        }
    }
}

/// What happens in a comparison.
#[derive(Debug)]
pub enum CompareEvent<'a> {
    /// A run begins or goes on.
    Begins(&'a RunSpec),
    /// A run was complete before.
    Complete(&'a RunSpec),
    /// In a run.
    Run(Event<'a>),
}

/// Makes the runs of a comparison that are not complete. Returns whether all that were asked for are now.
///
/// # Errors
/// [`Error::Config`] if `which` names no run; [`Error::ConfigChanged`] if the folder holds another comparison's runs;
/// whatever training and evaluation meet.
pub fn run(
    config: &CompareConfig,
    out: &Path,
    which: Which,
    stop: &Stop,
    see: &mut dyn FnMut(CompareEvent),
) -> Result<bool> {
    let runs = config.runs()?;
    let chosen: Vec<_> = runs.iter().filter(|run| which.has(run)).collect();
    if chosen.is_empty() {
        return Err(Error::Config(format!(
            "{which:?} names none of the {} runs, which count from 0",
            runs.len()
        )));
    }
    for spec in &runs {
        expect_same(config, spec, &out.join(&spec.dir))?; // before anything is written
    }
    fs::create_dir_all(out).map_err(Error::io(out))?;
    let text = toml::to_string(config).map_err(|error| Error::ConfigSyntax(error.to_string()))?;
    files::replace(&out.join(COMPARE_FILE), text.as_bytes())?;
    for spec in chosen {
        let complete = one(config, spec, &out.join(&spec.dir), stop, see)?;
        if !complete {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes one run; whether it is complete.
fn one(
    config: &CompareConfig,
    spec: &RunSpec,
    dir: &Path,
    stop: &Stop,
    see: &mut dyn FnMut(CompareEvent),
) -> Result<bool> {
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let method = &config.methods[spec.method];
    let known = Record::read(dir)?;
    if known.as_ref().is_some_and(|known| known.complete) {
        see(CompareEvent::Complete(spec));
        return Ok(true);
    }
    see(CompareEvent::Begins(spec));
    let Some(train_config) = in_time(config, spec, dir, stop)? else {
        return Ok(false);
    };
    let device = device::open(&train_config.device)?;
    let mut record = Record {
        format: RECORD_FORMAT,
        comparison: config.name.clone(),
        method: method.name.clone(),
        seed: train_config.seed,
        complete: false,
        machine: Machine::here(&device),
        forward: forward_cost(&train_config.model)?,
        data: known.and_then(|known| known.data),
        scores: Vec::new(),
        config: train_config.clone(),
    };
    record.write(dir)?;
    let mut told = |event: Event| see(CompareEvent::Run(event));
    if method.untrained {
        let (encoder, id) = untrained(&train_config, &device)?;
        match during::evaluate(&train_config.eval, &encoder, &id, 0, dir, stop, &mut told) {
            Err(Error::Stopped) => {}
            result => {
                result?;
                record.complete = true;
            }
        }
    } else {
        let summary = during::train(&Ranks::single(), &train_config, dir, stop, &mut told)?;
        record.complete = summary.complete;
        record.data = summary.training.data.or(record.data);
    }
    record.scores = during::scores(dir)?;
    record.write(dir)?;
    Ok(record.complete)
}

/// # Errors
/// [`Error::ConfigChanged`] if the folder holds the run of another configuration. The steps of a budget in hours are the
/// run's own.
fn expect_same(config: &CompareConfig, spec: &RunSpec, dir: &Path) -> Result<()> {
    let Some(known) = Record::read(dir)? else {
        return Ok(());
    };
    let mut new = spec.config.clone();
    if config.budget.steps_in_time(1.0, 1).is_some() {
        new.optim.max_steps = known.config.optim.max_steps;
    }
    let changed = differences(&known.config, &new)?;
    let mut changes = [changed.fatal, changed.noted].concat();
    if known.config.eval != new.eval {
        changes.push("eval: other than before".to_string());
    }
    if changes.is_empty() {
        return Ok(());
    }
    Err(Error::ConfigChanged {
        path: dir.to_path_buf(),
        differences: changes.join("; "),
    })
}

/// The run's configuration, with the steps that fit a budget in hours; `None` if measuring them was stopped.
fn in_time(
    config: &CompareConfig,
    spec: &RunSpec,
    dir: &Path,
    stop: &Stop,
) -> Result<Option<TrainConfig>> {
    let mut train_config = spec.config.clone();
    let is_timed = config.budget.steps_in_time(1.0, 1).is_some();
    if !is_timed || config.methods[spec.method].untrained {
        return Ok(Some(train_config));
    }
    let path = dir.join(MEASURED_FILE);
    let steps = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|_| {
            Error::Config(format!(
                "{}: {text:?}, expected a number of steps",
                path.display()
            ))
        })?,
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(&path)(error));
        }
        Err(_) => {
            let Some(rate) = measure(&train_config, &dir.join("measure"), stop)? else {
                return Ok(None);
            };
            let batch = train_config.effective_batch();
            let steps = config.budget.steps_in_time(rate, batch).unwrap_or(1);
            files::replace(&path, format!("{steps}\n").as_bytes())?;
            steps
        }
    };
    train_config.optim.max_steps = Some(steps);
    Ok(Some(train_config))
}

/// Pairs per second of a short run that is thrown away; `None` if it was stopped.
fn measure(config: &TrainConfig, dir: &Path, stop: &Stop) -> Result<Option<f64>> {
    let mut short = config.clone();
    short.optim.max_steps = Some(2 * MEASURED_STEPS);
    short.run.pictures_every = 0;
    short.run.stop_after = Some(MEASURED_STEPS);
    let ignore = &mut |_: &Progress| {};
    let clear = || match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir)(error)),
        _ => Ok(()),
    };
    clear()?;
    train::train(&short, dir, stop, ignore)?;
    short.run.stop_after = None;
    let Summary {
        pairs_per_s,
        stopped,
        ..
    } = train::train(&short, dir, stop, ignore)?;
    clear()?;
    Ok((!stopped).then_some(pairs_per_s))
}

/// The encoder as the seed draws it.
fn untrained(
    config: &TrainConfig,
    device: &candle_core::Device,
) -> Result<(FrozenEncoder, CheckpointId)> {
    let mut params = Params::new(config.seed, DType::F32, device);
    models::build(&config.model, &mut params)?;
    FrozenEncoder::of_params(&config.model, &params, device)
}
