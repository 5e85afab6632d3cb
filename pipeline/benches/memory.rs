//! Memory of a loader over many batches: it must stay flat, and under 300 MiB beside the batches; and of one that streams
//! from a bucket, which must stay within its budget however large the set is.
//!
//! `cargo bench -p pairquet-pipeline --bench memory -- [flat [BATCHES] | stream]` (both; 100000). Small made pictures, so that
//! many batches take little time; Linux only, where the system tells a process's memory. Streaming is measured in a process
//! of its own, without the server. Ends with an error where a limit is broken.

use std::path::Path;
use std::process::Command;

use bucket::Server;
use pipeline::config::{DataConfig, OrderKind, ReadKind};
use pipeline::convert::{self, Check, CommonOptions, ImagenetOptions};
use pipeline::loader::{Loader, LoaderState, Rank};
use pipeline::stop::Stop;
use pipeline::synth::{self, SynthOptions};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const BATCH_SIZE: usize = 4;

/// Largest resident memory beside the batch buffers.
const LIMIT_MIB: f64 = 300.0;

/// Growth from a tenth of the batches to the end that is put down to the allocator.
const FLAT_MIB: f64 = 8.0;

/// For batches, pictures on their way, connections, the index, and what the allocator keeps.
const STREAM_SLACK_MIB: f64 = 48.0;

/// The word that makes this program the process that streams.
const STREAMING: &str = "streaming";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => flat(100_000).and_then(|()| stream()),
        ["flat"] => flat(100_000),
        ["flat", batches] => flat(batches.parse()?),
        ["stream"] => stream(),
        [STREAMING, address, read, budget_mib] => streaming(address, read, budget_mib.parse()?),
        _ => Err(format!("{words:?}, expected flat [BATCHES] or stream").into()),
    }
}

fn flat(n_batches: u64) -> Result<()> {
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

/// Sets of one and eight times as many pictures from a bucket, within budgets of two sizes.
fn stream() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let options = SynthOptions {
        images_per_class: 500,
        size: 256,
        ..SynthOptions::default()
    };
    let images = dir.path().join("images");
    synth::write_images(&images, &options)?;
    let server = Server::start_reader()?;
    for times in [1, 8] {
        let many = dir.path().join(format!("{times}x-images"));
        for copy in 0..times {
            link_all(&images, &many, copy)?;
        }
        let set = server.folder().join(format!("{times}x"));
        let options = ImagenetOptions {
            check: Check::Header,
            common: CommonOptions {
                row_group_bytes: 4 << 20,
                ..CommonOptions::default()
            },
            ..ImagenetOptions::default()
        };
        let dst = set.to_str().ok_or("a temporary folder that is not UTF-8")?;
        let report = convert::imagenet(&many, dst, &options, &(), &Stop::new())?;
        let mib = report.split.shard_bytes as f64 / f64::from(1 << 20);
        for (read, budget_mib) in [("groups", "32"), ("groups", "96"), ("pages", "32")] {
            let address = format!("s3://sets/{times}x");
            let program = Command::new(std::env::current_exe()?)
                .args([STREAMING, &address, read, budget_mib])
                .envs(server.environment())
                .output()?;
            let said = String::from_utf8_lossy(&program.stdout);
            println!("set of {mib:.0} MiB by {read}: {}", said.trim());
            if !program.status.success() {
                return Err(String::from_utf8_lossy(&program.stderr).into());
            }
        }
    }
    Ok(())
}

/// The pictures of class folders once more, under other names.
fn link_all(from: &Path, to: &Path, copy: usize) -> Result<()> {
    for class in std::fs::read_dir(from)? {
        let class = class?;
        let folder = to.join(class.file_name());
        std::fs::create_dir_all(&folder)?;
        for file in std::fs::read_dir(class.path())? {
            let file = file?;
            let name = format!("{copy}-{}", file.file_name().to_string_lossy());
            std::fs::hard_link(file.path(), folder.join(name))?;
        }
    }
    Ok(())
}

/// An epoch from a bucket, and the memory that it took at most.
fn streaming(address: &str, read: &str, budget_mib: u64) -> Result<()> {
    let config = DataConfig {
        path: address.to_owned(),
        batch_size: 64,
        size: 32,
        threads: 2,
        order: Some(OrderKind::Blocks),
        window_groups: 4,
        read: Some(match read {
            "pages" => ReadKind::Pages,
            _ => ReadKind::Groups,
        }),
        read_ahead_mib: budget_mib,
        ..DataConfig::default()
    };
    let before = memory_mib("VmRSS:")?;
    let mut loader = Loader::new(&config, 1, Rank::SINGLE, LoaderState::default())?;
    for _ in 0..loader.batches_per_epoch() {
        let made = loader.next_batch()?;
        loader.recycle(made);
    }
    let taken = memory_mib("VmHWM:")? - before;
    println!("{taken:.1} MiB at most beside the program's own {before:.1}, budget {budget_mib}");
    let budget = if read == "groups" {
        budget_mib as f64
    } else {
        0.0
    };
    if taken > budget + STREAM_SLACK_MIB {
        return Err(
            format!("{taken:.1} MiB, expected {budget} and {STREAM_SLACK_MIB} beside").into(),
        );
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
