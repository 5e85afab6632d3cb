//! What one run of a comparison leaves behind: `record.json` beside the run's own files, enough for a report anywhere.

use std::fs;
use std::path::Path;

use pipeline::OtherFormat;
use serde::{Deserialize, Serialize};

use super::cost::ForwardCost;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::eval::during::Score;
use crate::files;
use crate::metrics::MetricsLine;
use crate::train::DataCost;

/// A run's record in its folder.
pub const RECORD_FILE: &str = "record.json";

/// Version of its layout.
pub const RECORD_FORMAT: u32 = 1;

/// One run: one method with one seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this layout.
    pub format: u32,
    /// Name of the comparison.
    pub comparison: String,
    /// Name of the method in it.
    pub method: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Whether the run is at its end and evaluated there.
    pub complete: bool,
    /// What was trained, resolved.
    pub config: TrainConfig,
    /// What ran it.
    pub machine: Machine,
    /// Arithmetic of a pair.
    pub forward: ForwardCost,
    /// What a pair took of the data path; absent before the first step.
    pub data: Option<DataCost>,
    /// Every evaluation, in the order of the steps.
    pub scores: Vec<Score>,
}

/// The program and the hardware.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Machine {
    /// Version of the program.
    pub pairquet: String,
    /// Where the tensors were.
    pub device: String,
    /// Processor, as the system names it.
    pub processor: String,
    /// Threads that could run at once.
    pub threads: usize,
}

impl Machine {
    /// The one that this program runs on.
    pub fn here(device: &candle_core::Device) -> Machine {
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu_info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            pairquet: env!("CARGO_PKG_VERSION").to_string(),
            device: crate::device::describe(device),
            processor: model.map_or_else(|| "unknown".to_string(), |(_, name)| name.to_string()),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Record {
    /// Writes `record.json` in one go.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::Json`].
    pub fn write(&self, run_dir: &Path) -> Result<()> {
        let path = run_dir.join(RECORD_FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(json(&path))?;
        text.push(b'\n');
        files::replace(&path, &text)
    }

    /// `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] and [`Error::Json`] naming the file.
    pub fn read(run_dir: &Path) -> Result<Option<Record>> {
        let path = run_dir.join(RECORD_FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path)(error)),
        };
        OtherFormat::check_json(&text, RECORD_FORMAT).map_err(Error::format(&path))?;
        let record = serde_json::from_slice(&text).map_err(json(&path))?;
        Ok(Some(record))
    }
}

fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Json { path, source }
}

/// How far a run was after a step, by every measure.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Optimizer steps.
    pub step: u64,
    /// Passes over the data.
    pub epoch: f64,
    /// Samples trained on.
    pub pairs: f64,
    /// Hours of training, waiting for data included; checkpoints, pictures and evaluations left out.
    pub hours: f64,
    /// Hours of these spent waiting for data.
    pub waiting_hours: f64,
    /// Loss of the step.
    pub loss: f64,
}

/// The course of a run out of its metrics; begins at step 0.
pub fn course(lines: &[MetricsLine], effective_batch: u64) -> Vec<Progress> {
    let mut course = vec![Progress {
        loss: f64::NAN,
        ..Progress::default()
    }];
    for line in lines {
        let before = course[course.len() - 1];
        let pairs = line.step as f64 * effective_batch as f64;
        let hours = if line.pairs_per_s > 0.0 {
            (pairs - before.pairs) / line.pairs_per_s / 3600.0
        } else {
            0.0
        };
        course.push(Progress {
            step: line.step,
            epoch: line.epoch,
            pairs,
            hours: before.hours + hours,
            waiting_hours: before.waiting_hours + hours * line.data_wait_pct / 100.0,
            loss: f64::from(line.loss),
        });
    }
    course
}

/// How far a run was after `step` steps: between two lines of its metrics, in proportion.
pub fn at_step(course: &[Progress], step: u64) -> Progress {
    let after = course.partition_point(|point| point.step < step);
    match (course.get(after), after.checked_sub(1).map(|i| course[i])) {
        (Some(&there), _) if there.step == step => there,
        (Some(&there), Some(before)) => {
            let share = (step - before.step) as f64 / (there.step - before.step) as f64;
            let between = |a: f64, b: f64| a + share * (b - a);
            Progress {
                step,
                epoch: between(before.epoch, there.epoch),
                pairs: between(before.pairs, there.pairs),
                hours: between(before.hours, there.hours),
                waiting_hours: between(before.waiting_hours, there.waiting_hours),
                loss: there.loss,
            }
        }
        (Some(&there), None) => there,
        (None, last) => last.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    fn line(step: u64, pairs_per_s: f64) -> MetricsLine {
        MetricsLine {
            step,
            epoch: step as f64 / 10.0,
            loss: 1.0,
            pairs_per_s,
            data_wait_pct: 25.0,
            ..MetricsLine::default()
        }
    }

    #[test]
    fn hours_come_from_rates_and_steps() {
        let course = course(&[line(1, 100.0), line(10, 100.0), line(20, 50.0)], 10);
        let hours: Vec<_> = course.iter().map(|point| point.hours * 3600.0).collect();
        let expected = [0.0, 0.1, 1.0, 3.0];
        assert!(
            hours
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-9),
            "{hours:?}"
        );
        assert!((course[3].waiting_hours / course[3].hours - 0.25).abs() < 1e-9);
        let half_way = at_step(&course, 15);
        assert!((half_way.hours * 3600.0 - 2.0).abs() < 1e-9);
        assert_eq!((half_way.pairs, half_way.epoch), (150.0, 1.5));
        assert_eq!(at_step(&course, 0).hours, 0.0);
        assert_eq!(at_step(&course, 20), course[3]);
        assert_eq!(at_step(&course, 99).step, 20, "no further than the record");
        assert_eq!(at_step(&[], 5), Progress::default());
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let record = Record {
            format: RECORD_FORMAT,
            comparison: "laptop".to_string(),
            method: "CropMAE".to_string(),
            seed: 1,
            complete: true,
            config: TrainConfig::default(),
            machine: Machine::here(&candle_core::Device::Cpu),
            forward: super::super::cost::forward_cost(&Default::default()).unwrap(),
            data: Some(DataCost::default()),
            scores: vec![Score {
                step: 5,
                protocol: "davis".to_string(),
                numbers: BTreeMap::from([("jf_mean".to_string(), 1.0 / 3.0)]),
                dir: PathBuf::from("eval/davis-5"),
            }],
        };
        record.write(dir.path()).unwrap();
        let read = Record::read(dir.path()).unwrap().unwrap();
        assert_eq!(read, record);
        let newer = Record {
            format: RECORD_FORMAT + 1,
            ..record
        };
        newer.write(dir.path()).unwrap();
        let error = Record::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("format 2"), "{error}");
        fs::write(dir.path().join(RECORD_FILE), "{").unwrap();
        let error = Record::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(RECORD_FILE), "{error}");
    }
}
