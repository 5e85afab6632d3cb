//! `pairquet bench`: how fast this machine is with a config, without training.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use pipeline::loader::Batch;
use pipeline::speed::{self, FloorSpeed, Length, LoaderSpeed, SpeedOptions, ThreadsSpeed};
use serde::Serialize;
use trainer::TrainConfig;
use trainer::device::{IMAGENET_MEAN, IMAGENET_STD};

use crate::output::{Output, Usage, facts};
use crate::progress::Bar;
use crate::signals;
use crate::sizes::human_bytes;

/// Unless asked for.
const MAX_BATCH_SIZE: usize = 256;

#[derive(Subcommand)]
pub enum Command {
    /// Time the loader of a config, beside one thread that only decodes and cuts, and beside pictures in memory.
    Loader(LoaderArgs),
}

#[derive(Args)]
pub struct LoaderArgs {
    /// The experiment, a TOML file as in configs/train.
    config: PathBuf,
    /// Change a value of the config, as in `train`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Numbers of computing threads to time [default: 1, and the cores given to this process].
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Rounds in which everything is timed in turn; figures are medians over them.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Length of each timing in a round.
    #[arg(
        long,
        value_name = "S",
        default_value_t = 2.0,
        conflicts_with = "batches"
    )]
    seconds: f64,
    /// Length of each timing in batches instead.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    batches: Option<u64>,
    /// Pairs in a batch [default: the config's, at most 256]: of the speed it decides little, of the memory nearly all, and
    /// several loaders are in memory at once.
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Also time how long a consumer waits that takes this many pairs a second.
    #[arg(long, value_name = "PAIRS_PER_S")]
    rate: Option<f64>,
    /// Time nothing but the loader: less time, and the peak of memory is the loader's alone.
    #[arg(long)]
    loader_only: bool,
    /// Turn each batch into normalised float32 on the CPU, as loaders do that hand out nothing else. Training does not: its
    /// batches go to the device in 8 bits.
    #[arg(long)]
    float32: bool,
}

#[derive(Serialize)]
struct Report {
    config: PathBuf,
    cores: usize,
    #[serde(flatten)]
    speed: LoaderSpeed,
}

/// Runs the verb.
pub fn run(command: Command, out: &Output) -> Result<ExitCode> {
    let Command::Loader(args) = command;
    let mut config = TrainConfig::read(&args.config, &args.overrides)?;
    config.data.batch_size = args
        .batch_size
        .unwrap_or(config.data.batch_size.min(MAX_BATCH_SIZE));
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let seconds = Duration::try_from_secs_f64(args.seconds)
        .ok()
        .filter(|seconds| !seconds.is_zero())
        .ok_or_else(|| {
            Usage(format!(
                "--seconds {}: expected more than 0 seconds",
                args.seconds
            ))
        })?;
    let options = SpeedOptions {
        threads: match args.threads.as_slice() {
            [] if cores == 1 => vec![1],
            [] => vec![1, cores],
            threads => threads.to_vec(),
        },
        rounds: args.rounds,
        length: args.batches.map_or(Length::Time(seconds), Length::Batches),
        compare: !args.loader_only,
        consumer_pairs_per_s: args.rate,
        seed: config.seed,
    };
    let stop = signals::stop_on_signal(out)?;
    let bar = Bar::new(out, "timing", "measurements");
    let mut normalised = Vec::new();
    let consume = |batch: &Batch| {
        if args.float32 {
            normalise(batch, &mut normalised);
            std::hint::black_box(&normalised);
        }
    };
    let speed = speed::loader(&config.data, &options, &stop, consume, |done, planned| {
        bar.set_total(planned as u64);
        bar.set_done(done as u64);
    });
    bar.finish();
    let report = Report {
        config: args.config,
        cores,
        speed: speed?,
    };
    out.result(&report, describe)?;
    Ok(ExitCode::from(u8::from(report.speed.stopped)))
}

/// Writes a batch as `[B, V, 3, H, W]` f32 into `out`, normalised with ImageNet's mean and deviation.
fn normalise(batch: &Batch, out: &mut Vec<f32>) {
    let n_pixels = batch.size * batch.size;
    out.resize(batch.views.len(), 0.0);
    let views = batch.views.chunks_exact(n_pixels * 3);
    for (view, out) in views.zip(out.chunks_exact_mut(n_pixels * 3)) {
        for (channel, plane) in out.chunks_exact_mut(n_pixels).enumerate() {
            let scale = 1.0 / (255.0 * IMAGENET_STD[channel]);
            let shift = IMAGENET_MEAN[channel] / IMAGENET_STD[channel];
            for (value, pixel) in plane.iter_mut().zip(view.chunks_exact(3)) {
                *value = f32::from(pixel[channel]) * scale - shift;
            }
        }
    }
}

