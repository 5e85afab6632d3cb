//! `pairquet inspect`: what a shard set or the Parquet of others holds, or what a config makes of it.

mod foreign;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use comfy_table::{Table, presets};
use pipeline::config::{DataConfig, ViewsKind};
use pipeline::loader::Line;
use pipeline::speed::{self, FloorSpeed};
use pipeline::{Stop, sheet};
use serde::Serialize;
use shards::{ClassName, ForeignSet, Kind, Manifest, ShardSet, Store, parquet_file, printable};
use trainer::TrainConfig;

use crate::bench;
use crate::output::{Output, Usage, facts};
use crate::plan;
use crate::sizes::human_bytes;

/// Side of a contact sheet's cell in pixels.
const CELL_PX: u32 = 160;
/// Of `--speed`, the reading of its pictures left out.
const SPEED_TIME: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the set, or an address such as s3://bucket/set or hf://datasets/OWNER/NAME [default: the data.path of
    /// --config].
    #[arg(value_name = "SET")]
    path: Option<String>,
    /// Split to look at [default: the only one, or train].
    #[arg(long)]
    split: Option<String>,
    /// Samples shown as rows.
    #[arg(long, default_value_t = 5)]
    rows: u64,
    /// Write a contact sheet of samples; with --config, of the view pairs that it would train on.
    #[arg(long, value_name = "FILE.png")]
    sheet: Option<PathBuf>,
    /// Samples or pairs on the sheet.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1024))]
    samples: u64,
    /// Time for a second what one core of this machine makes of the set's own pictures: the expected pairs/s, for views of
    /// 224 px (crop pairs of images, frame pairs of clips), or for those of --config.
    #[arg(long)]
    speed: bool,
    /// Training config whose views the sheet shows and --speed times.
    #[arg(long, value_name = "FILE.toml", group = "configs")]
    config: Option<PathBuf>,
    /// Change a value of that config, as in `train`.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "configs")]
    overrides: Vec<String>,
    /// Show how this training config reads its data: what at once, bytes, requests, waiting, memory, cache.
    #[arg(long, value_name = "FILE.toml", group = "configs", conflicts_with_all = ["path", "sheet", "config"])]
    plan: Option<PathBuf>,
    /// Ranks that share the reading of --plan.
    #[arg(long, default_value_t = 1, requires = "plan", value_parser = clap::value_parser!(u64).range(1..=65536))]
    ranks: u64,
    /// Time until a request's first byte in milliseconds, for --plan.
    #[arg(long, default_value_t = 30.0, requires = "plan", value_parser = plan::positive)]
    latency_ms: f64,
    /// Speed of the line in MiB/s, for --plan.
    #[arg(long, default_value_t = 100.0, requires = "plan", value_parser = plan::positive)]
    bandwidth_mib: f64,
}

#[derive(Serialize)]
struct Report {
    path: String,
    kind: Kind,
    split: String,
    splits: Vec<String>,
    shards: u32,
    samples: u64,
    rows: u64,
    bytes: u64,
    classes: usize,
    skipped: u64,
    options: serde_json::Map<String, serde_json::Value>,
    schema: String,
    first_samples: Vec<Sample>,
    /// Of one core on this machine, from memory; absent if not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<FloorSpeed>,
}

#[derive(Serialize)]
struct Sample {
    key: String,
    label: Option<i32>,
    class: Option<String>,
    frames: u32,
    width: u32,
    height: u32,
    bytes: usize,
}

