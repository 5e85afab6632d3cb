//! What a clip does to the process that decodes it stays there: workers that crash, hang, grow and lie, for real.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use pipeline::codec::{Rgb8Image, write_video};
use serde_json::Value;

use crate::support::{demo_set, fails, ok, pairquet, send_signal, shard_bytes, text, tree, utf8};

/// Some of the demo's clips, the third of them with a name that no other process of this machine has in its environment.
struct Clips {
    dir: tempfile::TempDir,
    victim: String,
}

impl Clips {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        let victim = format!("victim_{}", name.trim_start_matches('.'));
        let class = dir.path().join("src/class");
        fs::create_dir_all(&class).unwrap();
        for (number, (path, bytes)) in tree(&demo_set().join("raw/clips"))
            .into_iter()
            .filter(|(path, _)| path.extension().is_some_and(|ending| ending == "mp4"))
            .take(6)
            .enumerate()
        {
            let name = if number == 2 {
                format!("{victim}.mp4")
            } else {
                path.file_name().unwrap().to_str().unwrap().to_owned()
            };
            fs::write(class.join(name), bytes).unwrap();
        }
        assert_eq!(fs::read_dir(&class).unwrap().count(), 6, "the demo's clips");
        Self { dir, victim }
    }

    fn src(&self) -> PathBuf {
        self.dir.path().join("src")
    }

    fn victim_file(&self) -> PathBuf {
        self.src().join(format!("class/{}.mp4", self.victim))
    }

    fn args<'a>(&self, src: &'a Path, dst: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let mut args = vec![
            "--json",
            "--quiet",
            "convert",
            "kinetics",
            utf8(src),
            utf8(dst),
        ];
        args.extend(["--shard-size", "128KiB"]);
        args.extend(more);
        args
    }

    /// A command that converts, with a fault of the victim.
    fn faulty(&self, fault: &str, dst: &Path, more: &[&str]) -> Command {
        let src = self.src();
        let mut command = pairquet();
        command
            .args(self.args(&src, dst, more))
            .env("PAIRQUET_WORKER_FAULT", format!("{fault}:{}", self.victim));
        command
    }

    /// Runs that, expects success, and returns the report.
    fn convert(&self, fault: &str, dst: &Path, more: &[&str]) -> Value {
        let output = self.faulty(fault, dst, more).output().unwrap();
        assert!(output.status.success(), "{fault}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The workers of this folder's conversions that live. They alone have the victim's name in their environment,
    /// beside the conversions themselves.
    fn workers(&self) -> Vec<u32> {
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                let of = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                text(&of("environ")).contains(&self.victim)
                    && text(&of("cmdline")).contains("clip-worker")
            })
            .collect()
    }

    /// Waits for workers to be there, or to be gone.
    fn wait_for_workers(&self, there: bool, patience: Duration) {
        let start = Instant::now();
        while self.workers().is_empty() == there {
            assert!(
                start.elapsed() < patience,
                "workers {:?} after {patience:?}, expected some: {there}",
                self.workers()
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// Starts a conversion whose worker hangs, and waits until it does.
    fn hanging(&self) -> Child {
        let child = self
            .faulty(
                "hang",
                &self.dir.path().join("hanging"),
                &["--workers", "1"],
            )
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.wait_for_workers(true, Duration::from_secs(30));
        // One that waits for a clip takes no time.
        let busy = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let ticks = stat.split(' ').nth(13).and_then(|ticks| ticks.parse().ok());
            ticks.is_some_and(|ticks: u64| ticks > 50)
        };
        let start = Instant::now();
        while !self.workers().iter().any(busy) {
            assert!(start.elapsed() < Duration::from_secs(60), "no worker hangs");
            sleep(Duration::from_millis(10));
        }
        child
    }
}

/// Shards and manifest, with the one word in which the manifests of these sets may differ taken out, and so their own
/// checksum.
fn shards_of(dst: &Path, fault: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = shard_bytes(dst);
    let manifest = files.get_mut(Path::new("manifest.json")).unwrap();
    let counted = format!("\"{fault}\": 1");
    assert_eq!(text(manifest).matches(&counted).count(), 1, "{counted}");
    let mut differing = text(manifest).replace(&counted, "");
    differing.truncate(differing.rfind("\"sha256\"").unwrap());
    *manifest = differing.into_bytes();
    files
}

#[test]
fn a_clip_that_fails_its_worker_is_left_out_alone() {
    let clips = Clips::new();
    let expected = clips.dir.path().join("expected");
    let whole = fs::read(clips.victim_file()).unwrap();
    // Of the same size, as sizes decide on the layout.
    fs::write(clips.victim_file(), vec![0; whole.len()]).unwrap();
    let src = clips.src();
    ok(&clips.args(&src, &expected, &["--max-bad", "1", "--in-process"]));
    fs::write(clips.victim_file(), whole).unwrap();
    let expected = shards_of(&expected, "not a video");
    assert!(expected.len() > 3, "several shards: {:?}", expected.keys());

    for (fault, kind, reason) in [
        ("crash", "crash", "the video library crashed (SIGSEGV)"),
        ("abort", "crash", "the video library crashed (SIGABRT)"),
        ("panic", "crash", "ended with exit code 101"),
        ("hang", "timeout", "no frame within 3 s"),
        ("grow", "out of memory", "needs more than 256 MiB of memory"),
        ("garbage", "nonsense", "sent a message of kind 0x00"),
    ] {
        let dst = clips.dir.path().join(fault);
        let mut limits = vec!["--max-bad", "1", "--clip-memory", "256MiB"];
        if fault == "hang" {
            // No less: the other clips have to keep to it too, on a busy machine.
            limits.extend(["--clip-timeout", "3"]);
        }
        let report = clips.convert(fault, &dst, &limits);
        let skipped = report["skipped"].as_array().unwrap();
        assert_eq!(skipped.len(), 1, "{fault}: {report}");
        assert_eq!(skipped[0]["key"], format!("class/{}", clips.victim));
        assert_eq!(skipped[0]["fault"], kind);
        let said = skipped[0]["reason"].as_str().unwrap();
        assert!(said.contains(reason), "{fault}: {said}");
        assert_eq!(report["samples"], 5, "{fault}");
        assert!(shards_of(&dst, kind) == expected, "{fault}: other bytes");
        assert_eq!(clips.workers(), [0_u32; 0], "{fault}");
        // Nothing is left to do, and nobody is started to find out.
        let again = clips.convert(fault, &dst, &limits);
        assert_eq!(again["items_converted"], 0, "{fault}: {again}");
    }
}

#[test]
fn a_clip_is_not_blamed_for_what_others_did_to_its_worker() {
    let clips = Clips::new();
    let src = clips.src();
    let [here, apart, used] = ["here", "apart", "used"].map(|name| clips.dir.path().join(name));
    ok(&clips.args(&src, &here, &["--in-process"]));
    ok(&clips.args(&src, &apart, &["--workers", "3"]));
    assert!(shard_bytes(&here) == shard_bytes(&apart));
    let report = clips.convert("crash-if-used", &used, &["--workers", "1", "--sorted"]);
    let plain = clips.dir.path().join("plain");
    ok(&clips.args(&src, &plain, &["--in-process", "--sorted"]));
    assert_eq!(report["skipped"].as_array().unwrap().len(), 0, "{report}");
    assert_eq!(report["samples"], 6);
    assert!(shard_bytes(&used) == shard_bytes(&plain));
}

#[test]
fn more_failures_than_allowed_end_the_conversion_with_the_clip_named() {
    let clips = Clips::new();
    let dst = clips.dir.path().join("dst");
    let output = clips
        .faulty("crash", &dst, &["--max-bad", "0"])
        .output()
        .unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for named in ["broken", &clips.victim, "crashed (SIGSEGV)"] {
        assert!(message.contains(named), "{named}: {message}");
    }
    assert!(!dst.join("manifest.json").exists());
}

#[test]
fn no_worker_outlives_its_conversion() {
    let clips = Clips::new();
    let mut child = clips.hanging();
    child.kill().unwrap();
    child.wait().unwrap();
    clips.wait_for_workers(false, Duration::from_secs(2));

    // A wish to stop is heard at once, whatever the worker does.
    let child = clips.hanging();
    let start = Instant::now();
    send_signal("-INT", child.id());
    let output = child.wait_with_output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("stopped"), "{message}");
    assert_eq!(clips.workers(), [0_u32; 0]);
}