/// What one thread makes of pictures in memory, in a sentence.
pub fn floor_text(floor: &FloorSpeed) -> String {
    format!(
        "{} pairs/s a core from memory: {:.2} ms decoding and {:.2} ms cutting views a pair, {} a pair ({} pairs tried)",
        number(floor.pairs_per_s, 0),
        floor.decode_ms,
        floor.views_ms,
        human_bytes(floor.bytes_per_pair as u64),
        floor.pairs_in_memory,
    )
}

fn describe(report: &Report) -> String {
    let speed = &report.speed;
    let unfinished = if speed.stopped { ", stopped early" } else { "" };
    let mut text = facts([
        (
            "set",
            format!("{} samples, batches of {}", speed.samples, speed.batch_size),
        ),
        (
            "timed",
            format!(
                "{} complete rounds{unfinished}, {} cores",
                speed.rounds, report.cores
            ),
        ),
        (
            "floor",
            speed
                .floor
                .as_ref()
                .map_or_else(|| "not timed".to_owned(), floor_text),
        ),
        (
            "peak memory",
            speed
                .peak_memory_bytes
                .map_or_else(|| "-".to_owned(), human_bytes),
        ),
    ]);
    let mut table = new_table([
        "threads",
        "pairs/s",
        "a thread",
        "of threads x floor",
        "of memory",
        "CPU ms",
        "decode ms",
        "views ms",
        "read",
        "bottleneck",
        "no core",
    ]);
    for loader in &speed.loaders {
        table.add_row([
            loader.threads.to_string(),
            number(loader.pairs_per_s, 1),
            number(loader.pairs_per_s_per_thread, 1),
            percent(loader.percent_of_floor),
            percent(loader.percent_of_memory),
            number(loader.cpu_ms, 3),
            format!("{:.3}", loader.decode_ms),
            format!("{:.3}", loader.views_ms),
            human_bytes(loader.bytes_per_pair as u64),
            loader.bottleneck.to_owned(),
            percent(loader.queued_percent),
        ]);
    }
    text.push_str(&format!("\n\n{table}\n\n"));
    text.push_str(&stages(&speed.loaders).to_string());
    for loader in &speed.loaders {
        if let Some(paced) = &loader.paced {
            text.push_str(&format!(
                "\n{} thread(s), a consumer of {:.0} pairs/s: gets {}, waits {:.2} ms a batch, {:.1} % of its time",
                loader.threads,
                paced.wanted_pairs_per_s,
                number(paced.pairs_per_s, 1),
                paced.wait_ms,
                paced.wait_percent
            ));
        }
    }
    text
}

fn stages(loaders: &[ThreadsSpeed]) -> Table {
    let mut table = new_table([
        "threads",
        "stage",
        "workers",
        "busy",
        "waiting for input",
        "waiting for room",
    ]);
    for loader in loaders {
        for stage in &loader.stages {
            table.add_row([
                loader.threads.to_string(),
                stage.name.to_owned(),
                stage.workers.to_string(),
                percent(Some(stage.busy_percent)),
                percent(Some(stage.waiting_in_percent)),
                percent(Some(stage.waiting_out_percent)),
            ]);
        }
    }
    table
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(header);
    table
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} %"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two views of 2 by 2 px.
    const VIEWS: [u8; 24] = [
        0, 10, 255, 255, 20, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn a_normalised_batch_has_a_plane_for_each_channel() {
        let batch = Batch {
            views: VIEWS.as_slice().into(),
            n_views: 2,
            size: 2,
            ..Batch::default()
        };
        let mut out = Vec::new();
        normalise(&batch, &mut out);
        let of = |value: u8, channel: usize| {
            (f32::from(value) / 255.0 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        };
        let expected = [
            (0, 0, 0),
            (1, 255, 0),
            (4, 10, 1),
            (5, 20, 1),
            (8, 255, 2),
            (11, 6, 2),
        ];
        for (place, value, channel) in expected {
            assert!(
                (out[place] - of(value, channel)).abs() < 1e-5,
                "{place}: {out:?}"
            );
        }
    }
}
