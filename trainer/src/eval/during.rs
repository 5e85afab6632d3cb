//! Evaluations along a training run: it is trained in portions, and evaluated after each.
//!
//! A portion ends in a checkpoint and the next one goes on from it, so the weights are those of an undisturbed run, to the
//! last bit, and a kill costs no evaluation that was finished.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pipeline::loader::open;
use pipeline::{Stop, check_address};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::davis::{self, DavisScores, DavisSettings, Sequence};
use super::encoder::{CheckpointId, FrozenEncoder};
use super::frames::{FramePicture, InputSize};
use super::jhmdb::{self, JhmdbScores, JhmdbSettings};
use super::knn::{self, KnnSettings};
use super::labelled::LabelledData;
use super::probe::{self, ProbeSettings};
use super::propagate::Propagation;
use super::results::{DataId, RESULTS_FILE, Results, Versions};
use super::run::{Found, Job, Scores, Video};
use super::sampling::Size;
use super::sheets;
use super::video::{BATCH_FRAMES, Input, Worker};
use super::vip::{self, VipScores, VipSettings};
use crate::config::{MAX_COUNT, TrainConfig};
use crate::device;
use crate::distributed::Ranks;
use crate::error::{Error, Result};
use crate::exchange::ReadOptions;
use crate::models::Pool;
use crate::ops::Precision;
use crate::train::{self, Lock, Progress, SUMMARY_FILE, Summary, lock};

/// Neighbours whose vote counts along a run: DINO's best for small encoders; fewer where the split has fewer.
const KNN_K: usize = 20;

/// One line an evaluation, in the run folder.
pub const EVALUATIONS_FILE: &str = "evaluations.jsonl";

/// Folder of the evaluations' own folders, in the run folder.
pub const EVALUATIONS_DIR: &str = "eval";

/// The `[eval]` table of a run: what is evaluated, and when. The last step always is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Epochs between evaluations; 0: only at the end.
    pub every_epochs: u64,
    /// Steps between evaluations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Evaluations spread evenly over the run, in place of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// Whether pictures are drawn too: masks over frames, features as colours, attention.
    pub pictures: bool,
    /// DAVIS 2017.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub davis: Option<Videos>,
    /// VIP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<Videos>,
    /// JHMDB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jhmdb: Option<Videos>,
    /// The nearest neighbours' classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knn: Option<Pictures>,
    /// A linear classifier, the fast variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Pictures>,
}

/// One of the evaluations that are asked for, with its data.
#[derive(Clone, Copy)]
enum Protocol<'a> {
    Davis(&'a Videos),
    Vip(&'a Videos),
    Jhmdb(&'a Videos),
    Knn(&'a Pictures),
    Probe(&'a Pictures),
}

impl Protocol<'_> {
    fn name(self) -> &'static str {
        match self {
            Protocol::Davis(_) => "davis",
            Protocol::Vip(_) => "vip",
            Protocol::Jhmdb(_) => "jhmdb",
            Protocol::Knn(_) => "knn",
            Protocol::Probe(_) => "probe",
        }
    }
}

/// Videos whose first labels are carried through them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Videos {
    /// The data set's folder.
    pub data: PathBuf,
    /// The list of DAVIS's or VIP's sequences.
    #[serde(default = "val_split")]
    pub subset: String,
    /// A list in the reference's form, two paths a line, in place of `subset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<PathBuf>,
    /// Height and width of the network's input; the reference's if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<[usize; 2]>,
}

impl Videos {
    fn input(&self, default: Input) -> Input {
        match self.input {
            None => default,
            Some([height, width]) => Input::at(InputSize::Exactly(Size { height, width })),
        }
    }
}

/// Labelled pictures: a shard set with two splits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pictures {
    /// Folder or URL of the set.
    pub data: String,
    /// Split that is learned from.
    #[serde(default = "train_split")]
    pub train_split: String,
    /// Split that is scored.
    #[serde(default = "val_split")]
    pub val_split: String,
}

fn train_split() -> String {
    "train".to_string()
}

fn val_split() -> String {
    "val".to_string()
}

impl Pictures {
    fn labelled(&self) -> LabelledData {
        LabelledData {
            train: self.data.clone(),
            train_split: self.train_split.clone(),
            val: self.data.clone(),
            val_split: self.val_split.clone(),
            n_classes: None,
            threads: 0,
        }
    }
}

