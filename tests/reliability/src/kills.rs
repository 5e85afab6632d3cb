//! Signals in mid-work. A *chain* is one output folder: the job is started and killed there some times, and then runs to its
//! end; what it left must be what an undisturbed one leaves.

mod phase;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::draw::Draw;
use crate::outcome::{Outcome, expect_no_halves, read_tree};
use crate::program::{Job, Program, Toys};
use crate::row;
use phase::{is_temporary, phase};

/// Most kills of one chain.
const MOST_IN_CHAIN: u64 = 6;

/// A job that was asked to stop ends within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the output folder is looked at for a temporary file to strike at.
const GLANCE: Duration = Duration::from_micros(200);

/// What a process is struck with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Signal {
    Kill,
    Terminate,
    Interrupt,
}

impl Signal {
    /// Its number on Linux.
    fn number(self) -> i32 {
        match self {
            Signal::Kill => 9,
            Signal::Terminate => 15,
            Signal::Interrupt => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Signal::Kill => "SIGKILL",
            Signal::Terminate => "SIGTERM",
            Signal::Interrupt => "SIGINT",
        }
    }
}

/// When it is struck.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after its start.
    After(Duration),
    /// When the so-manieth temporary file is seen in its folder.
    AtTemporary(u64),
}

/// What came of all chains of some jobs.
#[derive(Debug, Default)]
pub struct Tally {
    /// All that were to be killed.
    jobs: Vec<&'static str>,
    /// Kills by job, signal and what the job was at.
    hits: BTreeMap<(&'static str, Signal, &'static str), u64>,
    /// Signals that came after the end, which are not counted as kills.
    n_late: u64,
    n_chains: u64,
    /// Files compared at the ends of the chains.
    n_files: u64,
    /// Entries of the cache that were compared with the bucket's objects, in the last look at it.
    n_cached: u64,
    /// Unfinished entries in the cache then, which any process may still be writing, for all that the others know.
    n_cached_unfinished: u64,
}

impl Tally {
    /// Kills that hit.
    pub fn n_hits(&self) -> u64 {
        self.hits.values().sum()
    }

    /// Lines of what was hit how often.
    pub fn lines(&self) -> Vec<String> {
        let line = |(&(job, signal, phase), n): (&(&str, Signal, &str), &u64)| {
            format!("{n:4}  {job}: {} {phase}", signal.name())
        };
        self.hits.iter().map(line).collect()
    }

    /// Rows for the table of `make reliability`.
    pub fn rows(&self, wanted: u64) -> Vec<String> {
        let mut rows = Vec::new();
        let mut by_job: BTreeMap<&str, BTreeMap<Signal, u64>> = self
            .jobs
            .iter()
            .map(|job| (*job, BTreeMap::new()))
            .collect();
        let mut by_phase: BTreeMap<&str, u64> = BTreeMap::new();
        for (&(job, signal, phase), n) in &self.hits {
            *by_job.entry(job).or_default().entry(signal).or_default() += n;
            *by_phase.entry(phase).or_default() += n;
        }
        let n = self.n_hits();
        rows.push(row(
            "kills, then the same command again",
            &format!(
                "{n} kills in {} chains, {} late signals not counted; {} files compared at the ends, all as undisturbed",
                self.n_chains, self.n_late, self.n_files
            ),
            &format!("at least {wanted} kills, no difference, no file left over"),
            n >= wanted,
        ));
        for (job, signals) in by_job {
            let each = signals
                .iter()
                .map(|(signal, n)| format!("{n} {}", signal.name()));
            let each = each.collect::<Vec<_>>().join(", ");
            let hit = !signals.is_empty();
            rows.push(row(&format!("kills of {job}"), &each, "at least one", hit));
        }
        let each = by_phase.iter().map(|(phase, n)| format!("{n} {phase}"));
        let each = each.collect::<Vec<_>>().join(", ");
        rows.push(row("what the kills hit", &each, "-", true));
        let cached = format!(
            "{} entries compared with the bucket's objects, none wrong; {} unfinished ones that the next hour's tidying removes",
            self.n_cached, self.n_cached_unfinished
        );
        rows.push(row(
            "cache after the kills",
            &cached,
            "no wrong entry",
            self.n_cached > 0,
        ));
        rows
    }
}

/// What is killed, and where.
pub struct Kills<'a> {
    /// The program.
    pub program: &'a Program,
    /// Its inputs.
    pub toys: &'a Toys,
    /// An empty folder.
    pub work: &'a Path,
    /// Decides signals, moments and lengths of chains.
    pub seed: u64,
}

