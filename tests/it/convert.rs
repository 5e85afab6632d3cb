//! Conversion: the same bytes however it ran, and every broken file named.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{demo_set, fails, json, ok, pairquet, shard_bytes, utf8};

/// A conversion of the demo's clips into many small shards.
fn kinetics<'a>(dst: &'a Path, src: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "convert",
        "kinetics",
        utf8(src),
        utf8(dst),
        "--shard-size",
        "256KiB",
        "--quiet",
    ];
    args.extend(more);
    args
}

#[test]
fn workers_kills_and_parts_do_not_change_a_byte() {
    let src = demo_set().join("raw/clips");
    let dir = tempfile::tempdir().unwrap();
    let [one, four, killed, parts] =
        ["one", "four", "killed", "parts"].map(|name| dir.path().join(name));

    ok(&kinetics(&one, &src, &["--workers", "1"]));
    let expected = shard_bytes(&one);
    assert!(
        expected.len() > 4,
        "several shards and a manifest, found {:?}",
        expected.keys()
    );

    ok(&kinetics(&four, &src, &["--workers", "4"]));
    assert!(shard_bytes(&four) == expected, "4 workers");

    let mut kills = 0;
    let mut patience = Duration::from_millis(60);
    while kills < 5 {
        let mut child = pairquet()
            .args(kinetics(&killed, &src, &["--workers", "2"]))
            .spawn()
            .unwrap();
        let started = Instant::now();
        while started.elapsed() < patience && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(5));
        }
        if child.try_wait().unwrap().is_some() {
            assert!(kills > 0, "the conversion ended before it could be killed");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        patience += Duration::from_millis(40);
        assert!(!killed.join("manifest.json").exists() || shard_bytes(&killed) == expected);
    }
    ok(&kinetics(&killed, &src, &[]));
    assert!(shard_bytes(&killed) == expected, "killed {kills} times");

    ok(&kinetics(&parts, &src, &["--part", "1/2"]));
    let message = fails(1, &["convert", "finish", utf8(&parts)]);
    assert!(message.contains("lacks"), "{message}");
    ok(&kinetics(&parts, &src, &["--part", "2/2"]));
    ok(&["convert", "finish", utf8(&parts), "--quiet"]);
    assert!(shard_bytes(&parts) == expected, "two parts");
}

#[test]
fn broken_files_are_named_and_limited() {
    let dir = tempfile::tempdir().unwrap();
    let class = dir.path().join("src/n00000001");
    fs::create_dir_all(&class).unwrap();
    let good = crate::support::tree(&demo_set().join("raw/images"));
    for (index, bytes) in good.values().take(6).enumerate() {
        fs::write(class.join(format!("good_{index}.JPEG")), bytes).unwrap();
    }
    let whole = good.values().next().unwrap();
    fs::write(class.join("cut.JPEG"), &whole[..whole.len() / 2]).unwrap();
    fs::write(class.join("empty.JPEG"), b"").unwrap();
    fs::write(class.join("text.JPEG"), b"not a picture at all").unwrap();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));

    let message = fails(1, &["convert", "imagenet", utf8(&src), utf8(&dst)]);
    assert!(
        message.contains("broken") && message.contains("1%"),
        "{message}"
    );

    let report = json(&[
        "convert",
        "imagenet",
        utf8(&src),
        utf8(&dst),
        "--max-bad",
        "50%",
    ]);
    assert_eq!(report["samples"], 6, "{report}");
    let skipped = report["skipped"].to_string();
    for (name, why) in [
        ("cut", "truncated"),
        ("empty", "empty"),
        ("text", "not a picture"),
    ] {
        assert!(
            skipped.contains(name) && skipped.contains(why),
            "{name}: {skipped}"
        );
    }
    ok(&["verify", utf8(&dst), "--quiet"]);
}

#[test]
fn other_options_on_a_begun_conversion_are_refused() {
    let src = demo_set().join("raw/clips");
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("set");
    ok(&kinetics(&dst, &src, &["--part", "1/2"]));
    let message = fails(
        1,
        &kinetics(&dst, &src, &["--part", "2/2", "--short-side", "64"]),
    );
    assert!(
        message.contains("short_side") && message.contains("64"),
        "{message}"
    );
}
