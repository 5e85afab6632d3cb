//! Real images and real clips, where they are at hand: they convert, verify, and the broken ones are named.

use std::fs;

use crate::support::{json, ok, shared, utf8};

#[test]
fn three_hundred_imagenet_pictures() {
    let Some(src) = shared("imagenet/train") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("set");
    let report = json(&[
        "convert",
        "imagenet",
        utf8(&src),
        utf8(&dst),
        "--shard-size",
        "8MiB",
    ]);
    assert_eq!(report["samples"], 300, "{report}");
    ok(&["verify", utf8(&dst), "--quiet"]);
}

#[test]
fn odd_pictures_are_read_as_the_reference_reads_them_or_named() {
    let Some(odd) = shared("imagenet_odd") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src/class"), dir.path().join("set"));
    fs::create_dir_all(&src).unwrap();
    for entry in fs::read_dir(odd).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "JPEG") {
            fs::copy(&path, src.join(path.file_name().unwrap())).unwrap();
        }
    }
    let report = json(&[
        "convert",
        "imagenet",
        utf8(src.parent().unwrap()),
        utf8(&dst),
        "--max-bad",
        "100%",
    ]);
    let skipped = report["skipped"].to_string();
    for name in ["truncated", "empty", "not_an_image"] {
        assert!(skipped.contains(name), "{name}: {skipped}");
    }
    assert_eq!(report["skipped"].as_array().unwrap().len(), 3, "{skipped}");
    assert_eq!(report["samples"], 7, "{report}");
    ok(&["verify", utf8(&dst), "--quiet"]);
}

#[test]
fn broken_clips_are_named() {
    let Some(videos) = shared("videos") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src/broken"), dir.path().join("set"));
    fs::create_dir_all(&src).unwrap();
    for entry in fs::read_dir(videos.join("broken")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, src.join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(videos.join("formats/five_frames.mp4"), src.join("good.mp4")).unwrap();
    let report = json(&[
        "convert",
        "kinetics",
        utf8(src.parent().unwrap()),
        utf8(&dst),
        "--max-bad",
        "100%",
    ]);
    let named = format!("{}{}", report["skipped"], report["damaged"]);
    for name in [
        "truncated_index_last",
        "audio_only",
        "empty",
        "text",
        "truncated_index_first",
        "flipped_bytes",
    ] {
        assert!(named.contains(name), "{name}: {named}");
    }
    ok(&["verify", utf8(&dst), "--quiet"]);
}