impl Kills<'_> {
    /// Kills until `wanted` hit, all jobs in turn, and checks each end.
    ///
    /// * `say`: told what goes on, a line at a time.
    ///
    /// # Errors
    /// The first thing that is not as it must be, with the job, the chain and how it was killed.
    pub fn run(&self, wanted: u64, say: &mut dyn FnMut(&str)) -> Result<Tally> {
        self.run_some(&[], wanted, say)
    }

    /// As [`Self::run`], of the jobs of the names in `only`, if there are any.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_some(&self, only: &[&str], wanted: u64, say: &mut dyn FnMut(&str)) -> Result<Tally> {
        let (server, cache) = (self.toys.serve()?, self.work.join("cache"));
        let mut jobs = self.toys.jobs(&server, &self.work.join("inputs"), &cache)?;
        jobs.retain(|job| only.is_empty() || only.contains(&job.name));
        ensure!(!jobs.is_empty(), "no job is called {only:?}");
        let mut tally = Tally {
            jobs: jobs.iter().map(|job| job.name).collect(),
            ..Tally::default()
        };
        let mut draw = Draw::new(self.seed);
        let mut subjects = Vec::new();
        for job in &jobs {
            subjects.push(self.undisturbed(job, say)?);
        }
        while tally.n_hits() < wanted {
            for (job, subject) in jobs.iter().zip(&subjects) {
                if tally.n_hits() >= wanted {
                    break;
                }
                let most = MOST_IN_CHAIN.min(wanted - tally.n_hits());
                let n = tally.n_chains;
                self.chain(job, subject, most, &mut draw, &mut tally)
                    .with_context(|| format!("{}, chain {n} of seed {}", job.name, self.seed))?;
                (tally.n_cached, tally.n_cached_unfinished) =
                    expect_true_entries(&cache, server.folder())?;
            }
            say(&format!(
                "{} kills in {} chains",
                tally.n_hits(),
                tally.n_chains
            ));
        }
        Ok(tally)
    }

    /// What a job leaves and how long it takes when nobody disturbs it.
    fn undisturbed(&self, job: &Job, say: &mut dyn FnMut(&str)) -> Result<Subject> {
        let out = self.work.join("undisturbed");
        let started = Instant::now();
        self.program.finish(job, &out)?;
        let takes = started.elapsed();
        let expected = Outcome::of(&out)?;
        fs::remove_dir_all(&out)?;
        say(&format!(
            "{}: {} files in {:.1} s undisturbed",
            job.name,
            expected.n_files(),
            takes.as_secs_f64()
        ));
        Ok(Subject { expected, takes })
    }

    fn chain(
        &self,
        job: &Job,
        subject: &Subject,
        most: u64,
        draw: &mut Draw,
        tally: &mut Tally,
    ) -> Result<()> {
        let out = self.work.join(format!("chain-{}", tally.n_chains));
        let n_kills = 1 + draw.below(most);
        let mut story = Vec::new();
        let mut has_ended = false;
        for _ in 0..n_kills {
            let signal = match draw.below(10) {
                0..6 => Signal::Kill,
                6..8 => Signal::Terminate,
                _ => Signal::Interrupt,
            };
            let moment = match draw.below(3) {
                0 => Moment::AtTemporary(1 + draw.below(6)),
                _ => Moment::After(subject.takes.mul_f64(draw.share())),
            };
            let struck = self.strike(job, &out, signal, moment, subject.takes);
            let struck = struck.with_context(|| format!("after {}", story.join(", ")))?;
            story.push(format!("{} {moment:?}: {struck:?}", signal.name()));
            let whole = expect_no_halves(&out, &subject.expected);
            whole.with_context(|| format!("after {}", story.join(", ")))?;
            match struck {
                Struck::Hit(phase) => {
                    *tally.hits.entry((job.name, signal, phase)).or_default() += 1
                }
                Struck::Late => {
                    tally.n_late += 1;
                    has_ended = true;
                    break;
                }
            }
        }
        if !has_ended {
            let finished = self.program.finish(job, &out);
            finished.with_context(|| format!("after {}", story.join(", ")))?;
        }
        let left = Outcome::of(&out)?;
        let same = left.expect(&subject.expected);
        same.with_context(|| format!("{} after {}", out.display(), story.join(", ")))?;
        tally.n_files += left.n_files() as u64;
        tally.n_chains += 1;
        Ok(fs::remove_dir_all(&out)?)
    }

    /// Starts the job and strikes it.
    fn strike(
        &self,
        job: &Job,
        out: &Path,
        signal: Signal,
        moment: Moment,
        takes: Duration,
    ) -> Result<Struck> {
        let mut child = self
            .program
            .start(job, out)
            .spawn()
            .context("starting the program")?;
        let started = Instant::now();
        match moment {
            Moment::After(time) => {
                while started.elapsed() < time && child.try_wait()?.is_none() {
                    sleep((time - started.elapsed().min(time)).min(Duration::from_millis(5)));
                }
            }
            Moment::AtTemporary(nth) => {
                wait_for_temporary(&mut child, out, nth, takes.mul_f64(1.5))?
            }
        }
        if child.try_wait()?.is_some() {
            return ended(child, false, signal);
        }
        let is_caught = signal != Signal::Kill && catches(child.id(), signal.number());
        match signal {
            Signal::Kill => child.kill()?,
            _ => send(child.id(), signal.number())?,
        }
        let struck = ended(child, is_caught, signal)?;
        Ok(match struck {
            Struck::Hit(_) if signal == Signal::Kill => Struck::Hit(phase(job.kind, out)?),
            other => other,
        })
    }
}

