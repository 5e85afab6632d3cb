//! `pairquet eval knn`, `probe` and `finetune`: classification on image shards with labels.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use pipeline::Stop;
use pipeline::config::RandAugmentConfig;
use serde::Serialize;
use trainer::eval::accuracy::{Accuracy, Share};
use trainer::eval::encoder::CheckpointId;
use trainer::eval::finetune::{FinetuneSettings, finetune};
use trainer::eval::knn::{KnnScores, KnnSettings, PAPER_TEMPERATURE, knn};
use trainer::eval::labelled::{LabelledData, Progress};
use trainer::eval::probe::{ProbeSettings, probe};
use trainer::eval::results::{RESULTS_FILE, Results};
use trainer::eval::supervised::SupervisedScores;
use trainer::models::Pool;

use super::{Shared, results_dir};
use crate::output::{Output, facts};
use crate::progress::Bar;
use crate::signals::{self, TimeLimit};

/// What the three ask for.
#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    shared: Shared,
    /// Folder or address of an image set with labels, as `pairquet convert imagenet` writes it.
    #[arg(long, value_name = "SET")]
    data: String,
    /// Another set for the val split [default: that of --data].
    #[arg(long, value_name = "SET")]
    val_data: Option<String>,
    /// Split to learn from.
    #[arg(long, default_value = "train")]
    train_split: String,
    /// Split to score on.
    #[arg(long, default_value = "val")]
    val_split: String,
    /// Number of classes, for Parquet files that do not name theirs.
    #[arg(long, value_name = "N")]
    classes: Option<usize>,
    /// Threads that decode; 0: one less than the cores given.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Folder for results.json and, but for knn, the state that the same command goes on from
    /// [default: eval/PROTOCOL-HASH, the hash of the weights].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What stands for a picture.
#[derive(Clone, Copy, ValueEnum)]
enum PoolArg {
    /// The class token.
    Cls,
    /// The mean of the patches' tokens.
    Mean,
}

impl From<PoolArg> for Pool {
    fn from(pool: PoolArg) -> Pool {
        match pool {
            PoolArg::Cls => Pool::Cls,
            PoolArg::Mean => Pool::Mean,
        }
    }
}

#[derive(clap::Args)]
pub struct KnnArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// What is compared.
    #[arg(long, value_enum, default_value = "cls")]
    pool: PoolArg,
    /// Numbers of neighbours, for example 10,20 [default: 10,20,100,200, as far as the train split has so many pictures].
    #[arg(long, value_name = "K", value_delimiter = ',')]
    k: Vec<usize>,
    /// Divides the cosine before the exponential that weights a vote.
    #[arg(long, default_value_t = PAPER_TEMPERATURE)]
    temperature: f64,
}

#[derive(clap::Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// See every train picture once, without crops, and train by AdamW on its features: minutes instead of days, and a number to
    /// compare checkpoints by, not with the papers'.
    #[arg(long)]
    fast: bool,
    /// What the classifier sees.
    #[arg(long, value_enum, default_value = "cls")]
    pool: PoolArg,
    #[command(flatten)]
    course: CourseArgs,
}

#[derive(clap::Args)]
pub struct FinetuneArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// What the classifier sees.
    #[arg(long, value_enum, default_value = "mean")]
    pool: PoolArg,
    #[command(flatten)]
    course: CourseArgs,
    /// By what each layer learns slower than the one above it [default: 0.75, ViT-B 0.65].
    #[arg(long)]
    layer_decay: Option<f64>,
    /// Largest probability of dropping a branch [default: 0.1, ViT-L 0.2, ViT-H 0.3].
    #[arg(long)]
    drop_path: Option<f64>,
    /// Parameter of mixup; 0 is off [default: 0.8].
    #[arg(long)]
    mixup: Option<f64>,
    /// Parameter of CutMix; 0 is off [default: 1].
    #[arg(long)]
    cutmix: Option<f64>,
    /// Share of a label that is spread over all classes [default: 0.1].
    #[arg(long)]
    label_smoothing: Option<f64>,
    /// Probability of erasing a rectangle [default: 0.25].
    #[arg(long)]
    erase_p: Option<f64>,
    /// Changes that RandAugment draws for a picture; 0 is off [default: 2].
    #[arg(long, value_name = "N")]
    rand_augment: Option<u32>,
}

