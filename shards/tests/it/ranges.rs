//! Which ranges are read, in how many requests.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use shards::{Column, FooterStep, Kind, ShardFooter, ShardSet, Store, tail_range};

use crate::support::*;

/// A store in memory that writes down what is read from it.
#[derive(Debug, Default)]
struct Recording {
    inner: InMemory,
    reads: Mutex<Vec<(String, Option<Range<u64>>)>>,
}

impl Recording {
    fn take(&self) -> Vec<(String, Option<Range<u64>>)> {
        std::mem::take(&mut self.reads.lock().unwrap())
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recording")
    }
}

#[async_trait]
impl ObjectStore for Recording {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.inner.put_opts(path, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, opts).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let range = match &options.range {
            Some(GetRange::Bounded(range)) => Some(range.clone()),
            _ => None,
        };
        self.reads.lock().unwrap().push((path.to_string(), range));
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A set in a recording store.
fn recorded(kind: Kind, n_shards: usize, n: u64) -> (Arc<Recording>, Store) {
    let dir = set(kind, n_shards, n);
    let disk = Store::open(dir.path().to_str().unwrap()).unwrap();
    let recording = Arc::new(Recording::default());
    let store = Store::with_backend(recording.clone(), "memory://set");
    for (path, _) in disk.list("").unwrap() {
        store.put_atomic(&path, &disk.read(&path).unwrap()).unwrap();
    }
    (recording, store)
}

#[test]
fn a_picture_is_one_range_of_about_its_size() {
    for kind in [Kind::Images, Kind::Clips] {
        let (recording, store) = recorded(kind, 2, 20);
        let set = ShardSet::open_in(store, "train").unwrap();
        (0..40).for_each(|n| drop(set.sample(n).unwrap()));
        recording.take();
        for n in 0..40 {
            let frame = set.n_frames(n).unwrap() - 1;
            let picture = set.picture(n, frame).unwrap();
            let reads = recording.take();
            let [(_, Some(range))] = reads.as_slice() else {
                panic!("expected one range, found {reads:?}")
            };
            let overhead = (range.end - range.start) as usize - picture.len();
            assert!(
                (1..=64).contains(&overhead),
                "{overhead} bytes besides the picture"
            );
        }
    }
}

#[test]
fn opening_reads_the_manifest_and_an_index_is_read_once_and_late() {
    let (recording, store) = recorded(Kind::Images, 3, 20);
    let set = ShardSet::open_in(store, "train").unwrap();
    let paths: Vec<String> = recording.take().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["manifest.json"]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (20..40).for_each(|n| drop(set.sample(n).unwrap())));
        }
    });
    let reads = recording.take();
    assert!(
        reads
            .iter()
            .all(|(path, _)| path == "train-00001-of-00003.parquet")
    );
    assert_eq!(
        reads.len(),
        2,
        "the tail, and the small columns, which lie close in a small shard: {reads:?}"
    );
}

#[test]
fn a_shard_without_a_usable_index_is_no_bad_sample_and_is_read_once() {
    let (recording, store) = recorded(Kind::Clips, 2, 20);
    let path = "train-00000-of-00002.parquet";
    let mut bytes = store.read(path).unwrap().to_vec();
    let footer = match ShardFooter::parse(path, bytes.len() as u64, &bytes.clone().into()).unwrap()
    {
        FooterStep::Done(footer) => footer,
        FooterStep::NeedsMore(_) => panic!("the whole file was given"),
    };
    let chunk = footer.column_ranges(&[Column::NFrames]).remove(0);
    let place = (chunk.start as usize..chunk.end as usize)
        .find(|&place| bytes[place..].starts_with(&n_frames(0).to_le_bytes()))
        .unwrap();
    bytes[place..place + 4].copy_from_slice(&1000u32.to_le_bytes());
    store.put_atomic(path, &bytes).unwrap();
    recording.take();

    let set = ShardSet::open_in(store, "train").unwrap();
    let says = |sample| {
        let error = set.n_frames(sample).unwrap_err();
        assert!(!error.is_bad_sample(), "{error}");
        error.to_string()
    };
    let first = says(0);
    assert!(
        first.starts_with(&format!("shard {path}: row ")) && first.contains("1000 frames"),
        "{first}"
    );
    let n_reads = recording.take().len();
    assert_eq!(
        (says(7), recording.take().len()),
        (first, 0),
        "after {n_reads} reads"
    );
    assert_eq!(set.n_frames(20).unwrap(), n_frames(20));
}

#[test]
fn an_index_is_small() {
    let (_, store) = recorded(Kind::Clips, 1, 200);
    let set = ShardSet::open_in(store, "train").unwrap();
    set.sample(0).unwrap();
    let rows = set.manifest().splits["train"].rows() as usize;
    let samples = 200;
    let name_bytes = "class/clip_199".len();
    let groups_and_self = 20_000;
    assert!(set.index_memory_bytes() < 8 * rows + (12 + name_bytes) * samples + groups_and_self);
}

#[test]
fn a_short_tail_asks_for_more_until_it_has_the_offset_index() {
    let file = Bytes::from(shard(Kind::Clips, 0, 60));
    for first in [0, 1, 7, 8, 9, 100, 5_000, file.len()] {
        let mut start = file.len() - first;
        let mut n_steps = 0;
        let footer = loop {
            match ShardFooter::parse("shard", file.len() as u64, &file.slice(start..)).unwrap() {
                FooterStep::Done(footer) => break footer,
                FooterStep::NeedsMore(range) => {
                    assert!(range.end == file.len() as u64 && range.start < start as u64);
                    start = range.start as usize;
                    n_steps += 1;
                }
            }
        };
        assert_eq!(footer.kind(), Kind::Clips);
        assert!(n_steps <= 3, "{n_steps} steps from a tail of {first} bytes");
    }
}

#[test]
fn the_first_read_is_bounded_by_the_file_and_by_reason() {
    assert_eq!(tail_range(1000, u64::MAX), 0..1000);
    let tail = tail_range(i64::MAX as u64, u64::MAX);
    assert!(tail.end - tail.start <= 16 << 20);
    let tail = tail_range(256 << 20, 2_400);
    assert!(tail.end - tail.start < 128 << 10);
}
