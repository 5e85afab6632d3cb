//! The report of a comparison: a function of its records, as a page, as JSON and as tables.
//!
//! [`collect`] reads the records; `summary` says in words what they show; `page` draws; `tables` writes CSV.

mod collect;
mod page;
mod summary;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cost::ForwardCost;
use super::published::{PublishedAblation, PublishedRow};
use super::record::Machine;
use super::stats::{Difference, Spread};
use crate::error::{Error, Result};
use crate::files;
use crate::train::DataCost;

/// The page.
pub const PAGE_FILE: &str = "report.html";
/// Everything the page says, for machines.
pub const JSON_FILE: &str = "report.json";
/// One line a run and number at its end.
pub const RESULTS_FILE: &str = "results.csv";
/// One line a run and step: losses and scores.
pub const CURVES_FILE: &str = "curves.csv";

/// A number that evaluations give, and how people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// The evaluation.
    pub protocol: &'static str,
    /// Its number.
    pub name: &'static str,
    /// As a table's head.
    pub label: &'static str,
}

/// All numbers that are shown, in percent, the most telling first.
pub const METRICS: [Metric; 9] = [
    metric("davis", "jf_mean", "DAVIS J&F"),
    metric("davis", "j_mean", "DAVIS J"),
    metric("davis", "f_mean", "DAVIS F"),
    metric("davis", "jf_mean_original", "DAVIS J&F, original size"),
    metric("vip", "miou", "VIP mIoU"),
    metric("jhmdb", "pck_01", "JHMDB PCK@0.1"),
    metric("jhmdb", "pck_02", "JHMDB PCK@0.2"),
    metric("knn", "top1", "k-NN top-1, k = 20"),
    metric("probe", "top1", "fast linear probe top-1"),
];

const fn metric(protocol: &'static str, name: &'static str, label: &'static str) -> Metric {
    Metric {
        protocol,
        name,
        label,
    }
}

/// What a comparison shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the comparison.
    pub name: String,
    /// What it asks.
    pub question: String,
    /// How long each run is, in words.
    pub budget: String,
    /// The answer, a sentence each.
    pub summary: Vec<String>,
    /// The numbers that were measured.
    pub metrics: Vec<Metric>,
    /// The methods in the order of the configuration.
    pub methods: Vec<MethodReport>,
    /// By the first metric: each method against the best, with its interval.
    pub contrasts: Vec<Contrast>,
    /// The papers' ablation that this comparison repeats.
    pub ablation: Option<PublishedAblation>,
    /// What ran it.
    pub machines: Vec<Machine>,
    /// Runs that are not there or not at their end.
    pub missing: Vec<String>,
}

/// What the runs of one method show together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodReport {
    /// As the report writes it.
    pub name: String,
    /// Whether it was evaluated as it was drawn.
    pub untrained: bool,
    /// Published figures beside it.
    pub published: Option<PublishedRow>,
    /// Its place in the ablation.
    pub point: Option<String>,
    /// What its configuration has that another method's has not: key and value.
    pub settings: BTreeMap<String, String>,
    /// Numbers of the last evaluation over the complete runs, by metric, in the order of [`Report::metrics`].
    pub scores: Vec<Option<Spread>>,
    /// What it costs; absent without a complete run.
    pub cost: Option<MethodCost>,
    /// What it took to reach the level that every trained method reaches.
    pub reach: Option<Reach>,
    /// Its runs.
    pub runs: Vec<RunReport>,
}

/// Costs of a method, over its complete runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodCost {
    /// Multiply-adds of a pair's forward pass.
    pub forward: ForwardCost,
    /// The data path of a pair.
    pub data: Option<DataCost>,
    /// Pairs trained on per second.
    pub pairs_per_s: Option<Spread>,
    /// Milliseconds of training a pair, without the wait for data.
    pub compute_ms: Option<Spread>,
    /// Milliseconds of waiting for data a pair.
    pub wait_ms: Option<Spread>,
    /// Hours of training.
    pub hours: Option<Spread>,
    /// Length of a run.
    pub steps: u64,
    /// The same in passes over the data.
    pub epochs: f64,
    /// The same in samples.
    pub pairs: f64,
}

/// What it took to reach a level of the first metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reach {
    /// In percent: the lowest final mean of all trained methods.
    pub level: f64,
    /// Runs that came there, of those that are complete.
    pub n_runs: usize,
    /// Epochs, along straight lines between evaluations.
    pub epochs: Spread,
    /// Samples.
    pub pairs: Spread,
    /// Hours of training.
    pub hours: Spread,
}

/// One method against the best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contrast {
    /// The better one.
    pub best: String,
    /// The other.
    pub other: String,
    /// Best minus other.
    pub difference: Difference,
}

/// One run as the report draws it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// Its seed.
    pub seed: u64,
    /// Whether it is at its end.
    pub complete: bool,
    /// Its folder, as found.
    pub dir: PathBuf,
    /// Loss over the steps, smoothed.
    pub losses: Vec<Point>,
    /// Score of the metrics after some steps: a value for each of [`Report::metrics`].
    pub evaluations: Vec<Evaluation>,
    /// Checkpoint and configuration, for provenance: hash of the weights at the end.
    pub weights_sha256: Option<String>,
    /// Hash of the data it was evaluated on.
    pub data_sha256: Option<String>,
    /// The resolved configuration.
    pub config: String,
    /// Pictures: what they show, and the file.
    #[serde(skip)]
    pub pictures: Vec<(String, PathBuf)>,
}

/// A value after some training, by every measure of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Optimizer steps.
    pub step: u64,
    /// Passes over the data.
    pub epoch: f64,
    /// Samples.
    pub pairs: f64,
    /// Hours of training.
    pub hours: f64,
    /// The value.
    pub value: f64,
}

/// The numbers after some training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// When.
    pub step: u64,
    /// A value for each of [`Report::metrics`], in percent.
    pub values: Vec<Option<Point>>,
}

impl Report {
    /// Reads the records below some folders, which may be parts of one comparison from several machines.
    ///
    /// # Errors
    /// [`Error::Config`] if no comparison is there, or two folders hold different ones; [`Error::Io`] and [`Error::Json`]
    /// naming a file that cannot be read.
    pub fn collect(dirs: &[PathBuf]) -> Result<Report> {
        collect::collect(dirs)
    }

    /// Writes page, JSON and tables into a folder.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::Json`].
    pub fn write(&self, dir: &Path) -> Result<()> {
        let json_path = dir.join(JSON_FILE);
        let mut json = serde_json::to_vec_pretty(self).map_err(|source| Error::Json {
            path: json_path.clone(),
            source,
        })?;
        json.push(b'\n');
        files::replace(&json_path, &json)?;
        files::replace(&dir.join(RESULTS_FILE), tables::results(self).as_bytes())?;
        files::replace(&dir.join(CURVES_FILE), tables::curves(self).as_bytes())?;
        files::replace(&dir.join(PAGE_FILE), page::html(self)?.as_bytes())
    }

    /// The metric that the answer goes by.
    pub fn headline(&self) -> Option<Metric> {
        self.metrics.first().copied()
    }
}

impl MethodReport {
    /// Final spread of the metric that the answer goes by.
    pub fn headline(&self) -> Option<&Spread> {
        self.scores.first()?.as_ref()
    }

    /// Complete runs.
    pub fn complete(&self) -> impl Iterator<Item = &RunReport> {
        self.runs.iter().filter(|run| run.complete)
    }
}
