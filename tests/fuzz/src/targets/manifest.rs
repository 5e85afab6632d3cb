//! The manifest of a set, of which no shard is there.

use serde_json::json;
use shards::{MANIFEST_NAME, Manifest, ShardSet, Store};

use super::Target;
use crate::made;
use crate::scratch;

pub(super) const TARGET: Target = Target {
    name: "manifest",
    run,
    seeds: || vec![seed("images", 3), seed("clips", 2)],
    rounds: 6000,
};

fn seed(kind: &str, samples: u64) -> Vec<u8> {
    let entry = json!({
        "name": "train-00000-of-00001.parquet", "rows": 3, "samples": samples, "bytes": 900,
        "sha256": "0".repeat(64), "groups": [{"rows": 3, "samples": samples, "bytes": 700}],
    });
    let manifest = json!({
        "format": 1, "kind": kind, "splits": {"train": {"shards": [entry]}},
        "class_names": [{"id": "n01", "name": "tench"}], "options": {"train": {"shard_bytes": 9}},
        "skipped": {"count": 1, "by_reason": {"truncated": 1}},
    });
    manifest.to_string().into_bytes()
}

fn run(input: &[u8]) {
    scratch::file(MANIFEST_NAME, input);
    let store = made(Store::open(&scratch::folder().join("").to_string_lossy()));
    let Ok(manifest) = Manifest::read(&store) else {
        return;
    };
    for (name, split) in &manifest.splits {
        let counts = (split.rows(), split.samples(), split.bytes());
        for shard in &split.shards {
            let last = shard.group_ranges().last();
            assert!(last.is_none_or(|last| last.end <= shard.bytes + 4));
        }
        if let Ok(set) = ShardSet::open_in(store.clone(), name) {
            assert_eq!(set.n_samples(), counts.1);
            set.groups();
            drop(set.sample(0));
            drop(set.sample(counts.1));
        }
    }
}
