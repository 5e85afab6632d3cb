//! `pairquet order`: in which order a config visits its samples, without reading a picture.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use pipeline::config::OrderKind;
use pipeline::loader::audit::{self, ShuffleQuality};
use pipeline::loader::{LoaderState, open};
use serde::Serialize;
use trainer::TrainConfig;

use crate::output::{Output, facts};

#[derive(clap::Args)]
pub struct Args {
    /// The experiment, a TOML file as in configs/train.
    config: PathBuf,
    /// Change a value of the config, as in `train`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Ranks that share each batch; the order is the same for any number of them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65536))]
    ranks: u64,
    /// Batches to look at.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    batches: u64,
    /// Where to begin, as a resumed run does.
    #[arg(long, value_name = "EPOCH:BATCH", default_value = "0:0", value_parser = parse_start)]
    start: LoaderState,
    /// Print the order's hash and nothing else.
    #[arg(long)]
    hash: bool,
    /// Print the samples: epoch, batch, place in the batch, sample id, index in the split; with --json a list a batch.
    #[arg(long, conflicts_with = "hash")]
    list: bool,
}

#[derive(Serialize)]
struct Report {
    order: OrderKind,
    samples: u64,
    visits_per_epoch: u64,
    batch_size: usize,
    batches_per_epoch: u64,
    row_groups: usize,
    quality: ShuffleQuality,
    ranks: u64,
    start: LoaderState,
    batches: u64,
    hash: String,
}

/// Runs the verb.
pub fn run(args: Args, out: &Output) -> Result<ExitCode> {
    let config = TrainConfig::read(&args.config, &args.overrides)?;
    let source = open::source(&config.data)?;
    let order = open::order(source.as_ref(), &config.data, config.seed)?;
    let batch_size = config.data.batch_size as u64;
    let batches = audit::batches(&order, batch_size, args.ranks, args.start)?;
    let mut batches = batches.take(usize::try_from(args.batches)?);
    if args.list {
        let list = |(at, ids): (LoaderState, Vec<u64>)| {
            let line = |(row, id)| {
                let (LoaderState { epoch, batch }, index) = (at, order.index(id));
                format!("{epoch}\t{batch}\t{row}\t{id}\t{index}")
            };
            let lines: Vec<String> = (0u64..).zip(ids).map(line).collect();
            out.result(&lines, |lines| lines.join("\n"))
        };
        batches.try_for_each(list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let hash = audit::hash(batches);
    if args.hash {
        out.result(&hash, String::clone)?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = Report {
        order: config.data.order_in_force(),
        samples: source.n_samples(),
        visits_per_epoch: order.n_positions(),
        batch_size: config.data.batch_size,
        batches_per_epoch: order.n_positions() / batch_size,
        row_groups: order.groups().len(),
        quality: audit::quality(&order, batch_size, args.start.epoch),
        ranks: args.ranks,
        start: args.start,
        batches: args.batches,
        hash,
    };
    out.result(&report, describe)?;
    Ok(ExitCode::SUCCESS)
}

fn parse_start(text: &str) -> Result<LoaderState, String> {
    let numbers = text
        .split_once(':')
        .and_then(|(epoch, batch)| Some((epoch.parse().ok()?, batch.parse().ok()?)));
    let (epoch, batch) = numbers.ok_or("expected EPOCH:BATCH, such as 3:120")?;
    Ok(LoaderState { epoch, batch })
}

fn describe(report: &Report) -> String {
    let quality = &report.quality;
    facts([
        ("order", format!("{:?}", report.order).to_lowercase()),
        (
            "epoch",
            format!(
                "{} visits of {} samples: {} batches of {}",
                report.visits_per_epoch,
                report.samples,
                report.batches_per_epoch,
                report.batch_size
            ),
        ),
        (
            "shuffle",
            format!(
                "{:.1} of {} row groups in a batch ({:.1} under a full shuffle), correlation of neighbours {:.3}",
                quality.groups_per_batch,
                report.row_groups,
                quality.groups_per_batch_full,
                quality.neighbour_correlation
            ),
        ),
        (
            "hash",
            format!(
                "{} of {} batches from {}:{} on",
                report.hash, report.batches, report.start.epoch, report.start.batch
            ),
        ),
    ])
}
