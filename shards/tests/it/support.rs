//! Sets with known content, made in memory or in a temporary folder.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Map;
use shards::{
    ClassName, ClipRow, FORMAT_VERSION, FrameRow, ImageRow, Kind, Manifest, ShardEntry, ShardSpec,
    ShardWriter, Skipped, SplitManifest, Store, shard_name,
};
use tempfile::TempDir;

/// Row groups of a few pictures, so that small shards have several.
pub const ROW_GROUP_BYTES: u64 = 4000;

/// Bytes that look like no others: a picture of number `n`, of a length that depends on it.
pub fn picture(n: u64) -> Bytes {
    let len = 200 + (n * 7919) % 1500;
    let mut state = n + 1;
    let next = |_| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(next).collect()
}

/// So many bytes that look like no others.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next)
        .take(len.div_ceil(8))
        .flatten()
        .collect();
    bytes.truncate(len);
    bytes
}

/// In lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    shards::hex(&sha2::Sha256::digest(bytes))
}

pub fn spec(kind: Kind) -> ShardSpec {
    let class = |id: &str, name: &str| ClassName {
        id: id.to_owned(),
        name: name.to_owned(),
    };
    ShardSpec {
        kind,
        split: "train".to_owned(),
        class_names: vec![
            class("n1", "crane"),
            class("n2", "tench"),
            class("n3", "crane"),
        ],
        options: Map::from_iter([("quality".to_owned(), 90.into())]),
        row_group_bytes: ROW_GROUP_BYTES,
    }
}

/// Label of sample `n`; every fifth has none.
pub fn label(n: u64) -> Option<i32> {
    (n % 5 != 4).then_some((n % 3) as i32)
}

pub fn image(n: u64) -> ImageRow {
    ImageRow {
        key: format!("n1/picture_{n}"),
        bytes: picture(n),
        path: format!("picture_{n}.jpg"),
        label: label(n),
        width: 100 + n as i32,
        height: 50,
    }
}

pub fn n_frames(n: u64) -> u32 {
    1 + (n * 5 % 9) as u32
}

pub fn clip(n: u64) -> ClipRow {
    let frame = |k: u32| FrameRow {
        time_us: i64::from(k) * 40_000 - 5,
        bytes: frame_picture(n, k),
        width: 64,
        height: 48,
    };
    ClipRow {
        clip: format!("class/clip_{n}"),
        label: label(n),
        frames: (0..n_frames(n)).map(frame).collect(),
    }
}

pub fn frame_picture(n: u64, frame: u32) -> Bytes {
    picture(n * 1000 + u64::from(frame))
}

/// The bytes of a shard with samples `first..first + n`.
pub fn shard(kind: Kind, first: u64, n: u64) -> Vec<u8> {
    let mut writer = ShardWriter::new(Vec::new(), &spec(kind)).unwrap();
    push_samples(&mut writer, kind, first, n);
    writer.finish().unwrap().0
}

fn push_samples<W: std::io::Write + Send>(
    writer: &mut ShardWriter<W>,
    kind: Kind,
    first: u64,
    n: u64,
) {
    for i in first..first + n {
        match kind {
            Kind::Images => writer.push_image(&image(i)).unwrap(),
            Kind::Clips => writer.push_clip(&clip(i)).unwrap(),
        }
    }
}

/// A finished set with a split `train` of `n_shards` shards, each of `n` samples.
pub fn set(kind: Kind, n_shards: usize, n: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    let mut split = SplitManifest::default();
    for i in 0..n_shards {
        let name = shard_name("train", i, n_shards);
        let mut writer = ShardWriter::new(store.create(&name).unwrap(), &spec(kind)).unwrap();
        push_samples(&mut writer, kind, i as u64 * n, n);
        let (out, counts) = writer.finish().unwrap();
        let written = out.commit().unwrap();
        split.shards.push(ShardEntry::new(name, counts, written));
    }
    manifest(kind, split).write(&store).unwrap();
    dir
}

pub fn manifest(kind: Kind, split: SplitManifest) -> Manifest {
    Manifest {
        format: FORMAT_VERSION,
        kind,
        splits: BTreeMap::from([("train".to_owned(), split)]),
        class_names: spec(kind).class_names,
        options: spec(kind).options,
        skipped: Skipped::default(),
    }
}
