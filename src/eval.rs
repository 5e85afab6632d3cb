//! `pairquet eval`: what a trained encoder is worth.

mod classify;
mod pictures;
mod videos;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use trainer::eval::encoder::{self, CheckpointId, FrozenEncoder};
use trainer::exchange::{Read, ReadOptions};

use crate::output::{Output, facts};

#[derive(Subcommand)]
pub enum Command {
    /// DAVIS 2017, semi-supervised: J (region) and F (contour) of masks carried from the first frame.
    ///
    /// Reads the 480p release as it is (JPEGImages/480p, Annotations/480p, ImageSets/2017) and sizes frames inside, or copies that
    /// were resized beforehand. Scores are reported twice. "original" brings the predicted masks to the size of the annotations
    /// (854x480 in the release), which is what DAVIS's own evaluation compares. "resized" brings the annotations to the size of
    /// the network's input (480x880), which is what CropMAE's published numbers compare, because its frames and annotations were
    /// both resized beforehand. The two differ by up to a point or two, most of it in F, whose contours are compared within a
    /// distance that depends on the size. Compare a number only with one of its own kind.
    Davis(videos::DavisArgs),
    /// VIP: mean intersection over union of 20 body parts carried from the first frame, over all pixels of the set.
    ///
    /// Reads Images/VIDEO and Annotations/Category_ids/VIDEO, for the videos of lists/SUBSET_videos.txt if there is such a list.
    Vip(videos::VipArgs),
    /// JHMDB: share of the 15 joints carried from the first frame that arrive near enough (PCK).
    ///
    /// Reads joint_positions/CLASS/CLIP/joint_positions.mat and Rename_Images/CLASS/CLIP. Papers score the 268 clips of the first
    /// test split: name them with --list; without it all clips are scored.
    Jhmdb(videos::JhmdbArgs),
    /// Draw what an encoder sees: features as colours, attention of the class token.
    Pictures(pictures::PicturesArgs),
    /// Load a checkpoint as the evaluations do, and say what it is: sizes, epoch, a hash of its weights.
    Checkpoint(CheckpointArgs),
    /// Classify by the nearest neighbours of frozen features (DINO's protocol).
    Knn(classify::KnnArgs),
    /// Train a linear classifier on frozen features (MAE's protocol, or a fast one).
    Probe(classify::ProbeArgs),
    /// Train everything with labels (MAE's protocol); the same command goes on where it was stopped.
    Finetune(classify::FinetuneArgs),
}

/// The folder of an evaluation's results, made; named by protocol and weights if `out` does not say it.
fn results_dir(out: Option<&Path>, protocol: &str, id: &CheckpointId) -> Result<PathBuf> {
    let dir = out.map_or_else(
        || {
            let hash: String = id.weights_sha256.chars().take(12).collect();
            Path::new("eval").join(format!("{protocol}-{hash}"))
        },
        Path::to_path_buf,
    );
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// What all evaluations ask for.
#[derive(clap::Args)]
pub struct Shared {
    /// The weights: a run folder (its newest checkpoint), a checkpoint folder, or another program's .pth or safetensors.
    #[arg(long, short, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Attention heads of the encoder, for another program's file [default: the papers' for its width].
    #[arg(long)]
    num_heads: Option<usize>,
    /// Parameters that another program's file lacks keep initial values, with a note, instead of an error.
    #[arg(long)]
    allow_missing: bool,
    /// The running mean of the weights, which runs with `optim.ema_decay` keep, in place of the weights.
    #[arg(long)]
    ema: bool,
    /// Where to compute: cpu, cuda, cuda:N or auto.
    #[arg(long, default_value = "auto")]
    device: String,
}

impl Shared {
    /// Loads the encoder, and says what had to be guessed.
    pub fn load(&self, out: &Output) -> Result<(FrozenEncoder, CheckpointId)> {
        let device = trainer::device::open(&self.device)?;
        let (encoder, id) = FrozenEncoder::load(&self.checkpoint, &self.options(), &device)?;
        say_notes(&id, out);
        Ok((encoder, id))
    }

    /// Reads the encoder's parameters, and says what had to be guessed.
    fn read(&self, out: &Output) -> Result<(Read, CheckpointId)> {
        let (read, id) = encoder::read(&self.checkpoint, &self.options())?;
        say_notes(&id, out);
        Ok((read, id))
    }

    fn options(&self) -> ReadOptions {
        ReadOptions {
            num_heads: self.num_heads,
            allow_missing: self.allow_missing,
            ema: self.ema,
        }
    }
}

fn say_notes(id: &CheckpointId, out: &Output) {
    for note in &id.notes {
        out.say(format!("note: {note}"));
    }
}

#[derive(clap::Args)]
pub struct CheckpointArgs {
    #[command(flatten)]
    shared: Shared,
}

/// Runs the verb.
pub fn run(command: Command, out: &Output) -> Result<ExitCode> {
    match command {
        Command::Davis(args) => videos::run_davis(args, out),
        Command::Vip(args) => videos::run_vip(args, out),
        Command::Jhmdb(args) => videos::run_jhmdb(args, out),
        Command::Pictures(args) => pictures::run_pictures(&args, out),
        Command::Checkpoint(args) => checkpoint(&args.shared, out),
        Command::Knn(args) => classify::run_knn(args, out),
        Command::Probe(args) => classify::run_probe(args, out),
        Command::Finetune(args) => classify::run_finetune(args, out),
    }
}

fn checkpoint(shared: &Shared, out: &Output) -> Result<ExitCode> {
    let (_, id) = shared.load(out)?;
    let known = |number: Option<u64>| number.map_or_else(|| "not told".into(), |n| n.to_string());
    out.result(&id, |id| {
        facts([
            ("checkpoint", id.path.clone()),
            ("encoder", id.encoder.clone()),
            ("epoch", known(id.epoch)),
            ("step", known(id.step)),
            ("sha256 of weights", id.weights_sha256.clone()),
        ])
    })?;
    Ok(ExitCode::SUCCESS)
}
