//! Many processes over MPI: the same losses, the same checkpoints, and an end for all when one is lost.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{fails, ok, pairquet, send_signal, text, utf8};
use crate::train::{figures, steps_made, strs, train_args};

/// Enough steps for a checkpoint and some more.
const STEPS: usize = 8;

/// Longer than any of these runs takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// `mpirun`, ready to be told what to run; `None`, said aloud, where there is none.
pub fn mpirun() -> Option<Command> {
    let found = Command::new("mpirun").arg("--version").output().is_ok();
    let reason = match (cfg!(feature = "mpi"), found) {
        (true, true) => {
            let mut command = Command::new("mpirun");
            command
                .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
                .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
                .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
                .env("RAYON_NUM_THREADS", "1")
                .stdin(Stdio::null());
            return Some(command);
        }
        (false, _) => "built without the feature mpi",
        (true, false) => "no mpirun here",
    };
    // Written past the test harness, which hides what a passing test prints.
    writeln!(std::io::stderr(), "SKIPPED: {reason}").expect("standard error");
    None
}

fn on_ranks(n: usize, args: &[String]) -> Option<Command> {
    let mut command = mpirun()?;
    command
        .args(["-n", &n.to_string(), env!("CARGO_BIN_EXE_pairquet")])
        .args(args);
    Some(command)
}

fn args(method: &str, out: &Path, more: &[&str]) -> Vec<String> {
    let mut args = train_args(method, out, 1);
    let steps = format!("optim.max_steps={STEPS}");
    for value in [steps.as_str()].iter().chain(more) {
        args.extend(["--set".to_owned(), (*value).to_owned()]);
    }
    args
}

/// Runs to the end, however long the ranks of others keep this machine busy.
fn output(command: &mut Command) -> Output {
    command.output().expect("mpirun starts")
}

fn succeeds(command: &mut Command) {
    let output = output(command);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Loss of each step, with its number.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    let number =
        |[step, loss, ..]: [serde_json::Value; 4]| (step.as_u64().unwrap(), loss.as_f64().unwrap());
    figures(run).into_iter().map(number).collect()
}

fn assert_same_losses(got: &Path, expected: &Path, what: &str) {
    let (got, expected) = (losses(got), losses(expected));
    assert_eq!(got.len(), expected.len(), "{what}");
    for ((step, a), (other_step, b)) in got.into_iter().zip(expected) {
        assert_eq!(step, other_step, "{what}");
        assert!(
            (a - b).abs() < 1e-5 * b.abs(),
            "{what}, step {step}: {a} and {b}"
        );
    }
}

#[test]
fn one_two_and_four_ranks_have_the_same_losses() {
    if mpirun().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for method in ["cropmae", "mae", "multi_view", "contrastive"] {
        let run = |n: usize| dir.path().join(format!("{method}-{n}"));
        ok(&strs(&args(method, &run(1), &[])));
        assert_eq!(losses(&run(1)).len(), STEPS);
        for n in [2, 4] {
            succeeds(&mut on_ranks(n, &args(method, &run(n), &[])).unwrap());
            assert_same_losses(&run(n), &run(1), &format!("{method} on {n} ranks"));
        }
    }
}

#[test]
fn a_checkpoint_of_two_ranks_goes_on_with_one_and_with_four() {
    if mpirun().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str| dir.path().join(name);
    ok(&strs(&args("multi_view", &run("whole"), &[])));
    for n in [1, 4] {
        let out = run(&format!("then-{n}"));
        let part = args("multi_view", &out, &["run.stop_after=5"]);
        let stopped = output(&mut on_ranks(2, &part).unwrap());
        assert!(!stopped.status.success(), "a stopped run is not done");
        assert_eq!(losses(&out).len(), 5, "{}", text(&stopped.stderr));
        let rest = args("multi_view", &out, &[]);
        match n {
            1 => drop(ok(&strs(&rest))),
            _ => succeeds(&mut on_ranks(n, &rest).unwrap()),
        }
        assert_same_losses(&out, &run("whole"), &format!("2, then {n} ranks"));
    }
}

