//! `pairquet convert`: files in, shards out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use pipeline::convert::{
    self, Check, CommonOptions, Containment, ConvertReport, Faults, FrameRange, ImagenetOptions,
    KineticsOptions, MaxBad, Part, Progress, ProgressEvent, SplitReport,
};

use shards::printable;

use crate::output::{Output, facts};
use crate::progress::Bar;
use crate::signals;
use crate::sizes::{human_bytes, parse_bytes};

/// The verb of the processes that decode clips, which nobody types.
pub const WORKER: &str = "clip-worker";

/// Holds the failures that such a process is to commit, for tests: see [`Faults`].
const WORKER_FAULT: &str = "PAIRQUET_WORKER_FAULT";

/// Items of each kind named on the terminal; `.pairquet/report-SPLIT.json` has all.
const NAMED: usize = 20;

#[derive(Subcommand)]
pub enum Command {
    /// Class folders of images, the ImageNet tar of tars, a folder of per-class tars, or a flat folder.
    Imagenet(ImagenetArgs),
    /// Parquet files of pictures, such as the image sets of the Hugging Face hub.
    Images(ImagesArgs),
    /// Folders of clips by class, or a list (or Kinetics CSV) of clips. Every codec of FFmpeg is read.
    Kinetics(KineticsArgs),
    /// Put the parts of several machines together: checks that all shards are there and writes the manifest.
    Finish {
        /// Folder or address of the shard set.
        dst: String,
    },
}

#[derive(Args)]
pub struct ImagenetArgs {
    /// Folder or tar to read.
    src: PathBuf,
    /// Folder of the shard set to write, or an address such as s3://bucket/set.
    dst: String,
    #[command(flatten)]
    pictures: PictureArgs,
}

#[derive(Args)]
pub struct ImagesArgs {
    /// A .parquet file, a folder of them, or the address of either, such as hf://datasets/OWNER/NAME.
    src: String,
    /// Folder of the shard set to write, or an address such as s3://bucket/set.
    dst: String,
    #[command(flatten)]
    pictures: PictureArgs,
}

#[derive(Args)]
struct PictureArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Reduce pictures whose shorter side is longer than this many pixels to it, and code them anew; the others keep their
    /// bytes, as all do without this option.
    #[arg(long, value_name = "PX")]
    short_side: Option<u32>,
    /// Before a picture's bytes are kept: decode it whole (`full`), or read its header only (`header`).
    #[arg(long, default_value = "full")]
    check: Check,
}

#[derive(Args)]
pub struct KineticsArgs {
    /// Folder of clips by class; or a list or table of clips (then --root says where its files are).
    src: PathBuf,
    /// Folder of the shard set to write, or an address such as s3://bucket/set.
    dst: String,
    #[command(flatten)]
    common: CommonArgs,
    /// Where the files of a list or table are looked for [default: the list's own folder].
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Reduce frames whose shorter side is longer than this many pixels to it; 0 keeps their size.
    #[arg(long, value_name = "PX", default_value_t = 256)]
    short_side: u32,
    /// Keep every N-th frame.
    #[arg(long, value_name = "N", default_value_t = 1)]
    frame_stride: u32,
    /// Keep only these frames, counted in what really decodes, for example 0..300.
    #[arg(long, value_name = "A..B")]
    frames: Option<FrameRange>,
    /// Leave out a clip that brings no frame for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = Containment::TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    clip_timeout: u64,
    /// Leave out a clip that needs more memory than this to decode.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "2GiB")]
    clip_memory: u64,
    /// Decode in this process and not in those of its own: a clip that crashes the video library then ends the conversion,
    /// and neither limit holds.
    #[arg(long, conflicts_with_all = ["clip_timeout", "clip_memory"])]
    in_process: bool,
}

