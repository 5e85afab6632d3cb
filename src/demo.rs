//! `pairquet demo`: the main job from end to end on made data, in minutes, with nothing but this program.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use pipeline::synth::SynthOptions;
use serde::Serialize;
use trainer::distributed::Ranks;
use trainer::{Summary, TrainConfig};

use crate::output::{Output, facts};
use crate::{made, signals, train};

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

    let options = SynthOptions::default();
    made::raw(&raw, &options, &options, out)?;
    if last.is_none_or(|stage| stage >= Stage::Shards) {
        made::shards(&raw, &shards, &stop, out)?;
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
