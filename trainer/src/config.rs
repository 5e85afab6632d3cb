//! The whole experiment as structs: what a TOML file says, what the defaults are, what was published.
//!
//! A run's configuration is read from TOML, changed by `key=value` overrides, resolved (every size filled
//! in) and written to the run folder as `config.toml`, which is the record of what really ran.

mod differences;
mod paper;

pub(crate) use differences::flat;
pub use differences::{Differences, differences};
pub use paper::Paper;

use std::io::Read;
use std::path::{Path, PathBuf};

use pipeline::config::{DataConfig, ViewsKind};
use serde::{Deserialize, Serialize};

use crate::device;
use crate::error::{Error, Result};
use crate::eval::during::EvalConfig;
use crate::models::{ModelConfig, ModelKind};
use crate::ops::Precision;
use crate::optim::schedule::{LrOrder, Schedule, scaled_lr, warmup_epochs};

/// Most that a count of a configuration may be, so that no product of two of them overflows.
pub(crate) const MAX_COUNT: u64 = 1 << 31;

/// One experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the run, for people.
    pub name: String,
    /// Seed of everything random: order, views, masks, dropout, initial weights. Paper: 42.
    pub seed: u64,
    /// `"cpu"`, `"cuda"`, `"cuda:N"`, or `"auto"`: a GPU if there is one that this program can use.
    pub device: String,
    /// What the factors of matrix products and attention are rounded to: `"f32"` (not at all), `"bf16"` for mixed
    /// precision, or `"tf32"` (products of f32 on a GPU; as `"f32"` on a CPU). Weights, sums, statistics of normalisation,
    /// the loss and the optimizer are f32 in all, activations in all but `"bf16"` on a GPU, and as a bf16 has the range of
    /// an f32, nothing has to be scaled. Papers: mixed precision with 16-bit floats.
    pub precision: Precision,
    /// The published run that this one follows; where it departs from it, a warning says so at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paper: Option<Paper>,
    /// Folder of a checkpoint, or of a run for its newest, whose weights this run starts from: one of ours, or one made
    /// by `pairquet import`. The optimizer and the schedule start anew. Initial values drawn from `seed` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// What it trains on.
    pub data: DataConfig,
    /// What is trained.
    pub model: ModelConfig,
    /// How it is trained.
    pub optim: OptimConfig,
    /// What is written down on the way, and when.
    pub run: RunConfig,
    /// What is evaluated on the way, and when.
    #[serde(skip_serializing_if = "EvalConfig::is_default")]
    pub eval: EvalConfig,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            name: "run".to_string(),
            seed: 42,
            device: "auto".to_string(),
            precision: Precision::F32,
            paper: None,
            init: None,
            data: DataConfig::default(),
            model: ModelConfig::default(),
            optim: OptimConfig::default(),
            run: RunConfig::default(),
            eval: EvalConfig::default(),
        }
    }
}

/// The `[optim]` table: AdamW, the learning rate and the length of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Learning rate for 256 pairs; the rate used is `base_lr * effective batch / 256`. CropMAE's scripts: 1e-4 (its
    /// parser's default is 5e-5); SiamMAE: 1.5e-4.
    pub base_lr: f64,
    /// Peak learning rate as it is, in place of `base_lr`'s rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Decoupled weight decay of everything but biases and one-dimensional parameters. Papers: 0.05.
    pub weight_decay: f64,
    /// Decay of AdamW's two running means. Papers: 0.9 and 0.95.
    pub betas: [f64; 2],
    /// Length of the run and of the schedule in passes over the data. CropMAE: 400; SiamMAE: 2000.
    pub epochs: u64,
    /// Length in optimizer steps, in place of `epochs`; the schedule spans it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Share of the run that warms up linearly; with `epochs`, truncated to whole epochs as the reference does.
    /// CropMAE: 0.05; SiamMAE: 0.02 (40 of 2000 epochs).
    pub warmup_ratio: f64,
    /// The rate at the end as a share of the peak. Papers: 0.
    pub min_lr_ratio: f64,
    /// Micro-batches of `data.batch_size` whose gradients are averaged for one optimizer step. Papers: 1.
    pub accum_steps: u64,
    /// Gradients longer than this are scaled down to it; not clipped if left out, as in the papers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Share that the running mean of the weights keeps at each step; the mean is saved beside the weights. None is
    /// kept if left out, as in the papers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Whether the schedule is applied before the step (`"standard"`) or after it, as CropMAE's code does
    /// (`"reference"`: first step at the peak, every later one a step behind).
    pub lr_order: LrOrder,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            base_lr: 1e-4,
            lr: None,
            weight_decay: 0.05,
            betas: [0.9, 0.95],
            epochs: 400,
            max_steps: None,
            warmup_ratio: 0.05,
            min_lr_ratio: 0.0,
            accum_steps: 1,
            clip_norm: None,
            ema_decay: None,
            lr_order: LrOrder::Standard,
        }
    }
}