#[derive(Args)]
struct CommonArgs {
    /// Name of the split that is written.
    #[arg(long, default_value = "train")]
    split: String,
    /// Threads that decode; 0: one for each core. The result does not depend on it.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Size of a shard.
    #[arg(long, value_parser = parse_bytes, default_value = "256MiB")]
    shard_size: u64,
    /// Size of a row group, the unit of sequential reading.
    #[arg(long, value_parser = parse_bytes, default_value = "16MiB")]
    row_group_size: u64,
    /// JPEG quality of what is coded anew.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Choose quality and chroma of what is coded anew instead, picture by picture, so that none is farther than this from what
    /// was coded: peak signal-to-noise ratio in dB, 20 to 45.
    #[arg(long, value_name = "DB", conflicts_with = "quality")]
    min_psnr: Option<f64>,
    /// Rows are laid out in a permutation of this seed, so that neighbours are of different classes.
    #[arg(long, default_value_t = 0)]
    shuffle_seed: u64,
    /// Keep the rows in the order of their keys instead.
    #[arg(long, conflicts_with = "shuffle_seed")]
    sorted: bool,
    /// File with a class a line: its id, a space or tab, its name.
    #[arg(long, value_name = "FILE")]
    class_names: Option<PathBuf>,
    /// More broken files than this share (1%) or number (20) end the conversion.
    #[arg(long, default_value = "1%")]
    max_bad: MaxBad,
    /// Make only part I of N (then `convert finish`). In a Slurm array or a Kubernetes indexed job it is read from there.
    #[arg(long, value_name = "I/N")]
    part: Option<Part>,
}

impl PictureArgs {
    fn options(self) -> Result<ImagenetOptions> {
        Ok(ImagenetOptions {
            short_side: self.short_side,
            quality: self.common.quality,
            min_psnr: self.common.min_psnr,
            check: self.check,
            common: self.common.options()?,
        })
    }
}

impl CommonArgs {
    fn options(self) -> Result<CommonOptions> {
        Ok(CommonOptions {
            split: self.split,
            workers: self.workers,
            shard_bytes: self.shard_size,
            row_group_bytes: self.row_group_size,
            shuffle_seed: (!self.sorted).then_some(self.shuffle_seed),
            class_names: self.class_names,
            max_bad: self.max_bad,
            part: match self.part {
                Some(part) => Some(part),
                None => Part::from_env()?,
            },
        })
    }
}

