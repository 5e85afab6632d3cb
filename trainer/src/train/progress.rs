//! What a run tells.

use std::path::{Path, PathBuf};

use pipeline::config::ViewsKind;
use pipeline::loader::LoaderStats;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files;

/// What happens in a run, as it happens.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A line for a person: what is trained, where it goes on from.
    Note(&'a str),
    /// A line that a person should not miss: a damaged checkpoint, a departure from the paper named.
    Warning(&'a str),
    /// A step was made.
    Step(&'a StepReport),
    /// A checkpoint was written to this folder.
    Saved(&'a Path),
}

/// How a run stands after a step; rates are of the whole session, so that a progress bar is steady.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps made, this one included.
    pub step: u64,
    /// Steps after which this session ends.
    pub last_step: u64,
    /// Epochs seen, in fractions.
    pub epoch: f64,
    /// Loss of the step.
    pub loss: f32,
    /// Learning rate in force during the step.
    pub lr: f64,
    /// l2 norm over all gradients, before any clipping.
    pub grad_norm: f64,
    /// Pairs trained on per second, checkpoints and pictures not counted.
    pub pairs_per_s: f64,
    /// Share of that time spent waiting for data, in percent.
    pub data_wait_pct: f64,
    /// What held the others up when a line was last logged: a stage of the loader, or its consumer, the training.
    pub bottleneck: Option<&'static str>,
    /// Seconds to the end of this session.
    pub eta_s: f64,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Optimizer steps made, over all sessions.
    pub steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Whether it ended before them.
    pub stopped: bool,
    /// Epochs seen, in fractions.
    pub epochs: f64,
    /// Mean loss of the run's first 10 steps.
    pub first_loss: Option<f32>,
    /// Mean loss of its last 10 steps.
    pub last_loss: Option<f32>,
    /// Pairs per second in this session, checkpoints and pictures not counted.
    pub pairs_per_s: f64,
    /// Share of that time spent waiting for data, in percent.
    pub data_wait_pct: f64,
    /// What a pair took of the data path in this session; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataCost>,
    /// Most memory held at one time, in bytes: by tensors on a GPU, by the process on a CPU. Absent where that is not known.
    pub peak_memory_bytes: Option<u64>,
    /// Samples that were replaced in this session, each with its reason.
    pub bad_samples: Vec<String>,
    /// Where everything is.
    pub run_dir: PathBuf,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
}

/// What the data path did for a pair, on average.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DataCost {
    /// Pictures decoded.
    pub pictures_per_pair: f64,
    /// Encoded bytes read.
    pub bytes_per_pair: f64,
    /// Milliseconds of one core for decoding.
    pub decode_ms_per_pair: f64,
    /// Milliseconds of one core for cutting and resizing views.
    pub views_ms_per_pair: f64,
}

impl DataCost {
    /// `None` if no pair was handed out. A frame pair takes two pictures, everything else one.
    pub(super) fn of(stats: &LoaderStats, views: ViewsKind) -> Option<DataCost> {
        let pictures_per_pair = match views {
            ViewsKind::FramePair => 2.0,
            _ => 1.0,
        };
        // Pairs that were made and not handed out any more have cost too, so they are counted where they were made.
        let made = stats.stages.get(1)?.items;
        let per_pair = |amount: f64| amount / made as f64;
        (made > 0).then(|| DataCost {
            pictures_per_pair,
            bytes_per_pair: per_pair(stats.bytes_read as f64),
            decode_ms_per_pair: per_pair(stats.decode_s * 1e3),
            views_ms_per_pair: per_pair(stats.views_s * 1e3),
        })
    }
}

impl Summary {
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|source| Error::Json {
            path: path.into(),
            source,
        })?;
        files::replace(path, (text + "\n").as_bytes())
    }
}