/// How long and how fast is learned; what is left out is the protocol's.
#[derive(clap::Args)]
struct CourseArgs {
    /// Epochs.
    #[arg(long)]
    epochs: Option<u64>,
    /// Epochs of linear warm-up.
    #[arg(long)]
    warmup_epochs: Option<u64>,
    /// Pictures of a micro-batch.
    #[arg(long)]
    batch_size: Option<usize>,
    /// Micro-batches of a step; the protocols' steps are of 16,384 (probe) and 1024 pictures (finetune).
    #[arg(long)]
    accum_steps: Option<u64>,
    /// Learning rate of 256 pictures a step.
    #[arg(long)]
    base_lr: Option<f64>,
    /// Weight decay.
    #[arg(long)]
    weight_decay: Option<f64>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    time: TimeLimit,
}

/// Runs `knn`.
pub fn run_knn(args: KnnArgs, out: &Output) -> Result<ExitCode> {
    let stop = signals::stop_on_signal(out)?;
    let (encoder, id) = args.common.shared.load(out)?;
    let settings = KnnSettings {
        data: args.common.data(),
        pool: args.pool.into(),
        ks: args.k,
        temperature: args.temperature,
    };
    let dir = args.common.dir("knn", &id)?;
    let mut talk = Talk::new(out);
    let results = knn(&settings, &encoder, id, &stop, &mut |it| talk.tell(it));
    talk.end();
    finish(&results?, &dir, out, describe_knn)
}

/// Runs `probe`.
pub fn run_probe(args: ProbeArgs, out: &Output) -> Result<ExitCode> {
    let stop = args.course.time.stop(out)?;
    let (encoder, id) = args.common.shared.load(out)?;
    let data = args.common.data();
    let protocol = match args.fast {
        true => ProbeSettings::fast(data),
        false => ProbeSettings::mae(data, encoder.sizes().embed_dim),
    };
    let course = args.course;
    let settings = ProbeSettings {
        pool: args.pool.into(),
        epochs: course.epochs.unwrap_or(protocol.epochs),
        warmup_epochs: course.warmup_epochs.unwrap_or(protocol.warmup_epochs),
        batch_size: course.batch_size.unwrap_or(protocol.batch_size),
        accum_steps: course.accum_steps.unwrap_or(protocol.accum_steps),
        base_lr: course.base_lr.unwrap_or(protocol.base_lr),
        weight_decay: course.weight_decay.unwrap_or(protocol.weight_decay),
        seed: course.seed,
        ..protocol
    };
    let dir = args
        .common
        .dir(if args.fast { "fast-probe" } else { "probe" }, &id)?;
    let mut talk = Talk::new(out);
    let results = probe(&settings, &encoder, id, &dir, &stop, &mut |it| {
        talk.tell(it);
    });
    talk.end();
    match args.fast {
        true => finish(&results?, &dir, out, describe_supervised), // stopped, it begins anew
        false => finish_course(results, &course.time, &stop, &dir, out),
    }
}

/// Runs `finetune`.
pub fn run_finetune(args: FinetuneArgs, out: &Output) -> Result<ExitCode> {
    let stop = args.course.time.stop(out)?;
    let device = trainer::device::open(&args.common.shared.device)?;
    let (read, id) = args.common.shared.read(out)?;
    let mut settings = FinetuneSettings::mae(args.common.data(), read.model.sizes().embed_dim);
    let course = args.course;
    settings.pool = args.pool.into();
    settings.seed = course.seed;
    set(&mut settings.epochs, course.epochs);
    set(&mut settings.warmup_epochs, course.warmup_epochs);
    set(&mut settings.batch_size, course.batch_size);
    set(&mut settings.accum_steps, course.accum_steps);
    set(&mut settings.base_lr, course.base_lr);
    set(&mut settings.weight_decay, course.weight_decay);
    set(&mut settings.layer_decay, args.layer_decay);
    set(&mut settings.drop_path, args.drop_path);
    set(&mut settings.mixing.mixup, args.mixup);
    set(&mut settings.mixing.cutmix, args.cutmix);
    set(&mut settings.mixing.label_smoothing, args.label_smoothing);
    set(&mut settings.erase_p, args.erase_p);
    if let Some(n_changes) = args.rand_augment {
        settings.rand_augment = (n_changes > 0).then(|| RandAugmentConfig {
            n_changes,
            ..RandAugmentConfig::default()
        });
    }
    let dir = args.common.dir("finetune", &id)?;
    let mut talk = Talk::new(out);
    let results = finetune(&settings, &read, id, &device, &dir, &stop, &mut |it| {
        talk.tell(it);
    });
    talk.end();
    finish_course(results, &course.time, &stop, &dir, out)
}

