//! Sets in a bucket: converted there, looked at there, checked there.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use bucket::{Fault, Proxy, Rates, Server};

use crate::support::{demo_set, ok, pairquet, shard_bytes, text, utf8};
use crate::train::{figures, strs, train_args};

const SET: &str = "s3://sets/a/set";

/// The program with nothing but variables to tell it where the bucket is.
fn program(environment: Vec<(String, String)>, args: &[&str]) -> Command {
    let mut command = pairquet();
    command.envs(environment).args(args);
    command
}

fn succeeds(environment: Vec<(String, String)>, args: &[&str]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = program(environment, args).output().unwrap();
    assert!(status.success(), "{args:?}: {}", text(&stderr));
    text(&stdout)
}

fn kinetics<'a>(src: &'a Path, dst: &'a str) -> Vec<&'a str> {
    let mut args = vec!["convert", "kinetics", utf8(src), dst];
    args.extend(["--shard-size", "256KiB", "--workers", "2", "--quiet"]);
    args
}

#[test]
fn a_conversion_to_a_bucket_that_is_killed_goes_on_and_makes_the_same_bytes() {
    let src = demo_set().join("raw/clips");
    let dir = tempfile::tempdir().unwrap();
    let local = dir.path().join("local");
    ok(&kinetics(&src, utf8(&local)));
    let expected = shard_bytes(&local);

    let server = Server::start().unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let folder = server.folder().join("a/set");
    let mut kills = 0;
    // Killed in the middle of its first request, of a shard, between a shard and its record, and so on.
    for nth in [0, 9, 10, 13, 21] {
        let (reached, wait) = mpsc::channel();
        let first = proxy.take_log().last().map_or(0, |last| last.number + 1);
        proxy.set_plan(Box::new(move |request| {
            if request.number < first + nth {
                return Fault::None;
            }
            let _ = reached.send(()); // the test may have heard enough
            Fault::Stall
        }));
        let args = kinetics(&src, SET);
        let mut child = program(proxy.environment(), &args).spawn().unwrap();
        while wait.recv_timeout(Duration::from_millis(20)).is_err() {
            if child.try_wait().unwrap().is_some() {
                break;
            }
        }
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
        let manifest = folder.join("manifest.json");
        assert!(!manifest.exists() || shard_bytes(&folder) == expected);
    }
    assert!(kills >= 4, "killed {kills} times");
    proxy.set_plan(Box::new(|_| Fault::None));
    succeeds(proxy.environment(), &kinetics(&src, SET));
    assert!(shard_bytes(&folder) == expected, "killed {kills} times");

    // Again, when all is done: nothing is written.
    proxy.take_traffic();
    succeeds(proxy.environment(), &kinetics(&src, SET));
    assert_eq!(proxy.take_traffic().request_bytes, 0);

    // What reads local sets reads this one.
    let clean = succeeds(server.environment(), &["verify", SET, "--quiet"]);
    assert!(clean.contains("clean"), "{clean}");
    let inspect = |set: &str| succeeds(server.environment(), &["--json", "inspect", set]);
    let (there, here) = (inspect(SET), inspect(utf8(&local)));
    let without_path = |text: &str, path: &str| text.replace(path, "SET");
    assert!(without_path(&there, SET) == without_path(&here, utf8(&local)));
}

#[test]
fn a_bucket_that_cannot_be_used_is_a_clear_error_without_secrets() {
    let server = Server::start().unwrap();
    for (name, value, expected) in [
        (
            "AWS_ACCESS_KEY_ID",
            "AKNOBODY",
            "access key id is not known",
        ),
        (
            "AWS_SECRET_ACCESS_KEY",
            "hush-hush",
            "secret key does not belong",
        ),
        (
            "AWS_ENDPOINT_URL",
            "nowhere",
            "AWS_ENDPOINT_URL is not an address",
        ),
        ("AWS_PROFILE", "nobody", "no such profile"),
    ] {
        let mut environment = server.environment();
        environment.push((name.to_owned(), value.to_owned()));
        let Output { status, stderr, .. } =
            program(environment, &["inspect", SET]).output().unwrap();
        let message = text(&stderr);
        assert_eq!(status.code(), Some(1), "{message}");
        assert!(message.contains(expected), "{name}: {message}");
        assert!(!message.contains("hush-hush"), "{message}");
        assert!(!message.contains("panicked"), "{message}");
    }
    let missing = program(server.environment(), &["inspect", SET])
        .output()
        .unwrap();
    let message = text(&missing.stderr);
    assert!(message.contains("has no manifest.json"), "{message}");
}

