//! `pairquet eval davis`, `vip` and `jhmdb`: labels of a first frame carried through videos.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde::de::DeserializeOwned;
use trainer::eval::davis::{self, BothScales, DavisScores, DavisSettings, LabelOrder, Measures};
use trainer::eval::encoder::PositionScale;
use trainer::eval::frames::{FrameFilter, InputSize, LabelFilter};
use trainer::eval::jhmdb::{self, JhmdbScores, JhmdbSettings, LostJoints, Place, Rounding};
use trainer::eval::propagate::{FeedBack, Propagation};
use trainer::eval::results::{DataId, RESULTS_FILE, Results, Versions};
use trainer::eval::run::{Event, Found, Job, Scores, Video};
use trainer::eval::sampling::Size;
use trainer::eval::sheets;
use trainer::eval::video::{BATCH_FRAMES, Input, Worker};
use trainer::eval::vip::{self, CLASSES, VipScores, VipSettings};

use super::{Shared, results_dir};
use crate::output::{Output, Usage};
use crate::progress::Bar;
use crate::signals;

/// What the three protocols have in common.
#[derive(clap::Args)]
pub struct VideoArgs {
    #[command(flatten)]
    shared: Shared,
    /// The data set's folder.
    #[arg(long, short)]
    data: PathBuf,
    /// Videos to score, as the reference lists them: two paths a line, relative to the data set's folder.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Folder for results.json; scores that are in it, of the same weights, data and settings, are kept
    /// [default: eval/PROTOCOL-HASH, the hash of the weights].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Frames that the encoder looks at together; more only take memory.
    #[arg(long, default_value_t = BATCH_FRAMES, value_parser = positive)]
    batch: usize,
    #[command(flatten)]
    changes: Changes,
}

/// Settings to change; those left out are the reference's.
#[derive(clap::Args)]
#[command(next_help_heading = "Settings, by default the reference's")]
struct Changes {
    /// Size of the network's input: HEIGHTxWIDTH, or one number for the longer side.
    #[arg(long, value_name = "SIZE", value_parser = input_size)]
    size: Option<InputSize>,
    /// Frames before the target that it looks at, beside the first one.
    #[arg(long)]
    n_context: Option<usize>,
    /// Patches that a patch takes its labels from.
    #[arg(long)]
    top_k: Option<usize>,
    /// Patches nearer than this are seen in these frames.
    #[arg(long)]
    radius: Option<f64>,
    /// What similarities are divided by before the softmax.
    #[arg(long)]
    temperature: Option<f64>,
    /// Resize frames with antialiasing, as training views are; the reference samples them without.
    #[arg(long)]
    antialias: bool,
    /// Give a patch the mean of its pixels' labels; the reference samples the middle of the patch.
    #[arg(long)]
    mean_labels: bool,
    /// Resample the position table by the ratio of the grids; the reference adds 0.1 to the new one.
    #[arg(long)]
    exact_positions: bool,
    /// Do not look at the first frame from every frame.
    #[arg(long)]
    no_first_frame: bool,
    /// Let the radius hold in the first frame too.
    #[arg(long)]
    radius_in_first_frame: bool,
    /// Do not fill up the context of early frames with copies of the first frame.
    #[arg(long)]
    no_copies: bool,
    /// Let only the largest label of a patch travel on.
    #[arg(long)]
    hard_labels: bool,
    /// Scale each patch's labels to 0..1.
    #[arg(long)]
    scale_labels: bool,
    /// Compare features as they are, not scaled to length 1.
    #[arg(long)]
    no_cosine: bool,
}

