//! Real pictures and clips, where they are at hand.

use shards::ShardSet;

use super::support::*;
use crate::convert::*;

#[test]
fn odd_pictures_end_in_a_row_or_a_named_report() {
    let Some(src) = shared_data("imagenet_odd") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut options = ImagenetOptions::default();
    options.common.max_bad = MaxBad::Count(3);
    let report = convert(&src, &dir.path().join("dst"), &options).unwrap();
    let named: Vec<(&str, &str)> = report
        .split
        .skipped
        .iter()
        .map(|s| (s.key.as_str(), s.fault.as_str()))
        .collect();
    assert_eq!(
        named,
        [
            ("empty", "empty"),
            ("not_an_image", "unknown format"),
            ("truncated", "truncated")
        ]
    );
}

#[test]
fn sample_of_imagenet() {
    let Some(src) = shared_data("imagenet") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("dst");
    let mut options = ImagenetOptions::default();
    options.common.shard_bytes = 8 << 20;
    options.check = Check::Header;
    let report = convert(&src, &dst, &options).unwrap();
    assert_eq!((report.split.samples, report.split.skipped.len()), (300, 0));
    assert_eq!(report.split.shards, 5);
    let set = ShardSet::open(dst.to_str().unwrap(), "train").unwrap();
    assert_eq!(set.class_names().len(), 300);
    let sample = set.sample(17).unwrap();
    let (class, stem) = sample.key.split_once('/').unwrap();
    assert_eq!(set.class_names()[sample.label.unwrap() as usize].id, class);
    let file = src.join("train").join(class).join(format!("{stem}.JPEG"));
    assert!(set.picture(17, 0).unwrap() == std::fs::read(file).unwrap());
}

#[test]
fn broken_clips_end_in_a_clip_or_a_named_report() {
    let Some(src) = shared_data("videos/broken") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut options = KineticsOptions {
        short_side: Some(32),
        ..Default::default()
    };
    options.common.max_bad = "100%".parse().unwrap();
    let report = convert_clips(&src, &dir.path().join("dst"), &options).unwrap();
    let split = report.split;
    assert_eq!(split.samples + split.skipped.len() as u64, 8);
    for key in ["audio_only", "empty", "text", "truncated_index_last"] {
        assert!(
            split.skipped.iter().any(|skipped| skipped.key == key),
            "{key} in {:?}",
            split.skipped
        );
    }
    for key in ["truncated_index_first", "flipped_bytes", "truncated"] {
        assert!(
            split.damaged.iter().any(|damaged| damaged.key == key),
            "{key} in {:?}",
            split.damaged
        );
    }
}
