//! Pairs per second of the loader on shards, beside one thread that only decodes and cuts, and beside pictures in memory:
//! see `pipeline::speed`, which `pairquet bench loader` shows in full for a set and a configuration of one's own.
//!
//! `cargo bench -p pairquet-pipeline --bench loader`. Converts the images and clips of `PAIRQUET_SHARED_DIR` (default:
//! `shared` beside the workspace) into a temporary folder first. `PAIRQUET_BENCH_SECONDS` is the length of a measurement
//! (3), `PAIRQUET_BENCH_THREADS` the numbers of threads (`1,2`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use pipeline::config::{DataConfig, MaxBad, ViewsKind};
use pipeline::convert::{self, CommonOptions, ImagenetOptions, KineticsOptions};
use pipeline::speed::{self, Length, SpeedOptions};
use pipeline::stop::Stop;
use shards::ShardSet;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

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
    let options = SpeedOptions {
        threads,
        rounds: ROUNDS,
        length: Length::Time(Duration::from_secs_f64(seconds)),
        compare: true,
        consumer_pairs_per_s: None,
        seed: 1,
    };
    let dir = tempfile::tempdir()?;
    println!(
        "pairs/s of 224 px views, medians of {ROUNDS} interleaved rounds of {seconds} s, batch {BATCH_SIZE}"
    );
    println!(
        "| set | threads | pairs/s | threads x floor | of it | of from memory | CPU ms | floor's CPU ms | decode ms \
         | views ms | KiB read | bottleneck | without a core |"
    );
    println!(
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |"
    );
    for set in [Set::Images(None), Set::Images(Some(256)), Set::Clips] {
        let path = set.convert(&data, dir.path())?;
        set.time(&path, &options)?;
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

    fn time(&self, path: &str, options: &SpeedOptions) -> Result<()> {
        let views = if matches!(self, Self::Clips) {
            ViewsKind::FramePair
        } else {
            ViewsKind::CropPair
        };
        let config = DataConfig {
            path: path.to_owned(),
            batch_size: BATCH_SIZE,
            views,
            ..DataConfig::default()
        };
        // Small sets are repeated until an epoch fills batches.
        let n_samples = ShardSet::open(path, &config.split)?.n_samples();
        let config = DataConfig {
            repeated_sampling: (BATCH_SIZE as u64).div_ceil(n_samples),
            ..config
        };
        let speed = speed::loader(&config, options, &Stop::new(), |_| {}, |_, _| {})?;
        let or_nan = |figure: Option<f64>| figure.unwrap_or(f64::NAN);
        let floor = speed.floor.as_ref();
        let floor_rate = or_nan(floor.and_then(|floor| floor.pairs_per_s));
        let floor_cpu_ms = or_nan(floor.and_then(|floor| floor.cpu_ms));
        for loader in speed.loaders {
            println!(
                "| {} | {} | {:.0} | {:.0} | {:.1} % | {:.1} % | {:.3} | {:.3} | {:.3} | {:.3} | {:.0} | {} | {:.0} % |",
                self.name(),
                loader.threads,
                or_nan(loader.pairs_per_s),
                loader.threads as f64 * floor_rate,
                or_nan(loader.percent_of_floor),
                or_nan(loader.percent_of_memory),
                or_nan(loader.cpu_ms),
                floor_cpu_ms,
                loader.decode_ms,
                loader.views_ms,
                loader.bytes_per_pair / 1024.0,
                loader.bottleneck,
                or_nan(loader.queued_percent),
            );
        }
        Ok(())
    }
}
