//! What is compared: a list of methods that share everything but what they say themselves.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Table;

use super::cost::forward_cost;
use super::published::Published;
use crate::config::{TrainConfig, expect, extended, in_file, lay_over, parse, read_table, set};
use crate::error::{Error, Result};

/// A comparison, as a file in `configs/compare` says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareConfig {
    /// Names the folder of the runs.
    pub name: String,
    /// What the comparison asks: the head of its report.
    pub question: String,
    /// Each method is trained once with each of them. Two or more give an interval.
    pub seeds: Vec<u64>,
    /// Evaluations of each run, spread evenly over its steps; the last one is at its end.
    #[serde(default = "one")]
    pub evaluations: u64,
    /// How long each run is.
    pub budget: Budget,
    /// Which of the papers' ablations this one repeats: its figures stand beside ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ablation: Option<String>,
    /// Made data that is written before the first run, where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
    /// What all runs share: a training configuration, which may begin with `extends`.
    #[serde(default)]
    pub train: Table,
    /// What is compared.
    #[serde(rename = "method")]
    pub methods: Vec<Method>,
}

/// One of the things compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// As the report writes it.
    pub name: String,
    /// Whether it is evaluated as it is drawn, without a single step: what architecture and benchmark give for nothing.
    #[serde(default)]
    pub untrained: bool,
    /// The row of published figures that stands beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    /// Its place in the ablation, as the published table writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<String>,
    /// What it changes of the shared configuration.
    #[serde(default)]
    pub train: Table,
}

/// How long a run is: one of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Budget {
    /// Passes over the data: the papers' measure.
    Epochs(u64),
    /// Optimizer steps.
    Steps(u64),
    /// Samples trained on.
    Pairs(u64),
    /// Multiply-adds of all forward passes, in units of 10^15.
    Petamacs(f64),
    /// Hours of training on the machine at hand; the steps that fit are measured before the run and kept with it.
    Hours(f64),
}

/// Folders of made data: pictures, clips and, with another seed, sequences with masks that nothing is trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Synthetic {
    /// Where: `raw` (`images`, `clips`, and `sequences` as DAVIS) and `shards` (`images`, `clips`) are made in it. Paths of
    /// the runs name them as `made:shards/images`.
    pub dir: PathBuf,
    /// What the training data is made of.
    #[serde(default)]
    pub train: pipeline::synth::SynthOptions,
    /// What the sequences are made of.
    #[serde(default)]
    pub sequences: pipeline::synth::SynthOptions,
}

/// One run of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSpec {
    /// Its place in the list, which `--run` counts by.
    pub index: usize,
    /// Which of the methods.
    pub method: usize,
    /// `METHOD/seed-N`, below the comparison's folder.
    pub dir: PathBuf,
    /// What is trained, resolved; the budget is in it, hours excepted.
    pub config: TrainConfig,
}

fn one() -> u64 {
    1
}

impl CompareConfig {
    /// Reads a comparison, then sets each `dotted.key=value`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ConfigSyntax`] and [`Error::Config`], naming the file, and the value with what was expected.
    pub fn read(path: &Path, overrides: &[impl AsRef<str>]) -> Result<CompareConfig> {
        Self::from_table(read_table(path)?, path, overrides)
    }