/// One evaluation of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Optimizer steps made before it.
    pub step: u64,
    /// The protocol: `davis`, `vip`, `jhmdb`, `knn`, ...
    pub protocol: String,
    /// Its numbers by name, such as `jf_mean`, in percent.
    pub numbers: BTreeMap<String, f64>,
    /// The evaluation's folder, below the run's.
    pub dir: PathBuf,
}

/// What happens in a run with evaluations.
#[derive(Debug)]
pub enum Event<'a> {
    /// In training.
    Training(&'a Progress<'a>),
    /// An evaluation begins: its protocol, and the steps made.
    Evaluating(&'a str, u64),
    /// It is done.
    Evaluated(&'a Score),
}

/// What came of a run with evaluations.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// Of the last session.
    pub training: Summary,
    /// Whether the run is at its end and evaluated there.
    pub complete: bool,
}

impl EvalConfig {
    /// Whether anything is evaluated.
    pub fn is_on(&self) -> bool {
        !self.protocols().is_empty()
    }

    /// Whether nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is evaluated, in order.
    fn protocols(&self) -> Vec<Protocol<'_>> {
        let all = [
            self.davis.as_ref().map(Protocol::Davis),
            self.vip.as_ref().map(Protocol::Vip),
            self.jhmdb.as_ref().map(Protocol::Jhmdb),
            self.knn.as_ref().map(Protocol::Knn),
            self.probe.as_ref().map(Protocol::Probe),
        ];
        all.into_iter().flatten().collect()
    }

    /// Whether all of it was evaluated after this step.
    fn is_done(&self, done: &[Score], step: u64) -> bool {
        let mut protocols = self.protocols().into_iter();
        protocols.all(|protocol| has(done, protocol.name(), step))
    }

    /// # Errors
    /// [`Error::Config`] naming a value and what was expected.
    pub fn validate(&self) -> Result<()> {
        for (name, count) in [("every_steps", self.every_steps), ("times", self.times)] {
            if count == Some(0) {
                return Err(Error::Config(format!(
                    "eval.{name} is 0, expected at least 1"
                )));
            }
        }
        if self.every_epochs > MAX_COUNT {
            return Err(Error::Config(format!(
                "eval.every_epochs is {}, expected at most {MAX_COUNT}",
                self.every_epochs
            )));
        }
        for pictures in [&self.knn, &self.probe].into_iter().flatten() {
            check_address(&pictures.data).map_err(pipeline::Error::from)?;
        }
        if let Some(jhmdb) = self
            .jhmdb
            .as_ref()
            .filter(|jhmdb| jhmdb.subset != val_split())
        {
            return Err(Error::Config(format!(
                "eval.jhmdb.subset is {:?}, expected a list in its place: JHMDB has no named lists",
                jhmdb.subset
            )));
        }
        Ok(())
    }

    /// The steps that are followed by an evaluation, in order, the last one at the end.
    fn due(&self, total_steps: u64, batches_per_epoch: u64, accum_steps: u64) -> Vec<u64> {
        let mut due = Vec::new();
        if let Some(times) = self.times.map(|times| times.min(total_steps)) {
            due.extend((1..times).map(|i| (total_steps * i).div_ceil(times)));
        } else {
            if let Some(every) = self.every_steps {
                due.extend(
                    (1..)
                        .map(|i| i * every)
                        .take_while(|&step| step < total_steps),
                );
            }
            if self.every_epochs > 0 {
                let batches = self.every_epochs * batches_per_epoch;
                let step = |i: u64| (i * batches).div_ceil(accum_steps);
                due.extend((1..).map(step).take_while(|&step| step < total_steps));
            }
        }
        due.push(total_steps);
        due.sort_unstable();
        due.dedup();
        due.retain(|&step| step > 0);
        due
    }
}

