//! How many pairs a second a configuration's loader makes on this machine, beside what that is measured by.
//!
//! - The floor of the cost: one thread that decodes the needed parts of the same pictures from memory and cuts the views,
//!   and does nothing else: no reads, checksums, queues, order or batches.
//! - The same loader on pictures in memory: what storage costs is the difference.
//!
//! Everything is measured in turn, in rounds, in one process, so that a machine that slows down slows all of it down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use crate::codec::{PartDecoder, PicturePart};
use crate::config::{DataConfig, OrderKind, ReadKind};
use crate::error::{Error, Result};
use crate::loader::{
    Batch, Loader, LoaderState, LoaderStats, Pictures, Rank, Sample, Source, StageStats, audit,
    open,
};
use crate::process::{self, CpuTime};
use crate::stop::Stop;
use crate::views::{Frames, Renderer, SampleKey, Views};

/// How long a measurement lasts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// So much time.
    Time(Duration),
    /// So many batches, of the floor as many pairs as they hold.
    Batches(u64),
}

impl Length {
    fn is_over(self, elapsed: Duration, batches: u64) -> bool {
        match self {
            Self::Time(time) => elapsed >= time,
            Self::Batches(n) => batches >= n,
        }
    }
}

/// What is measured and how often.
#[derive(Debug, Clone)]
pub struct SpeedOptions {
    /// Numbers of computing threads, a loader for each.
    pub threads: Vec<usize>,
    /// Rounds; figures are medians over them.
    pub rounds: usize,
    /// Of each measurement of a round.
    pub length: Length,
    /// Whether the floor and the loader on memory are measured too.
    pub compare: bool,
    /// Also measure how long a consumer waits that takes so many pairs a second.
    pub consumer_pairs_per_s: Option<f64>,
    /// Seed of the order and the views.
    pub seed: u64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct LoaderSpeed {
    /// Samples of the split.
    pub samples: u64,
    /// Pairs in a batch.
    pub batch_size: usize,
    /// Complete rounds.
    pub rounds: usize,
    /// Whether it was ended before all rounds were over.
    pub stopped: bool,
    /// One thread that decodes and cuts from memory; absent if not asked for.
    pub floor: Option<FloorSpeed>,
    /// The loader, for each number of threads.
    pub loaders: Vec<ThreadsSpeed>,
    /// The most memory that the process held; with comparisons, what they hold is included.
    pub peak_memory_bytes: Option<u64>,
}

/// What one thread does that only decodes and cuts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FloorSpeed {
    /// Pairs that were made over and over.
    pub pairs_in_memory: usize,
    /// Mean bytes of the pictures of a pair.
    pub bytes_per_pair: f64,
    /// Median over the rounds.
    pub pairs_per_s: Option<f64>,
    /// Milliseconds of decoding a pair.
    pub decode_ms: f64,
    /// Milliseconds of cutting the views of a pair.
    pub views_ms: f64,
    /// Milliseconds on a core a pair, where the system tells.
    pub cpu_ms: Option<f64>,
}

/// A loader of one number of threads; rates are medians over the rounds, the rest is over all of them.
#[derive(Debug, Clone, Serialize)]
pub struct ThreadsSpeed {
    /// Computing threads.
    pub threads: usize,
    /// Pairs a second.
    pub pairs_per_s: Option<f64>,
    /// The same for each computing thread.
    pub pairs_per_s_per_thread: Option<f64>,
    /// Of `threads` times the floor of the same round.
    pub percent_of_floor: Option<f64>,
    /// Of the same loader on pictures in memory, in the same round.
    pub percent_of_memory: Option<f64>,
    /// Milliseconds on a core a pair, reading and handing out included, where the system tells.
    pub cpu_ms: Option<f64>,
    /// Share of the time that threads were ready to run but had no core, in percent: other work's part in the figures.
    pub queued_percent: Option<f64>,
    /// Milliseconds of decoding a pair.
    pub decode_ms: f64,
    /// Milliseconds of cutting the views of a pair.
    pub views_ms: f64,
    /// Encoded bytes read a pair.
    pub bytes_per_pair: f64,
    /// The stages in the order a sample passes them.
    pub stages: Vec<StageSpeed>,
    /// What limits the speed.
    pub bottleneck: &'static str,
    /// Samples that were replaced.
    pub replaced: u64,
    /// Memory of the process at the end of each round.
    pub memory_bytes: Vec<u64>,
    /// What a consumer of a given rate sees; absent if not asked for.
    pub paced: Option<PacedSpeed>,
}