/// A run that would take for ever, past its first checkpoint, with the ranks' process ids.
#[cfg(target_os = "linux")]
fn under_way(out: &Path) -> Option<(Child, Vec<u32>)> {
    let mut endless = args(
        "cropmae",
        out,
        &["optim.max_steps=100000", "run.checkpoint_every=2"],
    );
    endless.retain(|arg| arg != "--quiet");
    let child = on_ranks(2, &endless)?
        .env("PAIRQUET_STALL_SECONDS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !out.join("checkpoints/latest").exists() || steps_made(out) < 5 {
        assert!(started.elapsed() < PATIENCE, "no checkpoint in time");
        sleep(Duration::from_millis(10));
    }
    let list = format!("/proc/{0}/task/{0}/children", child.id());
    let pids = fs::read_to_string(list).unwrap();
    let mut ranks: Vec<(String, u32)> = pids
        .split_whitespace()
        .filter_map(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let rank = text(&environment)
                .split('\0')
                .find_map(|line| Some(line.strip_prefix("OMPI_COMM_WORLD_RANK=")?.to_owned()))?;
            Some((rank, pid.parse().ok()?))
        })
        .collect();
    ranks.sort();
    assert_eq!(ranks.len(), 2, "the ranks of OpenMPI's mpirun");
    Some((child, ranks.into_iter().map(|(_, pid)| pid).collect()))
}

/// What `child` says before it ends, which it must do on its own.
fn ended(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        let hangs = started.elapsed() > PATIENCE;
        if hangs {
            child.kill().unwrap();
        }
        assert!(!hangs, "the other ranks hang");
        sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// The last step of the newest checkpoint.
fn saved(run: &Path) -> usize {
    let name = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    name.trim().rsplit('-').next().unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_rank_ends_all_and_the_last_checkpoint_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let out: PathBuf = dir.path().join("run");
    let Some((child, ranks)) = under_way(&out) else {
        return;
    };
    send_signal("-KILL", ranks[1]);
    let output = ended(child);
    let message = text(&output.stderr);
    assert!(!output.status.success(), "{message}");
    assert!(
        message.contains("rank 1") && message.contains("signal 9"),
        "{message}"
    );
    let last = saved(&out);
    assert!(last >= 2);
    let stop_after = format!("run.stop_after={}", last + 2);
    let more = ["optim.max_steps=100000", stop_after.as_str()];
    fails(1, &strs(&args("cropmae", &out, &more))); // stopped, not done
    assert_eq!(saved(&out), last + 2);
    assert_eq!(losses(&out).len(), last + 2);
}

/// MPI waits for ever for a rank that hangs and is not dead.
#[cfg(target_os = "linux")]
#[test]
fn a_rank_that_hangs_is_spoken_of_and_the_run_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let Some((mut child, ranks)) = under_way(&out) else {
        return;
    };
    send_signal("-STOP", ranks[1]);
    let said = BufReader::new(child.stderr.take().unwrap());
    let mut lines = said.lines().map(Result::unwrap);
    let mut heard = |expected: &str| lines.any(|line| line.contains(expected));
    let waits = heard(" s for stage communication: ");
    send_signal("-CONT", ranks[1]);
    assert!(waits && heard("stage communication goes on, after "));
    send_signal("-USR1", child.id());
    lines.for_each(drop);
    assert!(!ended(child).status.success(), "a stopped run is not done");
    assert_eq!(saved(&out), losses(&out).len());
}

#[cfg(target_os = "linux")]
#[test]
fn ranks_that_are_asked_to_stop_save_at_the_same_step() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let Some((child, _)) = under_way(&out) else {
        return;
    };
    send_signal("-USR1", child.id()); // mpirun passes it on
    let output = ended(child);
    assert!(!output.status.success(), "a stopped run is not done");
    assert!(
        out.join("summary.json").exists(),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(saved(&out), losses(&out).len());
}

#[test]
fn an_error_on_one_rank_ends_the_others() {
    let Some(mut command) = mpirun() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let program = env!("CARGO_BIN_EXE_pairquet");
    let endless = ["optim.max_steps=100000"];
    let child = command
        .args(["-n", "1", program])
        .args(args("cropmae", &dir.path().join("run"), &endless))
        .args([":", "-n", "1", program])
        .args(args("cropmae", &file.join("run"), &endless))
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let output = ended(child);
    let message = text(&output.stderr);
    assert!(!output.status.success(), "{message}");
    assert!(message.contains("rank 1 of 2: "), "{message}");
    assert!(message.contains(utf8(&file)), "{message}");
}

#[test]
fn a_wrong_environment_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let with = |variables: &[(&str, &str)]| {
        let output = pairquet()
            .args(args("cropmae", &dir.path().join("run"), &[]))
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    let message = with(&[("RANK", "1")]);
    assert!(message.contains("WORLD_SIZE is not set"), "{message}");
    let message = with(&[
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("PMI_RANK", "1"),
        ("PMI_SIZE", "2"),
    ]);
    assert!(message.contains("contradict"), "{message}");
    if !cfg!(feature = "mpi") {
        let message = with(&[("RANK", "0"), ("WORLD_SIZE", "2")]);
        assert!(message.contains("--features mpi"), "{message}");
    }
    assert!(!dir.path().join("run").exists());
}
