//! Loading from shards on disk.

use std::collections::BTreeMap;
use std::iter::zip;

use pipeline::codec::Rgb8Image;
use pipeline::config::{DataConfig, OrderKind, ViewsKind};
use pipeline::convert::{self, KineticsOptions};
use pipeline::loader::{Batch, Loader, Rank};
use pipeline::stop::Stop;
use pipeline::synth::{self, SynthOptions, frame_number};
use shards::{
    ClassName, ClipRow, FORMAT_VERSION, FrameRow, ImageRow, Kind, Manifest, ShardEntry, ShardSpec,
    ShardWriter, Skipped, SplitManifest, Store, shard_name,
};

use crate::source::{HEIGHT, WIDTH, picture};
use crate::{SEED, at, config, take};

/// A set of two shards with six samples each, in row groups of about two.
pub fn write_set(kind: Kind) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    let class = |(id, name): (&str, &str)| ClassName {
        id: id.into(),
        name: name.into(),
    };
    let class_names = [("n0", "crane"), ("n1", "tench"), ("n2", "crane")].map(class);
    let class_names = class_names.to_vec();
    let row_group_bytes = 2 * picture(0).len() as u64 * if kind == Kind::Clips { 12 } else { 1 };
    let spec = ShardSpec {
        kind,
        split: "train".into(),
        class_names: class_names.clone(),
        options: serde_json::Map::new(),
        row_group_bytes,
    };
    let mut split = SplitManifest::default();
    for shard in 0..2 {
        let name = shard_name("train", shard, 2);
        let mut writer = ShardWriter::new(store.create(&name).unwrap(), &spec).unwrap();
        for sample in shard as u32 * 6..shard as u32 * 6 + 6 {
            match kind {
                Kind::Images => writer.push_image(&image(sample)).unwrap(),
                Kind::Clips => writer.push_clip(&clip(sample)).unwrap(),
            }
        }
        let (out, counts) = writer.finish().unwrap();
        let written = out.commit().unwrap();
        split.shards.push(ShardEntry::new(name, counts, written));
    }
    let splits = BTreeMap::from([("train".to_owned(), split)]);
    let (options, skipped) = (serde_json::Map::new(), Skipped::default());
    Manifest {
        format: FORMAT_VERSION,
        kind,
        splits,
        class_names,
        options,
        skipped,
    }
    .write(&store)
    .unwrap();
    dir
}

fn image(n: u32) -> ImageRow {
    let key = format!("image/{n}");
    let (width, height) = (WIDTH as i32, HEIGHT as i32);
    ImageRow {
        path: format!("{key}.jpg"),
        key,
        bytes: picture(n),
        label: Some((n % 3) as i32),
        width,
        height,
    }
}

fn clip(n: u32) -> ClipRow {
    let (width, height) = (WIDTH as i32, HEIGHT as i32);
    let frame = |frame| FrameRow {
        time_us: i64::from(frame) * 40_000,
        bytes: picture(frame),
        width,
        height,
    };
    ClipRow {
        clip: format!("clip/{n}"),
        label: None,
        frames: (0..12).map(frame).collect(),
    }
}

#[test]
fn images_load_in_every_order() {
    let dir = write_set(Kind::Images);
    let path = dir.path().to_str().unwrap().to_owned();
    for order in [OrderKind::Full, OrderKind::Blocks, OrderKind::Sequential] {
        let config = DataConfig {
            path: path.clone(),
            order: Some(order),
            ..config(4)
        };
        let mut loader = Loader::new(&config, SEED, Rank::SINGLE, at(0, 0)).unwrap();
        assert_eq!(loader.batches_per_epoch(), 3);
        let batches = take(&mut loader, 3);
        let mut keys: Vec<String> = batches
            .iter()
            .flat_map(|batch| batch.keys.clone())
            .collect();
        keys.sort();
        let mut expected: Vec<String> = (0..12).map(|n| format!("image/{n}")).collect();
        expected.sort();
        assert_eq!(keys, expected);
        let named = |batch: &Batch| zip(batch.keys.clone(), batch.labels.clone());
        for (key, label) in batches.iter().flat_map(named) {
            let n: i32 = key.strip_prefix("image/").unwrap().parse().unwrap();
            assert_eq!(label, Some(n % 3));
        }
        for batch in &batches {
            for (sample, key) in batch.keys.iter().enumerate() {
                let view = &batch.views[sample * 2 * 16 * 16 * 3..][..16 * 16 * 3];
                let blue = view
                    .iter()
                    .skip(2)
                    .step_by(3)
                    .map(|&v| f64::from(v))
                    .sum::<f64>()
                    / 256.0;
                assert_eq!(*key, format!("image/{}", (blue / 5.0).round()));
            }
        }
    }
}