/// Trains as one of `ranks`, and evaluates on the way and at the end, which rank 0 does for all.
///
/// # Errors
/// As [`train::train_over`], and whatever an evaluation meets.
pub fn train(
    ranks: &Ranks,
    config: &TrainConfig,
    run_dir: &Path,
    stop: &Stop,
    see: &mut dyn FnMut(Event),
) -> Result<Evaluated> {
    let config = config.resolved()?;
    let batches_per_epoch = open::batches_per_epoch(&config.data)?;
    let optim = &config.optim;
    let total_steps = optim.total_steps(batches_per_epoch)?;
    let due = config
        .eval
        .due(total_steps, batches_per_epoch, optim.accum_steps);
    let takes_lock = ranks.is_first(); // for evaluations too: two runs would write over each other's
    let _lock = takes_lock.then(|| lock::lock(run_dir)).transpose()?;
    let read = ranks.is_first().then(|| scores(run_dir)).transpose()?;
    let done = ranks.from_first(read)?.unwrap_or_default();
    let mut training = None;
    for step in due {
        if config.eval.is_done(&done, step) && step < total_steps {
            continue;
        }
        let mut portion = config.clone();
        let asked = config.run.stop_after.unwrap_or(total_steps);
        let end = step.min(asked);
        portion.run.stop_after = (end < total_steps).then_some(end);
        let mut tell = |progress: &Progress| see(Event::Training(progress));
        let summary = train::train_portion(ranks, &portion, run_dir, Lock::Held, stop, &mut tell)?;
        let reached = summary.steps;
        training = Some(summary);
        if ranks.is_first() && reached == step && !config.eval.is_done(&done, step) {
            let device = ranks.device(&config.device)?;
            let (encoder, id) = FrozenEncoder::load(run_dir, &ReadOptions::default(), &device)?;
            match evaluate(&config.eval, &encoder, &id, step, run_dir, stop, see) {
                Err(Error::Stopped) => {} // it is made when the run goes on
                result => result?,
            }
        }
        if reached < step || ranks.any(stop.is_requested())? {
            break;
        }
    }
    let mut training = training.ok_or_else(|| Error::Config("a run has no steps".to_string()))?;
    let is_evaluated = config.eval.is_done(&scores(run_dir)?, total_steps);
    let said = ranks.from_first(Some(is_evaluated))?; // the others may have read before rank 0 wrote
    let complete = training.steps == total_steps && said.unwrap_or(is_evaluated);
    if !complete && !training.stopped {
        training.stopped = true; // in its last evaluation
        if ranks.is_first() {
            training.write(&run_dir.join(SUMMARY_FILE))?;
        }
    }
    Ok(Evaluated { training, complete })
}

/// What an evaluation along a run works with.
struct Look<'a> {
    encoder: &'a FrozenEncoder,
    id: &'a CheckpointId,
    pictures: bool,
    into: PathBuf,
    stop: &'a Stop,
}

/// Evaluates an encoder by everything that `config` asks for and that is not there yet, below `run_dir`.
///
/// # Errors
/// [`Error::Stopped`]; [`Error::Evaluation`] if a video cannot be scored: without it the number would be another one;
/// whatever else an evaluation meets.
pub fn evaluate(
    config: &EvalConfig,
    encoder: &FrozenEncoder,
    id: &CheckpointId,
    step: u64,
    run_dir: &Path,
    stop: &Stop,
    see: &mut dyn FnMut(Event),
) -> Result<()> {
    device::set_precision(Precision::F32); // whatever the training rounds to
    for protocol in config.protocols() {
        let name = protocol.name();
        if has(&scores(run_dir)?, name, step) {
            continue;
        }
        see(Event::Evaluating(name, step));
        let dir = Path::new(EVALUATIONS_DIR).join(format!("{name}-{step:08}"));
        let into = run_dir.join(&dir);
        fs::create_dir_all(&into).map_err(Error::io(&into))?;
        let look = Look {
            encoder,
            id,
            pictures: config.pictures,
            into,
            stop,
        };
        let numbers = match protocol {
            Protocol::Davis(videos) => look.davis(videos),
            Protocol::Vip(videos) => look.vip(videos),
            Protocol::Jhmdb(videos) => look.jhmdb(videos),
            Protocol::Knn(pictures) => look.knn(pictures),
            Protocol::Probe(pictures) => look.probe(pictures),
        }?;
        let numbers = numbers
            .into_iter()
            .map(|(name, value)| (name.to_string(), value));
        let score = Score {
            step,
            protocol: name.to_string(),
            numbers: numbers.collect(),
            dir,
        };
        append(run_dir, &score)?;
        see(Event::Evaluated(&score));
    }
    Ok(())
}

