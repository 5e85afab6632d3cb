//! Pairs per second from a bucket beside the same from the local disk, through a line with 30 ms of latency and 100 MiB/s;
//! and what an epoch fetches.
//!
//! `cargo bench -p pairquet-pipeline --bench bucket [-- images|clips]`. Makes its own pictures and clips. Server and proxy run in this
//! process, so the loader gets one thread and leaves them a core. Every round starts its loaders anew, so nothing that was
//! read ahead while the other side was timed counts, and leaves out its first seconds, in which the first window comes in.
//! The third side of a round is the bucket through a proxy that neither waits nor counts: where that is as slow as the line
//! is, the cores are what was measured, which client, proxy and server share. `PAIRQUET_BENCH_SECONDS` is the length of a
//! round (3).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bucket::{Line, Proxy, Server};
use pipeline::config::{DataConfig, OrderKind, ViewsKind};
use pipeline::convert::{self, CommonOptions, ImagenetOptions, KineticsOptions};
use pipeline::loader::{Loader, LoaderState, Rank, ReadPlan};
use pipeline::stop::Stop;
use pipeline::synth::{self, SynthOptions};
use shards::{Environment, ShardSet, Store, StoreOptions};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ROUNDS: usize = 5;
const WARM_UP: Duration = Duration::from_secs(3);
const LINE: Line = Line {
    latency: Duration::from_millis(30),
    bytes_per_s: Some(100 << 20),
};

fn main() -> Result<()> {
    let seconds = std::env::var("PAIRQUET_BENCH_SECONDS").map_or(Ok(3.0), |s| s.parse())?;
    let round = Duration::from_secs_f64(seconds);
    let dir = tempfile::tempdir()?;
    let server = Server::start_reader()?;
    let proxy = Proxy::start(server.address())?;
    println!("one loader thread, medians of {ROUNDS} interleaved rounds of {seconds} s");
    for views in [ViewsKind::CropPair, ViewsKind::FramePair] {
        let (name, other) = match views {
            ViewsKind::FramePair => ("clips", "images"),
            _ => ("images", "clips"),
        };
        if std::env::args().any(|arg| arg == other) {
            continue;
        }
        let local = dir.path().join(name);
        make(views, dir.path(), &local)?;
        let folder = server.folder().join(name);
        std::fs::create_dir(&folder)?;
        for file in std::fs::read_dir(&local)?.collect::<std::io::Result<Vec<_>>>()? {
            if file.path().is_file() {
                std::fs::copy(file.path(), folder.join(file.file_name()))?;
            }
        }
        let config = DataConfig {
            path: local
                .to_str()
                .ok_or("a temporary folder that is not UTF-8")?
                .to_owned(),
            order: Some(OrderKind::Blocks),
            batch_size: 128,
            threads: 1,
            views,
            repeated_sampling: 2,
            window_groups: 4,
            read_ahead_mib: 48,
            ..DataConfig::default()
        };
        let bench = Bench {
            address: format!("s3://sets/{name}"),
            config,
            proxy: &proxy,
        };
        bench.throughput(name, round)?;
        bench.epoch(name)?;
    }
    Ok(())
}

fn make(views: ViewsKind, dir: &std::path::Path, local: &std::path::Path) -> Result<()> {
    let options = SynthOptions {
        images_per_class: 500,
        clips_per_class: 24,
        frames: 90,
        size: 256,
        ..SynthOptions::default()
    };
    let (raw, dst) = (dir.join("raw"), local.to_str().unwrap_or_default());
    let common = CommonOptions {
        row_group_bytes: 4 << 20,
        ..CommonOptions::default()
    };
    if views == ViewsKind::FramePair {
        synth::write_clips(&raw.join("clips"), &options)?;
        let options = KineticsOptions {
            common,
            ..KineticsOptions::default()
        };
        convert::kinetics(&raw.join("clips"), dst, &options, &(), &Stop::new())?;
    } else {
        synth::write_images(&raw.join("images"), &options)?;
        let options = ImagenetOptions {
            common,
            ..ImagenetOptions::default()
        };
        convert::imagenet(&raw.join("images"), dst, &options, &(), &Stop::new())?;
    }
    Ok(())
}

