//! Whole row groups in place of single pictures: the same samples, the same pictures, the same faults.

use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use shards::{Error, Kind, ShardSet, Store};

use crate::support::*;

const SHARD: &str = "train-00000-of-00001.parquet";

/// What is known of a sample: its place, its label, its name, and its pictures or what is wrong with them.
type Told = (u64, u32, Option<i32>, String, Vec<Result<Bytes, String>>);

/// All samples, each picture read by itself.
fn by_pages(set: &ShardSet) -> Vec<Result<Told, String>> {
    let told = |n| {
        let sample = set.sample(n).map_err(|e| e.to_string())?;
        let picture = |frame| set.picture(n, frame).map_err(|e| e.to_string());
        let pictures = (0..sample.n_frames).map(picture).collect();
        Ok((
            sample.first_row,
            sample.n_frames,
            sample.label,
            sample.key,
            pictures,
        ))
    };
    (0..set.n_samples()).map(told).collect()
}

/// The same by whole row groups.
fn by_groups(set: &ShardSet) -> Vec<Result<Told, String>> {
    let mut all = Vec::new();
    for (number, place) in set.groups().into_iter().enumerate() {
        let group = match set.load_group(number) {
            Ok((first_sample, group)) => {
                assert_eq!(first_sample, place.first_sample);
                group
            }
            Err(error) => {
                all.extend((0..place.n_samples).map(|_| Err(error.to_string())));
                continue;
            }
        };
        assert_eq!(group.n_samples(), place.n_samples);
        assert!(group.memory_bytes() as u64 > place.bytes);
        all.extend((0..group.n_samples()).map(|n| {
            let sample = group.sample(n).map_err(|e| e.to_string())?;
            let picture = |frame| group.picture(n, frame).map_err(|e| e.to_string());
            let pictures = (0..sample.n_frames).map(picture).collect();
            let name = sample.name.to_owned();
            Ok((
                sample.first_row,
                sample.n_frames,
                sample.label,
                name,
                pictures,
            ))
        }));
    }
    all
}

#[test]
fn a_place_is_named_by_shard_and_row_group() {
    let dir = set(Kind::Clips, 3, 15);
    let set = ShardSet::open(dir.path().to_str().unwrap(), "train").unwrap();
    let mut index = 0;
    for shard in &set.manifest().splits["train"].shards {
        let mut within = 0;
        for (number, group) in shard.groups.iter().enumerate() {
            for _ in 0..group.samples {
                let expected = format!("{}, row group {number}, sample {within}", shard.name);
                assert_eq!(set.place(index), expected);
                (index, within) = (index + 1, within + 1);
            }
        }
    }
    assert_eq!(index, set.n_samples());
    assert!(
        set.place(index).contains(&index.to_string()),
        "beyond the end"
    );
}

#[test]
fn groups_hold_what_pages_hold() {
    for kind in [Kind::Images, Kind::Clips] {
        let dir = set(kind, 3, 15);
        let set = ShardSet::open(dir.path().to_str().unwrap(), "train").unwrap();
        assert!(set.groups().len() > 6, "several row groups a shard");
        let told = by_groups(&set);
        assert_eq!(
            set.index_memory_bytes(),
            0,
            "a group needs no shard's index"
        );
        assert!(told.iter().all(Result::is_ok));
        assert!(told == by_pages(&set));
    }
}

#[test]
fn damage_is_the_same_either_way() {
    for kind in [Kind::Images, Kind::Clips] {
        let dir = set(kind, 1, 8);
        let manifest = Bytes::from(std::fs::read(dir.path().join("manifest.json")).unwrap());
        let shard = std::fs::read(dir.path().join(SHARD)).unwrap();
        for at in (4..shard.len()).step_by(5) {
            let mut damaged = shard.clone();
            damaged[at] ^= 1 << (at % 8);
            let backend = Arc::new(InMemory::new());
            let store = Store::with_backend(backend, "memory");
            store.put_atomic(SHARD, &damaged).unwrap();
            store.put_atomic("manifest.json", &manifest).unwrap();
            let set = ShardSet::open_in(store, "train").unwrap();
            let pages = by_pages(&set);
            // A footer that is not there is missed by single pictures alone.
            if pages.iter().all(Result::is_ok) {
                assert!(by_groups(&set) == pages, "byte {at}");
            }
        }
    }
}

#[test]
fn a_group_that_is_not_there_is_an_error() {
    let dir = set(Kind::Images, 2, 10);
    let set = ShardSet::open(dir.path().to_str().unwrap(), "train").unwrap();
    let n_groups = set.groups().len();
    let error = set.load_group(n_groups).unwrap_err();
    assert!(
        matches!(error, Error::OutOfRange { len, .. } if len == n_groups as u64),
        "{error}"
    );
    let (_, group) = set.load_group(0).unwrap();
    assert!(group.sample(group.n_samples()).is_err() && group.picture(0, 1).is_err());
}