/// Runs the verb.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    if let Some(config) = &args.plan {
        let line = Line {
            latency_s: args.latency_ms / 1e3,
            bytes_per_s: args.bandwidth_mib * f64::from(1 << 20),
        };
        plan::show(config, &args.overrides, args.ranks, line, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = args
        .config
        .as_deref()
        .map(|path| TrainConfig::read(path, &args.overrides))
        .transpose()?;
    let path = match (&args.path, &config) {
        (Some(path), _) => path.clone(),
        (None, Some(config)) => config.data.path.clone(),
        (None, None) => {
            return Err(Usage("name a shard set, or a config with --config".into()).into());
        }
    };
    let split = args.split.as_deref();
    let split = split.or(config.as_ref().map(|config| config.data.split.as_str()));
    let set = open_split(&path, split)?;

    if let Some(file) = &args.sheet {
        let picture = match (&config, &set) {
            (Some(config), _) => {
                let mut data = config.data.clone();
                data.path.clone_from(&path);
                let n_samples = args.samples as usize;
                sheet::views(&data, config.seed, n_samples, data.size.min(CELL_PX))?
            }
            (None, Opened::Ours(set)) => sheet::samples(set, args.samples, CELL_PX)?,
            (None, Opened::Foreign(_)) => {
                let text =
                    format!("--sheet of {path}, which holds Parquet of others, needs --config");
                return Err(Usage(text).into());
            }
        };
        sheet::write_png(file, &picture)?;
        out.say(format!("contact sheet: {}", file.display()));
    }
    let speed = if args.speed {
        let data = DataConfig {
            path: path.clone(),
            split: set.split().to_owned(),
            ..config
                .as_ref()
                .map_or_else(|| default_views(&set), |config| config.data.clone())
        };
        let seed = config.as_ref().map_or(0, |config| config.seed);
        Some(speed::floor(&data, seed, SPEED_TIME, &Stop::new())?)
    } else {
        None
    };
    match &set {
        Opened::Ours(set) => {
            let report = Report {
                speed,
                ..report(path, set, args.rows)?
            };
            out.result(&report, describe)?;
        }
        Opened::Foreign(set) => {
            let report = foreign::report(path, set, args.rows, speed)?;
            out.result(&report, foreign::describe)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A set of ours or Parquet files of others.
enum Opened {
    Ours(ShardSet),
    Foreign(ForeignSet),
}

impl Opened {
    fn split(&self) -> &str {
        match self {
            Opened::Ours(set) => set.split(),
            Opened::Foreign(set) => set.split(),
        }
    }
}

/// The views that a set of this kind is made for.
fn default_views(set: &Opened) -> DataConfig {
    let views = match set {
        Opened::Ours(set) if set.kind() == Kind::Clips => ViewsKind::FramePair,
        _ => ViewsKind::CropPair,
    };
    DataConfig {
        views,
        ..DataConfig::default()
    }
}

/// The split asked for; else the only one of the set, or `train`.
fn open_split(path: &str, split: Option<&str>) -> Result<Opened> {
    if let Some((folder, file)) = parquet_file(path) {
        let set = ForeignSet::open_file(Store::open(folder)?, file, split.unwrap_or("train"))?;
        return Ok(Opened::Foreign(set));
    }
    let store = Store::open(path)?;
    let of = |known: Vec<String>| match (split, known.as_slice()) {
        (Some(split), _) => split.to_owned(),
        (None, [only]) => only.clone(),
        (None, _) => "train".to_owned(),
    };
    match Manifest::read(&store) {
        Ok(manifest) => {
            let split = of(manifest.splits.into_keys().collect());
            Ok(Opened::Ours(ShardSet::open(path, &split)?))
        }
        // No set of ours: images of somebody else's, or nothing at all.
        Err(unfinished @ shards::Error::Unfinished { .. }) => {
            let known = match ForeignSet::splits_in(&store) {
                Err(shards::Error::Unfinished { .. }) => return Err(unfinished.into()),
                known => known?,
            };
            Ok(Opened::Foreign(ForeignSet::open_in(store, &of(known))?))
        }
        Err(error) => Err(error.into()),
    }
}

fn report(path: String, set: &ShardSet, rows: u64) -> Result<Report> {
    let manifest = set.manifest();
    let split = manifest
        .splits
        .get(set.split())
        .cloned()
        .unwrap_or_default();
    let (footer, _) = set.columns(0, &[])?;
    Ok(Report {
        path,
        kind: set.kind(),
        split: set.split().to_owned(),
        splits: manifest.splits.keys().cloned().collect(),
        shards: set.n_shards(),
        samples: set.n_samples(),
        rows: split.rows(),
        bytes: split.bytes(),
        classes: set.class_names().len(),
        skipped: manifest.skipped.count,
        options: manifest.options.clone(),
        schema: footer.schema().to_owned(),
        first_samples: (0..rows.min(set.n_samples()))
            .map(|index| sample(set, index))
            .collect::<Result<_>>()?,
        speed: None,
    })
}

fn sample(set: &ShardSet, index: u64) -> Result<Sample> {
    let sample = set.sample(index)?;
    let picture = set.picture(index, 0)?;
    let class_names = set.class_names();
    Sample::new(
        sample.key,
        sample.label,
        class_names,
        sample.n_frames,
        &picture,
    )
}

impl Sample {
    fn new(
        key: String,
        label: Option<i32>,
        class_names: &[ClassName],
        frames: u32,
        picture: &[u8],
    ) -> Result<Self> {
        let size = pipeline::codec::probe(picture)
            .map_err(|error| anyhow::anyhow!("{}: {error}", printable(&key)))?;
        let class = label.and_then(|label| class_names.get(usize::try_from(label).ok()?));
        Ok(Sample {
            key,
            label,
            class: class.map(|class| class.name.clone()),
            frames,
            width: size.width,
            height: size.height,
            bytes: picture.len(),
        })
    }
}

fn describe(report: &Report) -> String {
    let (what, pictures) = match report.kind {
        Kind::Images => ("images", "images"),
        Kind::Clips => ("clips", "frames"),
    };
    let mut text = facts([
        (
            "set",
            format!(
                "{}, split {} (splits: {})",
                report.path,
                report.split,
                report.splits.join(", ")
            ),
        ),
        (
            "holds",
            format!(
                "{} {what}, {} {pictures}, {} classes",
                report.samples, report.rows, report.classes
            ),
        ),
        (
            "size",
            format!("{} in {} shards", human_bytes(report.bytes), report.shards),
        ),
        ("skipped", report.skipped.to_string()),
        (
            "options",
            serde_json::Value::Object(report.options.clone()).to_string(),
        ),
    ]);
    if let Some(speed) = &report.speed {
        text.push_str(&format!("\nspeed: {}", bench::floor_text(speed)));
    }
    text.push_str(&format!("\n\n{}\n\n", report.schema.trim_end()));
    text + &table(&report.first_samples)
}

fn table(samples: &[Sample]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "key",
        "label",
        "class",
        "frames",
        "size",
        "bytes of the first",
    ]);
    for sample in samples {
        table.add_row([
            printable(&sample.key).into_owned(),
            sample
                .label
                .map_or_else(|| "-".into(), |label| label.to_string()),
            printable(sample.class.as_deref().unwrap_or("-")).into_owned(),
            sample.frames.to_string(),
            format!("{} x {}", sample.width, sample.height),
            human_bytes(sample.bytes as u64),
        ]);
    }
    table.to_string()
}
