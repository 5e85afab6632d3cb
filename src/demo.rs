//! `pairquet demo`: the main job from end to end on made data, in minutes, with nothing but this program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use pipeline::convert::{self, ImagenetOptions, KineticsOptions};
use pipeline::synth::{self, SynthOptions};
use pipeline::{Stop, sheet};
use serde::Serialize;
use shards::ShardSet;
use trainer::distributed::Ranks;
use trainer::{Summary, TrainConfig};

use crate::convert::ConvertBar;
use crate::output::{Output, facts};
use crate::{signals, train};

/// The two runs: name, config, and the folder of shards it trains on.
const RUNS: [(&str, &str, &str); 2] = [
    (
        "cropmae",
        include_str!("../configs/smoke/cropmae.toml"),
        "images",
    ),
    (
        "siammae",
        include_str!("../configs/smoke/siammae.toml"),
        "clips",
    ),
];

#[derive(clap::Args)]
pub struct Args {
    /// Folder for everything that is made; what is there already is kept and gone on with.
    #[arg(long, default_value = "demo-out", value_name = "DIR")]
    out: PathBuf,
    /// Optimizer steps of each run.
    #[arg(long, default_value_t = 300)]
    steps: u64,
    /// Stop after this stage.
    #[arg(long, value_enum)]
    only: Option<Stage>,
}

/// How far a demo goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Stage {
    /// Make the pictures, clips and masks.
    Raw,
    /// Convert them as well.
    Shards,
}

#[derive(Serialize)]
struct Report {
    raw: PathBuf,
    shards: PathBuf,
    runs: Vec<Summary>,
}

/// Runs the verb.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    let stop = signals::stop_on_signal(out)?;
    let raw = args.out.join("raw");
    let shards = args.out.join("shards");
    let last = args.only;

    make_raw(&raw, out)?;
    if last.is_none_or(|stage| stage >= Stage::Shards) {
        make_shards(&raw, &shards, &stop, out)?;
    }
    let mut runs = Vec::new();
    if last.is_none() {
        for (name, config, source) in RUNS {
            out.say(format!("training a tiny {name} for {} steps", args.steps));
            let config = demo_config(config, &shards.join(source), args.steps)?;
            let summary = train::train(
                &config,
                &args.out.join("runs").join(name),
                &Ranks::single(),
                &stop,
                out,
            )?;
            let stopped = summary.stopped;
            runs.push(summary);
            if stopped {
                out.say("stopped; the same command goes on from here");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    out.result(&Report { raw, shards, runs }, describe)?;
    Ok(ExitCode::SUCCESS)
}

/// Pictures, clips and sequences; made under another name first, so that what is there is whole.
fn make_raw(raw: &Path, out: &Output) -> Result<()> {
    if raw.is_dir() {
        return Ok(());
    }
    out.say(format!(
        "making pictures, clips and masks in {}",
        raw.display()
    ));
    let partial = raw.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    let options = SynthOptions::default();
    synth::write_images(&partial.join("images"), &options)?;
    synth::write_clips(&partial.join("clips"), &options)?;
    synth::write_sequences(&partial.join("sequences"), &options)?;
    fs::rename(&partial, raw)
        .with_context(|| format!("renaming {} to {}", partial.display(), raw.display()))
}

fn make_shards(raw: &Path, shards: &Path, stop: &Stop, out: &Output) -> Result<()> {
    for source in ["images", "clips"] {
        let dst = shards.join(source);
        if dst.join("manifest.json").is_file() {
            continue;
        }
        let (src, dst_name) = (raw.join(source), dst.display().to_string());
        out.say(format!("converting {} to {dst_name}", src.display()));
        let bar = ConvertBar::new(out);
        match source {
            "images" => {
                convert::imagenet(&src, &dst_name, &ImagenetOptions::default(), &bar, stop)?
            }
            _ => convert::kinetics(&src, &dst_name, &KineticsOptions::default(), &bar, stop)?,
        };
        bar.finish();
        let sheet_file = shards.join(format!("{source}.png"));
        sheet::write_png(
            &sheet_file,
            &sheet::samples(&ShardSet::open(&dst_name, "train")?, 16, 128)?,
        )?;
    }
    Ok(())
}

fn demo_config(text: &str, set: &Path, steps: u64) -> Result<TrainConfig> {
    let overrides = [
        format!("data.path={}", set.display()),
        format!("optim.max_steps={steps}"),
        "run.checkpoint_every=100".to_owned(),
        "run.pictures_every=100".to_owned(),
    ];
    Ok(TrainConfig::from_toml_with_overrides(text, &overrides)?)
}

fn describe(report: &Report) -> String {
    let shards = report.shards.display();
    let mut text = facts([
        ("raw files", report.raw.display().to_string()),
        (
            "shards",
            format!("{shards}/images and {shards}/clips, contact sheets {shards}/*.png"),
        ),
    ]);
    for run in &report.runs {
        let dir = run.run_dir.display();
        text.push_str(&format!(
            "\n\n{dir}: loss {}, {:.0} pairs/s\n  curves           {dir}/curves.svg\n  reconstructions  {dir}/pictures\n  metrics          {dir}/metrics.jsonl (and TensorBoard events)",
            train::losses(run),
            run.pairs_per_s
        ));
    }
    text.push_str(&format!(
        "\n\nnext:\n  pairquet inspect {shards}/clips\n  \
         pairquet inspect --config configs/smoke/cropmae.toml --set data.path={shards}/images --sheet pairs.png\n  \
         pairquet convert imagenet /your/images sets/mine\n  \
         pairquet train configs/train/cropmae_vits16_in1k.toml --set data.path=sets/mine"
    ));
    text
}