struct Bench<'a> {
    address: String,
    config: DataConfig,
    proxy: &'a Proxy,
}

impl Bench<'_> {
    fn remote(&self) -> Result<(DataConfig, Arc<ShardSet>)> {
        let environment: Environment = self.proxy.environment().into_iter().collect();
        let store = Store::open_with(&self.address, &StoreOptions::default(), &environment)?;
        let config = DataConfig {
            path: self.address.clone(),
            ..self.config.clone()
        };
        Ok((config, Arc::new(ShardSet::open_in(store, "train")?)))
    }

    fn throughput(&self, name: &str, round: Duration) -> Result<()> {
        let (mut here, mut there, mut direct) = (vec![], vec![], vec![]);
        let (mut shares, mut firsts, mut requests) = (vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let start = LoaderState::default();
            let local = Loader::new(&self.config, 1, Rank::SINGLE, start)?;
            here.push(time(local, Instant::now(), round)?.0);
            for (line, rates) in [(LINE, &mut there), (Line::default(), &mut direct)] {
                self.proxy.set_line(line);
                self.proxy.take_traffic();
                self.proxy.take_log();
                let opened = Instant::now();
                let (config, set) = self.remote()?;
                let remote = Loader::from_source(set, &config, 1, Rank::SINGLE, start)?;
                let (rate, first) = time(remote, opened, round)?;
                rates.push(rate);
                if line.bytes_per_s.is_some() {
                    firsts.push(first);
                    shares.push(100.0 * rate / here[here.len() - 1]);
                    let n_requests = self.proxy.take_traffic().requests as f64;
                    requests.push(n_requests / opened.elapsed().as_secs_f64());
                }
            }
        }
        let (config, set) = self.remote()?;
        let plan = ReadPlan::of(&config, set.as_ref(), Rank::SINGLE)?;
        println!(
            "{name:<7} by {:?}: disk {:.0} pairs/s, bucket {:.0} by {:.0} requests/s, without the line {:.0}; median share {:.1} % \
             of {:.0?}, first batch after {:.2} s",
            plan.read,
            median(&mut here),
            median(&mut there),
            median(&mut requests),
            median(&mut direct),
            median(&mut shares),
            shares,
            median(&mut firsts),
        );
        Ok(())
    }

    /// Bytes of one epoch on the line, against those of the pictures used.
    fn epoch(&self, name: &str) -> Result<()> {
        self.proxy.set_line(Line::default());
        self.proxy.take_traffic();
        let (mut config, set) = self.remote()?;
        config.prefetch_batches = 1;
        let total: u64 = set.groups().iter().map(|group| group.bytes).sum();
        let mut loader =
            Loader::from_source(set, &config, 1, Rank::SINGLE, LoaderState::default())?;
        for _ in 0..loader.batches_per_epoch() {
            let batch = loader.next_batch()?;
            loader.recycle(batch);
        }
        let used = loader.stats().bytes_read;
        let traffic = self.proxy.take_traffic();
        println!(
            "{name:<7} an epoch of {} pairs: {} requests, {:.2} x the bytes of what was read, {:.2} x those of the set",
            loader.stats().pairs,
            traffic.requests,
            traffic.reply_bytes as f64 / used as f64,
            traffic.reply_bytes as f64 / total as f64,
        );
        Ok(())
    }
}

/// Pairs a second after the warm-up, and the seconds from `opened` to that batch.
fn time(mut loader: Loader, opened: Instant, round: Duration) -> Result<(f64, f64)> {
    let batch = loader.next_batch()?;
    loader.recycle(batch);
    let first = opened.elapsed().as_secs_f64();
    while opened.elapsed() < WARM_UP {
        let batch = loader.next_batch()?;
        loader.recycle(batch);
    }
    let (start, mut n_pairs) = (Instant::now(), 0);
    while start.elapsed() < round {
        let batch = loader.next_batch()?;
        n_pairs += batch.len();
        loader.recycle(batch);
    }
    Ok((n_pairs as f64 / start.elapsed().as_secs_f64(), first))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