#[test]
fn workers_leave_signals_to_their_conversion() {
    let clips = Clips::new();
    let mut child = clips.hanging();
    let workers = clips.workers();
    for signal in ["-INT", "-TERM", "-HUP", "-USR1"] {
        send_signal(signal, workers[0]);
    }
    sleep(Duration::from_millis(200));
    assert_eq!(clips.workers(), workers);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_worker_serves_conversions_alone() {
    let help = ok(&["--help"]);
    assert!(!help.contains("clip-worker"), "{help}");
    let message = fails(1, &["clip-worker"]);
    assert!(
        message.contains("no connection to a conversion"),
        "{message}"
    );
}

#[test]
fn limits_out_of_range_are_refused() {
    let clips = Clips::new();
    let (src, dst) = (clips.src(), clips.dir.path().join("dst"));
    let message = fails(2, &clips.args(&src, &dst, &["--clip-timeout", "0"]));
    assert!(message.contains("--clip-timeout"), "{message}");
    let message = fails(1, &clips.args(&src, &dst, &["--clip-memory", "1MiB"]));
    assert!(
        message.contains("1048576") && message.contains("64 MiB"),
        "{message}"
    );
}

#[test]
fn a_clip_that_needs_more_memory_than_allowed_is_left_out() {
    let clips = Clips::new();
    let src = clips.src();
    let frames = [0, 1, 2].map(|_| Rgb8Image::new(4096, 2160));
    write_video(&src.join("class/large.mp4"), 25, &frames).unwrap();
    let [small, large] = ["small", "large"].map(|name| clips.dir.path().join(name));
    let limits = ["--clip-memory", "64MiB", "--max-bad", "1"];
    let report: Value = serde_json::from_str(&ok(&clips.args(&src, &small, &limits))).unwrap();
    let skipped = report["skipped"].as_array().unwrap();
    assert_eq!(
        (skipped.len(), &report["samples"]),
        (1, &6.into()),
        "{report}"
    );
    assert_eq!(skipped[0]["key"], "class/large");
    assert_eq!(skipped[0]["reason"], "needs more than 64 MiB of memory");
    let report: Value = serde_json::from_str(&ok(&clips.args(&src, &large, &[]))).unwrap();
    assert_eq!(report["samples"], 7, "{report}");
}