/// The `[run]` table: when to log, save and draw. Steps are optimizer steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Steps between lines of `metrics.jsonl`.
    pub log_every: u64,
    /// Steps between checkpoints; by epochs alone if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Epochs between checkpoints; 0 for none. Reference: 25 in its scripts.
    pub checkpoint_every_epochs: u64,
    /// Newest checkpoints kept.
    pub keep_last: usize,
    /// Checkpoints at multiples of this many steps are kept for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    /// And those at multiples of this many epochs; 0 for none. The reference keeps all of them.
    pub keep_every_epochs: u64,
    /// Steps between pictures of reconstructions; 0 for none. A model without a decoder has none to show.
    pub pictures_every: u64,
    /// Samples in a picture.
    pub pictures_samples: usize,
    /// Stop, with a checkpoint, after this many steps, without changing the schedule: a run in portions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<u64>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            log_every: 10,
            checkpoint_every: None,
            checkpoint_every_epochs: 25,
            keep_last: 2,
            keep_every: None,
            keep_every_epochs: 100,
            pictures_every: 1000,
            pictures_samples: 6,
            stop_after: None,
        }
    }
}

impl TrainConfig {
    /// Reads a configuration from TOML.
    ///
    /// # Errors
    /// [`Error::ConfigSyntax`] with the place in the text, for broken TOML, unknown keys and wrong types.
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::ConfigSyntax(place_of(text, &error)))
    }

    /// Reads a configuration from TOML, then sets each `dotted.key=value`.
    ///
    /// A value is read as TOML (`5e-5`, `true`, `[0.5, 1.0]`, `"text"`); what is not TOML is taken as text, so
    /// `device=cpu` needs no quotes.
    ///
    /// # Errors
    /// [`Error::ConfigSyntax`] naming the override or the place in the text.
    pub fn from_toml_with_overrides(text: &str, overrides: &[impl AsRef<str>]) -> Result<Self> {
        if overrides.is_empty() {
            return Self::from_toml(text);
        }
        Self::from_table(parse(text)?, overrides)
    }

    /// Reads a configuration file, then sets each `dotted.key=value` as [`Self::from_toml_with_overrides`] does.
    ///
    /// `extends = "other.toml"` at the top of a file, relative to its folder, takes every value that the file leaves
    /// out from another one: an ablation says only what it changes.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; [`Error::ConfigSyntax`] naming the file and the place in it, or files that
    /// extend one another without end.
    pub fn read(path: &Path, overrides: &[impl AsRef<str>]) -> Result<Self> {
        let table = extended(read_table(path)?, path, 0)?;
        Self::from_table(table, overrides).map_err(|error| in_file(path, error))
    }

    pub(crate) fn from_table(
        mut table: toml::Table,
        overrides: &[impl AsRef<str>],
    ) -> Result<Self> {
        for text in overrides {
            set(&mut table, text.as_ref())?;
        }
        let key = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
        let written: Vec<_> = overrides.iter().map(|text| key(text.as_ref())).collect();
        table.try_into().map_err(|error: toml::de::Error| {
            let message = error.to_string();
            let with = if written.is_empty() {
                String::new()
            } else {
                format!(" (with {})", written.join(", "))
            };
            Error::ConfigSyntax(format!("{}{with}", message.trim_end()))
        })
    }

    /// The same experiment with every size of the model and the data's order written out, checked; idempotent.
    ///
    /// # Errors
    /// As [`TrainConfig::validate`].
    pub fn resolved(&self) -> Result<Self> {
        let model = self.model.resolved(self.data.size as usize)?;
        let mut resolved = Self {
            model,
            ..self.clone()
        };
        resolved.data.order = Some(self.data.order_in_force());
        resolved.validate()?;
        Ok(resolved)
    }

    /// Checks every value and the combinations of them; opens nothing.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Device`] or the pipeline's error, each naming the value and what was expected.
    pub fn validate(&self) -> Result<()> {
        device::check_name(&self.device)?;
        self.data.validate()?;
        let batch_size = self.data.batch_size as u64;
        expect(batch_size <= MAX_COUNT, || {
            format!("data.batch_size is {batch_size}, expected at most {MAX_COUNT}")
        })?;
        self.model.resolved(self.data.size as usize)?;
        self.optim.validate()?;
        self.run.validate()?;
        self.eval.validate()?;
        let (kind, views) = (self.model.kind, self.data.views);
        let (fits, expected) = match kind {
            ModelKind::Siamese => (
                matches!(views, ViewsKind::CropPair | ViewsKind::FramePair),
                "\"crop_pair\" or \"frame_pair\"",
            ),
            ModelKind::Mae => (matches!(views, ViewsKind::Single), "\"single\""),
            ModelKind::MultiView => (matches!(views, ViewsKind::MultiView), "\"multi_view\""),
        };
        expect(fits, || {
            format!("data.views is {views:?}, expected {expected} for model.kind {kind:?}")
        })
    }

    /// The text of `config.toml`.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::ConfigSyntax(error.to_string()))
    }

    /// Pairs per optimizer step, over all ranks and accumulated micro-batches.
    pub fn effective_batch(&self) -> u64 {
        (self.data.batch_size as u64).saturating_mul(self.optim.accum_steps)
    }

    /// Where this run departs from the published one that it names, one sentence each.
    pub fn departures(&self) -> Vec<String> {
        self.paper
            .map(|paper| paper.departures(self))
            .unwrap_or_default()
    }
}

