//! What planning costs does not depend on pictures, and hardly on their number.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pipeline::config::{DataConfig, ViewsKind};
use pipeline::loader::{Rank, ReadPlan, open};
use shards::{
    FORMAT_VERSION, GroupEntry, Kind, Manifest, ShardEntry, ShardSet, Skipped, SplitManifest,
    Store, shard_name,
};

/// A manifest of 100 million frames, 300 a clip, 15 KB a frame, in shards of 256 MiB and row groups of 16 MiB.
fn manifest() -> Manifest {
    let group = GroupEntry {
        rows: 1200,
        samples: 4,
        bytes: 1200 * 15_000,
    };
    let (n_groups, n_shards) = (15, 5556);
    let shard = |n| ShardEntry {
        name: shard_name("train", n, n_shards),
        rows: n_groups * group.rows,
        samples: n_groups * group.samples,
        bytes: n_groups * group.bytes + 1_000_000,
        sha256: "0".repeat(64),
        groups: vec![group; n_groups as usize],
    };
    let split = SplitManifest {
        shards: (0..n_shards).map(shard).collect(),
    };
    Manifest {
        format: FORMAT_VERSION,
        kind: Kind::Clips,
        splits: BTreeMap::from([("train".to_owned(), split)]),
        class_names: Vec::new(),
        options: serde_json::Map::new(),
        skipped: Skipped::default(),
    }
}

#[test]
fn an_epoch_of_a_hundred_million_frames_is_planned_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap().to_owned();
    manifest().write(&Store::open(&path).unwrap()).unwrap();
    let config = DataConfig {
        path: "s3://huge/set".to_owned(),
        views: ViewsKind::FramePair,
        repeated_sampling: 2,
        batch_size: 2048,
        ..DataConfig::default()
    };
    let start = Instant::now();
    let set = Arc::new(ShardSet::open(&path, "train").unwrap());
    let plan = ReadPlan::of(&config, set.as_ref(), Rank::SINGLE).unwrap();
    let order = open::order(set.as_ref(), &config, 1).unwrap();
    let epoch = order.epoch(7);
    let ids: Vec<u64> = (0..2048).map(|position| epoch.sample(position)).collect();
    let took = start.elapsed();
    assert_eq!(plan.requests, 4 * 15 * 5556 * 2 * 2);
    assert!(ids.iter().all(|&id| id < order.n_ids()));
    let _ = writeln!(std::io::stderr(), "planned 100 million frames in {took:?}");
    // Two seconds are promised for the program as it is released; this one is built for tests, on a busy machine.
    assert!(took < Duration::from_secs(10), "{took:?}");
}