/// Numbers by name, in percent.
type Numbers = Vec<(&'static str, f64)>;

impl Look<'_> {
    fn davis(&self, data: &Videos) -> Result<Numbers> {
        let settings = DavisSettings {
            input: data.input(DavisSettings::default().input),
            ..DavisSettings::default()
        };
        let found = match &data.list {
            Some(list) => davis::find_listed(list, &data.data),
            None => davis::find(&data.data, &data.subset),
        }?;
        let masks = self.pictures.then(|| self.into.join("masks"));
        let (input, propagation) = (settings.input.clone(), settings.propagation.clone());
        let order = settings.label_order;
        let results: Results<_, DavisScores> = self.videos(
            "davis",
            settings,
            data,
            &found,
            |worker, sequence, id| davis::evaluate(worker, sequence, id, order, masks.as_deref()),
            (&input, &propagation),
        )?;
        if let Some(masks) = &masks {
            self.draw(&found, masks, &input)?;
        }
        Ok(results.scores.total.map_or_else(Vec::new, |total| {
            vec![
                ("jf_mean", 100.0 * total.resized.jf_mean), // as the papers that are compared with
                ("j_mean", 100.0 * total.resized.j.mean),
                ("f_mean", 100.0 * total.resized.f.mean),
                ("jf_mean_original", 100.0 * total.original.jf_mean),
            ]
        }))
    }

    fn vip(&self, data: &Videos) -> Result<Numbers> {
        let settings = VipSettings {
            input: data.input(VipSettings::default().input),
            ..VipSettings::default()
        };
        let found = match &data.list {
            Some(list) => davis::find_listed(list, &data.data),
            None => vip::find(&data.data, &data.subset),
        }?;
        let (input, propagation) = (settings.input.clone(), settings.propagation.clone());
        let first = settings.count_first_frame;
        let results: Results<_, VipScores> = self.videos(
            "vip",
            settings,
            data,
            &found,
            |worker, video, id| vip::evaluate(worker, video, id, first),
            (&input, &propagation),
        )?;
        let miou = results.scores.total.miou;
        Ok(miou
            .map(|miou| ("miou", 100.0 * miou))
            .into_iter()
            .collect())
    }

    fn jhmdb(&self, data: &Videos) -> Result<Numbers> {
        let settings = JhmdbSettings {
            input: data.input(JhmdbSettings::default().input),
            ..JhmdbSettings::default()
        };
        let found = match &data.list {
            Some(list) => jhmdb::find_listed(list, &data.data),
            None => jhmdb::find(&data.data),
        }?;
        let (input, propagation) = (settings.input.clone(), settings.propagation.clone());
        let results: Results<_, JhmdbScores> = self.videos(
            "jhmdb",
            settings.clone(),
            data,
            &found,
            |worker, clip, id| jhmdb::evaluate(worker, clip, id, &settings),
            (&input, &propagation),
        )?;
        let pck = results.scores.pck;
        Ok(pck.map_or_else(Vec::new, |pck| vec![("pck_01", pck[0]), ("pck_02", pck[1])]))
    }

    fn videos<S, V, N, F>(
        &self,
        protocol: &'static str,
        settings: S,
        data: &Videos,
        found: &Found<V>,
        score: F,
        (input, propagation): (&Input, &Propagation),
    ) -> Result<Results<S, N>>
    where
        S: Serialize + DeserializeOwned + PartialEq,
        V: Video,
        N: Scores,
        F: Fn(&Worker, &V, DataId) -> Result<N::Video>,
    {
        let worker = Worker {
            encoder: self.encoder,
            propagation,
            input,
            batch: BATCH_FRAMES,
            stop: self.stop,
        };
        let results: Results<S, N> = Job {
            protocol,
            settings,
            root: &data.data,
            checkpoint: self.id.clone(),
            versions: Versions::here(self.encoder.device()),
            keeps_scores: !self.pictures,
            stop: self.stop,
        }
        .run(
            found,
            &self.into.join(RESULTS_FILE),
            |video, id| score(&worker, video, id),
            |_| {},
        )?;
        if let Some(failed) = results.failed.first() {
            let problem = format!("{} cannot be scored: {}", failed.what, failed.why);
            return Err(Error::evaluation(&data.data, problem));
        }
        match results.complete {
            true => Ok(results),
            false => Err(Error::Stopped),
        }
    }

    /// Contact sheets of the first sequences, of which the first one's input size is taken for all.
    fn draw(&self, found: &Found<Sequence>, masks: &Path, input: &Input) -> Result<()> {
        let sequences: Vec<_> = sheets::shown(found)
            .iter()
            .filter_map(|(_, sequence)| sequence.as_ref().ok())
            .collect();
        let Some(frame) = sequences.first().and_then(|first| first.frames.first()) else {
            return Ok(());
        };
        let size = input.size.of(FramePicture::read(frame)?.size());
        let frames: Vec<_> = sequences.iter().map(|s| s.frames.clone()).collect();
        let write = |name: &str, picture| sheets::write(&self.into.join(name), &picture);
        write("masks.png", sheets::masks(&sequences, masks)?)?;
        write(
            "features.png",
            sheets::features(self.encoder, &frames, size)?,
        )?;
        write(
            "attention.png",
            sheets::attention(self.encoder, &frames, size)?,
        )
    }

    fn knn(&self, pictures: &Pictures) -> Result<Numbers> {
        let settings = KnnSettings {
            data: pictures.labelled(),
            pool: Pool::Cls,
            ks: Vec::new(), // the papers', as far as the split goes
            temperature: knn::PAPER_TEMPERATURE,
        };
        let id = self.id.clone();
        let results = knn::knn(&settings, self.encoder, id, self.stop, &mut |_| {})?;
        results.write(&self.into.join(RESULTS_FILE))?;
        let by_k = results.scores.by_k;
        let at_k = by_k
            .range(..=KNN_K)
            .next_back()
            .or_else(|| by_k.first_key_value());
        Ok(at_k
            .map(|(_, accuracy)| ("top1", accuracy.top1.percent))
            .into_iter()
            .collect())
    }

    fn probe(&self, pictures: &Pictures) -> Result<Numbers> {
        let settings = ProbeSettings::fast(pictures.labelled());
        let (id, into) = (self.id.clone(), &self.into);
        let results = probe::probe(&settings, self.encoder, id, into, self.stop, &mut |_| {})?;
        results.write(&self.into.join(RESULTS_FILE))?;
        let accuracy = results.scores.val;
        Ok(vec![
            ("top1", accuracy.top1.percent),
            ("top5", accuracy.top5.percent),
        ])
    }
}

