//! `pairquet compare`: many runs that share everything but what they compare, and one report.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use pipeline::Stop;
use pipeline::convert::Part;
use serde::Serialize;
use trainer::compare::config::CompareConfig;
use trainer::compare::report::{PAGE_FILE, Report};
use trainer::compare::run::{self, CompareEvent, Which};

use crate::made::{self, Stage};
use crate::output::{Output, Usage};
use crate::signals::TimeLimit;
use crate::train::TrainBar;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The comparison, a TOML file as in configs/compare.
    #[arg(required = true)]
    config: Option<PathBuf>,
    /// Folder of the runs and the report; what is there is gone on with [default: runs/compare/NAME].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Change a value of the comparison, for example --set budget.steps=100; can be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Make only the run at this place in the list, from 0 on.
    #[arg(long, value_name = "I", conflicts_with = "part")]
    run: Option<usize>,
    /// Make only part I of N of the runs. In a Slurm array or a Kubernetes indexed job it is read from there.
    #[arg(long, value_name = "I/N")]
    part: Option<Part>,
    /// List the runs and end.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    time: TimeLimit,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make the report of runs, which may lie in several folders.
    Report(ReportArgs),
}

#[derive(clap::Args)]
struct ReportArgs {
    /// Folders of one comparison, of which each may hold a part of the runs.
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// Where the report is written [default: the first folder].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// One line of `--list`.
#[derive(Serialize)]
struct Listed {
    run: usize,
    method: String,
    seed: u64,
    dir: PathBuf,
}

/// Runs the verb: exit code 1 if it was stopped before its end.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    if let Some(Verb::Report(args)) = args.verb {
        let dir = args.out.as_ref().unwrap_or(&args.dirs[0]);
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        report(&args.dirs, dir, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(path) = args.config else {
        bail!(Usage("no comparison is given, expected a TOML file".into()));
    };
    let config = CompareConfig::read(&path, &args.set)?;
    if args.list {
        return list(&config, out);
    }
    let dir = args
        .out
        .unwrap_or_else(|| Path::new("runs/compare").join(&config.name));
    let which = match (args.run, args.part) {
        (Some(index), _) => Which::One(index),
        (None, Some(part)) => Which::Part(part),
        (None, None) => Part::from_env()?.map_or(Which::All, Which::Part),
    };
    let stop = args.time.stop(out)?;
    if !make(&config, &dir, which, &stop, out)? {
        out.say(args.time.stopped(&stop));
        return Ok(ExitCode::FAILURE);
    }
    if which == Which::All {
        report(std::slice::from_ref(&dir), &dir, out)?;
    } else {
        out.say(format!("then: pairquet compare report {}", dir.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes data and runs; whether they are complete.
pub fn make(
    config: &CompareConfig,
    dir: &Path,
    which: Which,
    stop: &Stop,
    out: &Output,
) -> Result<bool> {
    if let Some(synthetic) = &config.synthetic
        && !made::data(synthetic, Stage::Shards, stop, out)?
    {
        return Ok(false);
    }
    let n_runs = config.runs()?.len();
    let mut bar: Option<TrainBar> = None;
    let complete = run::run(config, dir, which, stop, &mut |event| match event {
        CompareEvent::Complete(run) => {
            out.say(format!(
                "run {} of {n_runs}: {} is complete",
                run.index + 1,
                run.config.name
            ));
        }
        CompareEvent::Begins(run) => {
            out.say(format!(
                "run {} of {n_runs}: {}",
                run.index + 1,
                run.config.name
            ));
            bar = Some(TrainBar::new(out));
        }
        CompareEvent::Run(event) => {
            if let Some(bar) = &bar {
                bar.see(&event);
            }
        }
    });
    Ok(complete?)
}

/// Writes and prints the report of some folders.
fn report(dirs: &[PathBuf], into: &Path, out: &Output) -> Result<()> {
    let report = Report::collect(dirs)?;
    report.write(into)?;
    out.result(&report, |report| {
        format!(
            "{}\n\nreport: {}",
            report.summary.join("\n"),
            into.join(PAGE_FILE).display()
        )
    })
}

fn list(config: &CompareConfig, out: &Output) -> Result<ExitCode> {
    let runs: Vec<_> = config
        .runs()?
        .into_iter()
        .map(|run| Listed {
            run: run.index,
            method: config.methods[run.method].name.clone(),
            seed: run.config.seed,
            dir: run.dir,
        })
        .collect();
    out.result(&runs, |runs| {
        let lines = runs
            .iter()
            .map(|run| format!("{:4}  seed {}  {}", run.run, run.seed, run.method));
        lines.collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}
