//! The record of a run: one JSON object a line, a TensorBoard event file made from it, curves at the end.
//!
//! `metrics.jsonl` is the truth; the other two are derived. On resume, lines past the checkpoint's step
//! are cut off, so the file reads as that of an undisturbed run, and the event file is written anew.

pub mod curves;
pub mod tensorboard;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;
use tensorboard::EventWriter;

/// Name of the JSON-lines file in the run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// Folder of the TensorBoard event file in the run folder.
pub const TENSORBOARD_DIR: &str = "tensorboard";

/// One line of `metrics.jsonl`: how the run stood after an optimizer step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine {
    /// Optimizer steps made, this one included.
    pub step: u64,
    /// Epochs seen, in fractions.
    pub epoch: f64,
    /// Loss of this step, mean over its micro-batches.
    pub loss: f32,
    /// The terms of the loss by name, where the model has several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, f32>,
    /// Learning rate in force during this step.
    pub lr: f64,
    /// l2 norm over all gradients, before any clipping.
    pub grad_norm: f64,
    /// Pairs trained on per second since the last line, checkpoints and pictures not counted.
    pub pairs_per_s: f64,
    /// Share of that time spent waiting for data, in percent.
    pub data_wait_pct: f64,
    /// Seconds to the end of the run at the present rate.
    pub eta_s: f64,
    /// Samples that could not be read and were replaced, since the program started.
    pub bad_samples: u64,
    /// The loader's stage that holds the others up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<String>,
    /// Mean difference that `data.decode = "fast"` made to the views, in levels of 255, as far as it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduced_difference: Option<f64>,
    /// When, in seconds since 1970.
    pub time: f64,
}

impl MetricsLine {
    /// Tag and value of everything that TensorBoard draws.
    fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars = vec![
            ("train/loss".to_string(), f64::from(self.loss)),
            ("train/lr".to_string(), self.lr),
            ("train/grad_norm".to_string(), self.grad_norm),
            ("train/epoch".to_string(), self.epoch),
            ("speed/pairs_per_s".to_string(), self.pairs_per_s),
            ("speed/data_wait_pct".to_string(), self.data_wait_pct),
            ("speed/eta_s".to_string(), self.eta_s),
            ("data/bad_samples".to_string(), self.bad_samples as f64),
        ];
        scalars.extend(
            self.parts
                .iter()
                .map(|(name, &value)| (format!("train/{name}"), f64::from(value))),
        );
        scalars
    }
}

/// Appends lines to `metrics.jsonl` and the same values to the event file.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    events: EventWriter,
}

impl MetricsLog {
    /// Opens the record of a run that goes on after `steps_done` steps (0 starts afresh).
    ///
    /// Lines past that step, and a last line that a kill cut short, are removed first.
    pub fn open(run_dir: &Path, steps_done: u64) -> Result<Self> {
        let path = run_dir.join(METRICS_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io(&path)(error)),
        };
        let kept: Vec<_> = whole_lines(&text)
            .filter(|(_, line)| line.step <= steps_done)
            .collect();
        // As they were written: numbers that went through a parser could come out a digit different.
        let kept_text: String = kept.iter().map(|(text, _)| *text).collect();
        files::replace(&path, kept_text.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(Error::io(&path))?;
        let mut events = EventWriter::create_in(&run_dir.join(TENSORBOARD_DIR))?;
        for (_, line) in &kept {
            events.write_scalars(line.step, line.time, &line.scalars())?;
        }
        Ok(Self { path, file, events })
    }

    /// Appends one line; it is in the file, whole, when this returns.
    pub fn write(&mut self, line: &MetricsLine) -> Result<()> {
        let text = to_json_line(&self.path, line)?;
        self.file
            .write_all(text.as_bytes())
            .map_err(Error::io(&self.path))?;
        self.events
            .write_scalars(line.step, line.time, &line.scalars())
    }

    /// Makes everything written so far survive a crash of the machine.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }
}

/// Reads the lines of a run's `metrics.jsonl`, those that are whole.
pub fn read(run_dir: &Path) -> Result<Vec<MetricsLine>> {
    let path = run_dir.join(METRICS_FILE);
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    Ok(whole_lines(&text).map(|(_, line)| line).collect())
}

/// Each line as written, its line end included, and as read; a damaged one is left out and costs no other.
fn whole_lines(text: &str) -> impl Iterator<Item = (&str, MetricsLine)> {
    text.split_inclusive('\n')
        .take_while(|line| line.ends_with('\n'))
        .filter_map(|line| Some((line, serde_json::from_str(line).ok()?)))
}

fn to_json_line(path: &Path, line: &MetricsLine) -> Result<String> {
    let mut text = serde_json::to_string(line).map_err(|source| Error::Json {
        path: path.into(),
        source,
    })?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> MetricsLine {
        let loss = 1.0 / step as f32;
        // A parser of numbers that rounds carelessly gives 0.2377335839832002 back.
        let grad_norm = 0.23773358398320021 * step as f64;
        MetricsLine {
            step,
            loss,
            grad_norm,
            lr: 1e-3 / step as f64,
            time: step as f64,
            ..MetricsLine::default()
        }
    }

    fn text(dir: &Path) -> String {
        fs::read_to_string(dir.join(METRICS_FILE)).unwrap()
    }

    #[test]
    fn resuming_cuts_off_what_the_checkpoint_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(dir.path(), 0).unwrap();
        (1..=5).for_each(|step| log.write(&line(step)).unwrap());
        let undisturbed = text(dir.path());
        drop(log);
        let mut log = MetricsLog::open(dir.path(), 3).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 3);
        (4..=5).for_each(|step| log.write(&line(step)).unwrap());
        assert_eq!(text(dir.path()), undisturbed);
        let events: Vec<_> = fs::read_dir(dir.path().join(TENSORBOARD_DIR))
            .unwrap()
            .collect();
        assert_eq!(events.len(), 1, "one event file, holding the whole run");
    }

    #[test]
    fn a_line_cut_short_by_a_kill_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        MetricsLog::open(dir.path(), 0)
            .unwrap()
            .write(&line(1))
            .unwrap();
        let whole = text(dir.path());
        fs::write(
            dir.path().join(METRICS_FILE),
            format!("{whole}{{\"step\":2,\"lo"),
        )
        .unwrap();
        MetricsLog::open(dir.path(), 9).unwrap();
        assert_eq!(text(dir.path()), whole);

        // A damaged line in the middle costs itself alone.
        let path = dir.path().join(METRICS_FILE);
        fs::write(&path, format!("garbage\n{whole}")).unwrap();
        MetricsLog::open(dir.path(), u64::MAX).unwrap();
        assert_eq!(text(dir.path()), whole);
    }

    #[test]
    fn starting_afresh_empties_the_file() {
        let dir = tempfile::tempdir().unwrap();
        MetricsLog::open(dir.path(), 0)
            .unwrap()
            .write(&line(1))
            .unwrap();
        MetricsLog::open(dir.path(), 0).unwrap();
        assert_eq!(text(dir.path()), "");
    }

    #[test]
    fn losses_survive_the_file_bit_for_bit() {
        let value = 1.164_873_2_f32 / 3.0;
        let written = serde_json::to_string(&MetricsLine {
            loss: value,
            ..line(1)
        })
        .unwrap();
        assert_eq!(
            serde_json::from_str::<MetricsLine>(&written)
                .unwrap()
                .loss
                .to_bits(),
            value.to_bits()
        );
    }
}
