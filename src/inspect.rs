//! `pairquet inspect`: what a shard set holds, or what a config makes of it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};
use pipeline::config::{OrderKind, ReadKind};
use pipeline::loader::state::Batching;
use pipeline::loader::{Line, Rank, ReadPlan, open};
use pipeline::sheet;
use serde::Serialize;
use shards::{Kind, Manifest, ShardSet, Store};
use trainer::TrainConfig;

use crate::output::{Output, Usage, facts};
use crate::sizes::human_bytes;

/// Side of a contact sheet's cell in pixels.
const CELL_PX: u32 = 160;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the shard set, or an address such as s3://bucket/set [default: the data.path of --config].
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
    /// Training config whose views the sheet shows.
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
    #[arg(long, default_value_t = 30.0, requires = "plan", value_parser = positive)]
    latency_ms: f64,
    /// Speed of the line in MiB/s, for --plan.
    #[arg(long, default_value_t = 100.0, requires = "plan", value_parser = positive)]
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

#[derive(Serialize)]
struct PlanReport {
    order: OrderKind,
    rank: Rank,
    #[serde(flatten)]
    plan: ReadPlan,
    batches_per_epoch: u64,
    line: Line,
    seconds_per_batch: f64,
}

/// Runs the verb.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    if let Some(config) = &args.plan {
        out.result(&plan(&args, config)?, describe_plan)?;
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
    let set = open_split(
        &path,
        args.split
            .as_deref()
            .or(config.as_ref().map(|config| config.data.split.as_str())),
    )?;

    if let Some(file) = &args.sheet {
        let picture = match &config {
            Some(config) => {
                let mut data = config.data.clone();
                data.path.clone_from(&path);
                sheet::views(
                    &data,
                    config.seed,
                    args.samples as usize,
                    data.size.min(CELL_PX),
                )?
            }
            None => sheet::samples(&set, args.samples, CELL_PX)?,
        };
        sheet::write_png(file, &picture)?;
        out.say(format!("contact sheet: {}", file.display()));
    }
    out.result(&report(path, &set, args.rows)?, describe)?;
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &Args, config: &Path) -> Result<PlanReport> {
    let config = TrainConfig::read(config, &args.overrides)?;
    let source = open::source(&config.data)?;
    let rank = Rank {
        rank: 0,
        world: args.ranks,
    };
    let plan = ReadPlan::of(&config.data, source.as_ref(), rank)?;
    let order = open::order(source.as_ref(), &config.data, config.seed)?;
    let batch_size = config.data.batch_size as u64;
    let batching = Batching::new(order.n_positions(), batch_size, rank)?;
    let line = Line {
        latency_s: args.latency_ms / 1e3,
        bytes_per_s: args.bandwidth_mib * f64::from(1 << 20),
    };
    Ok(PlanReport {
        order: config.data.order_in_force(),
        rank,
        plan,
        batches_per_epoch: batching.batches_per_epoch(),
        line,
        seconds_per_batch: plan.seconds_per_batch(line, batching.batches_per_epoch()),
    })
}

fn describe_plan(report: &PlanReport) -> String {
    let PlanReport { plan, line, .. } = report;
    let reads = |what: ReadKind, (bytes, requests): (u64, u64)| {
        let what = match what {
            ReadKind::Pages => "single pictures",
            ReadKind::Groups => "whole row groups",
        };
        format!("{what}: {} in {requests} requests", human_bytes(bytes))
    };
    let other = match plan.read {
        ReadKind::Pages => ReadKind::Groups,
        ReadKind::Groups => ReadKind::Pages,
    };
    let instead = match plan.other {
        Some(cost) => reads(other, cost),
        None => "whole row groups need data.order = \"blocks\"".to_owned(),
    };
    let memory = match plan.read {
        ReadKind::Pages => "the pictures on their way".to_owned(),
        ReadKind::Groups => format!(
            "up to {} of row groups, of which a window takes {}",
            human_bytes(plan.budget_bytes),
            human_bytes(plan.window_bytes)
        ),
    };
    facts([
        ("order", format!("{:?}", report.order).to_lowercase()),
        (
            "an epoch",
            format!(
                "{} batches; a rank of {} reads {}",
                report.batches_per_epoch,
                report.rank.world,
                reads(plan.read, (plan.bytes, plan.requests))
            ),
        ),
        ("instead", instead),
        (
            "a batch",
            format!(
                "{:.3} s of reading at {:.0} ms and {}/s, {} reads at once",
                report.seconds_per_batch,
                line.latency_s * 1e3,
                human_bytes(line.bytes_per_s as u64),
                plan.read_threads.max(plan.fetch_threads)
            ),
        ),
        ("memory", memory),
        (
            "cache",
            format!(
                "{} hold all that is read in any epoch",
                human_bytes(plan.distinct_bytes)
            ),
        ),
    ])
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text
        .parse()
        .ok()
        .filter(|n: &f64| *n > 0.0 && n.is_finite());
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

/// The split asked for; else the only one of the set, or `train`.
fn open_split(path: &str, split: Option<&str>) -> Result<ShardSet> {
    if let Some(split) = split {
        return Ok(ShardSet::open(path, split)?);
    }
    let manifest = Manifest::read(&Store::open(path)?)?;
    let mut splits = manifest.splits.keys();
    match (splits.next(), splits.next()) {
        (Some(only), None) => Ok(ShardSet::open(path, only)?),
        _ => Ok(ShardSet::open(path, "train")?),
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
    })
}

fn sample(set: &ShardSet, index: u64) -> Result<Sample> {
    let sample = set.sample(index)?;
    let picture = set.picture(index, 0)?;
    let size = pipeline::codec::probe(&picture)
        .map_err(|error| anyhow::anyhow!("{}: {error}", sample.key))?;
    let class = sample
        .label
        .and_then(|label| set.class_names().get(usize::try_from(label).ok()?));
    Ok(Sample {
        key: sample.key,
        label: sample.label,
        class: class.map(|class| class.name.clone()),
        frames: sample.n_frames,
        width: size.width,
        height: size.height,
        bytes: picture.len(),
    })
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
    text.push_str(&format!("\n\n{}\n\n", report.schema.trim_end()));
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
    for sample in &report.first_samples {
        table.add_row([
            sample.key.clone(),
            sample
                .label
                .map_or_else(|| "-".into(), |label| label.to_string()),
            sample.class.clone().unwrap_or_else(|| "-".into()),
            sample.frames.to_string(),
            format!("{} x {}", sample.width, sample.height),
            human_bytes(sample.bytes as u64),
        ]);
    }
    text + &table.to_string()
}
