//! What a job leaves behind, as far as it must come out the same however often it was disturbed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Differences that a message names.
const NAMED: usize = 8;

/// The files of a folder by their paths, each with what of it must not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome(BTreeMap<String, Vec<u8>>);

impl Outcome {
    /// Every file below `dir`.
    ///
    /// * Of `metrics.jsonl` that is step, loss, learning rate and gradient norm of each line, as they are written: speeds and
    ///   times are the machine's.
    /// * Of what holds such times (summaries, records, reports, TensorBoard's events), that it is there.
    /// * Of everything else all bytes, with the folder's own path left out.
    ///
    /// # Errors
    /// If a file cannot be read; or a line of `metrics.jsonl`.
    pub fn of(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for (path, bytes) in read_tree(dir)? {
            let name = path.rsplit('/').next().unwrap_or(&path);
            let kept = match name {
                "metrics.jsonl" => figures(&bytes).with_context(|| path.clone())?,
                "summary.json" | "record.json" | "report.json" | "report.html" | "curves.csv" => {
                    Vec::new()
                }
                _ if name.starts_with("events.out.tfevents.") => Vec::new(),
                _ => without(bytes, dir),
            };
            files.insert(timeless(&path), kept);
        }
        Ok(Outcome(files))
    }

    /// # Errors
    /// Naming the files that are missing, that nobody expects or that are different from `expected`.
    pub fn expect(&self, expected: &Outcome) -> Result<()> {
        let (found, expected) = (&self.0, &expected.0);
        let mut wrong: Vec<String> = Vec::new();
        for (path, bytes) in expected {
            match found.get(path) {
                None => wrong.push(format!("{path} is missing")),
                Some(found) if found != bytes => wrong.push(format!("{path} is different")),
                Some(_) => {}
            }
        }
        let strange = found.keys().filter(|path| !expected.contains_key(*path));
        wrong.extend(strange.map(|path| format!("{path} should not be there")));
        ensure!(wrong.is_empty(), "{}", first_few(&wrong));
        Ok(())
    }

    /// Number of files.
    pub fn n_files(&self) -> usize {
        self.0.len()
    }
}

/// Nothing half written may stand under a final name, whenever a job ended: what there is of shards, manifest and the
/// other files that are written in one go is what `expected` holds.
///
/// # Errors
/// Naming the files.
pub fn expect_no_halves(dir: &Path, expected: &Outcome) -> Result<()> {
    let mut wrong = Vec::new();
    for (path, bytes) in read_tree(dir)? {
        let name = path.rsplit('/').next().unwrap_or(&path);
        let is_final = name == "manifest.json"
            || name == "results.csv"
            || (name.ends_with(".parquet") && !name.starts_with('.'));
        if is_final && expected.0.get(&path) != Some(&without(bytes, dir)) {
            wrong.push(format!("{path} is not what it must be"));
        }
    }
    ensure!(wrong.is_empty(), "{}", first_few(&wrong));
    Ok(())
}

/// Every file below `dir` by its path, with `/` between folders.
pub(crate) fn read_tree(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        if !folder.exists() {
            continue;
        }
        for entry in
            fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?
        {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir)?.to_string_lossy().into_owned();
                let bytes =
                    fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                files.push((name, bytes));
            }
        }
    }
    files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(files)
}

/// A name without the time in it.
fn timeless(path: &str) -> String {
    match path.split_once("events.out.tfevents.") {
        Some((before, _)) => format!("{before}events.out.tfevents.TIME"),
        None => path.to_owned(),
    }
}

fn without(bytes: Vec<u8>, dir: &Path) -> Vec<u8> {
    match String::from_utf8(bytes) {
        Ok(text) => text.replace(&*dir.to_string_lossy(), "OUT").into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

fn figures(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut text = String::new();
    for line in String::from_utf8_lossy(bytes).lines() {
        let line: Value = serde_json::from_str(line).context("a line that is no JSON")?;
        let figures = ["step", "loss", "lr", "grad_norm"].map(|name| line[name].to_string());
        text.push_str(&figures.join(" "));
        text.push('\n');
    }
    Ok(text.into_bytes())
}

fn first_few(wrong: &[String]) -> String {
    let mut text = wrong[..wrong.len().min(NAMED)].join(", ");
    if wrong.len() > NAMED {
        text.push_str(&format!(", and {} more", wrong.len() - NAMED));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn line(loss: f64, time: f64) -> String {
        format!("{{\"step\":1,\"loss\":{loss},\"lr\":0.1,\"grad_norm\":2.0,\"time\":{time}}}\n")
    }

    #[test]
    fn times_may_differ_and_nothing_else() {
        let run = |loss, time: f64, event: &str, more: &[(&str, &str)]| {
            let (metrics, event) = (
                line(loss, time),
                format!("tensorboard/events.out.tfevents.{event}"),
            );
            let mut files = vec![
                ("metrics.jsonl", metrics.as_str()),
                (&event, event.as_str()),
            ];
            files.extend(more);
            let dir = folder(&files);
            Outcome::of(dir.path()).unwrap()
        };
        let expected = run(0.5, 1.0, "1", &[("a/b", "x")]);
        assert_eq!(expected.n_files(), 3);
        run(0.5, 2.0, "2", &[("a/b", "x")])
            .expect(&expected)
            .unwrap();
        for (other, why) in [
            (
                run(0.25, 1.0, "1", &[("a/b", "x")]),
                "metrics.jsonl is different",
            ),
            (run(0.5, 1.0, "1", &[]), "a/b is missing"),
            (run(0.5, 1.0, "1", &[("a/b", "y")]), "a/b is different"),
            (
                run(0.5, 1.0, "1", &[("a/b", "x"), (".tmp", "")]),
                ".tmp should not be there",
            ),
        ] {
            let message = other.expect(&expected).unwrap_err().to_string();
            assert_eq!(message, why);
        }
    }

    #[test]
    fn half_a_shard_under_its_own_name_is_found() {
        let expected = folder(&[("a.parquet", "whole"), ("manifest.json", "{}")]);
        let expected = Outcome::of(expected.path()).unwrap();
        let unfinished = folder(&[("a.parquet", "whole"), (".tmp-a.parquet", "ha")]);
        expect_no_halves(unfinished.path(), &expected).unwrap();
        for half in [
            ("a.parquet", "ha"),
            ("manifest.json", "{"),
            ("b.parquet", "whole"),
        ] {
            let dir = folder(&[half]);
            let message = expect_no_halves(dir.path(), &expected)
                .unwrap_err()
                .to_string();
            assert!(message.contains(half.0), "{message}");
        }
    }
}