    /// [`Self::read`] from a file's text, which extends no other.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub fn from_toml(text: &str, overrides: &[impl AsRef<str>]) -> Result<CompareConfig> {
        Self::from_table(parse(text)?, Path::new("."), overrides)
    }

    fn from_table(
        mut table: Table,
        path: &Path,
        overrides: &[impl AsRef<str>],
    ) -> Result<CompareConfig> {
        for text in overrides {
            set(&mut table, text.as_ref())?;
        }
        let mut config: CompareConfig = table.try_into().map_err(|error: toml::de::Error| {
            in_file(path, Error::ConfigSyntax(error.to_string()))
        })?;
        // What is written down stands for itself: no file that it extends is needed to read it again.
        for train in std::iter::once(&mut config.train)
            .chain(config.methods.iter_mut().map(|method| &mut method.train))
        {
            if train.contains_key("extends") {
                *train = extended(std::mem::take(train), path, 0)?;
            }
            for (_, value) in train.iter_mut() {
                find_made(value, config.synthetic.as_ref())?;
            }
        }
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        expect(!self.methods.is_empty(), || {
            "method: none is given, expected at least one [[method]]".to_string()
        })?;
        expect(!self.seeds.is_empty(), || {
            "seeds is [], expected at least one seed".to_string()
        })?;
        expect(slug(&self.name) == self.name, || {
            format!(
                "name is {:?}, expected small letters, digits and '_': it names a folder",
                self.name
            )
        })?;
        expect(self.evaluations > 0, || {
            "evaluations is 0, expected at least 1".to_string()
        })?;
        self.budget.validate()?;
        let published = Published::load()?;
        if let Some(id) = &self.ablation {
            let points = &published.ablation(id)?.points;
            for point in self
                .methods
                .iter()
                .filter_map(|method| method.point.as_ref())
            {
                expect(points.contains_key(point), || {
                    let known: Vec<_> = points.keys().map(String::as_str).collect();
                    format!("point is {point:?}, expected one of {}", known.join(", "))
                })?;
            }
        }
        let mut seen = Vec::new();
        for method in &self.methods {
            let folder = slug(&method.name);
            expect(!folder.is_empty() && !seen.contains(&folder), || {
                format!(
                    "method name {:?} gives the folder {folder:?}, expected one that no other method has",
                    method.name
                )
            })?;
            seen.push(folder);
            if let Some(id) = &method.published {
                published.row(id)?;
            }
        }
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        seeds.dedup();
        expect(seeds.len() == self.seeds.len(), || {
            format!("seeds is {:?}, expected each seed once", self.seeds)
        })
    }

    /// All runs, seed by seed, so that a comparison cut short has every method with the first seeds.
    ///
    /// # Errors
    /// Whatever is wrong with a method's configuration, with its name.
    pub fn runs(&self) -> Result<Vec<RunSpec>> {
        let mut runs = Vec::new();
        for &seed in &self.seeds {
            for (index, method) in self.methods.iter().enumerate() {
                let config = self
                    .train_config(method, seed)
                    .map_err(|error| Error::Config(format!("method {:?}: {error}", method.name)))?;
                runs.push(RunSpec {
                    index: runs.len(),
                    method: index,
                    dir: PathBuf::from(slug(&method.name)).join(format!("seed-{seed}")),
                    config,
                });
            }
        }
        Ok(runs)
    }

    fn train_config(&self, method: &Method, seed: u64) -> Result<TrainConfig> {
        let mut table = self.train.clone();
        lay_over(&mut table, method.train.clone());
        let mut config = TrainConfig::from_table(table, &[] as &[&str])?;
        config.name = format!("{} / {} / seed {seed}", self.name, method.name);
        config.seed = seed;
        config.eval.times = Some(self.evaluations);
        self.budget.apply(&mut config)?;
        config.resolved()
    }
}

impl Budget {
    fn validate(self) -> Result<()> {
        let amount = match self {
            Budget::Epochs(n) | Budget::Steps(n) | Budget::Pairs(n) => n as f64,
            Budget::Petamacs(x) | Budget::Hours(x) => x,
        };
        expect(amount > 0.0 && amount.is_finite(), || {
            format!("budget is {amount}, expected more than 0")
        })
    }

    /// Sets the length of a run; hours leave it to [`Budget::steps_in_time`].
    fn apply(self, config: &mut TrainConfig) -> Result<()> {
        // Batches of 0 are refused where the run's configuration is checked, after this.
        let batch = config.effective_batch().max(1);
        let optim = &mut config.optim;
        optim.max_steps = match self {
            Budget::Epochs(epochs) => {
                optim.epochs = epochs;
                None
            }
            Budget::Steps(steps) => Some(steps),
            Budget::Pairs(pairs) => Some(pairs.div_ceil(batch)),
            Budget::Petamacs(petamacs) => {
                let model = config.model.resolved(config.data.size as usize)?;
                let per_step = forward_cost(&model)?.gmacs * batch as f64;
                Some(((petamacs * 1e6 / per_step).round() as u64).max(1))
            }
            Budget::Hours(_) => optim.max_steps,
        };
        Ok(())
    }

    /// The steps that fit the hours at this speed; `None` for every other budget.
    pub fn steps_in_time(self, pairs_per_s: f64, effective_batch: u64) -> Option<u64> {
        let Budget::Hours(hours) = self else {
            return None;
        };
        Some(((hours * 3600.0 * pairs_per_s / effective_batch as f64) as u64).max(1))
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Budget::Epochs(n) => write!(f, "{n} epochs"),
            Budget::Steps(n) => write!(f, "{n} steps"),
            Budget::Pairs(n) => write!(f, "{n} pairs"),
            Budget::Petamacs(x) => write!(f, "{x}e15 multiply-adds forward"),
            Budget::Hours(x) => write!(f, "{x} hours"),
        }
    }
}

/// What the paths of a comparison's made data begin with, in place of their folder.
const MADE: &str = "made:";

/// Puts the folder of the made data into every path that begins with [`MADE`].
fn find_made(value: &mut toml::Value, synthetic: Option<&Synthetic>) -> Result<()> {
    match value {
        toml::Value::String(text) => {
            let Some(rest) = text.strip_prefix(MADE) else {
                return Ok(());
            };
            let Some(synthetic) = synthetic else {
                return Err(Error::Config(format!(
                    "{text:?}: no data is made, expected a table [synthetic] with its folder"
                )));
            };
            let path = synthetic.dir.join(rest);
            *text = path.to_str().map(str::to_string).ok_or_else(|| {
                Error::Config(format!("synthetic.dir is {path:?}, expected UTF-8"))
            })?;
            Ok(())
        }
        toml::Value::Table(table) => table
            .iter_mut()
            .try_for_each(|(_, value)| find_made(value, synthetic)),
        toml::Value::Array(values) => values
            .iter_mut()
            .try_for_each(|value| find_made(value, synthetic)),
        _ => Ok(()),
    }
}