impl Changes {
    fn apply(&self, input: &mut Input, propagation: &mut Propagation) {
        if let Some(size) = self.size {
            input.size = size;
        }
        let set = |value: &mut usize, given: Option<usize>| *value = given.unwrap_or(*value);
        set(&mut propagation.n_context, self.n_context);
        set(&mut propagation.top_k, self.top_k);
        propagation.radius = self.radius.unwrap_or(propagation.radius);
        propagation.temperature = self.temperature.unwrap_or(propagation.temperature);
        if self.antialias {
            input.frame_filter = FrameFilter::Antialiased;
        }
        if self.mean_labels {
            input.label_filter = LabelFilter::Mean;
        }
        if self.exact_positions {
            input.position_scale = PositionScale::Exact;
        }
        if self.hard_labels {
            propagation.feed_back = FeedBack::Hard;
        }
        propagation.first_frame &= !self.no_first_frame;
        propagation.radius_in_first_frame |= self.radius_in_first_frame;
        propagation.copies_of_first_frame &= !self.no_copies;
        propagation.scale_labels |= self.scale_labels;
        propagation.cosine &= !self.no_cosine;
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number above 0".to_owned()),
    }
}

pub(super) fn input_size(text: &str) -> Result<InputSize, String> {
    Ok(match text.split_once('x') {
        None => InputSize::LongSide(positive(text)?),
        Some((height, width)) => InputSize::Exactly(Size {
            height: positive(height)?,
            width: positive(width)?,
        }),
    })
}

/// Arguments of `eval davis`.
#[derive(clap::Args)]
pub struct DavisArgs {
    #[command(flatten)]
    common: VideoArgs,
    /// The list of sequences in ImageSets/2017, without .txt.
    #[arg(long, default_value = "val", conflicts_with = "list")]
    subset: String,
    /// Write the predicted masks there as palette PNGs of the annotations' size, and a contact sheet of the first sequences.
    #[arg(long, value_name = "DIR")]
    masks: Option<PathBuf>,
    /// Of equal labels take the one of the lowest index; the reference orders by blue, green and red.
    #[arg(long, help_heading = "Settings, by default the reference's")]
    order_by_index: bool,
}

/// Arguments of `eval vip`.
#[derive(clap::Args)]
pub struct VipArgs {
    #[command(flatten)]
    common: VideoArgs,
    /// The list of videos in lists, without _videos.txt.
    #[arg(long, default_value = "val", conflicts_with = "list")]
    subset: String,
    /// Do not count the first frame, whose labels are given.
    #[arg(long, help_heading = "Settings, by default the reference's")]
    skip_first_frame: bool,
}

/// Arguments of `eval jhmdb`.
#[derive(clap::Args)]
pub struct JhmdbArgs {
    #[command(flatten)]
    common: VideoArgs,
    /// Patches that a joint's place is read from.
    #[arg(long, default_value_t = JhmdbSettings::default().pose_top_k, value_parser = positive, help_heading = "Settings, by default the reference's")]
    pose_top_k: usize,
    /// Let a place be that of the middle of a patch; the reference takes its first pixel.
    #[arg(long, help_heading = "Settings, by default the reference's")]
    middle_places: bool,
    /// Round places of joints beside the border down; the reference rounds towards zero.
    #[arg(long, help_heading = "Settings, by default the reference's")]
    round_down: bool,
    /// Count joints whose map has died out as missed; the reference leaves them out.
    #[arg(long, help_heading = "Settings, by default the reference's")]
    count_lost_joints: bool,
}

