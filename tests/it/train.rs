//! Training: stops, kills and resumes without losing a bit.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{demo_set, fails, json, ok, pairquet, send_signal, text, utf8};

/// Enough steps for several checkpoints, few enough for seconds.
const STEPS: usize = 24;

pub fn train_args(method: &str, out: &Path, threads: usize) -> Vec<String> {
    let source = if method == "siammae" {
        "clips"
    } else {
        "images"
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
fn the_other_methods_train_from_their_smoke_configs() {
    let dir = tempfile::tempdir().unwrap();
    for method in ["mae", "multi_view", "contrastive"] {
        let out = dir.path().join(method);
        let mut args = train_args(method, &out, 1);
        args.extend(["--set".into(), "optim.max_steps=2".into()]);
        ok(&strs(&args));
        assert_eq!(figures(&out).len(), 2, "{method}");
    }
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
            let lines = || steps_made(&killed);
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
    wait_for_steps(&out, 3);
    send_signal("-TERM", child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(newest_weights(&out).is_file());
}

/// Slurm's warning before a job's time is up, which mpirun passes on too.
#[cfg(unix)]
#[test]
fn sigusr1_saves_and_the_same_command_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut args = endless(&run);
    args.retain(|arg| arg != "--quiet");
    let child = pairquet()
        .args(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_steps(&run, 3);
    send_signal("-USR1", child.id());
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let end = "stopped; the same command goes on from here\n";
    assert!(said.ends_with(end), "{said}");
    goes_on_as_if_undisturbed(&run, &dir.path().join("whole"));
}

#[test]
fn a_limit_on_time_saves_and_the_same_command_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    // Longer where the machine is too busy for a single step.
    for hours in ["0.001", "0.01", "0.05"] {
        let mut args = endless(&run);
        args.retain(|arg| arg != "--quiet");
        args.extend(["--max-hours".to_owned(), hours.to_owned()]);
        let started = Instant::now();
        let said = fails(1, &strs(&args));
        let seconds = hours.parse::<f64>().unwrap() * 3600.0;
        assert!(started.elapsed().as_secs_f64() >= seconds, "{said}");
        let end = format!(
            "stopped as --max-hours {hours} are over; the same command goes on from here\n"
        );
        assert!(said.ends_with(&end), "{said}");
        if steps_made(&run) > 0 {
            break;
        }
    }
    goes_on_as_if_undisturbed(&run, &dir.path().join("whole"));

    for wrong in ["0", "-1", "never", "inf"] {
        let message = fails(2, &["train", "any.toml", &format!("--max-hours={wrong}")]);
        assert!(
            message.contains(wrong) && message.contains("hours above 0"),
            "{message}"
        );
    }
}

/// With stand-ins for Slurm's commands.
#[cfg(target_os = "linux")]
#[test]
fn the_batch_script_goes_back_to_the_queue_only_if_it_was_asked_to_stop() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let requeued = path("requeued");
    for (name, text) in [
        ("srun", "shift\nexec \"$@\"\n".to_owned()),
        (
            "scontrol",
            format!(
                "[ \"$1\" = show ] && echo here || echo \"$@\" >> {}\n",
                utf8(&requeued)
            ),
        ),
    ] {
        fs::write(path(name), format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink(env!("CARGO_BIN_EXE_pairquet"), path("pairquet")).unwrap();
    let commands = std::env::var("PATH").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/cluster/train.sbatch");
    let batch = |run: &Path, more: &[&str]| {
        let mut args = endless(run);
        for value in more {
            args.extend(["--set".to_owned(), (*value).to_owned()]);
        }
        args.push("--print-config".to_owned());
        let config = run.with_extension("toml");
        fs::write(&config, ok(&strs(&args))).unwrap();
        let mut command = std::process::Command::new("bash");
        command.args([script, utf8(&config), utf8(run)]);
        command.env("PATH", format!("{}:{commands}", utf8(dir.path())));
        command.envs([("SLURM_JOB_ID", "77"), ("SLURM_JOB_NODELIST", "here")]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };

    let asked = path("asked");
    let child = batch(&asked, &[]);
    wait_for_steps(&asked, 2);
    send_signal("-USR1", child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(&requeued).unwrap(), "requeue 77\n");
    let made = steps_made(&asked);
    assert!(
        newest_weights(&asked)
            .parent()
            .unwrap()
            .ends_with(format!("step-{made:08}"))
    );

    let broken = ["optim.lr=1e30", "optim.warmup_ratio=0"];
    for (name, more, code) in [
        ("broken", &broken[..], 1),
        ("done", &["optim.max_steps=1"], 0),
    ] {
        let output = batch(&path(name), more).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    }
    assert_eq!(fs::read_to_string(&requeued).unwrap().lines().count(), 1);
}

/// A run that only ends when it is told to.
fn endless(out: &Path) -> Vec<String> {
    let mut args = train_args("cropmae", out, 1);
    args.extend(["--set".into(), "optim.max_steps=1000000".into()]);
    args
}

/// Steps that a run has logged so far.
pub fn steps_made(run: &Path) -> usize {
    fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[cfg(unix)]
fn wait_for_steps(run: &Path, n: usize) {
    let started = Instant::now();
    while steps_made(run) < n {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "no step {n} in two minutes"
        );
        sleep(Duration::from_millis(5));
    }
}

/// Makes two more steps of an endless run that was stopped, and as many in one go: the figures and weights are the same.
fn goes_on_as_if_undisturbed(run: &Path, whole: &Path) {
    let made = steps_made(run);
    let newest = newest_weights(run);
    let saved = newest.parent().unwrap().to_str().unwrap();
    assert!(saved.ends_with(&format!("step-{made:08}")), "{saved}");
    for out in [run, whole] {
        let mut args = endless(out);
        args.extend(["--set".into(), format!("run.stop_after={}", made + 2)]);
        fails(1, &strs(&args)); // stopped, not done
    }
    assert_eq!(figures(run), figures(whole));
    let weights = |run| fs::read(newest_weights(run)).unwrap();
    assert!(weights(run) == weights(whole), "weights");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_with_the_step_the_samples_and_the_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut args = train_args("cropmae", &run, 2);
    for value in [
        "optim.lr=1e30",
        "optim.warmup_ratio=0",
        "run.checkpoint_every=1",
    ] {
        args.extend(["--set".into(), value.into()]);
    }
    let message = fails(1, &strs(&args));
    let made = steps_made(&run);
    let step = made + 1;
    assert!(message.contains(&format!("step {step}: ")), "{message}");
    assert!(message.contains("expected a finite number"), "{message}");
    let list = run.join(format!("not-finite-step-{step:08}.txt"));
    let keys = fs::read_to_string(&list).unwrap();
    assert_eq!(keys.lines().count(), 8, "the keys of a batch");
    let named = keys.lines().next().unwrap();
    assert!(message.contains(named), "{message}");
    // What is named is there, from before, and the newest.
    let newest = newest_weights(&run);
    let checkpoint = newest.parent().unwrap();
    assert!(
        checkpoint.ends_with(format!("step-{made:08}")),
        "{checkpoint:?}"
    );
    let last = format!("last good checkpoint: {}", checkpoint.display());
    assert!(message.contains(&last), "{message}");
    for entry in fs::read_dir(run.join("checkpoints")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let saved = name.strip_prefix("step-").map(|step| step.parse::<usize>());
        assert!(saved.is_none_or(|saved| saved.unwrap() <= made), "{name}");
    }
    let before = fs::read(&newest).unwrap();
    let again = fails(1, &strs(&args)); // the same command meets the same
    assert!(again.contains(&format!("step {step}: ")), "{again}");
    assert!(fs::read(&newest).unwrap() == before, "the checkpoint");
}

#[test]
fn a_patience_without_sense_is_named() {
    let mut command = pairquet();
    command
        .env("PAIRQUET_STALL_SECONDS", "soon")
        .arg("inspect")
        .arg("any");
    let output = command.output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("PAIRQUET_STALL_SECONDS is \"soon\""),
        "{message}"
    );
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