impl OptimConfig {
    fn validate(&self) -> Result<()> {
        for (name, value) in [
            ("base_lr", Some(self.base_lr)),
            ("lr", self.lr),
            ("clip_norm", self.clip_norm),
        ] {
            let positive = value.is_none_or(|value| value > 0.0 && value.is_finite());
            expect(positive, || {
                format!(
                    "optim.{name} is {}, expected more than 0",
                    value.unwrap_or_default()
                )
            })?;
        }
        let decay = self.weight_decay;
        expect(decay >= 0.0 && decay.is_finite(), || {
            format!("optim.weight_decay is {decay}, expected at least 0")
        })?;
        for beta in self.betas {
            expect((0.0..1.0).contains(&beta), || {
                format!("optim.betas has {beta}, expected 0 <= beta < 1")
            })?;
        }
        if let Some(decay) = self.ema_decay {
            expect((0.0..1.0).contains(&decay), || {
                format!("optim.ema_decay is {decay}, expected 0 <= ema_decay < 1")
            })?;
        }
        for (name, ratio) in [
            ("warmup_ratio", self.warmup_ratio),
            ("min_lr_ratio", self.min_lr_ratio),
        ] {
            expect((0.0..=1.0).contains(&ratio), || {
                format!("optim.{name} is {ratio}, expected 0 to 1")
            })?;
        }
        expect(self.warmup_ratio < 1.0, || {
            "optim.warmup_ratio is 1, expected less: nothing follows it".to_string()
        })?;
        for (name, count) in [
            ("epochs", Some(self.epochs)),
            ("max_steps", self.max_steps),
            ("accum_steps", Some(self.accum_steps)),
        ] {
            expect(count != Some(0), || {
                format!("optim.{name} is 0, expected at least 1")
            })?;
            let count = count.unwrap_or_default();
            expect(count <= MAX_COUNT, || {
                format!("optim.{name} is {count}, expected at most {MAX_COUNT}")
            })?;
        }
        Ok(())
    }

