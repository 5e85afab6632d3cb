//! Clips, from video files made on the spot.

use std::path::Path;

use shards::ShardSet;

use super::support::*;
use crate::codec::video::write_video;
use crate::codec::{Rgb8Image, decode_rgb8};
use crate::convert::*;
use crate::stop::Stop;

fn clip(path: &Path, number: u32, n_frames: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let frames: Vec<Rgb8Image> = (0..n_frames).map(|i| picture(number + i, 64, 48)).collect();
    write_video(path, 10, &frames).unwrap();
}

fn source(dir: &Path) -> std::path::PathBuf {
    let src = dir.join("src");
    for (number, (name, n_frames)) in [
        ("a/x.mp4", 7),
        ("a/y.avi", 12),
        ("b/z.mp4", 1),
        ("b/w.mkv", 9),
    ]
    .iter()
    .enumerate()
    {
        clip(&src.join(name), number as u32 * 20, *n_frames);
    }
    src
}

fn small() -> KineticsOptions {
    let common = CommonOptions {
        shard_bytes: 8000,
        row_group_bytes: 4000,
        shuffle_seed: None,
        ..Default::default()
    };
    KineticsOptions {
        common,
        short_side: Some(24),
        ..Default::default()
    }
}

#[test]
fn frames_are_those_that_decode_made_smaller() {
    let dir = tempfile::tempdir().unwrap();
    let src = source(dir.path());
    let dst = dir.path().join("dst");
    let report = convert_clips(&src, &dst, &small()).unwrap();
    assert_eq!((report.split.samples, report.split.rows), (4, 29));
    assert!(report.split.shards >= 2);
    let set = ShardSet::open(dst.to_str().unwrap(), "train").unwrap();
    let clips: Vec<(String, u32, Option<i32>)> = (0..4)
        .map(|i| set.sample(i).unwrap())
        .map(|s| (s.key, s.n_frames, s.label))
        .collect();
    let expected = [("a/x", 7, 0), ("a/y", 12, 0), ("b/w", 9, 1), ("b/z", 1, 1)];
    assert_eq!(
        clips,
        expected.map(|(key, n, label)| (key.to_owned(), n, Some(label)))
    );
    let frame = decode_rgb8(&set.picture(1, 11).unwrap()).unwrap();
    assert_eq!((frame.width, frame.height), (32, 24));
}

#[test]
fn stride_and_range_choose_frames() {
    let dir = tempfile::tempdir().unwrap();
    let src = source(dir.path());
    let frames = |name: &str, options: &KineticsOptions| -> Vec<Vec<u8>> {
        let dst = dir.path().join(name);
        convert_clips(&src, &dst, options).unwrap();
        let set = ShardSet::open(dst.to_str().unwrap(), "train").unwrap();
        let y = (0..set.n_samples())
            .find(|&i| set.sample(i).unwrap().key == "a/y")
            .unwrap();
        (0..set.n_frames(y).unwrap())
            .map(|k| set.picture(y, k).unwrap().to_vec())
            .collect()
    };
    let all = frames("all", &small());
    let mut options = KineticsOptions {
        frame_stride: 3,
        frame_range: "2..9".parse().unwrap(),
        ..small()
    };
    options.common.max_bad = MaxBad::Count(1);
    assert_eq!(
        frames("some", &options),
        [all[2].clone(), all[5].clone(), all[8].clone()]
    );
    let report = convert_clips(&src, &dir.path().join("some"), &options).unwrap();
    assert_eq!(
        report.split.skipped[0].key, "b/z",
        "its one frame is before the range"
    );
    assert_eq!(report.split.skipped[0].fault, "no frames");
}

#[test]
fn broken_and_absent_clips_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let src = source(dir.path());
    std::fs::write(src.join("a/text.mp4"), b"this is no video").unwrap();
    std::fs::write(src.join("a/empty.mp4"), b"").unwrap();
    let list = src.join("list.txt");
    std::fs::write(&list, "a/x.mp4\na/text.mp4\na/empty.mp4\na/gone.mp4\n").unwrap();
    let mut options = small();
    options.common.max_bad = "75%".parse().unwrap();
    let report = convert_clips(&list, &dir.path().join("dst"), &options).unwrap();
    let named: Vec<(&str, &str)> = report
        .split
        .skipped
        .iter()
        .map(|s| (s.key.as_str(), s.fault.as_str()))
        .collect();
    assert_eq!(
        named,
        [
            ("a/empty", "empty"),
            ("a/gone", "no such file"),
            ("a/text", "not a video")
        ]
    );
    let root = dir.path().to_str().unwrap();
    assert!(
        report
            .split
            .skipped
            .iter()
            .all(|s| !s.reason.contains(root)),
        "reports hold no path of this machine"
    );
    assert_eq!(report.split.samples, 1);
}

#[test]
fn workers_parts_and_stops_make_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let src = source(dir.path());
    let run = |name: &str, workers, part: Option<&str>| {
        let mut options = small();
        options.common.workers = workers;
        options.common.part = part.map(|part| part.parse().unwrap());
        convert_clips(&src, &dir.path().join(name), &options).unwrap();
    };
    run("one", 1, None);
    run("four", 4, None);
    run("parts", 2, Some("1/2"));
    run("parts", 1, Some("2/2"));
    finish(dir.path().join("parts").to_str().unwrap()).unwrap();
    let stopped = dir.path().join("stopped");
    for items in [1, 2] {
        let progress = StopAfter {
            items: std::cell::Cell::new(items),
            stop: Stop::new(),
        };
        let error = kinetics(
            &src,
            stopped.to_str().unwrap(),
            &small(),
            &progress,
            &progress.stop,
        )
        .unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
    }
    run("stopped", 3, None);
    let one = snapshot(&dir.path().join("one"));
    for other in ["four", "parts", "stopped"] {
        assert_same(&one, &snapshot(&dir.path().join(other)));
    }
}
