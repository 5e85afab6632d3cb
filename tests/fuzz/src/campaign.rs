//! Seeds, what is stored in `corpus`, and changes of both, through a target.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::check::{Cost, check};
use crate::mutate::mutated;
use crate::scratch;
use crate::targets::Target;

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub enum Length {
    /// As many changes as the target's table says.
    Rounds,
    /// As many as fit.
    Time(Duration),
}

/// What a campaign did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Inputs that were run.
    pub inputs: u64,
    /// Of these seeds and stored files.
    pub stored: u64,
    /// Time of the slowest, in seconds.
    pub slowest_s: f64,
    /// Memory of the hungriest, in bytes.
    pub largest_bytes: usize,
    /// What went wrong, each with the file that keeps its input.
    pub failures: Vec<String>,
}

/// Failures after which a campaign ends.
const MOST_FAILURES: usize = 20;

/// The folder of stored inputs: one folder a target.
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// Runs a target; inputs that fail lie in `kept`, and the one at work beside the files that targets are given.
///
/// # Errors
/// If the corpus cannot be read or `kept` not be written.
pub fn run(target: &Target, corpus: &Path, kept: &Path, length: Length) -> std::io::Result<Report> {
    let start = Instant::now();
    let at_work = scratch::folder().join(format!("{}-at-work", target.name));
    let mut report = Report::default();
    let mut one = |input: &[u8], what: &str| -> std::io::Result<bool> {
        // What kills the process leaves its input behind.
        fs::write(&at_work, input)?;
        report.inputs += 1;
        match check(target, input) {
            Ok(Cost {
                seconds,
                peak_bytes,
            }) => {
                report.slowest_s = report.slowest_s.max(seconds);
                report.largest_bytes = report.largest_bytes.max(peak_bytes);
            }
            Err(problem) => {
                let file = kept.join(format!("{}-{}", target.name, report.failures.len()));
                fs::write(&file, input)?;
                let place = file.display();
                report.failures.push(format!("{what}: {problem}: {place}"));
            }
        }
        Ok(report.failures.len() < MOST_FAILURES)
    };

    let mut inputs: Vec<(String, Vec<u8>)> = (target.seeds)()
        .into_iter()
        .enumerate()
        .map(|(n, seed)| (format!("seed {n}"), seed))
        .collect();
    let mut files: Vec<PathBuf> = match fs::read_dir(corpus.join(target.name)) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    files.sort_unstable();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        inputs.push((name.into_owned(), fs::read(&file)?));
    }
    let mut goes_on = true;
    for (what, input) in &inputs {
        goes_on &= one(input, what)?;
    }
    let is_over = |round: u64| match length {
        Length::Rounds => round >= target.rounds,
        Length::Time(time) => start.elapsed() >= time,
    };
    let mut round = 0;
    while goes_on && !is_over(round) {
        let place = (round % inputs.len() as u64) as usize;
        let other = (round / inputs.len() as u64) as usize % inputs.len();
        let input = mutated(&inputs[place].1, &inputs[other].1, place as u64, round);
        goes_on = one(
            &input,
            &format!("{} changed, round {round}", inputs[place].0),
        )?;
        round += 1;
    }
    report.stored = inputs.len() as u64;
    fs::remove_file(&at_work)?;
    Ok(report)
}

/// Removes the files that targets were given.
pub fn clean() {
    scratch::remove();
}
