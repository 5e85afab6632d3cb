//! Writing, and reading single pictures at random, beside the ceiling: the same ranges of the same files by plain reads.
//!
//! `cargo bench -p pairquet-shards --bench shard_read`; `PAIRQUET_BENCH_MIB` sets the size (256), which should be far
//! below the memory to time the code, and far above it to time the disk.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use shards::{
    ClipRow, FORMAT_VERSION, FrameRow, ImageRow, Kind, Manifest, ShardEntry, ShardSet, ShardSpec,
    ShardWriter, Skipped, SplitManifest, Store, shard_name, verify,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Bytes of a row group, and of a shard, as a conversion makes them.
const ROW_GROUP_BYTES: u64 = 16 << 20;
const SHARD_BYTES: u64 = 64 << 20;

/// Frames of a clip.
const N_FRAMES: u32 = 100;

fn main() -> Result<()> {
    let mib: u64 = std::env::var("PAIRQUET_BENCH_MIB")
        .ok()
        .map_or(Ok(256), |mib| mib.parse())?;
    let n_threads = std::thread::available_parallelism()?.get();
    for (kind, picture_bytes) in [(Kind::Images, 110_000), (Kind::Clips, 20_000)] {
        let dir = tempfile::tempdir()?;
        println!(
            "{}: {mib} MiB of pictures of {picture_bytes} bytes",
            kind.as_str()
        );
        write(dir.path(), kind, picture_bytes, mib << 20)?;
        let uri = dir
            .path()
            .to_str()
            .ok_or("a temporary folder whose name is not UTF-8")?;
        let set = ShardSet::open(uri, "train")?;
        timed("first look at every shard", 1, || {
            let groups = set.groups();
            Ok((groups.len() as u64, 0))
        })?;
        println!(
            "  index                        {:>8} bytes for {} rows",
            set.index_memory_bytes(),
            rows(&set)
        );
        let order = shuffled(&set)?;
        let places = page_places(dir.path(), picture_bytes, order.len())?;
        for threads in [1, n_threads] {
            timed("random pictures", threads, || {
                in_threads(threads, &order, |&(sample, frame)| {
                    Ok(set.picture(sample, frame)?.len())
                })
            })?;
            timed("ceiling: plain reads", threads, || {
                in_threads(threads, &places, |(file, at)| {
                    plain_read(file, *at, picture_bytes)
                })
            })?;
        }
        timed("verify", 1, || {
            let report = verify(uri, &mut |_| {})?;
            if !report.is_clean() {
                return Err(format!("{:?}", report.findings).into());
            }
            Ok((report.good_rows, report.bytes))
        })?;
    }
    Ok(())
}

/// Runs `work`, which tells items and bytes, and prints the rates.
fn timed(what: &str, threads: usize, work: impl FnOnce() -> Result<(u64, u64)>) -> Result<()> {
    let start = Instant::now();
    let (items, bytes) = work()?;
    let seconds = start.elapsed().as_secs_f64();
    let rates = (
        items as f64 / seconds,
        bytes as f64 / seconds / f64::from(1 << 20),
    );
    println!(
        "  {what:<28} {threads} threads {:>10.0} /s {:>8.0} MiB/s  ({items} in {seconds:.3} s)",
        rates.0, rates.1
    );
    Ok(())
}