fn has(done: &[Score], protocol: &str, step: u64) -> bool {
    done.iter()
        .any(|score| score.step == step && score.protocol == protocol)
}

/// Reads what was evaluated, in the order it was.
///
/// # Errors
/// [`Error::Io`] and [`Error::Json`] naming the file.
pub fn scores(run_dir: &Path) -> Result<Vec<Score>> {
    let path = run_dir.join(EVALUATIONS_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(&path)(error)),
    };
    // A last line that a kill cut short belongs to an evaluation that is made again.
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole
        .map(|line| {
            serde_json::from_str(line).map_err(|source| Error::Json {
                path: path.clone(),
                source,
            })
        })
        .collect()
}

fn append(run_dir: &Path, score: &Score) -> Result<()> {
    let path = run_dir.join(EVALUATIONS_FILE);
    if let Some((name, value)) = score.numbers.iter().find(|(_, value)| !value.is_finite()) {
        let problem = format!(
            "{} gives {name} = {value}, expected a number",
            score.protocol
        );
        return Err(Error::evaluation(&path, problem));
    }
    let mut lines = String::new();
    for known in scores(run_dir)?.iter().chain([score]) {
        let line = serde_json::to_string(known).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        lines.push_str(&line);
        lines.push('\n');
    }
    crate::files::replace(&path, lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_fall_due_by_epochs_steps_or_times_and_at_the_end() {
        let due = |config: EvalConfig| config.due(25, 4, 2);
        assert_eq!(due(EvalConfig::default()), [25]);
        let by_steps = EvalConfig {
            every_steps: Some(10),
            ..EvalConfig::default()
        };
        assert_eq!(due(by_steps.clone()), [10, 20, 25]);
        let by_both = EvalConfig {
            every_epochs: 3,
            ..by_steps
        };
        assert_eq!(due(by_both), [6, 10, 12, 18, 20, 24, 25]);
        let by_times = |times| EvalConfig {
            times: Some(times),
            ..EvalConfig::default()
        };
        assert_eq!(due(by_times(4)), [7, 13, 19, 25]);
        assert_eq!(due(by_times(1)), [25]);
        assert_eq!(due(by_times(100)), (1..=25).collect::<Vec<_>>());
        for (config, named) in [
            (by_times(0), "eval.times"),
            (
                EvalConfig {
                    every_steps: Some(0),
                    ..EvalConfig::default()
                },
                "eval.every_steps",
            ),
        ] {
            assert!(config.validate().unwrap_err().to_string().contains(named));
        }
    }

    #[test]
    fn a_score_cut_short_by_a_kill_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let score = |step| Score {
            step,
            protocol: "knn".to_string(),
            numbers: BTreeMap::from([("top1".to_string(), 1.0 / 3.0)]),
            dir: PathBuf::from("eval/knn"),
        };
        append(dir.path(), &score(3)).unwrap();
        let path = dir.path().join(EVALUATIONS_FILE);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"step\":6,")).unwrap();
        assert_eq!(scores(dir.path()).unwrap(), [score(3)]);
        append(dir.path(), &score(6)).unwrap();
        let known = scores(dir.path()).unwrap();
        assert_eq!(known, [score(3), score(6)]);
        assert!(has(&known, "knn", 6) && !has(&known, "davis", 6));
    }
}