    /// Optimizer steps of the whole run.
    ///
    /// # Errors
    /// [`Error::Config`] if the data does not fill a single step, or the run has more micro-batches than can be counted.
    pub fn total_steps(&self, batches_per_epoch: u64) -> Result<u64> {
        if let Some(steps) = self.max_steps {
            return Ok(steps);
        }
        let batches = self.epochs.checked_mul(batches_per_epoch);
        let Some(batches) = batches else {
            let limit = u64::MAX / batches_per_epoch.max(1);
            return Err(Error::Config(format!(
                "optim.epochs is {}, expected at most {limit} with {batches_per_epoch} micro-batches in an epoch",
                self.epochs
            )));
        };
        let steps = batches / self.accum_steps;
        expect(steps > 0, || {
            format!(
                "optim.accum_steps is {}, expected at most the {batches} micro-batches of the run",
                self.accum_steps
            )
        })?;
        Ok(steps)
    }

    /// The learning rate's course for this many pairs per step and micro-batches per epoch.
    pub fn schedule(&self, effective_batch: u64, batches_per_epoch: u64) -> Schedule {
        let lr = self
            .lr
            .unwrap_or_else(|| scaled_lr(self.base_lr, effective_batch));
        let (epochs, warmup_epochs) = match self.max_steps {
            Some(steps) => {
                let epochs =
                    steps.saturating_mul(self.accum_steps) as f64 / batches_per_epoch as f64;
                (epochs, epochs * self.warmup_ratio)
            }
            None => (
                self.epochs as f64,
                warmup_epochs(self.warmup_ratio, self.epochs) as f64,
            ),
        };
        Schedule {
            lr,
            min_lr: lr * self.min_lr_ratio,
            warmup_epochs,
            epochs,
        }
    }
}

impl RunConfig {
    fn validate(&self) -> Result<()> {
        for (name, count) in [
            ("log_every", Some(self.log_every)),
            ("checkpoint_every", self.checkpoint_every),
            ("keep_last", Some(self.keep_last as u64)),
            ("keep_every", self.keep_every),
            ("pictures_samples", Some(self.pictures_samples as u64)),
            ("stop_after", self.stop_after),
        ] {
            expect(count != Some(0), || {
                format!("run.{name} is 0, expected at least 1")
            })?;
        }
        Ok(())
    }

    /// Whether a line of metrics is due after `steps` steps of `total`: the first, the last and each multiple.
    pub fn log_due(&self, steps: u64, total: u64) -> bool {
        steps == 1 || steps == total || steps.is_multiple_of(self.log_every)
    }

    /// Whether pictures are due after `steps` steps of `total`: the last and each multiple.
    pub fn pictures_due(&self, steps: u64, total: u64) -> bool {
        self.pictures_every > 0 && (steps == total || steps.is_multiple_of(self.pictures_every))
    }

    /// Whether a checkpoint is due after `steps` steps: each multiple, and the first step that ends in or
    /// beyond an epoch that is a multiple.
    pub fn checkpoint_due(&self, steps: u64, accum_steps: u64, batches_per_epoch: u64) -> bool {
        let by_step = self
            .checkpoint_every
            .is_some_and(|every| steps.is_multiple_of(every));
        let every = self.checkpoint_every_epochs;
        by_step || reaches_epoch(every, steps, accum_steps, batches_per_epoch)
    }

    /// Whether the checkpoint after `steps` steps is kept for ever.
    pub fn is_milestone(&self, steps: u64, accum_steps: u64, batches_per_epoch: u64) -> bool {
        let by_step = self
            .keep_every
            .is_some_and(|every| steps.is_multiple_of(every));
        let every = self.keep_every_epochs;
        by_step || reaches_epoch(every, steps, accum_steps, batches_per_epoch)
    }
}