/// Runs the verb.
pub fn run(command: Command, out: &Output) -> Result<ExitCode> {
    let bar = ConvertBar::new(out);
    let stop = signals::stop_on_signal(out)?;
    let report = match command {
        Command::Imagenet(args) => {
            let options = args.pictures.options()?;
            convert::imagenet(&args.src, &args.dst, &options, &bar, &stop)
        }
        Command::Images(args) => {
            let options = args.pictures.options()?;
            convert::images(&args.src, &args.dst, &options, &bar, &stop)
        }
        Command::Kinetics(args) => {
            let (quality, min_psnr) = (args.common.quality, args.common.min_psnr);
            let (src, list) = clips_of(&args.src, args.root);
            let containment = Containment {
                timeout: Duration::from_secs(args.clip_timeout),
                memory_bytes: args.clip_memory,
                ..Containment::new(this_program()?, vec![WORKER.into()])
            };
            let options = KineticsOptions {
                list,
                short_side: (args.short_side > 0).then_some(args.short_side),
                quality,
                min_psnr,
                frame_stride: args.frame_stride,
                frame_range: args.frames.unwrap_or_default(),
                containment: (!args.in_process).then_some(containment),
                common: args.common.options()?,
            };
            convert::kinetics(&src, &args.dst, &options, &bar, &stop)
        }
        Command::Finish { dst } => {
            let splits = convert::finish(&dst)?;
            out.result(&splits, |splits| {
                splits
                    .iter()
                    .map(split_facts)
                    .collect::<Vec<_>>()
                    .join("\n\n")
            })?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    bar.finish();
    out.result(&report?, describe)?;
    Ok(ExitCode::SUCCESS)
}

/// Decodes clips for the conversion that started this process.
pub fn serve_clips() -> Result<ExitCode> {
    signals::ignore()?;
    let faults = match std::env::var(WORKER_FAULT) {
        Ok(faults) => faults.parse().context(WORKER_FAULT)?,
        Err(_) => Faults::default(),
    };
    convert::serve_clips(&faults)?;
    Ok(ExitCode::SUCCESS)
}

/// What to start for another process of this program.
fn this_program() -> Result<PathBuf> {
    // On Linux, the file that runs and not the one that has its name by now.
    let running = Path::new("/proc/self/exe");
    if running.exists() {
        return Ok(running.to_path_buf());
    }
    std::env::current_exe().context("cannot find the file of this program")
}

fn describe(report: &ConvertReport) -> String {
    let mut text = split_facts(&report.split);
    let seconds = report.seconds.max(f64::MIN_POSITIVE);
    text.push_str(&format!(
        "\n{} files in {:.1} s: {:.1} files/s, {:.0} pictures/s, {}/s read; {} shards were there already\n",
        report.items_converted,
        report.seconds,
        report.items_converted as f64 / seconds,
        report.rows_converted as f64 / seconds,
        human_bytes((report.bytes_converted as f64 / seconds) as u64),
        report.shards_resumed,
    ));
    if !report.is_finished {
        text.push_str("this is one part: when all are there, run `pairquet convert finish`\n");
    }
    text
}

fn split_facts(split: &SplitReport) -> String {
    let named = |key: &str, reason: &str| format!("  {}: {}\n", printable(key), printable(reason));
    let mut text = facts([
        ("split", split.split.clone()),
        (
            "read",
            format!("{} files, {}", split.items, human_bytes(split.source_bytes)),
        ),
        (
            "written",
            format!(
                "{} samples, {} pictures, {}",
                split.samples,
                split.rows,
                human_bytes(split.shard_bytes)
            ),
        ),
        ("shards", split.shards.to_string()),
        ("skipped", split.skipped.len().to_string()),
        ("damaged", split.damaged.len().to_string()),
    ]);
    text.push('\n');
    for (fault, count) in split.skipped_by_fault() {
        text.push_str(&format!("skipped as {fault}: {count}\n"));
    }
    for skipped in split.skipped.iter().take(NAMED) {
        text.push_str(&named(&skipped.key, &skipped.reason));
    }
    if !split.damaged.is_empty() {
        text.push_str("kept in part:\n");
    }
    for damaged in split.damaged.iter().take(NAMED) {
        text.push_str(&named(&damaged.key, &damaged.reason));
    }
    for note in split.notes.iter().take(NAMED) {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

/// A source that is a file is a list; its clips lie in `root`, or beside it.
fn clips_of(src: &Path, root: Option<PathBuf>) -> (PathBuf, Option<PathBuf>) {
    if src.is_file() {
        let beside = || {
            src.parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(Path::new("."))
                .to_path_buf()
        };
        (root.unwrap_or_else(beside), Some(src.to_path_buf()))
    } else {
        (src.to_path_buf(), None)
    }
}

/// Shows a conversion's progress in items; also used by the demo.
pub struct ConvertBar(Bar);

impl ConvertBar {
    /// A bar that appears with the first event.
    pub fn new(out: &Output) -> Self {
        Self(Bar::new(out, "converting", "files"))
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.0.finish();
    }
}

impl Progress for ConvertBar {
    fn on(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Planned {
                items,
                items_done,
                shards,
                shards_done,
                ..
            } => {
                self.0.set_total(*items);
                self.0.set_done(*items_done);
                if *items_done > 0 {
                    self.0.say(&format!(
                        "going on: {shards_done} of {shards} shards are done"
                    ));
                }
            }
            ProgressEvent::Item { .. } => self.0.inc(),
            ProgressEvent::Skipped { key, reason } => self.0.say(&format!(
                "skipped {}: {}",
                printable(key),
                printable(reason)
            )),
            ProgressEvent::Shard { name, .. } => self.0.note(name.clone()),
            ProgressEvent::Message(text) => self.0.say(text),
            _ => {}
        }
    }
}
