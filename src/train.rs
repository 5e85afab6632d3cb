//! `pairquet train`: a config and shards in, a run folder out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use pipeline::Stop;
use trainer::distributed::{Ranks, World};
use trainer::eval::during::{self, Event, Score};
use trainer::exchange::IMPORT_FILE;
use trainer::train::train_over;
use trainer::{Progress, Summary, TrainConfig};

use crate::output::{Output, facts, talk};
use crate::progress::Bar;
use crate::signals::TimeLimit;
use crate::sizes::human_bytes;

#[derive(clap::Args)]
#[command(
    after_help = "Started by mpirun, srun or torchrun, the processes share every batch, and data.batch_size counts \
    all of them: over MPI on CPUs (built with --features mpi), over NCCL on GPUs (--features nccl)."
)]
pub struct Args {
    /// The experiment, a TOML file as in configs/train.
    config: PathBuf,
    /// Run folder; one that exists is resumed from its newest checkpoint [default: runs/NAME].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Change a value of the config, for example --set optim.base_lr=5e-5; can be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the resolved config and end.
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    time: TimeLimit,
}

/// Runs the verb: exit code 1 if it was stopped before its end.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    let config = TrainConfig::read(&args.config, &args.set)?;
    if args.print_config {
        let config = config.resolved()?;
        let text = config.to_toml()?;
        out.result(&config, |_| text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let dir = args
        .out
        .unwrap_or_else(|| Path::new("runs").join(&config.name));
    if dir.join(IMPORT_FILE).exists() {
        bail!(
            "{} is an imported checkpoint and no run: start from it with --set init={0} and another --out",
            dir.display()
        );
    }
    let joining = out.watch_stalls(talk);
    let ranks = Ranks::join(World::from_env()?, &config.device)?;
    drop(joining);
    let silent = Output::new(false, true);
    let whose = format!("rank {} of {}", ranks.rank(), ranks.size());
    // Rank 0 has a progress bar that says such things; the others have nothing else to say.
    let of_rank = whose.clone();
    let of_others = (!ranks.is_first()).then_some(out);
    let _stalls =
        of_others.and_then(|out| out.watch_stalls(move |text| talk(&format!("{of_rank}: {text}"))));
    let out = if ranks.is_first() { out } else { &silent };
    let stop = args.time.stop(out)?;
    let summary = match train(&config, &dir, &ranks, &stop, out) {
        Ok(summary) => summary,
        Err(error) if ranks.size() > 1 => {
            // Said before the others are ended, and this process with them.
            out.error(&error.context(whose));
            ranks.abort();
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error),
    };
    if ranks.is_first() {
        out.result(&summary, describe)?;
        if summary.stopped && stop.is_requested() {
            out.say(args.time.stopped(&stop));
        }
    }
    ranks.leave()?;
    Ok(if summary.stopped {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Trains as one of `ranks`, and evaluates where the config says so, with a progress bar; also used by the demo.
pub fn train(
    config: &TrainConfig,
    dir: &Path,
    ranks: &Ranks,
    stop: &Stop,
    out: &Output,
) -> Result<Summary> {
    let bar = TrainBar::new(out);
    let summary = if config.eval.is_on() {
        let evaluated = during::train(ranks, config, dir, stop, &mut |event| bar.see(&event));
        evaluated.map(|run| run.training)
    } else {
        train_over(ranks, config, dir, stop, &mut |event| bar.training(event))
    };
    Ok(summary?)
}

/// What a run tells, as a progress bar and lines above it.
pub struct TrainBar(Bar);

impl TrainBar {
    pub fn new(out: &Output) -> Self {
        Self(Bar::new(out, "training", "steps"))
    }

    /// In a run with evaluations.
    pub fn see(&self, event: &Event) {
        match event {
            Event::Training(event) => self.training(event),
            Event::Evaluating(protocol, step) => {
                self.0.note(format!("{protocol} after step {step}"));
            }
            Event::Evaluated(score) => self.0.say(&describe_score(score)),
        }
    }

    fn training(&self, event: &Progress) {
        let bar = &self.0;
        match event {
            Progress::Note(text) => bar.say(text),
            Progress::Warning(text) => bar.say(&format!("warning: {text}")),
            Progress::Saved(path) => bar.say(&format!("saved {}", path.display())),
            Progress::Step(step) => {
                bar.set_total(step.last_step);
                bar.set_done(step.step);
                let stage = step.bottleneck.filter(|&name| name != "consumer");
                let held_up_by =
                    stage.map_or_else(String::new, |name| format!(" (held up by {name})"));
                bar.note(format!(
                    "loss {:.4}  lr {:.2e}  {:.1} pairs/s  waiting for data {:.0} %{held_up_by}",
                    step.loss, step.lr, step.pairs_per_s, step.data_wait_pct
                ));
            }
        }
    }
}

impl Drop for TrainBar {
    fn drop(&mut self) {
        self.0.finish();
    }
}

fn describe_score(score: &Score) -> String {
    let numbers = score
        .numbers
        .iter()
        .map(|(name, value)| format!("{name} {value:.1}"));
    format!(
        "{} after step {}: {}",
        score.protocol,
        score.step,
        numbers.collect::<Vec<_>>().join(", ")
    )
}

fn describe(summary: &Summary) -> String {
    facts([
        (
            "steps",
            format!(
                "{}{}",
                summary.steps,
                if summary.stopped { " (stopped)" } else { "" }
            ),
        ),
        ("loss", losses(summary)),
        (
            "speed",
            format!(
                "{:.1} pairs/s, {:.0} % of the time waiting for data",
                summary.pairs_per_s, summary.data_wait_pct
            ),
        ),
        (
            "peak memory",
            summary
                .peak_memory_bytes
                .map_or_else(|| "unknown".into(), human_bytes),
        ),
        ("run folder", summary.run_dir.display().to_string()),
    ])
}

/// Mean loss over the first and the last ten steps, in words.
pub fn losses(summary: &Summary) -> String {
    match (summary.first_loss, summary.last_loss) {
        (Some(first), Some(last)) => format!("{first:.4} at first, {last:.4} at last"),
        _ => "no step made".into(),
    }
}