/// Whether the last of `steps` steps is the first that reaches a multiple of `every` epochs; never if that is 0.
fn reaches_epoch(every: u64, steps: u64, accum_steps: u64, batches_per_epoch: u64) -> bool {
    let portions =
        |steps: u64| (steps.saturating_mul(accum_steps) / batches_per_epoch).checked_div(every);
    portions(steps) != portions(steps.saturating_sub(1))
}

pub(crate) fn expect(holds: bool, message: impl FnOnce() -> String) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::Config(message()))
    }
}

/// Files that may stand behind one another through `extends`.
const MAX_EXTENDS: usize = 8;

/// Most bytes of a configuration file. The longest here have some thousand; a device would never end.
const MAX_FILE_BYTES: u64 = 1 << 20;

pub(crate) fn parse(text: &str) -> Result<toml::Table> {
    toml::from_str(text).map_err(|error| Error::ConfigSyntax(place_of(text, &error)))
}

/// What is wrong, and in which line; the line itself is not shown, because it may hold what nobody should see.
fn place_of(text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let before = error.span().and_then(|span| text.get(..span.start));
    before.map_or_else(
        || message.to_owned(),
        |before| format!("line {}: {message}", before.split('\n').count()),
    )
}

pub(crate) fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::ConfigSyntax(problem) => {
            Error::ConfigSyntax(format!("{}: {problem}", path.display()))
        }
        other => other,
    }
}

/// What a file says, unchecked.
pub(crate) fn read_table(path: &Path) -> Result<toml::Table> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
        .map_err(Error::io(path))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let problem = format!("more than {MAX_FILE_BYTES} bytes, expected a configuration");
        return Err(in_file(path, Error::ConfigSyntax(problem)));
    }
    parse(&text).map_err(|error| in_file(path, error))
}

/// A table of the file `path` on top of those of the files that it extends.
pub(crate) fn extended(mut table: toml::Table, path: &Path, depth: usize) -> Result<toml::Table> {
    let problem = match table.remove("extends") {
        None => return Ok(table),
        Some(toml::Value::String(_)) if depth == MAX_EXTENDS => {
            format!("extends more than {MAX_EXTENDS} files, expected an end")
        }
        Some(toml::Value::String(base)) => {
            let path = path.with_file_name(base);
            let mut base = extended(read_table(&path)?, &path, depth + 1)?;
            lay_over(&mut base, table);
            return Ok(base);
        }
        Some(other) => format!("extends is {other}, expected the name of a file"),
    };
    Err(in_file(path, Error::ConfigSyntax(problem)))
}