/// How the workers of a stage spend their time; the shares leave out what falls between, such as taking turns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageSpeed {
    /// Its name.
    pub name: &'static str,
    /// Its threads.
    pub workers: usize,
    /// Percent of their time at work.
    pub busy_percent: f64,
    /// Percent of their time waiting for the stage before.
    pub waiting_in_percent: f64,
    /// Percent of their time waiting for room behind.
    pub waiting_out_percent: f64,
}

/// What a consumer sees that works for a fixed time on each batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PacedSpeed {
    /// Pairs a second that it would take without waiting.
    pub wanted_pairs_per_s: f64,
    /// Pairs a second that it got, the median over the rounds.
    pub pairs_per_s: Option<f64>,
    /// Milliseconds of waiting a batch.
    pub wait_ms: f64,
    /// Percent of its time spent waiting.
    pub wait_percent: f64,
}

/// Measures the loader of `config` (its `threads` has no effect) until all rounds are over or `stop` is raised.
///
/// * `consume`: what the consumer does with each batch, in its own thread; part of what is timed.
/// * `on_measured`: hears of every measurement, with how many are done and how many there will be.
///
/// # Errors
/// [`Error::Invalid`] for options or a configuration that cannot be used, and as [`Loader::new`] and
/// [`Loader::next_batch`].
pub fn loader(
    config: &DataConfig,
    options: &SpeedOptions,
    stop: &Stop,
    mut consume: impl FnMut(&Batch),
    mut on_measured: impl FnMut(usize, usize),
) -> Result<LoaderSpeed> {
    options.validate()?;
    let source = open::source(config)?;
    let held = options
        .compare
        .then(|| Held::gather(source.as_ref(), config, options.seed, MAX_HELD, stop))
        .transpose()?;
    let mut floor = held.as_ref().map(|held| FloorBench::new(config, held));
    let mut benches = Vec::new();
    for &threads in &options.threads {
        let config = DataConfig {
            threads,
            ..config.clone()
        };
        benches.push(ThreadsBench::new(
            Arc::clone(&source),
            held.as_ref(),
            &config,
            options.seed,
            stop,
        )?);
    }
    let each =
        1 + usize::from(options.compare) + usize::from(options.consumer_pairs_per_s.is_some());
    let planned = options.rounds * (benches.len() * each + usize::from(options.compare));
    let (mut done, mut rounds) = (0, 0);
    let mut measured = |n: usize| {
        done += n;
        on_measured(done, planned);
    };
    for _ in 0..options.rounds {
        let mut floor_rate = None;
        if let Some(floor) = &mut floor {
            floor_rate = floor.round(options.length, config.batch_size, stop)?;
            measured(1);
        }
        for bench in &mut benches {
            bench.round(options, floor_rate, &mut consume, stop)?;
            measured(each);
        }
        if stop.is_requested() {
            break;
        }
        rounds += 1;
    }
    Ok(LoaderSpeed {
        samples: source.n_samples(),
        batch_size: config.batch_size,
        rounds,
        stopped: rounds < options.rounds,
        floor: floor.map(FloorBench::report),
        loaders: benches
            .into_iter()
            .map(|bench| bench.report(options.consumer_pairs_per_s))
            .collect(),
        peak_memory_bytes: process::peak_memory_bytes(),
    })
}

/// Measures for about `time` what one thread makes of pictures of the set of `config`, from memory.
///
/// # Errors
/// As [`loader`], and [`Error::Invalid`] if no sample gives a pair.
pub fn floor(config: &DataConfig, seed: u64, time: Duration, stop: &Stop) -> Result<FloorSpeed> {
    let source = open::source(config)?;
    let held = Held::gather(source.as_ref(), config, seed, MAX_HELD_FOR_A_LOOK, stop)?;
    let mut floor = FloorBench::new(config, &held);
    floor.round(Length::Time(time), config.batch_size, stop)?;
    Ok(floor.report())
}

