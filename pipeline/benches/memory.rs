//! Memory of a loader over many batches: it must stay flat, and under 300 MiB beside the batches.
//!
//! `cargo bench -p pairquet-pipeline --bench memory -- [BATCHES]` (100000). Small made pictures, so that many batches take
//! little time; Linux only, where the system tells a process's memory. Ends with an error where a limit is broken.

use pipeline::config::DataConfig;
use pipeline::convert::{self, ImagenetOptions};
use pipeline::loader::{Loader, LoaderState, Rank};
use pipeline::stop::Stop;
use pipeline::synth::{self, SynthOptions};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BATCH_SIZE: usize = 4;

/// Largest resident memory beside the batch buffers.
const LIMIT_MIB: f64 = 300.0;

/// Growth from a tenth of the batches to the end that is put down to the allocator.
const FLAT_MIB: f64 = 8.0;

fn main() -> Result<()> {
    let n_batches = match std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"))
    {
        Some(number) => number.parse()?,
        None => 100_000u64,
    };
    let dir = tempfile::tempdir()?;
    let options = SynthOptions {
        n_classes: 4,
        images_per_class: 50,
        size: 64,
        ..SynthOptions::default()
    };
    synth::write_images(&dir.path().join("images"), &options)?;
    let path = dir.path().join("set").to_string_lossy().into_owned();
    let images = dir.path().join("images");
    convert::imagenet(
        &images,
        &path,
        &ImagenetOptions::default(),
        &(),
        &Stop::new(),
    )?;
    let config = DataConfig {
        path,
        batch_size: BATCH_SIZE,
        size: 32,
        threads: 2,
        ..DataConfig::default()
    };
    let mut loader = Loader::new(&config, 1, Rank::SINGLE, LoaderState::default())?;
    let mut early = 0.0;
    for batch in 1..=n_batches {
        let made = loader.next_batch()?;
        loader.recycle(made);
        if batch % (n_batches / 10).max(1) == 0 {
            let [now, peak] = [memory_mib("VmRSS:")?, memory_mib("VmHWM:")?];
            println!("{batch:>8} batches: {now:6.1} MiB, at most {peak:6.1} MiB");
            if early == 0.0 {
                early = now;
            }
        }
    }
    let buffers =
        config.prefetch_batches as f64 * (BATCH_SIZE * 2 * 32 * 32 * 3) as f64 / f64::from(1 << 20);
    let (now, peak) = (memory_mib("VmRSS:")?, memory_mib("VmHWM:")?);
    if peak > LIMIT_MIB + buffers {
        return Err(
            format!("{peak:.1} MiB at most, expected {LIMIT_MIB} beside the batches").into(),
        );
    }
    if now > early + FLAT_MIB {
        return Err(format!("{early:.1} MiB became {now:.1}, expected the same").into());
    }
    Ok(())
}

/// A line of the system's account of this process.
fn memory_mib(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = number.ok_or("no account of memory")?.parse()?;
    Ok(kib / 1024.0)
}
