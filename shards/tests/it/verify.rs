//! What verify finds, and how it names it.

use std::path::Path;

use shards::{Kind, Manifest, ShardEntry, Store, VerifyReport, verify};

use crate::support::*;

const FIRST: &str = "train-00000-of-00002.parquet";
const SECOND: &str = "train-00001-of-00002.parquet";

fn report(dir: &Path) -> VerifyReport {
    verify(dir.to_str().unwrap(), &mut |_| {}).unwrap()
}

/// The findings as `shard row problem`.
fn findings(dir: &Path) -> Vec<String> {
    report(dir)
        .findings
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn change_manifest(dir: &Path, change: impl FnOnce(&mut Vec<ShardEntry>)) {
    let store = Store::open(dir.to_str().unwrap()).unwrap();
    let mut manifest = Manifest::read(&store).unwrap();
    change(&mut manifest.splits.get_mut("train").unwrap().shards);
    manifest.write(&store).unwrap();
}

#[test]
fn a_sound_set_is_clean() {
    for kind in [Kind::Images, Kind::Clips] {
        let dir = set(kind, 3, 20);
        let mut seen = Vec::new();
        let report = verify(dir.path().to_str().unwrap(), &mut |progress| {
            seen.push(progress)
        })
        .unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
        assert_eq!((report.shards, report.samples), (3, 60));
        assert_eq!(report.good_rows, report.rows);
        let last = seen.last().unwrap();
        assert_eq!(
            (last.bytes_done, last.n_bytes, last.shards_done),
            (report.bytes, report.bytes, 2)
        );
        assert!(seen.is_sorted_by_key(|progress| progress.bytes_done));
    }
}

#[test]
fn a_flipped_bit_is_laid_at_its_row() {
    let dir = set(Kind::Images, 2, 20);
    let path = dir.path().join(SECOND);
    let mut bytes = std::fs::read(&path).unwrap();
    let row = 13;
    let needle = picture(20 + row);
    let place = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap();
    bytes[place + 5] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let report = report(dir.path());
    assert_eq!((report.n_findings, report.good_rows), (2, 39));
    assert_eq!(
        (report.findings[0].shard.as_str(), report.findings[0].row),
        (SECOND, Some(row))
    );
    assert!(report.findings[0].problem.contains("crc32c"));
    assert!(report.findings[1].problem.contains("sha-256"));
}

#[test]
fn truncated_missing_swapped_and_strange_files_are_named() {
    let dir = set(Kind::Clips, 2, 10);
    let (first, second) = (dir.path().join(FIRST), dir.path().join(SECOND));
    let whole = std::fs::read(&second).unwrap();
    std::fs::write(&second, &whole[..whole.len() - 1]).unwrap();
    let found = findings(dir.path());
    assert!(
        found.len() == 1
            && found[0].starts_with(&format!(
                "shard {SECOND}: {} bytes, expected",
                whole.len() - 1
            ))
    );

    std::fs::remove_file(&second).unwrap();
    assert_eq!(
        findings(dir.path()),
        [format!("shard {SECOND}: is missing")]
    );

    std::fs::write(&second, &whole).unwrap();
    std::fs::write(dir.path().join("train-00002-of-00002.parquet"), &whole).unwrap();
    assert_eq!(
        findings(dir.path()),
        ["shard train-00002-of-00002.parquet: not in the manifest"]
    );
    std::fs::remove_file(dir.path().join("train-00002-of-00002.parquet")).unwrap();

    std::fs::write(&second, vec![0; whole.len()]).unwrap();
    let found = findings(dir.path());
    assert!(
        found[0].contains("not a shard") && found[1].contains("sha-256"),
        "{found:?}"
    );

    std::fs::rename(&first, &second).unwrap();
    std::fs::write(&first, &whole).unwrap();
    assert!(
        findings(dir.path())
            .iter()
            .all(|f| f.contains("bytes, expected") || f.contains("sha-256"))
    );
}

#[test]
fn counts_that_do_not_fit_are_named() {
    let dir = set(Kind::Clips, 2, 10);
    change_manifest(dir.path(), |shards| {
        shards[0].samples -= 1;
        shards[0].groups[0].samples -= 1;
    });
    assert!(findings(dir.path())[0].contains("10 samples, expected 9"));
    change_manifest(dir.path(), |shards| {
        shards[0].rows += 1;
        shards[0].groups[0].rows += 1;
    });
    assert!(findings(dir.path())[0].contains("as in the manifest"));
}

#[test]
fn row_groups_elsewhere_than_the_manifest_says_are_named() {
    let dir = set(Kind::Images, 1, 10);
    change_manifest(dir.path(), |shards| {
        shards[0].groups[0].bytes += 5;
        shards[0].groups[1].bytes -= 5;
    });
    let found = findings(dir.path());
    assert!(
        found[0].contains("row group 0") && found[0].contains("bytes 4.."),
        "{found:?}"
    );
}

#[test]
fn names_that_repeat_are_named() {
    let dir = set(Kind::Images, 2, 10);
    let again = std::fs::read(dir.path().join(FIRST)).unwrap();
    std::fs::write(dir.path().join(SECOND), again).unwrap();
    change_manifest(dir.path(), |shards| {
        shards[1] = ShardEntry {
            name: SECOND.to_owned(),
            ..shards[0].clone()
        }
    });
    let report = report(dir.path());
    assert_eq!((report.n_findings, report.good_rows), (10, 10));
    assert_eq!(
        report.findings[3].to_string(),
        format!("shard {SECOND}, row 3: \"n1/picture_3\" is in the split already")
    );
}

#[test]
fn a_rotten_shard_does_not_fill_the_report() {
    let dir = set(Kind::Images, 1, 200);
    let path = dir.path().join("train-00000-of-00001.parquet");
    let mut bytes = std::fs::read(&path).unwrap();
    for n in 0..200 {
        let needle = picture(n);
        let place = bytes
            .windows(needle.len())
            .position(|window| window == needle)
            .unwrap();
        bytes[place] ^= 1;
    }
    std::fs::write(&path, bytes).unwrap();
    let report = report(dir.path());
    assert_eq!((report.n_findings, report.good_rows), (201, 0));
    assert!(report.findings.len() < 100);
}