/// A name as a folder: small letters, digits, and `_` for everything between them.
fn slug(name: &str) -> String {
    let words: Vec<_> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
name = "two"
question = "Video or images?"
seeds = [3, 4]
budget = { pairs = 1000 }
[train]
data = { path = "sets/images", views = "crop_pair", batch_size = 16, size = 64 }
model = { patch_size = 4 }
[[method]]
name = "Crop MAE (98.5 %)"
[[method]]
name = "SiamMAE"
published = "siammae_k400"
[method.train]
data = { path = "sets/clips", views = "frame_pair" }
model = { mask_ratio = 0.9 }
"#;

    fn read(text: &str) -> Result<CompareConfig> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("two.toml");
        std::fs::write(&path, text).unwrap();
        CompareConfig::read(&path, &[] as &[&str])
    }

    #[test]
    fn every_method_runs_with_every_seed_and_says_only_what_it_changes() {
        let runs = read(TEXT).unwrap().runs().unwrap();
        let dirs: Vec<_> = runs.iter().map(|run| run.dir.to_str().unwrap()).collect();
        assert_eq!(
            dirs,
            [
                "crop_mae_98_5/seed-3",
                "siammae/seed-3",
                "crop_mae_98_5/seed-4",
                "siammae/seed-4"
            ]
        );
        let (crop, siam) = (&runs[0].config, &runs[1].config);
        assert_eq!((crop.seed, runs[2].config.seed), (3, 4));
        assert_eq!(crop.data.batch_size, siam.data.batch_size);
        assert_eq!(siam.data.path, "sets/clips");
        assert_eq!(siam.model.mask_ratio, Some(0.9));
        assert_eq!(crop.optim.max_steps, Some(63), "1000 pairs by 16");
    }

    #[test]
    fn budgets_become_steps() {
        let steps = |budget: &str| {
            let text = TEXT.replace("{ pairs = 1000 }", budget);
            read(&text).unwrap().runs().unwrap()[0]
                .config
                .optim
                .max_steps
        };
        assert_eq!(steps("{ steps = 7 }"), Some(7));
        assert_eq!(steps("{ epochs = 7 }"), None);
        assert_eq!(steps("{ hours = 0.5 }"), None);
        let one = forward_cost(&read(TEXT).unwrap().runs().unwrap()[0].config.model)
            .unwrap()
            .gmacs;
        assert_eq!(
            steps(&format!("{{ petamacs = {} }}", one * 160.0 / 1e6)),
            Some(10)
        );
        assert_eq!(Budget::Hours(0.5).steps_in_time(160.0, 16), Some(18_000));
        assert_eq!(Budget::Steps(5).steps_in_time(160.0, 16), None);
    }

    #[test]
    fn made_data_is_found_where_it_is_made() {
        let text = TEXT.replace("\"sets/clips\"", "\"made:shards/clips\"");
        let error = read(&text).unwrap_err().to_string();
        assert!(
            error.contains("made:shards/clips") && error.contains("[synthetic]"),
            "{error}"
        );
        let text = text.replace("[train]\n", "[synthetic]\ndir = \"here\"\n[train]\n");
        let config = CompareConfig::from_toml(&text, &["synthetic.dir=there"]).unwrap();
        let runs = config.runs().unwrap();
        assert_eq!(runs[1].config.data.path, "there/shards/clips");
        assert_eq!(runs[0].config.data.path, "sets/images");
    }

    #[test]
    fn what_is_written_down_reads_again() {
        let config = read(TEXT).unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(read(&text).unwrap(), config);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (from, to, named) in [
            ("seeds = [3, 4]", "seeds = []", "seeds is []"),
            ("seeds = [3, 4]", "seeds = [3, 3]", "[3, 3]"),
            ("{ pairs = 1000 }", "{ pairs = 0 }", "budget is 0"),
            ("{ pairs = 1000 }", "{ days = 2 }", "days"),
            ("\"two\"", "\"../two\"", "../two"),
            (
                "name = \"SiamMAE\"",
                "name = \"crop mae 98 5\"",
                "crop_mae_98_5",
            ),
            ("siammae_k400", "siammae_k600", "siammae_k600"),
            (
                "mask_ratio = 0.9",
                "mask_ratio = 0.999",
                "method \"SiamMAE\"",
            ),
            (
                "[[method]]\nname = \"S",
                "point = \"1 %\"\n[[method]]\nname = \"S",
                "",
            ),
        ] {
            let text = TEXT.replace(from, to);
            assert_ne!(text, TEXT, "{from}");
            let result = read(&text).and_then(|config| config.runs());
            match named {
                "" => assert!(result.is_ok(), "a point without an ablation says nothing"),
                _ => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains(named), "{error}");
                }
            }
        }
        let text = format!("ablation = \"mask_ratio\"\n{TEXT}").replace(
            "[[method]]\nname = \"S",
            "point = \"1 %\"\n[[method]]\nname = \"S",
        );
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains("1 %") && error.contains("98.5 %"), "{error}");
    }
}
