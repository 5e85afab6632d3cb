//! Parquet files of others: looked at, converted, and trained on as they are.

use std::path::{Path, PathBuf};

use bucket::{HubRow, Server, write_hub_parquet};

use crate::support::{demo_set, fails, json, ok, pairquet, text, tree, utf8};
use crate::train::{strs, train_args};

/// A key that would clear a terminal if it were printed as it is.
const ODD: &str = "odd\u{1b}[2J\nname";

/// Two files of made pictures in row groups of six, of which one row has none.
fn hub_set(dir: &Path) -> PathBuf {
    let folder = dir.join("hub");
    std::fs::create_dir(&folder).unwrap();
    let pictures: Vec<Vec<u8>> = tree(&demo_set().join("raw/images")).into_values().collect();
    let row = |(n, bytes): (usize, Vec<u8>)| HubRow {
        bytes: (n != 3).then_some(bytes),
        path: Some(if n == 0 {
            format!("{ODD}.jpg")
        } else {
            format!("p{n:03}.jpg")
        }),
        label: Some(n as i64 % 2),
    };
    let rows: Vec<HubRow> = pictures.into_iter().enumerate().map(row).take(40).collect();
    for (number, rows) in rows.chunks(20).enumerate() {
        let file = folder.join(format!("train-{number:05}-of-00002.parquet"));
        write_hub_parquet(&file, rows, 6, &["tench", "crane"]).unwrap();
    }
    folder
}

#[test]
fn parquet_of_others_is_inspected_wherever_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let folder = hub_set(dir.path());
    let report = json(&["inspect", utf8(&folder)]);
    for (name, expected) in [("rows", 40), ("files", 2), ("classes", 2), ("groups", 8)] {
        assert_eq!(report[name], expected, "{report}");
    }
    for (name, expected) in [
        ("picture", "image.bytes"),
        ("label", "label"),
        ("key", "image.path"),
    ] {
        assert_eq!(report[name], expected, "{report}");
    }
    assert_eq!(report["codecs"], serde_json::json!(["snappy"]));
    assert_eq!(report["group_rows"], serde_json::json!([2, 6, 6]));
    let bytes = |name: &str| report[name].as_u64().unwrap();
    // A picture by itself costs its group: six, or near the end of a file two.
    let (alone, together) = (
        bytes("bytes_fetched_alone"),
        bytes("bytes_fetched_by_group"),
    );
    assert!(
        (4 * together..=7 * together).contains(&alone),
        "{alone} and {together}"
    );
    assert!(bytes("bytes_decoded") > 1000, "{report}");
    let samples = report["first_samples"].as_array().unwrap();
    assert_eq!(samples.len(), 4, "the row without a picture is left out");
    assert_eq!(samples[1]["class"], "crane");

    let words = ok(&["inspect", utf8(&folder)]);
    for word in [
        "40 rows in 2 files",
        "pictures image.bytes",
        "snappy",
        "8 of 2 to 6, mostly 6 rows",
        "crane",
    ] {
        assert!(words.contains(word), "{word}: {words}");
    }
    assert!(words.contains(r"odd\u{1b}[2J\nname"), "{words}");
    assert!(!words.contains('\u{1b}'), "{words}");
    let file = folder.join("train-00001-of-00002.parquet");
    assert_eq!(json(&["inspect", utf8(&file), "--rows", "0"])["rows"], 20);

    let server = Server::start().unwrap();
    std::fs::create_dir(server.folder().join("hub")).unwrap();
    std::fs::copy(&file, server.folder().join("hub/x.parquet")).unwrap();
    for address in ["s3://sets/hub", "s3://sets/hub/x.parquet"] {
        let mut command = pairquet();
        command
            .envs(server.environment())
            .args(["--json", "inspect", address]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["rows"], &report["files"]), (&20.into(), &1.into()));
    }
}

#[test]
fn what_holds_no_pictures_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(fails(1, &["inspect", utf8(dir.path())]).contains("no manifest.json"));
    std::fs::write(dir.path().join("train.parquet"), b"PAR1 and no more").unwrap();
    let message = fails(1, &["inspect", utf8(dir.path())]);
    assert!(message.contains("train.parquet"), "{message}");
    let message = fails(
        1,
        &[
            "convert",
            "images",
            utf8(dir.path()),
            utf8(&dir.path().join("x")),
        ],
    );
    assert!(message.contains("train.parquet"), "{message}");
    let folder = hub_set(dir.path());
    let sheet = dir.path().join("sheet.png");
    let message = fails(2, &["inspect", utf8(&folder), "--sheet", utf8(&sheet)]);
    assert!(message.contains("--config"), "{message}");
}

#[test]
fn parquet_of_others_converts_and_trains() {
    let dir = tempfile::tempdir().unwrap();
    let folder = hub_set(dir.path());
    let set = dir.path().join("set");
    let args = [
        "convert",
        "images",
        utf8(&folder),
        utf8(&set),
        "--max-bad",
        "1",
    ];
    let words = ok(&args);
    assert!(words.contains("skipped as no picture: 1"), "{words}");
    assert!(words.contains("p003: "), "{words}");
    ok(&["verify", utf8(&set)]);
    let report = json(&["inspect", utf8(&set)]);
    assert_eq!(
        (&report["samples"], &report["classes"]),
        (&39.into(), &2.into())
    );
    assert!(!ok(&["inspect", utf8(&set), "--rows", "39"]).contains('\u{1b}'));
    // Again, and there is nothing left to do.
    assert_eq!(json(&args)["items_converted"], 0);
    // Training takes the files as they are.
    let run = dir.path().join("run");
    let path = format!("data.path={}", folder.display());
    let mut args = train_args("mae", &run, 2);
    args.extend([
        "--set".to_owned(),
        path,
        "--set".to_owned(),
        "data.max_bad=1".to_owned(),
    ]);
    ok(&strs(&args));
}