/// An undisturbed job.
struct Subject {
    expected: Outcome,
    takes: Duration,
}

/// What a signal did.
#[derive(Debug)]
enum Struck {
    /// The work ended in the middle; what it was at.
    Hit(&'static str),
    /// The work was over.
    Late,
}

/// Waits for the end, and checks that it is one of those that the documentation has: killed, or asked to stop and gone
/// with 1 and a word about it, or done.
fn ended(mut child: Child, is_caught: bool, signal: Signal) -> Result<Struck> {
    use std::os::unix::process::ExitStatusExt;
    let status = wait(&mut child)?;
    let mut said = String::new();
    for pipe in [
        child
            .stdout
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Read>),
        child
            .stderr
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Read>),
    ] {
        let mut bytes = Vec::new();
        pipe.context("a pipe")?.read_to_end(&mut bytes)?;
        said.push_str(&String::from_utf8_lossy(&bytes));
    }
    ensure!(!said.contains("panicked"), "{said}");
    if status.success() {
        return Ok(Struck::Late);
    }
    match (status.code(), status.signal()) {
        (None, Some(number)) if number == signal.number() && signal == Signal::Kill => {
            Ok(Struck::Hit("killed"))
        }
        // It had not come to listen yet.
        (None, Some(number)) if number == signal.number() && !is_caught => {
            Ok(Struck::Hit("before it listened"))
        }
        (Some(1), None) if signal != Signal::Kill => {
            ensure!(
                said.contains("stopped"),
                "exit code 1 without a word about being stopped: {said}"
            );
            Ok(Struck::Hit("asked to stop"))
        }
        _ => bail!("{} ended it with {status}: {said}", signal.name()),
    }
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    bail!("it had not ended {} s after the signal", PATIENCE.as_secs());
}

/// Until the `nth` temporary file is there, the process has ended, or time is up.
fn wait_for_temporary(child: &mut Child, out: &Path, nth: u64, limit: Duration) -> Result<()> {
    let started = Instant::now();
    let mut seen = std::collections::BTreeSet::new();
    while started.elapsed() < limit && child.try_wait()?.is_none() {
        glance(out, &mut seen);
        if seen.len() as u64 >= nth {
            return Ok(());
        }
        sleep(GLANCE);
    }
    Ok(())
}

/// Adds the temporary files and folders that are there just now.
fn glance(dir: &Path, seen: &mut std::collections::BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return; // not there yet, or gone already
    };
    for entry in entries.flatten() {
        if is_temporary(&entry.file_name().to_string_lossy()) {
            seen.insert(entry.path());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            glance(&entry.path(), seen);
        }
    }
}

/// Whether a process has said that it handles a signal.
fn catches(pid: u32, number: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

fn send(pid: u32, number: i32) -> Result<()> {
    let sent = Command::new("kill")
        .args([format!("-{number}"), pid.to_string()])
        .output();
    sent.context("starting kill")?; // that the process has ended meanwhile is no failure
    Ok(())
}

/// Compares every entry of a cache with the objects: its bytes must be those of one of them at the place in its name.
///
/// Returns how many entries there are, and how many unfinished ones.
///
/// # Errors
/// Naming an entry that no object has.
fn expect_true_entries(cache: &Path, objects: &Path) -> Result<(u64, u64)> {
    const HEADER_BYTES: usize = 12; // a magic number and a checksum
    let objects = read_tree(objects)?;
    let (mut n, mut n_unfinished) = (0, 0);
    for (path, bytes) in read_tree(cache)? {
        let name = path.rsplit('/').next().unwrap_or(&path);
        if name == "used" {
            continue; // the count of bytes
        }
        if is_temporary(name) {
            n_unfinished += 1;
            continue;
        }
        let place = || {
            let mut parts = name.rsplit('-');
            let (end, start) = (
                parts.next()?.parse().ok()?,
                parts.next()?.parse::<usize>().ok()?,
            );
            Some(start..end)
        };
        let place = place().with_context(|| format!("{path} in the cache is no entry"))?;
        let kept = bytes.get(HEADER_BYTES..).unwrap_or_default();
        let is_true = objects
            .iter()
            .any(|(_, object)| object.get(place.clone()) == Some(kept));
        ensure!(
            is_true,
            "{path} in the cache is not what any object holds in bytes {place:?}"
        );
        n += 1;
    }
    Ok((n, n_unfinished))
}