/// Replaces values of `base` by those of `over`, table by table.
pub(crate) fn lay_over(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(over)) => lay_over(inner, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Sets one `dotted.key=value` in a table.
pub(crate) fn set(table: &mut toml::Table, text: &str) -> Result<()> {
    let key = text.split('=').next().unwrap_or_default();
    let wrong = |problem: &str| Error::ConfigSyntax(format!("override {key:?} {problem}"));
    let (_, value) = text
        .split_once('=')
        .ok_or_else(|| wrong("has no '=', expected key=value"))?;
    let value = value.trim();
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
    let alone = parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"));
    let value = alone.unwrap_or_else(|| toml::Value::String(value.to_string()));
    let mut path: Vec<_> = key.trim().split('.').map(str::trim).collect();
    if path.iter().any(|part| part.is_empty()) {
        return Err(wrong(
            "has an empty part in its key, expected for example optim.base_lr=5e-5",
        ));
    }
    let last = path.pop().unwrap_or_default();
    let mut table = table;
    for part in path {
        let inner = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = inner
            .as_table_mut()
            .ok_or_else(|| wrong(&format!("goes through {part}, which is not a table")))?;
    }
    table.insert(last.to_string(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_say_only_what_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        write(
            "base.toml",
            "name = \"base\"\n[model]\ndepth = 3\nmask_ratio = 0.5\n",
        );
        let over = write("over.toml", "extends = \"base.toml\"\n[model]\ndepth = 5\n");
        let config = TrainConfig::read(&over, &["seed=7"]).unwrap();
        assert_eq!((config.name.as_str(), config.seed), ("base", 7));
        assert_eq!(
            (config.model.depth, config.model.mask_ratio),
            (Some(5), Some(0.5))
        );

        let circle = write("circle.toml", "extends = \"circle.toml\"\n");
        for (path, named) in [
            (circle, "extends more than 8 files"),
            (write("number.toml", "extends = 3\n"), "extends is 3"),
            (
                write("device.toml", "extends = \"/dev/zero\"\n"),
                "/dev/zero: more than 1048576 bytes",
            ),
            (
                write("gone.toml", "extends = \"nowhere.toml\"\n"),
                "nowhere.toml",
            ),
            (
                write("typo.toml", "extends = \"base.toml\"\nsed = 1\n"),
                "typo.toml",
            ),
        ] {
            let message = TrainConfig::read(&path, &[""; 0]).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    fn valid() -> TrainConfig {
        let mut config = TrainConfig::default();
        config.data.path = "shards".to_string();
        config
    }

    #[test]
    fn defaults_are_the_published_scripts() {
        let config = valid();
        config.validate().unwrap();
        assert_eq!(
            (config.seed, config.optim.base_lr, config.optim.epochs),
            (42, 1e-4, 400)
        );
        assert!(config.model.norm_pix_loss);
        let schedule = config.optim.schedule(2048, 100);
        assert_eq!(
            (schedule.lr, schedule.warmup_epochs, schedule.epochs),
            (8e-4, 20.0, 400.0)
        );
    }

    #[test]
    fn resolved_survives_its_own_file() {
        let config = valid().resolved().unwrap();
        assert_eq!(config.model.mask_ratio, Some(0.985));
        let again = TrainConfig::from_toml(&config.to_toml().unwrap()).unwrap();
        assert_eq!(again, config);
        assert_eq!(again.resolved().unwrap(), config);
    }

    #[test]
    fn overrides_read_toml_and_fall_back_to_text() {
        let text = "name = \"a\"\n[optim]\nbase_lr = 1e-4\n";
        let overrides = [
            "optim.base_lr=5e-5",
            "device=cpu",
            "data.path = s3://bucket/set",
            "data.global_area=[0.5, 1.0]",
            "optim.betas = [0.9, 0.999]",
            "data.max_bad=1%",
            "run.checkpoint_every=7",
            "model.kind=mae",
            "data.size=96",
        ];
        let config = TrainConfig::from_toml_with_overrides(text, &overrides).unwrap();
        assert_eq!(
            (
                config.optim.base_lr,
                config.name.as_str(),
                config.device.as_str()
            ),
            (5e-5, "a", "cpu")
        );
        assert_eq!(
            (config.data.path.as_str(), config.data.global_area),
            ("s3://bucket/set", [0.5, 1.0])
        );
        assert_eq!(
            (config.run.checkpoint_every, config.model.kind),
            (Some(7), ModelKind::Mae)
        );
    }

    #[test]
    fn wrong_files_and_overrides_are_named() {
        let message = |text: &str, overrides: &[&str]| {
            TrainConfig::from_toml_with_overrides(text, overrides)
                .unwrap_err()
                .to_string()
        };
        let unknown = message("[optim]\nbase_rl = 1e-4\n", &[]);
        assert!(
            unknown.contains("base_rl") && unknown.contains("line 2"),
            "{unknown}"
        );
        assert!(message("", &["optim.base_rl=1"]).contains("base_rl"));
        assert!(message("", &["optim.base_lr"]).contains("key=value"));
        assert!(message("", &["name.first=1"]).ends_with("(with name.first)"));
        assert!(message("name = \"x\"", &["name.first=1"]).contains("not a table"));
        assert!(message("", &["optim..lr=1"]).contains("empty part"));
        assert!(message("", &["optim.base_lr=fast"]).contains("base_lr"));
    }

    #[test]
    fn impossible_values_are_named_with_what_was_expected() {
        type Spoiled = (&'static str, fn(&mut TrainConfig));
        let cases: [Spoiled; 12] = [
            ("optim.base_lr", |c| c.optim.base_lr = 0.0),
            ("optim.lr", |c| c.optim.lr = Some(f64::NAN)),
            ("optim.clip_norm", |c| c.optim.clip_norm = Some(-1.0)),
            ("optim.betas", |c| c.optim.betas = [0.9, 1.0]),
            ("optim.warmup_ratio", |c| c.optim.warmup_ratio = 1.0),
            ("optim.epochs", |c| c.optim.epochs = 0),
            ("optim.accum_steps", |c| c.optim.accum_steps = 0),
            ("run.log_every", |c| c.run.log_every = 0),
            ("run.keep_last", |c| c.run.keep_last = 0),
            ("data.views", |c| c.data.views = ViewsKind::Single),
            ("device", |c| c.device = "gpu".to_string()),
            ("model.img_size", |c| c.model.img_size = Some(96)),
        ];
        for (name, spoil) in cases {
            let mut config = valid();
            spoil(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(
                message.contains(name) && message.contains("expected"),
                "{name}: {message}"
            );
        }
    }

    #[test]
    fn the_length_is_counted_in_steps() {
        let mut optim = OptimConfig {
            epochs: 3,
            accum_steps: 2,
            ..OptimConfig::default()
        };
        assert_eq!(optim.total_steps(5).unwrap(), 7);
        assert!(
            OptimConfig {
                epochs: 1,
                accum_steps: 9,
                ..optim.clone()
            }
            .total_steps(5)
            .is_err()
        );
        optim.max_steps = Some(300);
        assert_eq!(optim.total_steps(5).unwrap(), 300);
        let schedule = optim.schedule(256, 5);
        assert_eq!((schedule.epochs, schedule.warmup_epochs), (120.0, 6.0));
    }

    #[test]
    fn checkpoints_fall_due_by_steps_and_by_epochs() {
        let run = RunConfig {
            checkpoint_every: Some(4),
            checkpoint_every_epochs: 2,
            ..RunConfig::default()
        };
        let due: Vec<_> = (1..=12)
            .filter(|&steps| run.checkpoint_due(steps, 1, 3))
            .collect();
        assert_eq!(due, [4, 6, 8, 12]);
        let run = RunConfig {
            checkpoint_every_epochs: 1,
            ..RunConfig::default()
        };
        let due: Vec<_> = (1..=6)
            .filter(|&steps| run.checkpoint_due(steps, 2, 3))
            .collect();
        assert_eq!(due, [2, 3, 5, 6]);
        let run = RunConfig {
            keep_every: Some(5),
            keep_every_epochs: 2,
            ..run
        };
        let kept: Vec<_> = (1..=6)
            .filter(|&steps| run.is_milestone(steps, 2, 3))
            .collect();
        assert_eq!(kept, [3, 5, 6]);
        let never = RunConfig {
            checkpoint_every_epochs: 0,
            ..RunConfig::default()
        };
        assert!(!(1..=100).any(|steps| never.checkpoint_due(steps, 1, 3)));
    }

    #[test]
    fn counts_that_would_overflow_are_refused_by_name_and_limit() {
        let limit = MAX_COUNT + 1;
        type Set = fn(&mut TrainConfig, u64);
        let cases: [(&str, Set); 4] = [
            ("optim.epochs", |c, n| c.optim.epochs = n),
            ("optim.max_steps", |c, n| c.optim.max_steps = Some(n)),
            ("optim.accum_steps", |c, n| c.optim.accum_steps = n),
            ("data.batch_size", |c, n| c.data.batch_size = n as usize),
        ];
        for (name, set) in cases {
            let mut config = TrainConfig::default();
            config.data.path = "set".to_string();
            set(&mut config, limit);
            config.effective_batch();
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
            assert!(message.contains(&limit.to_string()), "{message}");
        }
        let optim = OptimConfig {
            epochs: MAX_COUNT,
            ..OptimConfig::default()
        };
        let message = optim.total_steps(1 << 40).unwrap_err().to_string();
        assert!(
            message.contains("optim.epochs is 2147483648, expected at most 16777215"),
            "{message}"
        );
    }
}
