//! Parquet files of others as a source.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use bucket::{HubRow, write_hub_parquet};
use shards::ShardSet;

use super::support::*;
use crate::convert::*;
use crate::stop::Stop;

const NAMES: [&str; 3] = ["tench", "crane", "goose"];

/// Row `n` of the source: every tenth has no picture, row 17 a broken one, rows 20 and 21 one name.
fn row(n: u32) -> HubRow {
    let bytes = match n {
        17 => b"\xff\xd8\xff\xe0 not much of a picture".to_vec(),
        n => jpeg(n),
    };
    let name = if n == 21 { 20 } else { n };
    HubRow {
        bytes: (n % 10 != 3).then_some(bytes),
        path: (n != 5).then(|| format!("deep/img_{name:02}.JPEG")),
        label: (n % 7 != 6).then_some(i64::from(n % 3)),
    }
}

/// Two files of 24 rows in row groups of five.
fn source(dir: &Path) -> PathBuf {
    let src = dir.join("src");
    std::fs::create_dir_all(&src).unwrap();
    let rows: Vec<HubRow> = (0..48).map(row).collect();
    for (number, rows) in rows.chunks(24).enumerate() {
        let file = src.join(format!("train-{number:05}-of-00002.parquet"));
        write_hub_parquet(&file, rows, 5, &NAMES).unwrap();
    }
    src
}

fn options() -> ImagenetOptions {
    let small = small_shards();
    ImagenetOptions {
        common: CommonOptions {
            max_bad: "50%".parse().unwrap(),
            ..small.common
        },
        ..small
    }
}

fn convert_tables(src: &Path, dst: &Path, options: &ImagenetOptions) -> Result<ConvertReport> {
    let (src, dst) = (src.to_str().unwrap(), dst.to_str().unwrap());
    images(src, dst, options, &(), &Stop::new())
}

#[test]
fn rows_become_images_with_their_names_labels_and_classes() {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (source(dir.path()), dir.path().join("dst"));
    let report = convert_tables(&src, &dst, &options()).unwrap().split;
    assert_eq!((report.items, report.samples), (48, 42));
    let mut skipped: Vec<(&str, &str)> = report
        .skipped
        .iter()
        .map(|skipped| (skipped.key.as_str(), skipped.fault.as_str()))
        .collect();
    skipped.sort_unstable();
    let mut expected = [3, 13, 23, 33, 43]
        .map(|n| (format!("deep/img_{n:02}"), "no picture"))
        .to_vec();
    expected.push(("deep/img_17".to_owned(), "corrupt"));
    expected.sort_unstable();
    let named: Vec<(&str, &str)> = expected
        .iter()
        .map(|(key, fault)| (key.as_str(), *fault))
        .collect();
    assert_eq!(skipped.len(), named.len());
    assert!(
        skipped.iter().zip(&named).all(|(a, b)| a.0 == b.0),
        "{skipped:?}"
    );
    assert!(
        skipped
            .iter()
            .filter(|(_, fault)| *fault == "no picture")
            .count()
            == 5
    );
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    assert!(
        report.notes[0].starts_with("2 rows have names"),
        "{:?}",
        report.notes
    );

    let set = ShardSet::open(dst.to_str().unwrap(), "train").unwrap();
    let classes: Vec<&str> = set.class_names().iter().map(|c| c.name.as_str()).collect();
    assert_eq!(classes, NAMES);
    let mut found: Vec<(String, Option<i32>, bytes::Bytes)> = (0..set.n_samples())
        .map(|n| {
            let sample = set.sample(n).unwrap();
            (sample.key, sample.label, set.picture(n, 0).unwrap())
        })
        .collect();
    let stored: Vec<String> = found.iter().map(|(key, ..)| key.clone()).collect();
    assert!(!stored.is_sorted(), "neighbours are not mixed");
    found.sort_unstable();
    let key = |n: u32| match n {
        5 | 20 | 21 => format!("train-00000-of-00002.parquet#{n}"),
        n => format!("deep/img_{n:02}"),
    };
    let mut expected: Vec<_> = (0..48)
        .filter(|n| n % 10 != 3 && *n != 17)
        .map(|n| {
            (
                key(n),
                row(n).label.map(|l| l as i32),
                bytes::Bytes::from(jpeg(n)),
            )
        })
        .collect();
    expected.sort_unstable();
    assert!(found == expected, "{stored:?}");
}