/// Runs `eval davis`.
pub fn run_davis(args: DavisArgs, out: &Output) -> Result<ExitCode> {
    let mut settings = DavisSettings::default();
    let VideoArgs {
        changes,
        data,
        list,
        ..
    } = &args.common;
    changes.apply(&mut settings.input, &mut settings.propagation);
    if args.order_by_index {
        settings.label_order = LabelOrder::Index;
    }
    let found = match list {
        Some(list) => davis::find_listed(list, data),
        None => davis::find(data, &args.subset),
    }?;
    let (input, propagation) = (settings.input.clone(), settings.propagation.clone());
    let (order, masks) = (settings.label_order, args.masks.as_deref());
    let job = Settings {
        protocol: "davis",
        settings,
        input,
        propagation,
        // Masks are written while a sequence is scored, so all of them have to be.
        keeps_scores: masks.is_none(),
    };
    let code = evaluate(
        &args.common,
        job,
        &found,
        |worker, sequence, data| davis::evaluate(worker, sequence, data, order, masks),
        davis_table,
        out,
    )?;
    if let Some(masks) = masks.filter(|_| code == ExitCode::SUCCESS) {
        let sequences: Vec<_> = found.iter().filter_map(|(_, s)| s.as_ref().ok()).collect();
        let path = masks.join("sheet.png");
        sheets::write(&path, &sheets::masks(&sequences, masks)?)?;
        out.say(format!("masks over frames: {}", path.display()));
    }
    Ok(code)
}

/// Runs `eval vip`.
pub fn run_vip(args: VipArgs, out: &Output) -> Result<ExitCode> {
    let mut settings = VipSettings::default();
    let VideoArgs {
        changes,
        data,
        list,
        ..
    } = &args.common;
    changes.apply(&mut settings.input, &mut settings.propagation);
    settings.count_first_frame = !args.skip_first_frame;
    let found = match list {
        Some(list) => davis::find_listed(list, data),
        None => vip::find(data, &args.subset),
    }?;
    let count_first_frame = settings.count_first_frame;
    let (input, propagation) = (settings.input.clone(), settings.propagation.clone());
    let job = Settings {
        protocol: "vip",
        settings,
        input,
        propagation,
        keeps_scores: true,
    };
    evaluate(
        &args.common,
        job,
        &found,
        |worker, video, data| vip::evaluate(worker, video, data, count_first_frame),
        vip_table,
        out,
    )
}

/// Runs `eval jhmdb`.
pub fn run_jhmdb(args: JhmdbArgs, out: &Output) -> Result<ExitCode> {
    let mut settings = JhmdbSettings::default();
    let VideoArgs {
        changes,
        data,
        list,
        ..
    } = &args.common;
    changes.apply(&mut settings.input, &mut settings.propagation);
    settings.pose_top_k = args.pose_top_k;
    if args.middle_places {
        settings.place = Place::Middle;
    }
    if args.round_down {
        settings.rounding = Rounding::Down;
    }
    if args.count_lost_joints {
        settings.lost_joints = LostJoints::Missed;
    }
    let found = match list {
        Some(list) => jhmdb::find_listed(list, data),
        None => jhmdb::find(data),
    }?;
    let (input, propagation) = (settings.input.clone(), settings.propagation.clone());
    let job = Settings {
        protocol: "jhmdb",
        settings: settings.clone(),
        input,
        propagation,
        keeps_scores: true,
    };
    evaluate(
        &args.common,
        job,
        &found,
        |worker, clip, data| jhmdb::evaluate(worker, clip, data, &settings),
        jhmdb_table,
        out,
    )
}

