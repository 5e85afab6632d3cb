//! `pairquet demo`: the main job from end to end on made data, in minutes, with nothing but this program.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;
use trainer::compare::config::CompareConfig;
use trainer::compare::report::{PAGE_FILE, Report};
use trainer::compare::run::Which;

use crate::made::{self, Stage};
use crate::output::{Output, facts};
use crate::{compare, signals};

/// The comparison that the demo makes a smaller one of.
const COMPARISON: &str = include_str!("../configs/compare/laptop.toml");

#[derive(clap::Args)]
pub struct Args {
    /// Folder for everything that is made; what is there already is kept and gone on with.
    #[arg(long, default_value = "demo-out", value_name = "DIR")]
    out: PathBuf,
    /// Optimizer steps of each run.
    #[arg(long, default_value_t = 200)]
    steps: u64,
    /// Stop after this stage.
    #[arg(long, value_enum)]
    only: Option<Stage>,
}

#[derive(Serialize)]
struct Made {
    raw: PathBuf,
    shards: PathBuf,
    /// The comparison's folder and what it found, unless the demo ends before.
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<(PathBuf, Report)>,
}

/// Runs the verb.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    let stop = signals::stop_on_signal(out)?;
    let mut config = CompareConfig::from_toml(
        COMPARISON,
        &[
            format!("synthetic.dir={:?}", args.out),
            "synthetic.train.images_per_class=20".to_owned(),
            "synthetic.train.clips_per_class=4".to_owned(),
            "seeds=[0, 1]".to_owned(),
            "evaluations=2".to_owned(),
            format!("budget={{ steps = {} }}", args.steps),
            "train.data.batch_size=16".to_owned(),
        ],
    )?;
    config.name = "demo".to_owned();
    let synthetic = config.synthetic.as_ref();
    let synthetic = synthetic.context("the demo's comparison makes its data")?;
    let dir = args.out.join("compare");
    let complete = match args.only {
        Some(last) => made::data(synthetic, last, &stop, out)?,
        None => compare::make(&config, &dir, Which::All, &stop, out)?,
    };
    if !complete {
        out.say("stopped; the same command goes on from here");
        return Ok(ExitCode::FAILURE);
    }
    let comparison = match args.only {
        Some(_) => None,
        None => {
            let report = Report::collect(std::slice::from_ref(&dir))?;
            report.write(&dir)?;
            Some((dir, report))
        }
    };
    let made = Made {
        raw: args.out.join("raw"),
        shards: args.out.join("shards"),
        comparison,
    };
    out.result(&made, describe)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(made: &Made) -> String {
    let shards = made.shards.display();
    let mut text = facts([
        ("raw files", made.raw.display().to_string()),
        (
            "shards",
            format!("{shards}/images and {shards}/clips, contact sheets {shards}/*.png"),
        ),
    ]);
    if let Some((dir, report)) = &made.comparison {
        text.push_str(&format!(
            "\n\n{}\n\nreport: {}\nruns:   {}/METHOD/seed-N, each with curves.svg, pictures and metrics.jsonl",
            report.summary.join("\n"),
            dir.join(PAGE_FILE).display(),
            dir.display()
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