/// Writes a set of about `bytes` bytes, timed, made in memory first.
fn write(dir: &Path, kind: Kind, picture_bytes: usize, bytes: u64) -> Result<()> {
    let store = Store::open(
        dir.to_str()
            .ok_or("a temporary folder whose name is not UTF-8")?,
    )?;
    let spec = ShardSpec {
        kind,
        split: "train".to_owned(),
        class_names: Vec::new(),
        options: serde_json::Map::new(),
        row_group_bytes: ROW_GROUP_BYTES,
    };
    let picture = Bytes::from(
        (0..picture_bytes)
            .map(|i| (i * 31 % 251) as u8)
            .collect::<Vec<u8>>(),
    );
    let n_shards = bytes.div_ceil(SHARD_BYTES) as usize;
    let mut split = SplitManifest::default();
    timed("write", 1, || {
        let mut rows = 0;
        for i in 0..n_shards {
            let name = shard_name("train", i, n_shards);
            let mut writer = ShardWriter::new(store.create(&name)?, &spec)?;
            let n_pictures = SHARD_BYTES / picture_bytes as u64;
            match kind {
                Kind::Images => {
                    (0..n_pictures).try_for_each(|n| writer.push_image(&image(i, n, &picture)))?
                }
                Kind::Clips => (0..n_pictures / u64::from(N_FRAMES))
                    .try_for_each(|n| writer.push_clip(&clip(i, n, &picture)))?,
            }
            let (out, counts) = writer.finish()?;
            let written = out.commit()?;
            rows += counts.rows;
            split.shards.push(ShardEntry::new(name, counts, written));
        }
        Ok((rows, split.bytes()))
    })?;
    let manifest = Manifest {
        format: FORMAT_VERSION,
        kind,
        splits: [("train".to_owned(), split)].into(),
        class_names: Vec::new(),
        options: serde_json::Map::new(),
        skipped: Skipped::default(),
    };
    Ok(manifest.write(&store)?)
}

fn image(shard: usize, n: u64, picture: &Bytes) -> ImageRow {
    let key = format!("n01440764/n01440764_{shard}_{n}");
    ImageRow {
        path: format!("{key}.JPEG"),
        key,
        bytes: picture.clone(),
        label: Some(0),
        width: 500,
        height: 375,
    }
}

fn clip(shard: usize, n: u64, picture: &Bytes) -> ClipRow {
    let frame = |k: u32| FrameRow {
        time_us: i64::from(k) * 40_000,
        bytes: picture.clone(),
        width: 340,
        height: 256,
    };
    ClipRow {
        clip: format!("abseiling/{shard}_{n}"),
        label: Some(0),
        frames: (0..N_FRAMES).map(frame).collect(),
    }
}

fn rows(set: &ShardSet) -> u64 {
    set.manifest()
        .splits
        .values()
        .map(SplitManifest::rows)
        .sum()
}

/// Every picture of the set once, in an order without locality.
fn shuffled(set: &ShardSet) -> Result<Vec<(u64, u32)>> {
    let mut order = Vec::new();
    for sample in 0..set.n_samples() {
        order.extend((0..set.n_frames(sample)?).map(|frame| (sample, frame)));
    }
    scatter(&mut order);
    Ok(order)
}

/// Sorts by a hash of the place, which is as good as chance here.
fn scatter<T: Clone>(items: &mut Vec<T>) {
    let mut keyed: Vec<(u64, T)> = items
        .drain(..)
        .enumerate()
        .map(|(i, item)| {
            (
                (i as u64)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(29),
                item,
            )
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    items.extend(keyed.into_iter().map(|(_, item)| item));
}

/// As many places of the size of a picture in the same files.
fn page_places(
    dir: &Path,
    picture_bytes: usize,
    n: usize,
) -> Result<Vec<(std::path::PathBuf, u64)>> {
    let mut places = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let pages = entry.metadata()?.len() / picture_bytes as u64;
        places.extend((0..pages).map(|page| (entry.path(), page * picture_bytes as u64)));
    }
    scatter(&mut places);
    places.truncate(n);
    Ok(places)
}

/// What a reader cannot do without: open, seek, read.
fn plain_read(path: &Path, at: u64, len: usize) -> Result<usize> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::with_capacity(len);
    Ok(file.take(len as u64).read_to_end(&mut bytes)?)
}

/// Splits the items among threads; tells items and bytes.
fn in_threads<T: Sync>(
    threads: usize,
    items: &[T],
    read: impl Fn(&T) -> Result<usize> + Sync,
) -> Result<(u64, u64)> {
    let part = |items: &[T]| -> Result<u64> {
        items
            .iter()
            .try_fold(0, |bytes, item| Ok(bytes + read(item)? as u64))
    };
    let bytes = std::thread::scope(|scope| {
        let parts: Vec<_> = items
            .chunks(items.len().div_ceil(threads))
            .map(|items| scope.spawn(move || part(items)))
            .collect();
        parts.into_iter().try_fold(0, |bytes, thread| {
            Ok::<u64, Box<dyn std::error::Error + Send + Sync>>(
                bytes + thread.join().map_err(|_| "a thread panicked")??,
            )
        })
    })?;
    Ok((items.len() as u64, bytes))
}