impl SpeedOptions {
    fn validate(&self) -> Result<()> {
        let wrong = |name, value: String, expected: &str| {
            Err(Error::Invalid {
                name,
                value,
                expected: expected.to_owned(),
            })
        };
        if self.threads.is_empty() || self.threads.contains(&0) {
            return wrong(
                "threads",
                format!("{:?}", self.threads),
                "numbers from 1 on",
            );
        }
        if self.rounds == 0 {
            return wrong("rounds", "0".to_owned(), "at least 1");
        }
        match self.consumer_pairs_per_s {
            Some(rate) if !(rate.is_finite() && rate > 0.0) => {
                wrong("rate", rate.to_string(), "more than 0 pairs a second")
            }
            _ => Ok(()),
        }
    }
}

/// Limits of what is held in memory: pairs and bytes.
type HeldLimits = (usize, usize);

/// Enough that the caches of a processor hold none of it.
const MAX_HELD: HeldLimits = (1024, 256 << 20);
/// For a short look at a set that may be remote.
const MAX_HELD_FOR_A_LOOK: HeldLimits = (64, 64 << 20);

/// A sample in memory.
#[derive(Debug, Clone)]
struct HeldSample {
    sample: Sample,
    key: SampleKey,
    /// Which frames the pages are.
    frames: Frames,
    pages: Vec<Bytes>,
}

/// The pictures of the first pairs of an epoch, in memory, in the order of the epoch.
#[derive(Debug, Clone)]
struct Held(Vec<HeldSample>);

