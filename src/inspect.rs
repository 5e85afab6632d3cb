//! `pairquet inspect`: what a shard set holds, or what a config makes of it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};
use pipeline::sheet;
use serde::Serialize;
use shards::{Kind, ShardSet};

use crate::output::{Output, Usage, facts};
use crate::sizes::human_bytes;
use crate::train;

/// Side of a contact sheet's cell in pixels.
const CELL_PX: u32 = 160;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the shard set [default: the data.path of --config].
    set: Option<String>,
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
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Change a value of that config, as in `train`.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set_value: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    path: String,
    kind: Kind,
    split: String,
    splits: Vec<String>,
    shards: usize,
    samples: u64,
    rows: u64,
    bytes: u64,
    classes: usize,
    skipped: u64,
    options: serde_json::Value,
    schema: String,
    first_samples: Vec<Sample>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sheet: Option<PathBuf>,
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
    let config = args.config.as_deref().map(|path| train::load(path, &args.set_value)).transpose()?;
    let path = match (&args.set, &config) {
        (Some(path), _) => path.clone(),
        (None, Some(config)) => config.data.path.clone(),
        (None, None) => return Err(Usage("name a shard set, or a config with --config".into()).into()),
    };
    let split = args.split.clone().or_else(|| config.as_ref().map(|config| config.data.split.clone()));
    let set = ShardSet::open_split_or_only(&path, split.as_deref())?;

    if let Some(file) = &args.sheet {
        let picture = match &config {
            Some(config) => {
                let mut data = config.data.clone();
                data.path.clone_from(&path);
                sheet::views(&data, config.seed, args.samples as usize, data.size.min(CELL_PX))?
            }
            None => sheet::samples(&set, args.samples, CELL_PX)?,
        };
        sheet::write_png(file, &picture)?;
        out.say(format!("contact sheet: {}", file.display()));
    }
    out.result(&report(path, &set, &args)?, describe)?;
    Ok(ExitCode::SUCCESS)
}
