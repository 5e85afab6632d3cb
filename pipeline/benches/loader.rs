//! Pairs per second of the loader on shards, beside the floor of its cost: one thread that decodes the needed parts of
//! the same pictures from memory and cuts the views, without reads, checksums, queues, order or batches, times the
//! number of threads.
//!
//! `cargo bench -p pairquet-pipeline --bench loader`. Converts the images and clips of `PAIRQUET_SHARED_DIR` (default:
//! `shared` beside the workspace) into a temporary folder first. `PAIRQUET_BENCH_SECONDS` is the length of a round (3),
//! `PAIRQUET_BENCH_THREADS` the numbers of threads (`1,2`).
//!
//! Where other programs share the machine, processor time tells more than the clock: the last share is that of a pair's
//! processor time on the floor in that of the whole process while it loads (Linux only).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pipeline::codec::{PartDecoder, PicturePart};
use pipeline::config::{DataConfig, MaxBad, ViewsKind};
use pipeline::convert::{self, CommonOptions, ImagenetOptions, KineticsOptions};
use pipeline::loader::{Loader, LoaderState, Rank};
use pipeline::stop::Stop;
use pipeline::views::{SampleKey, Views};
use shards::ShardSet;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SEED: u64 = 1;
const BATCH_SIZE: usize = 32;
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let shared = std::env::var_os("PAIRQUET_SHARED_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let data = shared.join("data");
    if !data.is_dir() {
        println!("SKIPPED: loader: no {}", data.display());
        return Ok(());
    }
    let threads = std::env::var("PAIRQUET_BENCH_THREADS").unwrap_or_else(|_| "1,2".to_owned());
    let threads = threads
        .split(',')
        .map(|n| n.trim().parse())
        .collect::<std::result::Result<Vec<usize>, _>>()?;
    let seconds = std::env::var("PAIRQUET_BENCH_SECONDS").map_or(Ok(3.0), |s| s.parse())?;
    let dir = tempfile::tempdir()?;
    println!(
        "pairs/s of 224 px views, medians of {ROUNDS} interleaved rounds of {seconds} s, batch {BATCH_SIZE}"
    );
    for set in [Set::Images(None), Set::Images(Some(256)), Set::Clips] {
        let path = set.convert(&data, dir.path())?;
        for &threads in &threads {
            set.time(&path, threads, Duration::from_secs_f64(seconds))?;
        }
    }
    Ok(())
}

/// What is loaded.
enum Set {
    /// ImageNet pictures as they are, or of this short side in px.
    Images(Option<u32>),
    /// Frame pairs of clips of short side 256.
    Clips,
}

impl Set {
    fn name(&self) -> String {
        match self {
            Self::Images(None) => "images, original bytes".to_owned(),
            Self::Images(Some(short)) => format!("images, short side {short}"),
            Self::Clips => "frame pairs of clips".to_owned(),
        }
    }

    fn convert(&self, data: &Path, dir: &Path) -> Result<String> {
        let path = dir
            .join(self.name())
            .to_str()
            .ok_or("a temporary folder whose name is not UTF-8")?
            .to_owned();
        let common = CommonOptions {
            max_bad: MaxBad::Percent(100.0),
            ..CommonOptions::default()
        };
        match *self {
            Self::Images(short_side) => {
                let options = ImagenetOptions {
                    common,
                    short_side,
                    ..ImagenetOptions::default()
                };
                convert::imagenet(&data.join("imagenet"), &path, &options, &(), &Stop::new())?
            }
            Self::Clips => {
                let options = KineticsOptions {
                    common,
                    ..KineticsOptions::default()
                };
                convert::kinetics(&data.join("videos"), &path, &options, &(), &Stop::new())?
            }
        };
        Ok(path)
    }