/// Arguments of a small run on the demo's images, by whatever address.
fn train_from(path: &str, out: &Path, more: &[&str]) -> Vec<String> {
    let mut args = train_args("cropmae", out, 1);
    let path = format!("data.path={path}");
    for value in [path.as_str(), "data.order=blocks"]
        .into_iter()
        .chain(more.iter().copied())
    {
        args.extend(["--set".to_owned(), value.to_owned()]);
    }
    args
}

/// A server with one of the demo's sets.
fn server_with(set: &str) -> Server {
    let server = Server::start().unwrap();
    let folder = server.folder().join(set);
    std::fs::create_dir(&folder).unwrap();
    for (name, bytes) in shard_bytes(&demo_set().join("shards").join(set)) {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    server
}

#[test]
fn a_run_from_a_bucket_is_the_run_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
    let local = demo_set().join("shards/images");
    ok(&strs(&train_from(utf8(&local), &here, &[])));
    let server = server_with("images");
    let args = train_from("s3://sets/images", &there, &[]);
    succeeds(server.environment(), &strs(&args));
    assert_eq!(figures(&there), figures(&here));
}

#[test]
fn kills_while_the_cache_fills_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
    let local = demo_set().join("shards/images");
    ok(&strs(&train_from(utf8(&local), &here, &[])));
    let server = server_with("images");
    let proxy = Proxy::start(server.address()).unwrap();
    let cache = format!(
        "data.cache={{dir={:?}, max_bytes=67108864}}",
        utf8(&dir.path().join("cache"))
    );
    let args = train_from(
        "s3://sets/images",
        &there,
        &[&cache, "data.read=pages", "data.io_threads=3"],
    );
    let mut kills = 0;
    for nth in 0..20 {
        let (reached, wait) = mpsc::channel();
        let first = proxy.take_log().last().map_or(0, |last| last.number + 1);
        // From the first request on, a little later each time: before an entry, in the middle of it, behind it.
        proxy.set_plan(Box::new(move |request| {
            if request.number >= first + 1 + nth % 7 {
                let _ = reached.send(()); // the test may have heard enough
            }
            Fault::None
        }));
        let mut child = program(proxy.environment(), &strs(&args)).spawn().unwrap();
        while wait.recv_timeout(Duration::from_millis(20)).is_err() {
            if child.try_wait().unwrap().is_some() {
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(300 * nth));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills >= 15, "killed {kills} times");
    proxy.set_plan(Box::new(|_| Fault::None));
    succeeds(proxy.environment(), &strs(&args));
    assert_eq!(figures(&there), figures(&here), "killed {kills} times");
}

#[test]
fn a_run_from_a_bucket_over_a_bad_line_has_the_losses_of_a_local_one() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_with("clips");
    let proxy = Proxy::start(server.address()).unwrap();
    proxy.set_plan(
        Rates {
            errors: 0.02,
            resets: 0.02,
            truncations: 0.02,
            ..Rates::default()
        }
        .plan(5),
    );
    let run = |name: &str| {
        let out = dir.path().join(name);
        let mut args = train_args("siammae", &out, 2);
        args.extend(["--set".to_owned(), "data.order=full".to_owned()]);
        (out, args)
    };
    let (local, args) = run("local");
    ok(&strs(&args));
    let (remote, mut args) = run("remote");
    args.extend(["--set".to_owned(), "data.path=s3://sets/clips".into()]);
    succeeds(proxy.environment(), &strs(&args));
    assert_eq!(figures(&remote), figures(&local));
}

#[test]
fn a_store_that_falls_silent_is_named_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there] = ["here", "there"].map(|name| dir.path().join(name));
    let local = demo_set().join("shards/images");
    ok(&strs(&train_from(utf8(&local), &here, &[])));
    let server = server_with("images");
    let proxy = Proxy::start(server.address()).unwrap();
    let asked = AtomicU64::new(0);
    proxy.set_plan(Box::new(move |request| {
        let of_shard = request.path.contains(".parquet");
        match of_shard && asked.fetch_add(1, Ordering::SeqCst) == 6 {
            true => Fault::Stall,
            false => Fault::None,
        }
    }));
    let set = "s3://sets/images";
    let slow = ["data.read=pages", "data.store={stall_timeout_ms=4000}"];
    let mut args = train_from(set, &there, &slow);
    args.retain(|arg| arg != "--quiet");
    let mut command = program(proxy.environment(), &strs(&args));
    let output = command.env("PAIRQUET_STALL_SECONDS", "1").output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let told = |start: &str, within: &str| {
        let mut lines = said.lines();
        lines.any(|line| line.starts_with(start) && line.contains(within))
    };
    let shard = "for stage reading: train-00000-of-00001.parquet, row group ";
    assert!(told("waiting ", shard), "{said}");
    assert!(told("stage reading goes on, after ", " s"), "{said}");
    assert_eq!(figures(&there), figures(&here));
}
