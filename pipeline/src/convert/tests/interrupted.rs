//! Stopped, killed, damaged, and gone on from.

use std::cell::Cell;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::support::*;
use crate::convert::*;
use crate::rng::{Purpose, SampleRng};
use crate::stop::Stop;

#[test]
fn stopped_five_times_at_any_item_makes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 4, 12);
    let (whole, stopped) = (dir.path().join("whole"), dir.path().join("stopped"));
    convert(&src, &whole, &small_shards()).unwrap();
    let mut rng = SampleRng::new(1, 0, 0, Purpose::Synth);
    for attempt in 0..5 {
        let mut options = small_shards();
        options.common.workers = 1 + attempt % 3;
        let progress = StopAfter {
            items: Cell::new(3 + rng.below(8)),
            stop: Stop::new(),
        };
        let error = imagenet(
            &src,
            stopped.to_str().unwrap(),
            &options,
            &progress,
            &progress.stop,
        )
        .unwrap_err();
        assert!(
            matches!(error, Error::Stopped { planned, done } if done < planned),
            "{error}"
        );
        assert!(!stopped.join("manifest.json").exists());
    }
    let report = convert(&src, &stopped, &small_shards()).unwrap();
    assert!(
        report.shards_resumed > 0 && report.items_converted < 48,
        "{report:?}"
    );
    assert_same(&snapshot(&whole), &snapshot(&stopped));
}

/// Not a test by itself: what [`killed_five_times_makes_the_same_bytes`] starts as a process of its own and kills.
#[test]
fn child_that_converts() {
    let Ok(dir) = std::env::var("PAIRQUET_TEST_CONVERT_IN") else {
        return;
    };
    let dir = Path::new(&dir);
    let slowly = Hook(|event: &ProgressEvent| {
        if let ProgressEvent::Item { .. } = event {
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let dst = dir.join("killed");
    imagenet(
        &dir.join("src"),
        dst.to_str().unwrap(),
        &small_shards(),
        &slowly,
        &Stop::new(),
    )
    .unwrap();
}

#[test]
fn killed_five_times_makes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 4, 12);
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let mut rng = SampleRng::new(2, 0, 0, Purpose::Synth);
    let n_shards = || std::fs::read_dir(&killed).map_or(0, |files| files.count());
    let mut n_killed = 0;
    for _ in 0..5 {
        let before = n_shards();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "convert::tests::interrupted::child_that_converts",
            ])
            .env("PAIRQUET_TEST_CONVERT_IN", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Kill it some time after it has begun a new shard.
        let patience = Instant::now() + Duration::from_secs(20);
        while n_shards() <= before
            && child.try_wait().unwrap().is_none()
            && Instant::now() < patience
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(rng.below(15)));
        child.kill().unwrap();
        n_killed += u32::from(!child.wait().unwrap().success());
    }
    assert!(
        n_killed > 0,
        "the child was always done before it could be killed"
    );
    convert(&src, &killed, &small_shards()).unwrap();
    convert(&src, &whole, &small_shards()).unwrap();
    assert_same(&snapshot(&whole), &snapshot(&killed));
}

#[test]
fn a_full_disk_is_an_error_with_its_path_and_leaves_whole_shards() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 4, 12);
    let (whole, dst) = (dir.path().join("whole"), dir.path().join("killed"));
    // A limit on the size of a file, with the signal for it ignored, fails like a full disk. Counted in half KiB.
    let limited = "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact --nocapture \
                   convert::tests::interrupted::child_that_converts";
    let output = Command::new("sh")
        .args([
            "-c",
            limited,
            std::env::current_exe().unwrap().to_str().unwrap(),
        ])
        .env("PAIRQUET_TEST_CONVERT_IN", dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("killed/train-000") && said.contains("File too large"),
        "{said}"
    );
    assert!(
        !snapshot(&dst).keys().any(|name| name.contains("tmp")),
        "half a shard was left"
    );
    convert(&src, &dst, &small_shards()).unwrap();
    convert(&src, &whole, &small_shards()).unwrap();
    assert_same(&snapshot(&whole), &snapshot(&dst));
}

#[test]
fn what_a_kill_can_leave_behind_is_cleared_up() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 3, 8);
    let (whole, dst) = (dir.path().join("whole"), dir.path().join("dst"));
    convert(&src, &whole, &small_shards()).unwrap();
    let progress = StopAfter {
        items: Cell::new(15),
        stop: Stop::new(),
    };
    imagenet(
        &src,
        dst.to_str().unwrap(),
        &small_shards(),
        &progress,
        &progress.stop,
    )
    .unwrap_err();
    let shards: Vec<String> = snapshot(&dst)
        .into_keys()
        .filter(|name| name.ends_with(".parquet"))
        .collect();
    assert!(shards.len() >= 2, "{shards:?}");
    // A shard without its record, a shard cut short, half-written files.
    std::fs::remove_file(dst.join(format!(".pairquet/{}.json", shards[0]))).unwrap();
    std::fs::write(dst.join(&shards[1]), b"PAR1").unwrap();
    std::fs::write(dst.join(format!(".pairquet-tmp-{}.x1", shards[0])), b"half").unwrap();
    std::fs::write(
        dst.join(format!(".pairquet/.pairquet-tmp-{}.json.x2", shards[0])),
        b"half",
    )
    .unwrap();
    std::fs::write(
        dst.join(".pairquet/.pairquet-tmp-plan-train.json.x3"),
        b"half",
    )
    .unwrap();
    std::fs::write(dst.join(".pairquet-tmp-manifest.json.x4"), b"half").unwrap();
    convert(&src, &dst, &small_shards()).unwrap();
    assert_same(&snapshot(&whole), &snapshot(&dst));
}

#[test]
fn done_again_changes_nothing_and_a_lost_shard_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 2, 8);
    let dst = dir.path().join("dst");
    let first = convert(&src, &dst, &small_shards()).unwrap();
    let before = snapshot(&dst);
    let again = convert(&src, &dst, &small_shards()).unwrap();
    assert_eq!((again.split, again.items_converted), (first.split, 0));
    assert_same(&before, &snapshot(&dst));
    finish(dst.to_str().unwrap()).unwrap();
    assert_same(&before, &snapshot(&dst));

    let shard = before
        .keys()
        .find(|name| name.ends_with(".parquet"))
        .unwrap();
    std::fs::remove_file(dst.join(shard)).unwrap();
    convert(&src, &dst, &small_shards()).unwrap();
    assert_same(&before, &snapshot(&dst));
}

#[test]
fn a_damaged_work_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let src = class_folders(dir.path(), 1, 2);
    let dst = dir.path().join("dst");
    convert(&src, &dst, &small_shards()).unwrap();
    std::fs::write(dst.join(".pairquet/plan-train.json"), b"{").unwrap();
    let message = convert(&src, &dst, &small_shards())
        .unwrap_err()
        .to_string();
    assert!(message.contains("plan-train.json"), "{message}");
}
