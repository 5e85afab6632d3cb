//! Row groups that are read whole, by a manifest and without a footer; and `verify` of such a set.

use std::collections::BTreeMap;

use serde_json::Map;
use shards::{
    ClassName, GroupEntry, Kind, MANIFEST_NAME, Manifest, ShardEntry, ShardSet, Skipped,
    SplitManifest, Store, verify_in,
};

use super::Target;
use super::shard::shard;
use crate::made;
use crate::scratch;

pub(super) const TARGET: Target = Target {
    name: "group",
    run,
    seeds: || {
        vec![
            seed(Kind::Images, 3),
            seed(Kind::Clips, 2),
            seed(Kind::Images, 40),
        ]
    },
    rounds: 1200,
};

const SHARD: &str = "train-00000-of-00001.parquet";
/// Kind, and rows and samples of the first row group.
const HEAD_BYTES: usize = 3;
/// Bytes of the magic number before the first group.
const MAGIC_BYTES: u64 = 4;

/// The head says what a manifest would, so that what is read is not refused before it is looked at.
fn seed(kind: Kind, samples: usize) -> Vec<u8> {
    let (file, counts) = shard(kind, samples);
    let first = counts.groups.first().copied();
    let numbers = first.map_or((0, 0), |group| (group.rows as u8, group.samples as u8));
    [
        [u8::from(kind == Kind::Clips), numbers.0, numbers.1].as_slice(),
        &file,
    ]
    .concat()
}

fn run(input: &[u8]) {
    let Some((&[kind, rows, samples], file)) = input.split_first_chunk::<HEAD_BYTES>() else {
        return;
    };
    let kind = match kind & 1 {
        0 => Kind::Images,
        _ => Kind::Clips,
    };
    let group = GroupEntry {
        rows: rows.into(),
        samples: samples.into(),
        bytes: (file.len() as u64).saturating_sub(MAGIC_BYTES + 8),
    };
    let entry = ShardEntry {
        name: SHARD.to_owned(),
        rows: group.rows,
        samples: group.samples,
        bytes: file.len() as u64,
        sha256: "0".repeat(64),
        groups: vec![group],
    };
    let split = SplitManifest {
        shards: vec![entry],
    };
    let class = |id: &str| ClassName {
        id: id.to_owned(),
        name: id.to_owned(),
    };
    let manifest = Manifest {
        format: shards::FORMAT_VERSION,
        kind,
        splits: BTreeMap::from([("train".to_owned(), split)]),
        class_names: vec![class("n01"), class("n02")],
        options: Map::from_iter([("train".to_owned(), Map::new().into())]),
        skipped: Skipped::default(),
    };
    scratch::file(SHARD, file);
    scratch::file(MANIFEST_NAME, &made(serde_json::to_vec(&manifest)));
    let store = made(Store::open(&scratch::folder().to_string_lossy()));
    drop(read_all(store.clone()));
    drop(verify_in(&store, &mut |_| ()));
}

fn read_all(store: Store) -> shards::Result<()> {
    let set = ShardSet::open_in(store, "train")?;
    let (_, group) = set.load_group(0)?;
    for sample in 0..group.n_samples() {
        let found = group.named_sample(sample)?;
        for frame in 0..found.n_frames {
            drop(group.picture(sample, frame));
        }
    }
    for sample in 0..set.n_samples() {
        drop(set.named_sample(sample));
        drop(set.picture(sample, 0));
    }
    Ok(())
}