impl Held {
    /// Leaves out samples at fault, as the loader does.
    fn gather(
        source: &dyn Source,
        config: &DataConfig,
        seed: u64,
        (max_pairs, max_bytes): HeldLimits,
        stop: &Stop,
    ) -> Result<Self> {
        let order = open::order(source, config, seed)?;
        let views = Views::new(config);
        let (mut worker, mut n_bytes) = (PairMaker::new(&views), 0);
        let mut held = Vec::new();
        let n_pairs = order.n_positions().min(max_pairs as u64);
        let batches = audit::batches(&order, 1, 1, LoaderState::default())?;
        for (_, ids) in batches.take(usize::try_from(n_pairs).unwrap_or(max_pairs)) {
            for id in ids {
                let key = SampleKey {
                    seed,
                    epoch: 0,
                    sample: id,
                };
                let sample = match read(source, &views, order.index(id), key) {
                    Ok(Some(sample)) => sample,
                    Ok(None) | Err(shards::Error::Row { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
                if worker.make(&sample).is_ok() {
                    n_bytes += sample.pages.iter().map(Bytes::len).sum::<usize>();
                    held.push(sample);
                }
            }
            if n_bytes >= max_bytes || stop.is_requested() {
                break;
            }
        }
        if held.is_empty() {
            return Err(Error::Invalid {
                name: "data.path",
                value: config.path.clone(),
                expected: "a set with samples that decode to pairs".to_owned(),
            });
        }
        Ok(Self(held))
    }

    fn bytes_per_pair(&self) -> f64 {
        let bytes: usize = self.0.iter().flat_map(|s| &s.pages).map(Bytes::len).sum();
        bytes as f64 / self.0.len() as f64
    }
}

fn read(
    source: &dyn Source,
    views: &Views,
    index: u64,
    key: SampleKey,
) -> shards::Result<Option<HeldSample>> {
    let sample = source.sample(index)?;
    let Some(frames) = views.frames(key, sample.n_frames) else {
        return Ok(None);
    };
    let pages = match frames {
        Frames::One(frame) => vec![source.picture(index, frame)?],
        Frames::Two(frames) => source.pair(index, frames)?.into(),
    };
    // Pages of their own: a slice would keep a whole row group in memory.
    let pages = pages.iter().map(|page| Bytes::copy_from_slice(page));
    Ok(Some(HeldSample {
        pages: pages.collect(),
        sample,
        key,
        frames,
    }))
}

/// A set of its own. Of a clip the same frames are given whichever are asked for, as only those are in memory; they are of
/// one size and coded alike.
impl Pictures for Held {
    fn sample(&self, index: u64) -> shards::Result<Sample> {
        Ok(self.get(index)?.sample.clone())
    }

    fn picture(&self, index: u64, frame: u32) -> shards::Result<Bytes> {
        let held = self.get(index)?;
        let frames = held.frames.as_slice();
        let place = frames.iter().position(|&f| f == frame).unwrap_or_default();
        Ok(held.pages[place].clone())
    }

    fn pair(&self, index: u64, frames: [u32; 2]) -> shards::Result<[Bytes; 2]> {
        match self.get(index)?.pages.as_slice() {
            [first, second] => Ok([first.clone(), second.clone()]),
            _ => Ok([
                self.picture(index, frames[0])?,
                self.picture(index, frames[1])?,
            ]),
        }
    }
}

impl Source for Held {
    fn n_samples(&self) -> u64 {
        self.0.len() as u64
    }

    fn holds_clips(&self) -> bool {
        self.0
            .iter()
            .any(|held| matches!(held.frames, Frames::Two(_)))
    }
}

impl Held {
    fn get(&self, index: u64) -> shards::Result<&HeldSample> {
        let place = usize::try_from(index).ok();
        place
            .and_then(|place| self.0.get(place))
            .ok_or(shards::Error::OutOfRange {
                what: "sample in memory",
                index,
                len: self.0.len() as u64,
            })
    }
}

/// Decodes and cuts in memory that is reused, as a thread of the loader does.
struct PairMaker<'a> {
    views: &'a Views,
    decoder: PartDecoder,
    parts: [PicturePart; 2],
    renderer: Renderer,
    out: Vec<u8>,
    decode: Duration,
    cut: Duration,
}

impl<'a> PairMaker<'a> {
    fn new(views: &'a Views) -> Self {
        Self {
            views,
            decoder: PartDecoder::new(),
            parts: [PicturePart::default(), PicturePart::default()],
            renderer: views.renderer(),
            out: vec![0; views.sample_bytes()],
            decode: Duration::ZERO,
            cut: Duration::ZERO,
        }
    }

    fn make(&mut self, held: &HeldSample) -> Result<()> {
        let codec = |error| Error::codec(held.sample.key.to_string())(error);
        let start = Instant::now();
        let mut drawn = None;
        for (page, part) in held.pages.iter().zip(&mut self.parts) {
            let picture = self.decoder.open(page).map_err(codec)?;
            let (width, height) = picture.size();
            let draw = *drawn.get_or_insert_with(|| self.views.draw(held.key, width, height));
            picture
                .decode_part(draw.needed(), self.views.reduction(&draw), part)
                .map_err(codec)?;
        }
        let decoded = Instant::now();
        let Some(draw) = drawn else { return Ok(()) };
        let parts = &self.parts[..held.pages.len()];
        self.views
            .render(held.key, &draw, parts, &mut self.renderer, &mut self.out)?;
        self.decode += decoded - start;
        self.cut += decoded.elapsed();
        Ok(())
    }
}

/// Measures the floor.
struct FloorBench<'a> {
    held: &'a Held,
    views: Views,
    next: usize,
    rates: Vec<f64>,
    n_pairs: u64,
    decode: Duration,
    cut: Duration,
    cpu: Option<CpuTime>,
}

impl<'a> FloorBench<'a> {
    fn new(config: &DataConfig, held: &'a Held) -> Self {
        Self {
            held,
            views: Views::new(config),
            next: 0,
            rates: Vec::new(),
            n_pairs: 0,
            decode: Duration::ZERO,
            cut: Duration::ZERO,
            cpu: Some(CpuTime::default()),
        }
    }

    /// Returns pairs a second, if there was time for one.
    fn round(&mut self, length: Length, batch_size: usize, stop: &Stop) -> Result<Option<f64>> {
        let mut maker = PairMaker::new(&self.views);
        let (mut start, mut cpu, mut n_pairs) = (Instant::now(), process::cpu_time(), 0u64);
        for (number, held) in (0..).zip(self.held.0.iter().cycle().skip(self.next)) {
            maker.make(held)?;
            self.next = (self.next + 1) % self.held.0.len();
            if number == 0 {
                // The first one brings memory and tables into being.
                (maker.decode, maker.cut) = (Duration::ZERO, Duration::ZERO);
                (start, cpu) = (Instant::now(), process::cpu_time());
                continue;
            }
            n_pairs += 1;
            let batches = n_pairs / batch_size as u64;
            if length.is_over(start.elapsed(), batches) || stop.is_requested() {
                break;
            }
        }
        let elapsed = start.elapsed();
        let spent = process::cpu_time()
            .zip(cpu)
            .map(|(now, then)| now.since(then));
        self.cpu = self.cpu.zip(spent).map(|(sum, spent)| sum.plus(spent));
        self.n_pairs += n_pairs;
        self.decode += maker.decode;
        self.cut += maker.cut;
        let rate = (n_pairs > 0).then(|| n_pairs as f64 / elapsed.as_secs_f64());
        self.rates.extend(rate);
        Ok(rate)
    }