/// Scores, shows progress and prints the table.
fn evaluate<S, V, N>(
    args: &VideoArgs,
    job: Settings<S>,
    found: &Found<V>,
    mut score: impl FnMut(&Worker, &V, DataId) -> trainer::Result<N::Video>,
    table: impl FnOnce(&N) -> Table,
    out: &Output,
) -> Result<ExitCode>
where
    S: Serialize + DeserializeOwned + PartialEq,
    V: Video,
    N: Scores,
{
    job.propagation
        .validate()
        .map_err(|error| Usage(error.to_string()))?;
    let stop = signals::stop_on_signal(out)?;
    let (encoder, checkpoint) = args.shared.load(out)?;
    let path = results_dir(args.out.as_deref(), job.protocol, &checkpoint)?.join(RESULTS_FILE);
    let worker = Worker {
        encoder: &encoder,
        propagation: &job.propagation,
        input: &job.input,
        batch: args.batch,
        stop: &stop,
    };
    let bar = Bar::new(out, "scoring", "videos");
    bar.set_total(found.len() as u64);
    let results: Results<S, N> = Job {
        protocol: job.protocol,
        settings: job.settings,
        root: &args.data,
        checkpoint,
        versions: Versions::here(encoder.device()),
        keeps_scores: job.keeps_scores,
        stop: &stop,
    }
    .run(
        found,
        &path,
        |video, data| score(&worker, video, data),
        |event| match event {
            Event::Begins(name, i, _) => {
                bar.set_done(*i as u64);
                bar.note((*name).to_owned());
            }
            Event::Failed(failed) => {
                bar.say(&format!("{} is not scored: {}", failed.what, failed.why));
            }
            Event::Scored(_) => {}
        },
    )?;
    bar.finish();
    out.result(&results, |results| {
        let mut text = table(&results.scores).trim_fmt();
        for failed in &results.failed {
            text.push_str(&format!("\n{} is not scored: {}", failed.what, failed.why));
        }
        let left = found.len() - results.scores.videos().len() - results.failed.len();
        if left > 0 {
            text.push_str(&format!(
                "\nstopped with {left} to go; the same command goes on"
            ));
        }
        text.push_str(&format!("\nresults: {}", path.display()));
        text
    })?;
    Ok(if results.complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What an evaluation of videos goes by.
struct Settings<S> {
    protocol: &'static str,
    settings: S,
    input: Input,
    propagation: Propagation,
    /// Whether scores of an earlier run may be taken over.
    keeps_scores: bool,
}

fn new_table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.iter().map(|&cell| cell.to_owned()));
    table
}

/// A share as percent.
fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

fn davis_table(scores: &DavisScores) -> Table {
    let mut table = new_table(&[
        "sequence", "objects", "J&F", "J", "J recall", "J decay", "F", "F recall", "F decay",
    ]);
    let mut row = |name: String, objects: usize, m: &Measures| {
        let numbers = [
            m.jf_mean, m.j.mean, m.j.recall, m.j.decay, m.f.mean, m.f.recall, m.f.decay,
        ];
        let cells = [name, objects.to_string()];
        table.add_row(cells.into_iter().chain(numbers.map(percent)));
    };
    for sequence in &scores.sequences {
        let n = sequence.objects.len();
        row(sequence.name.clone(), n, &sequence.mean.original);
    }
    if let Some(BothScales { original, resized }) = &scores.total {
        let n = scores.sequences.iter().map(|s| s.objects.len()).sum();
        row("mean over objects, original size".to_owned(), n, original);
        row("mean over objects, resized".to_owned(), n, resized);
    }
    table
}

fn vip_table(scores: &VipScores) -> Table {
    let mut table = new_table(&["class", "IoU"]);
    let shown = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), percent);
    for (class, iou) in CLASSES.iter().zip(&scores.total.iou) {
        table.add_row([(*class).to_owned(), shown(*iou)]);
    }
    for (name, value) in [
        ("pixels right", scores.total.pixel_accuracy),
        (
            "mean over classes of pixels right",
            scores.total.mean_accuracy,
        ),
        ("mIoU", scores.total.miou),
    ] {
        table.add_row([name.to_owned(), shown(value)]);
    }
    table
}

fn jhmdb_table(scores: &JhmdbScores) -> Table {
    let names: Vec<String> = scores
        .thresholds
        .iter()
        .map(|t| format!("PCK@{t}"))
        .collect();
    let head: Vec<&str> = ["clip"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    let mut table = new_table(&head);
    let mut row = |name: &str, pck: Option<[f64; 5]>| {
        let cells = pck.map_or_else(
            || vec!["-".to_owned(); scores.thresholds.len()],
            |pck| pck.iter().map(|percent| format!("{percent:.1}")).collect(),
        );
        table.add_row([name.to_owned()].into_iter().chain(cells));
    };
    for clip in &scores.clips {
        row(&clip.name, clip.pck);
    }
    row("all clips", scores.pck);
    table
}