/// As [`finish`], unless it was stopped, which leaves a state to go on from.
fn finish_course<S: Serialize>(
    results: trainer::Result<Results<S, SupervisedScores>>,
    time: &TimeLimit,
    stop: &Stop,
    dir: &Path,
    out: &Output,
) -> Result<ExitCode> {
    if matches!(results, Err(trainer::Error::Stopped)) {
        bail!(time.stopped(stop));
    }
    finish(&results?, dir, out, describe_supervised)
}

fn set<T>(field: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *field = given;
    }
}

impl CommonArgs {
    fn data(&self) -> LabelledData {
        LabelledData {
            train: self.data.clone(),
            train_split: self.train_split.clone(),
            val: self.val_data.as_ref().unwrap_or(&self.data).clone(),
            val_split: self.val_split.clone(),
            n_classes: self.classes,
            threads: self.threads,
        }
    }

    /// The folder of the results, made.
    fn dir(&self, protocol: &str, id: &CheckpointId) -> Result<PathBuf> {
        results_dir(self.out.as_deref(), protocol, id)
    }
}

/// Progress on the terminal: a bar for each stage.
struct Talk<'a> {
    out: &'a Output,
    bar: Option<(&'static str, Bar)>,
}

impl<'a> Talk<'a> {
    fn new(out: &'a Output) -> Self {
        Self { out, bar: None }
    }

    fn tell(&mut self, progress: &Progress) {
        match progress {
            Progress::Note(text) => match &self.bar {
                Some((_, bar)) => bar.say(text),
                None => self.out.say(text),
            },
            Progress::Done {
                stage,
                done,
                total,
                note,
            } => {
                if self.bar.as_ref().is_none_or(|(shown, _)| shown != stage) {
                    self.end();
                    let unit = if stage.ends_with("features") {
                        "pictures"
                    } else {
                        "steps"
                    };
                    self.bar = Some((stage, Bar::new(self.out, stage, unit)));
                }
                if let Some((_, bar)) = &self.bar {
                    bar.set_total(*total);
                    bar.note(note.clone());
                    bar.set_done(*done);
                }
            }
        }
    }

    fn end(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish();
        }
    }
}

/// Writes and prints the results; exit code 1 if something could not be scored.
fn finish<S: Serialize, N: Serialize>(
    results: &Results<S, N>,
    dir: &Path,
    out: &Output,
    describe: impl FnOnce(&N) -> String,
) -> Result<ExitCode> {
    let path = dir.join(RESULTS_FILE);
    results.write(&path)?;
    out.result(results, |results| {
        let head = facts([
            ("checkpoint", results.checkpoint.path.clone()),
            ("results", path.display().to_string()),
        ]);
        format!("{head}\n\n{}", describe(&results.scores))
    })?;
    for failed in &results.failed {
        out.say(format!("not scored: {}: {}", failed.what, failed.why));
    }
    Ok(if results.complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn share(share: &Share) -> String {
    format!(
        "{:.2} ({:.2} to {:.2})",
        share.percent, share.low, share.high
    )
}

fn table(head: &str, rows: impl Iterator<Item = (String, Accuracy)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([head, "pictures", "top-1 % (95 %, Wilson)", "top-5 %"]);
    for (name, accuracy) in rows {
        table.add_row([
            name,
            accuracy.n.to_string(),
            share(&accuracy.top1),
            share(&accuracy.top5),
        ]);
    }
    table.trim_fmt()
}

fn describe_knn(scores: &KnnScores) -> String {
    let rows = scores.by_k.iter();
    let table = table("k", rows.map(|(k, accuracy)| (k.to_string(), *accuracy)));
    format!(
        "{table}\n\nneighbours among {} pictures of {} classes",
        scores.n_train, scores.n_classes
    )
}

fn describe_supervised(scores: &SupervisedScores) -> String {
    let last = (scores.epochs.len().to_string(), scores.val);
    let table = table("epochs", std::iter::once(last));
    format!(
        "{table}\n\nbest top-1 {:.2} after epoch {}, chosen on the val split itself; learned from {} pictures of {} classes",
        scores.best_top1, scores.best_epoch, scores.n_train, scores.n_classes
    )
}
