//! Training: stops, kills and resumes without losing a bit.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{demo_set, fails, json, ok, pairquet, utf8};

/// Enough steps for several checkpoints, few enough for seconds.
const STEPS: usize = 24;

pub fn train_args(method: &str, out: &Path, threads: usize) -> Vec<String> {
    let source = if method == "cropmae" {
        "images"
    } else {
        "clips"
    };
    let config = format!("{}/configs/smoke/{method}.toml", env!("CARGO_MANIFEST_DIR"));
    let mut args = vec![
        "train".to_owned(),
        config,
        "--quiet".into(),
        "--out".into(),
        utf8(out).to_owned(),
    ];
    for value in [
        format!(
            "data.path={}",
            demo_set().join("shards").join(source).display()
        ),
        format!("data.threads={threads}"),
        format!("optim.max_steps={STEPS}"),
        "data.size=32".into(),
        "data.batch_size=8".into(),
        "model.embed_dim=48".into(),
        "model.depth=2".into(),
        "model.decoder_embed_dim=32".into(),
        "model.decoder_depth=1".into(),
        "run.log_every=1".into(),
        "run.checkpoint_every=5".into(),
        "run.pictures_every=10".into(),
    ] {
        args.extend(["--set".to_owned(), value]);
    }
    args
}

pub fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// The figures of each step that must not depend on how the run went.
pub fn figures(run: &Path) -> Vec<[Value; 4]> {
    fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a JSON line"))
        .map(|line| ["step", "loss", "lr", "grad_norm"].map(|name| line[name].clone()))
        .collect()
}

#[test]
fn a_killed_run_goes_on_bit_for_bit_with_other_threads() {
    let dir = tempfile::tempdir().unwrap();
    for method in ["cropmae", "siammae"] {
        let [whole, killed] =
            ["whole", "killed"].map(|name| dir.path().join(format!("{method}-{name}")));
        ok(&strs(&train_args(method, &whole, 1)));
        let expected = figures(&whole);
        assert_eq!(expected.len(), STEPS);

        for (threads, after_steps) in [(1, 8), (3, 15)] {
            let mut child = pairquet()
                .args(train_args(method, &killed, threads))
                .spawn()
                .unwrap();
            let started = Instant::now();
            let lines = || {
                fs::read_to_string(killed.join("metrics.jsonl"))
                    .map_or(0, |text| text.lines().count())
            };
            while lines() < after_steps && started.elapsed() < Duration::from_secs(120) {
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                sleep(Duration::from_millis(2));
            }
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(
                lines() < STEPS,
                "{method}: it had ended before it could be killed"
            );
        }
        ok(&strs(&train_args(method, &killed, 3)));
        assert_eq!(figures(&killed), expected, "{method}");
        let weights = |run| fs::read(newest_weights(run)).unwrap();
        assert!(
            weights(&killed) == weights(&whole),
            "{method}: final weights"
        );
    }
}

fn newest_weights(run: &Path) -> std::path::PathBuf {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).expect("a latest pointer");
    run.join("checkpoints")
        .join(latest.trim())
        .join("model.safetensors")
}

#[cfg(unix)]
#[test]
fn a_terminated_run_saves_and_says_that_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut args = train_args("cropmae", &out, 1);
    args.extend(["--set".into(), "optim.max_steps=100000".into()]);
    let child = pairquet().args(&args).spawn().unwrap();
    let started = Instant::now();
    while fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |text| text.lines().count()) < 3 {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "no step in two minutes"
        );
        sleep(Duration::from_millis(5));
    }
    std::process::Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(newest_weights(&out).is_file());
}

/// `pairquet train … 2>&1 | head -1` must not end the training.
#[test]
fn nobody_listening_is_no_reason_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let mut args = train_args("cropmae", &out, 1);
    args.retain(|arg| arg != "--quiet");
    let mut child = pairquet()
        .args(&args)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(figures(&out).len(), STEPS);
}

#[test]
fn a_finished_run_leaves_everything_behind() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let summary = json(&strs(&train_args("siammae", &out, 2)));
    assert_eq!(summary["steps"], STEPS, "{summary}");
    for name in [
        "config.toml",
        "metrics.jsonl",
        "curves.svg",
        "checkpoints/latest",
    ] {
        assert!(out.join(name).is_file(), "{name}");
    }
    assert!(fs::read_dir(out.join("pictures")).unwrap().count() >= 2);
    let svg = fs::read_to_string(out.join("curves.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
}

#[test]
fn shards_of_the_wrong_kind_and_a_changed_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let images = format!("data.path={}", demo_set().join("shards/images").display());
    let mut wrong = train_args("siammae", &out, 1);
    wrong.extend(["--set".into(), images]);
    let message = fails(1, &strs(&wrong));
    assert!(
        message.contains("frame_pair") && message.contains("clips"),
        "{message}"
    );

    let args = train_args("cropmae", &out, 1);
    ok(&strs(&args));
    let mut other = args;
    other.extend(["--set".into(), "model.depth=3".into()]);
    let message = fails(1, &strs(&other));
    assert!(message.contains("depth"), "{message}");
}