    fn report(self) -> FloorSpeed {
        let ms = |time: f64| 1e3 * time / self.n_pairs.max(1) as f64;
        FloorSpeed {
            pairs_in_memory: self.held.0.len(),
            bytes_per_pair: self.held.bytes_per_pair(),
            pairs_per_s: median(self.rates),
            decode_ms: ms(self.decode.as_secs_f64()),
            views_ms: ms(self.cut.as_secs_f64()),
            cpu_ms: self.cpu.map(|cpu| ms(cpu.running_s)),
        }
    }
}

/// Measures the loader of one number of threads.
struct ThreadsBench {
    config: DataConfig,
    loader: Loader,
    on_memory: Option<Loader>,
    driven: Vec<Driven>,
    paced: Vec<Driven>,
    of_floor: Vec<f64>,
    of_memory: Vec<f64>,
    memory_bytes: Vec<u64>,
}

/// What came of taking batches for a while.
struct Driven {
    pairs_per_s: f64,
    stats: LoaderStats,
    cpu: Option<CpuTime>,
}

impl ThreadsBench {
    fn new(
        source: Arc<dyn Source>,
        held: Option<&Held>,
        config: &DataConfig,
        seed: u64,
        stop: &Stop,
    ) -> Result<Self> {
        let start = |source, config: &DataConfig| {
            let start = LoaderState::default();
            let loader = Loader::from_source(source, config, seed, Rank::SINGLE, start)?;
            settle(&loader, stop);
            Ok::<_, Error>(loader)
        };
        let on_memory = |held: &Held| {
            let config = DataConfig {
                order: Some(OrderKind::Full),
                read: Some(ReadKind::Pages),
                repeated_sampling: (config.batch_size as u64).div_ceil(held.n_samples()),
                ..config.clone()
            };
            start(Arc::new(held.clone()), &config)
        };
        Ok(Self {
            loader: start(source, config)?,
            on_memory: held.map(on_memory).transpose()?,
            config: config.clone(),
            driven: Vec::new(),
            paced: Vec::new(),
            of_floor: Vec::new(),
            of_memory: Vec::new(),
            memory_bytes: Vec::new(),
        })
    }

    /// `floor`: pairs a second of one thread in this round.
    fn round(
        &mut self,
        options: &SpeedOptions,
        floor: Option<f64>,
        consume: &mut dyn FnMut(&Batch),
        stop: &Stop,
    ) -> Result<()> {
        let prefetched = self.config.prefetch_batches;
        let mut go = |loader: &mut Loader, pace: Option<Duration>| {
            // Work on an accelerator: the cores are free.
            let work = |batch: &Batch| match pace {
                Some(pace) => std::thread::sleep(pace),
                None => consume(batch),
            };
            drive(loader, prefetched, options.length, work, stop)
        };
        let driven = go(&mut self.loader, None)?;
        if let (Some(driven), Some(floor)) = (&driven, floor) {
            let whole = self.config.threads as f64 * floor;
            self.of_floor.push(100.0 * driven.pairs_per_s / whole);
        }
        if let (Some(driven), Some(on_memory)) = (&driven, &mut self.on_memory) {
            let from_memory = go(on_memory, None)?;
            let share = from_memory.map(|memory| 100.0 * driven.pairs_per_s / memory.pairs_per_s);
            self.of_memory.extend(share);
        }
        self.driven.extend(driven);
        if let Some(rate) = options.consumer_pairs_per_s {
            let pace = Duration::from_secs_f64(self.config.batch_size as f64 / rate);
            self.paced.extend(go(&mut self.loader, Some(pace))?);
        }
        self.memory_bytes.extend(process::memory_bytes());
        Ok(())
    }