#[test]
fn clips_load_as_frame_pairs_in_file_addresses_too() {
    let dir = write_set(Kind::Clips);
    let path = format!("file://{}", dir.path().to_str().unwrap());
    let config = DataConfig {
        path,
        views: ViewsKind::FramePair,
        repeated_sampling: 2,
        ..config(8)
    };
    let mut loader = Loader::new(&config, SEED, Rank::SINGLE, at(0, 0)).unwrap();
    assert_eq!(loader.batches_per_epoch(), 3);
    let batches = take(&mut loader, 3);
    let mut visits = BTreeMap::new();
    for key in batches.iter().flat_map(|batch| &batch.keys) {
        *visits.entry(key.clone()).or_insert(0) += 1;
    }
    assert_eq!(visits.len(), 12);
    assert!(visits.values().all(|&n| n == 2), "{visits:?}");
    assert!(
        batches
            .iter()
            .flat_map(|batch| &batch.labels)
            .all(Option::is_none)
    );
}

#[test]
fn a_flipped_bit_in_a_picture_costs_one_sample_alone() {
    let dir = write_set(Kind::Images);
    let shard = dir.path().join(shard_name("train", 0, 2));
    let mut bytes = std::fs::read(&shard).unwrap();
    let needle = picture(3);
    let at_byte = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap()
        + needle.len() / 2;
    bytes[at_byte] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let config = DataConfig {
        path: dir.path().to_str().unwrap().into(),
        ..config(4)
    };
    let mut loader = Loader::new(&config, SEED, Rank::SINGLE, at(0, 0)).unwrap();
    let batches = take(&mut loader, 3);
    assert!(
        batches
            .iter()
            .flat_map(|batch| &batch.keys)
            .all(|key| key != "image/3")
    );
    let stats = loader.stats();
    assert_eq!(stats.bad.len(), 1);
    assert_eq!(
        (stats.bad[0].index, stats.bad[0].key.as_str()),
        (3, "image/3")
    );
    assert!(
        stats.bad[0].reason.contains("row 3"),
        "{}",
        stats.bad[0].reason
    );
}

#[test]
fn pairs_of_converted_clips_show_the_frames_that_their_gap_says() {
    let dir = tempfile::tempdir().unwrap();
    let made = SynthOptions {
        n_classes: 2,
        clips_per_class: 2,
        frames: 24,
        size: 96,
        ..SynthOptions::default()
    };
    synth::write_clips(&dir.path().join("clips"), &made).unwrap();
    let path = dir.path().join("shards").to_str().unwrap().to_owned();
    let options = KineticsOptions::default();
    convert::kinetics(
        &dir.path().join("clips"),
        &path,
        &options,
        &(),
        &Stop::new(),
    )
    .unwrap();

    // Crops of the whole frame, whose area alone fits, so that its number stays legible; flips are undone by trying.
    let config = DataConfig {
        path,
        views: ViewsKind::FramePair,
        repeated_sampling: 10,
        size: 96,
        frame_area: [1.0, 1.0],
        aspect: [0.1, 10.0],
        flip_p: 0.5,
        min_gap: 3,
        max_gap: 6,
        ..config(40)
    };
    let batch = Loader::new(&config, SEED, Rank::SINGLE, at(0, 0))
        .unwrap()
        .next_batch()
        .unwrap();
    let mut gaps = BTreeMap::new();
    let mut n_flipped = 0;
    for pair in batch.views.chunks(2 * 96 * 96 * 3) {
        let (f1, f2) = pair.split_at(pair.len() / 2);
        let numbers =
            [false, true].map(|flip| [f1, f2].map(|view| frame_number(&picture_of(view, flip))));
        let (flipped, [Some(first), Some(second)]) = (match numbers {
            [[Some(_), Some(_)], _] => (false, numbers[0]),
            _ => (true, numbers[1]),
        }) else {
            panic!("no frame numbers in {numbers:?}");
        };
        n_flipped += usize::from(flipped);
        *gaps.entry(second.checked_sub(first).unwrap()).or_insert(0) += 1;
    }
    assert!(gaps.keys().copied().eq(3..6), "{gaps:?}");
    assert!((8..32).contains(&n_flipped), "{n_flipped} of 40 flipped");
}

fn picture_of(view: &[u8], flip: bool) -> Rgb8Image {
    let mut data = view.to_vec();
    if flip {
        pipeline::views::augment::flip_horizontal(&mut data, 96);
    }
    Rgb8Image {
        width: 96,
        height: 96,
        data,
    }
}