#[test]
fn workers_parts_and_interruptions_change_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let src = source(dir.path());
    let with = |workers| {
        let mut options = options();
        options.common.workers = workers;
        options
    };
    let whole = dir.path().join("whole");
    convert_tables(&src, &whole, &with(1)).unwrap();
    let many = dir.path().join("many");
    convert_tables(&src, &many, &with(5)).unwrap();
    assert_same(&snapshot(&whole), &snapshot(&many));

    let stopped = dir.path().join("stopped");
    for items in [7, 15, 11] {
        let progress = StopAfter {
            items: Cell::new(items),
            stop: Stop::new(),
        };
        let (src, dst) = (src.to_str().unwrap(), stopped.to_str().unwrap());
        let error = images(src, dst, &with(2), &progress, &progress.stop).unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
    }
    let report = convert_tables(&src, &stopped, &with(2)).unwrap();
    assert!(report.shards_resumed > 0, "{report:?}");
    assert_same(&snapshot(&whole), &snapshot(&stopped));

    let parts = dir.path().join("parts");
    for part in ["2/2", "1/2"] {
        let mut options = with(2);
        options.common.part = Some(part.parse().unwrap());
        convert_tables(&src, &parts, &options).unwrap();
    }
    finish(parts.to_str().unwrap()).unwrap();
    assert_same(&set_of(&whole), &set_of(&parts));

    let mut sorted = with(3);
    sorted.common.shuffle_seed = None;
    let dst = dir.path().join("sorted");
    convert_tables(&src, &dst, &sorted).unwrap();
    let set = ShardSet::open(dst.to_str().unwrap(), "train").unwrap();
    let first: Vec<String> = (0..4).map(|n| set.sample(n).unwrap().key).collect();
    assert_eq!(
        first,
        ["deep/img_00", "deep/img_01", "deep/img_02", "deep/img_04"]
    );
}

#[test]
fn a_single_file_is_a_split_of_any_name_and_its_labels_need_no_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("some.parquet");
    let rows: Vec<HubRow> = (0..12)
        .map(|n| HubRow {
            label: Some(if n == 0 { -1 } else { i64::from(n % 4) }),
            bytes: Some(jpeg(n)),
            path: None,
        })
        .collect();
    write_hub_parquet(&file, &rows, 4, &[]).unwrap();
    let dst = dir.path().join("dst");
    let mut options = options();
    options.common.split = "val".into();
    options.short_side = Some(16);
    convert_tables(&file, &dst, &options).unwrap();
    let set = ShardSet::open(dst.to_str().unwrap(), "val").unwrap();
    assert_eq!((set.n_samples(), set.class_names().len()), (12, 4));
    let mut labels: Vec<_> = (0..12)
        .map(|n| set.sample(n).unwrap())
        .map(|s| (s.key, s.label))
        .collect();
    labels.sort_unstable();
    assert_eq!(labels[0], ("some.parquet#0".to_owned(), None));
    assert_eq!(labels[1], ("some.parquet#1".to_owned(), Some(1)));
}

#[test]
fn damage_costs_its_row_group_and_what_is_no_source_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let src = source(dir.path());
    // In the middle of the first pictures of the first file.
    let file = src.join("train-00000-of-00002.parquet");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8..200].fill(0xff);
    std::fs::write(&file, &bytes).unwrap();
    let dst = dir.path().join("dst");
    let report = convert_tables(&src, &dst, &options()).unwrap().split;
    let unreadable: Vec<&str> = report
        .skipped
        .iter()
        .filter(|skipped| skipped.fault == "unreadable")
        .map(|skipped| skipped.key.as_str())
        .collect();
    assert_eq!(unreadable.len(), 5, "{:?}", report.skipped);
    assert!(unreadable.contains(&"deep/img_00"));

    let refused = |src: &Path, options: &ImagenetOptions| {
        let dst = dir.path().join("refused");
        convert_tables(src, &dst, options).unwrap_err().to_string()
    };
    let folders = class_folders(&dir.path().join("folders"), 1, 1);
    assert!(refused(&folders, &options()).contains("expected Parquet files"));
    let mut named = options();
    named.common.class_names = Some("names.txt".into());
    assert!(refused(&src, &named).contains("class_names is names.txt, expected nothing"));
    let mut other = options();
    other.common.split = "test".into();
    let message = refused(&src, &other);
    assert!(
        message.contains("test") && message.contains("train"),
        "{message}"
    );
}