    fn report(self, consumer_pairs_per_s: Option<f64>) -> ThreadsSpeed {
        let now = self.loader.stats();
        let total = |driven: &[Driven]| {
            let nothing = now.since(&now);
            let stats = driven.iter().map(|driven| &driven.stats);
            stats.fold(nothing, |sum, stats| sum.plus(stats))
        };
        let stats = total(&self.driven);
        let n_pairs = stats.pairs.max(1) as f64;
        let cpu = self
            .driven
            .iter()
            .try_fold(CpuTime::default(), |sum, driven| {
                Some(sum.plus(driven.cpu?))
            });
        // The samples that a stage finished and those handed out are not the same in number.
        let computed = stats.stages.last().map_or(1, |stage| stage.items.max(1)) as f64;
        let rates = |driven: &[Driven]| median(driven.iter().map(|d| d.pairs_per_s).collect());
        let pairs_per_s = rates(&self.driven);
        let stage = |stage: &StageStats| {
            let whole = (stage.busy_s + stage.waiting_in_s + stage.waiting_out_s).max(1e-9);
            StageSpeed {
                name: stage.name,
                workers: stage.workers,
                busy_percent: 100.0 * stage.busy_s / whole,
                waiting_in_percent: 100.0 * stage.waiting_in_s / whole,
                waiting_out_percent: 100.0 * stage.waiting_out_s / whole,
            }
        };
        let paced = |wanted: f64| {
            let stats = total(&self.paced);
            PacedSpeed {
                wanted_pairs_per_s: wanted,
                pairs_per_s: rates(&self.paced),
                wait_ms: 1e3 * stats.consumer_waiting_s / stats.batches.max(1) as f64,
                wait_percent: 100.0 * stats.consumer_waiting_s / stats.elapsed_s.max(1e-9),
            }
        };
        ThreadsSpeed {
            threads: self.config.threads,
            pairs_per_s,
            pairs_per_s_per_thread: pairs_per_s.map(|rate| rate / self.config.threads as f64),
            percent_of_floor: median(self.of_floor),
            percent_of_memory: median(self.of_memory),
            cpu_ms: cpu.map(|cpu| 1e3 * cpu.running_s / n_pairs),
            queued_percent: cpu
                .map(|cpu| 100.0 * cpu.queued_s / (cpu.running_s + cpu.queued_s).max(1e-9)),
            decode_ms: 1e3 * stats.decode_s / computed,
            views_ms: 1e3 * stats.views_s / computed,
            bytes_per_pair: stats.bytes_read as f64 / computed,
            stages: stats.stages.iter().map(stage).collect(),
            bottleneck: stats.bottleneck(),
            replaced: now.replaced,
            paced: consumer_pairs_per_s.map(paced),
            memory_bytes: self.memory_bytes,
        }
    }
}

/// Takes batches, does something with each, and gives them back; `None` if it was stopped before the first.
fn drive(
    loader: &mut Loader,
    prefetched: usize,
    length: Length,
    mut consume: impl FnMut(&Batch),
    stop: &Stop,
) -> Result<Option<Driven>> {
    // What was made ahead while nobody took it does not count, nor does the first one's memory.
    for _ in 0..=prefetched {
        let batch = loader.next_batch()?;
        loader.recycle(batch);
    }
    let (before, cpu, start) = (loader.stats(), process::cpu_time(), Instant::now());
    let (mut n_pairs, mut n_batches) = (0, 0);
    while !length.is_over(start.elapsed(), n_batches) && !stop.is_requested() {
        let batch = loader.next_batch()?;
        n_pairs += batch.len();
        n_batches += 1;
        consume(&batch);
        loader.recycle(batch);
    }
    let elapsed = start.elapsed();
    let cpu = process::cpu_time()
        .zip(cpu)
        .map(|(now, then)| now.since(then));
    let stats = loader.stats().since(&before);
    if n_pairs == 0 {
        return Ok(None);
    }
    settle(loader, stop);
    Ok(Some(Driven {
        pairs_per_s: n_pairs as f64 / elapsed.as_secs_f64(),
        stats,
        cpu,
    }))
}

/// Waits until a loader that nobody takes from has filled its window: before, it takes time from what is measured next.
fn settle(loader: &Loader, stop: &Stop) {
    const MUCH_LONGER_THAN_A_SAMPLE: Duration = Duration::from_millis(100);
    let n_made = || loader.stats().stages.last().map(|stage| stage.items);
    let mut before = n_made();
    while !stop.is_requested() {
        std::thread::sleep(MUCH_LONGER_THAN_A_SAMPLE);
        let now = n_made();
        if now == before {
            return;
        }
        before = now;
    }
}

/// The middle one, the upper of two; `None` of nothing.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