    fn time(&self, path: &str, threads: usize, round: Duration) -> Result<()> {
        let views = if matches!(self, Self::Clips) {
            ViewsKind::FramePair
        } else {
            ViewsKind::CropPair
        };
        let config = DataConfig {
            path: path.to_owned(),
            batch_size: BATCH_SIZE,
            threads,
            views,
            ..DataConfig::default()
        };
        // Small sets are repeated until an epoch fills batches.
        let n_samples = ShardSet::open(path, &config.split)?.n_samples();
        let config = DataConfig {
            repeated_sampling: (BATCH_SIZE as u64).div_ceil(n_samples),
            ..config
        };
        let cached = cache(&config)?;
        let mut loader = Loader::new(&config, SEED, Rank::SINGLE, LoaderState::default())?;
        let (mut rates, mut floors) = (Vec::new(), Vec::new());
        let (mut shares, mut cpu_shares) = (Vec::new(), Vec::new());
        let recycled = loader.next_batch()?;
        loader.recycle(recycled);
        for _ in 0..ROUNDS {
            let loaded = time_loader(&mut loader, round)?;
            // The loader is idle here: its window is full.
            std::thread::sleep(Duration::from_millis(300));
            let alone = decode_and_cut(&config, &cached, round)?;
            rates.push(loaded.rate);
            floors.push(threads as f64 * alone.rate);
            shares.push(100.0 * loaded.rate / (threads as f64 * alone.rate));
            cpu_shares.push(100.0 * alone.cpu_s / loaded.cpu_s);
        }
        let stats = loader.stats();
        let (rate, floor) = (median(&mut rates), median(&mut floors));
        let (share, cpu_share) = (median(&mut shares), median(&mut cpu_shares));
        println!(
            "{:<24} {threads} thread(s): loader {rate:7.1}, {threads} x floor {floor:7.1}, median share {share:.1} % \
             ({cpu_share:.1} % of processor time); \
             decode {:.3} ms, views {:.3} ms a pair; {:.0} KiB read a pair; bottleneck {}",
            self.name(),
            1e3 * stats.decode_s / stats.stages[1].items as f64,
            1e3 * stats.views_s / stats.stages[1].items as f64,
            stats.bytes_read as f64 / 1024.0 / stats.stages[0].items as f64,
            stats.bottleneck(),
        );
        Ok(())
    }
}

/// Pairs a second, and the process's processor seconds for each.
struct Speed {
    rate: f64,
    cpu_s: f64,
}

/// The clocks of a round.
struct Clocks(Instant, f64);

impl Clocks {
    fn start() -> Self {
        Self(Instant::now(), processor_s())
    }

    fn stop(&self, n_pairs: usize) -> Speed {
        Speed {
            rate: n_pairs as f64 / self.0.elapsed().as_secs_f64(),
            cpu_s: (processor_s() - self.1) / n_pairs as f64,
        }
    }
}

/// Processor seconds of this process, to a hundredth; not a number where the system does not tell.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time are the 12th and 13th fields behind the name, which ends with the last parenthesis.
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks: Vec<f64> = fields
        .skip(11)
        .take(2)
        .filter_map(|n| n.parse().ok())
        .collect();
    match ticks.as_slice() {
        [user, system] => (user + system) / 100.0,
        _ => f64::NAN,
    }
}

fn time_loader(loader: &mut Loader, round: Duration) -> Result<Speed> {
    // What was made ahead while nobody took it does not count.
    for _ in 0..2 {
        let batch = loader.next_batch()?;
        loader.recycle(batch);
    }
    let (clocks, mut n_pairs) = (Clocks::start(), 0);
    while clocks.0.elapsed() < round {
        let batch = loader.next_batch()?;
        n_pairs += batch.len();
        loader.recycle(batch);
    }
    Ok(clocks.stop(n_pairs))
}

/// A sample's key and pictures.
type Cached = (SampleKey, Vec<Bytes>);

/// The pictures that one epoch's views need, in memory.
fn cache(config: &DataConfig) -> Result<Vec<Cached>> {
    let set = ShardSet::open(&config.path, &config.split)?;
    let views = Views::new(config);
    let mut cached = Vec::new();
    for sample in 0..set.n_samples() * config.repeated_sampling {
        let index = sample / config.repeated_sampling;
        let key = SampleKey {
            seed: SEED,
            epoch: 0,
            sample,
        };
        let Some(frames) = views.frames(key, set.n_frames(index)?) else {
            continue;
        };
        let pages = frames
            .as_slice()
            .iter()
            .map(|&frame| set.picture(index, frame))
            .collect::<shards::Result<_>>()?;
        cached.push((key, pages));
    }
    Ok(cached)
}

fn decode_and_cut(config: &DataConfig, cached: &[Cached], round: Duration) -> Result<Speed> {
    let views = Views::new(config);
    let (mut decoder, mut renderer) = (PartDecoder::new(), views.renderer());
    let mut parts = [PicturePart::default(), PicturePart::default()];
    let mut out = vec![0; views.sample_bytes()];
    let (clocks, mut n_pairs) = (Clocks::start(), 0);
    for (key, pages) in cached.iter().cycle() {
        let mut drawn = None;
        for (page, part) in pages.iter().zip(&mut parts) {
            let picture = decoder.open(page)?;
            let (width, height) = picture.size();
            let draw = *drawn.get_or_insert_with(|| views.draw(*key, width, height));
            picture.decode_part(draw.needed(), views.reduction(&draw), part)?;
        }
        let draw = drawn.ok_or("a sample without pictures")?;
        views.render(*key, &draw, &parts[..pages.len()], &mut renderer, &mut out)?;
        n_pairs += 1;
        if clocks.0.elapsed() >= round {
            break;
        }
    }
    Ok(clocks.stop(n_pairs))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
