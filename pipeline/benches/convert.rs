//! Conversion beside its ceiling: plainly decoding, and decoding, reducing and coding, the same files in memory.
//!
//! `PAIRQUET_SHARED_DIR=... cargo bench -p pairquet-pipeline --bench convert`; takes the pictures of `data/imagenet`,
//! `PAIRQUET_BENCH_COPIES` times (4), and the clips of `data/videos`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use pipeline::Stop;
use pipeline::codec::video::VideoReader;
use pipeline::codec::{JpegDecoder, Rgb8Image, encode_rgb8};
use pipeline::convert::{Check, ImagenetOptions, KineticsOptions, MaxBad, imagenet, kinetics};
use pipeline::views::resize_short_side;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let shared = std::env::var("PAIRQUET_SHARED_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").to_owned());
    let data = Path::new(&shared).join("data");
    if !data.join("imagenet").exists() {
        println!("SKIPPED: no {}", data.display());
        return Ok(());
    }
    let copies = std::env::var("PAIRQUET_BENCH_COPIES").map_or(Ok(4), |copies| copies.parse())?;
    let threads = std::thread::available_parallelism()?.get();
    println!("{threads} threads");
    let dir = tempfile::tempdir()?;
    pictures(
        &data.join("imagenet/train").canonicalize()?,
        dir.path(),
        copies,
        threads,
    )?;
    clips(&data.join("videos"), dir.path(), threads)
}

fn pictures(train: &Path, dir: &Path, copies: u32, threads: usize) -> Result<()> {
    let src = dir.join("pictures");
    std::fs::create_dir(&src)?;
    for class in std::fs::read_dir(train)? {
        let class = class?.path();
        let name = class
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for copy in 0..copies {
            std::os::unix::fs::symlink(&class, src.join(format!("{name}_{copy}")))?;
        }
    }
    let files = files_under(&src, |_| true);
    timed("pictures: read", "pictures", || {
        in_threads(threads, &files, |file| Ok(std::fs::read(file).map(|_| 1)?))
    })?;
    timed("pictures: read and decode", "pictures", || {
        in_threads(threads, &files, |file| {
            JpegDecoder::new().decode(&std::fs::read(file)?)?;
            Ok(1)
        })
    })?;
    timed(
        "pictures: read, decode, reduce to 256, code",
        "pictures",
        || {
            in_threads(threads, &files, |file| {
                let image = JpegDecoder::new().decode(&std::fs::read(file)?)?;
                coded(&image)?;
                Ok(1)
            })
        },
    )?;
    let mut options = ImagenetOptions::default();
    let convert = |name: &str, options: &ImagenetOptions| {
        let dst = dir.join(name.replace([' ', ',', ':'], "_"));
        timed(name, "pictures", || {
            Ok(imagenet(&src, &dst.to_string_lossy(), options, &(), &Stop::new())?.rows_converted)
        })
    };
    convert("pictures: convert, keep bytes", &options)?;
    options.check = Check::Header;
    convert("pictures: convert, keep bytes, look at headers", &options)?;
    options.short_side = Some(256);
    convert("pictures: convert, short side 256", &options)
}

fn clips(src: &Path, dir: &Path, threads: usize) -> Result<()> {
    let files = files_under(src, |path| {
        path.components().count() > src.components().count() + 1
    });
    let decode = |each: fn(&Rgb8Image) -> Result<()>| {
        in_threads(threads, &files, |file| {
            // Broken ones are named by the conversion below.
            let Ok(mut reader) = VideoReader::open(file) else {
                return Ok(0);
            };
            let mut image = Rgb8Image::default();
            while let Ok(Some(_)) = reader.read_into(&mut image) {
                each(&image)?;
            }
            Ok(reader.n_frames())
        })
    };
    timed("clips: decode", "frames", || decode(|_| Ok(())))?;
    timed("clips: decode, reduce to 256, code", "frames", || {
        decode(coded)
    })?;
    let mut options = KineticsOptions::default();
    options.common.max_bad = MaxBad::Percent(100.0);
    let dst = dir.join("clips_out");
    timed("clips: convert", "frames", || {
        let report = kinetics(src, &dst.to_string_lossy(), &options, &(), &Stop::new())?;
        for skipped in &report.split.skipped {
            println!("  skipped {}: {}", skipped.key, skipped.reason);
        }
        for damaged in &report.split.damaged {
            println!("  damaged {}: {}", damaged.key, damaged.reason);
        }
        Ok(report.rows_converted)
    })
}

/// What a conversion does with a picture, in memory.
fn coded(image: &Rgb8Image) -> Result<()> {
    if image.width.min(image.height) > 256 {
        encode_rgb8(&resize_short_side(image, 256)?, 90)?;
    } else {
        encode_rgb8(image, 90)?;
    }
    Ok(())
}

fn files_under(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let files = walkdir::WalkDir::new(folder)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .flatten();
    files
        .filter(|f| f.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .filter(|path| wanted(path))
        .collect()
}

/// Sums what `work` gives for each item.
fn in_threads<T: Sync>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<u64> + Sync,
) -> Result<u64> {
    let (next, sum) = (AtomicUsize::new(0), AtomicU64::new(0));
    let worker = || -> Result<()> {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            sum.fetch_add(work(item)?, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(sum.into_inner())
}

fn timed(name: &str, unit: &str, work: impl FnOnce() -> Result<u64>) -> Result<()> {
    // Writing 5 resets the peak, so that each line has its own; where that is not allowed, the peak is the run's.
    drop(std::fs::write("/proc/self/clear_refs", "5"));
    let (start, cpu_start) = (Instant::now(), cpu_seconds());
    let n = work()?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu_start);
    let peak = pipeline::process::peak_memory_bytes()
        .map_or_else(|| "?".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    println!(
        "{name:<50} {n:>6} {unit} in {seconds:>7.2} s: {:>8.1}/s, {:>8.1} a second of a core; peak {peak}",
        n as f64 / seconds,
        n as f64 / cpu.max(0.01)
    );
    Ok(())
}

/// Processor time of all threads so far: what counts on a machine that others use too.
fn cpu_seconds() -> f64 {
    /// Linux reports in hundredths of a second.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the program's name, which ends with the last bracket, user and system time are fields 12 and 13.
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS_PER_SECOND
}
