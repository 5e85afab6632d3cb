//! Runs the built program as a user does.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The built program, quiet by default.
pub fn pairquet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pairquet"));
    command.stdin(Stdio::null());
    command
}

/// Runs the program with `args` and returns what came out.
pub fn run(args: &[&str]) -> Output {
    pairquet().args(args).output().expect("the program starts")
}

/// Runs the program, expects exit code 0, and returns its standard output.
pub fn ok(args: &[&str]) -> String {
    let output = run(args);
    assert!(
        output.status.success(),
        "pairquet {}\n{}",
        args.join(" "),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// As [`ok`], with `--json`, parsed.
pub fn json(args: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(args);
    serde_json::from_str(&ok(&all)).expect("JSON on standard output")
}

/// Runs the program, expects the exit code, and returns its standard error.
pub fn fails(code: i32, args: &[&str]) -> String {
    let output = run(args);
    let message = text(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "pairquet {}\n{message}",
        args.join(" ")
    );
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Sends a signal, such as `-TERM`.
#[cfg(unix)]
pub fn send_signal(signal: &str, pid: u32) {
    let sent = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// Every file below `dir` by relative path. Two folders with equal trees are byte-identical.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below dir").to_path_buf();
                files.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

/// The parts of a shard set that must not depend on how it came about: shards and manifest.
pub fn shard_bytes(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    tree(dir)
        .into_iter()
        .filter(|(path, _)| !path.starts_with(".pairquet"))
        .collect()
}

/// `path` as UTF-8.
pub fn utf8(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Folder of real data, if it is here; says aloud when it is not.
pub fn shared(what: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PAIRQUET_SHARED_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = root.join("data").join(what);
    if path.is_dir() {
        return Some(path);
    }
    // Written past the test harness, which hides what a passing test prints.
    writeln!(
        std::io::stderr(),
        "SKIPPED: no real data at {}",
        path.display()
    )
    .expect("standard error");
    None
}

/// The demo's raw pictures and clips and their shards, made once for all tests.
pub fn demo_set() -> &'static Path {
    static SET: OnceLock<tempfile::TempDir> = OnceLock::new();
    SET.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        ok(&[
            "demo",
            "--quiet",
            "--only",
            "shards",
            "--out",
            utf8(dir.path()),
        ]);
        dir
    })
    .path()
}
