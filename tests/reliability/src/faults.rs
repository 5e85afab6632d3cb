//! System calls that fail, a clock that jumps and a disk that is full: one clear error, nothing half written under a final
//! name, and the same command without the fault makes what an undisturbed one makes. Or the work goes well all the same.
//!
//! Faults are injected by a library that is loaded before the C library, `fault.c` here, which a C compiler builds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::draw::Draw;
use crate::outcome::{Outcome, expect_no_halves};
use crate::program::{Job, Kind, Program, Toys, utf8};
use crate::row;

/// A fault: which calls fail, on what, with which error.
#[derive(Debug, Clone, Copy)]
struct Fault {
    /// For messages and tables.
    name: &'static str,
    /// As `fault.c` calls it.
    call: &'static str,
    /// The error's number on Linux.
    errno: i32,
    /// The system's words for it.
    words: &'static str,
    place: Place,
    /// Whether every later call fails too.
    onwards: bool,
}

/// Where calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Below the output folder.
    Output,
    /// In what is read: sources, shards, checkpoints.
    Input,
}

const fn fault(
    name: &'static str,
    call: &'static str,
    errno: i32,
    words: &'static str,
    place: Place,
    onwards: bool,
) -> Fault {
    Fault {
        name,
        call,
        errno,
        words,
        place,
        onwards,
    }
}

const FULL: &str = "No space left on device";
const BROKEN: &str = "Input/output error";
const READ_ONLY: &str = "Read-only file system";

const FAULTS: [Fault; 9] = [
    fault("disk full", "write", 28, FULL, Place::Output, true),
    fault(
        "no room for a file",
        "create",
        28,
        FULL,
        Place::Output,
        true,
    ),
    fault(
        "read-only folder",
        "create",
        30,
        READ_ONLY,
        Place::Output,
        true,
    ),
    fault("EIO on write", "write", 5, BROKEN, Place::Output, false),
    fault("EIO on fsync", "fsync", 5, BROKEN, Place::Output, false),
    fault("EIO on rename", "rename", 5, BROKEN, Place::Output, false),
    fault(
        "EIO on reading the output folder",
        "read",
        5,
        BROKEN,
        Place::Output,
        false,
    ),
    fault("EIO on read", "read", 5, BROKEN, Place::Input, true),
    fault("EIO on open", "open", 5, BROKEN, Place::Input, true),
];

/// Jumps of the clock in seconds: back a day, forward a year.
const JUMPS: [(&str, i64); 2] = [
    ("clock back a day", -86_400),
    ("clock forward a year", 31_536_000),
];

/// What came of a kind of fault.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    n: u64,
    /// The work went well in spite of it.
    n_survived: u64,
}

/// What came of all faults.
#[derive(Debug, Default)]
pub struct Tally {
    /// All kinds that were to be met.
    kinds: Vec<&'static str>,
    /// By kind and job.
    met: BTreeMap<(&'static str, &'static str), Count>,
}

impl Tally {
    /// Faults that were met.
    pub fn n(&self) -> u64 {
        self.met.values().map(|count| count.n).sum()
    }

    /// Rows for the table of `make reliability`, one a kind of fault.
    pub fn rows(&self) -> Vec<String> {
        let kinds = self.kinds.iter().map(|kind| (*kind, Default::default()));
        let mut rows: BTreeMap<&str, (Vec<&str>, Count)> = kinds.collect();
        for (&(fault, job), count) in &self.met {
            let (jobs, sum) = rows.entry(fault).or_default();
            jobs.push(job);
            sum.n += count.n;
            sum.n_survived += count.n_survived;
        }
        let row = |(fault, (jobs, count)): (&str, (Vec<&str>, Count))| {
            let measured = format!(
                "{} faults in {}: {} named in one error, {} survived, all restarts as undisturbed",
                count.n,
                jobs.join(", "),
                count.n - count.n_survived,
                count.n_survived
            );
            row(
                fault,
                &measured,
                "a clear error or success, then no difference",
                count.n > 0,
            )
        };
        rows.into_iter().map(row).collect()
    }
}

/// What is disturbed.
pub struct Faults<'a> {
    program: &'a Program,
    toys: &'a Toys,
    work: &'a Path,
    /// The built `fault.c`.
    library: PathBuf,
    /// Times that each fault strikes each job.
    times: u64,
    draw: Draw,
}

impl<'a> Faults<'a> {
    /// * `work`: an empty folder.
    /// * `times`: how often each fault strikes each job; the first time at the first call, then by `seed`.
    ///
    /// # Errors
    /// If there is no C compiler.
    pub fn new(
        program: &'a Program,
        toys: &'a Toys,
        work: &'a Path,
        times: u64,
        seed: u64,
    ) -> Result<Self> {
        let library = work.join("fault.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fault.c");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl");
        let output = compiler.output().context("starting cc")?;
        ensure!(
            output.status.success(),
            "cc: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let draw = Draw::new(seed);
        Ok(Faults {
            program,
            toys,
            work,
            library,
            times,
            draw,
        })
    }

    /// All faults in all jobs, or in those of the names in `only`.
    ///
    /// * `say`: told what goes on, and at once what is wrong.
    ///
    /// # Errors
    /// What is not as it must be, all of it, with the job and the fault.
    pub fn run(&mut self, only: &[&str], say: &mut dyn FnMut(&str)) -> Result<Tally> {
        let (server, cache) = (self.toys.serve()?, self.work.join("cache"));
        let mut jobs = self.toys.jobs(&server, &self.work.join("inputs"), &cache)?;
        let run = self.work.join("run");
        let train = jobs
            .iter()
            .find(|job| job.kind == Kind::Train)
            .context("a training job")?;
        self.program.finish(train, &run)?;
        jobs.push(self.toys.eval(&run)?);
        jobs.push(self.toys.verify()?);
        let (mut tally, mut wrong) = (Tally::default(), Vec::new());
        let is_chosen = |job: &&Job| only.is_empty() || only.contains(&job.name);
        if only.is_empty() {
            let names = FAULTS.iter().map(|fault| fault.name);
            tally.kinds = names.chain(JUMPS.map(|(name, _)| name)).collect();
        }
        for job in jobs.iter().filter(is_chosen) {
            let (expected, n_calls) = self.undisturbed(job)?;
            for (fault, n_calls) in FAULTS.iter().zip(n_calls) {
                if let Err(error) = self.fault(job, fault, n_calls, &expected, &mut tally) {
                    wrong.push(format!("{}, {}: {error:#}", job.name, fault.name));
                    say(&wrong[wrong.len() - 1]);
                }
            }
            for (name, seconds) in JUMPS {
                if let Err(error) = self.jump(job, name, seconds, &expected, &mut tally) {
                    wrong.push(format!("{}, {name}: {error:#}", job.name));
                    say(&wrong[wrong.len() - 1]);
                }
            }
            say(&format!("{}: {} faults so far", job.name, tally.n()));
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(tally)
    }

    /// What a job leaves when no call fails, and how many calls each fault could strike.
    fn undisturbed(&self, job: &Job) -> Result<(Outcome, Vec<u64>)> {
        let out = self.work.join("out");
        let rules = FAULTS.iter().map(|fault| self.rule(job, fault, 0, &out));
        let rules = rules.collect::<Result<Vec<_>>>()?.join(";");
        let (output, log) = self.preloaded(job, &out, "PAIRQUET_FAULT", &rules)?;
        ensure!(
            output.status.success(),
            "{}: {}",
            job.name,
            String::from_utf8_lossy(&output.stderr)
        );
        let n_met = |rule: usize| {
            let start = format!("met {rule} ");
            let n = log.lines().find_map(|line| line.strip_prefix(&start));
            n.and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        let n_calls = (0..FAULTS.len()).map(n_met).collect();
        let expected = Outcome::of(&out)?;
        let _ = fs::remove_dir_all(&out); // what reads alone makes none
        Ok((expected, n_calls))
    }

    /// One fault in one job, at several of its calls, of which an undisturbed run makes `n_calls`.
    fn fault(
        &mut self,
        job: &Job,
        fault: &Fault,
        n_calls: u64,
        expected: &Outcome,
        tally: &mut Tally,
    ) -> Result<()> {
        let out = self.work.join("out");
        for time in 0..self.times.min(n_calls) {
            let nth = match time {
                0 => 1,
                _ => 1 + self.draw.below(n_calls),
            };
            let count = self
                .strike(job, fault, nth, &out, expected)
                .with_context(|| format!("call {nth} of {n_calls}"));
            let _ = fs::remove_dir_all(&out); // what reads alone makes none
            let (count, sum) = (count?, tally.met.entry((fault.name, job.name)).or_default());
            sum.n += count.n;
            sum.n_survived += count.n_survived;
        }
        Ok(())
    }

    fn strike(
        &self,
        job: &Job,
        fault: &Fault,
        nth: u64,
        out: &Path,
        expected: &Outcome,
    ) -> Result<Count> {
        let rule = self.rule(job, fault, nth, out)?;
        let (output, log) = self.preloaded(job, out, "PAIRQUET_FAULT", &rule)?;
        if !log.lines().any(|line| line.starts_with("hit ")) {
            return Ok(Count::default()); // fewer calls than the last time
        }
        let survived = output.status.success();
        if !survived {
            expect_clear(&output, fault.words)?;
        }
        if job.kind != Kind::Verify {
            expect_no_halves(out, expected)?;
            if !survived && job.kind == Kind::Train {
                expect_saved(&output, fault, out)?;
            }
            if !survived {
                self.program.finish(job, out).context("without the fault")?;
            }
            Outcome::of(out)?.expect(expected)?;
        }
        Ok(Count {
            n: 1,
            n_survived: u64::from(survived),
        })
    }

    /// A rule for `fault.c`.
    fn rule(&self, job: &Job, fault: &Fault, nth: u64, out: &Path) -> Result<String> {
        let place = match fault.place {
            Place::Output => format!("{}*", utf8(out)?),
            Place::Input => self.input(job)?,
        };
        let onwards = if fault.onwards && nth > 0 { "+" } else { "" };
        Ok(format!(
            "{} {} {nth}{onwards} {place}",
            fault.call, fault.errno
        ))
    }

    /// A pattern of the files that a job reads.
    fn input(&self, job: &Job) -> Result<String> {
        Ok(match job.kind {
            Kind::Convert => "*/raw/*".to_owned(),
            Kind::Train | Kind::Compare | Kind::Verify => "*.parquet".to_owned(),
            Kind::Eval => format!("{}/checkpoints/*", utf8(&self.work.join("run"))?),
        })
    }

    fn preloaded(
        &self,
        job: &Job,
        out: &Path,
        variable: &str,
        rule: &str,
    ) -> Result<(Output, String)> {
        let log = self.work.join("log");
        fs::write(&log, "")?;
        let mut command = self.program.start(job, out);
        command
            .env("LD_PRELOAD", &self.library)
            .env("PAIRQUET_FAULT_LOG", &log)
            .env(variable, rule);
        let output = command.output().context("starting the program")?;
        Ok((output, fs::read_to_string(&log)?))
    }

    /// A clock that jumps in mid-work changes nothing.
    fn jump(
        &self,
        job: &Job,
        name: &'static str,
        seconds: i64,
        expected: &Outcome,
        tally: &mut Tally,
    ) -> Result<()> {
        let out = self.work.join("out");
        let (output, log) = self.preloaded(job, &out, "PAIRQUET_CLOCK", &format!("{seconds} 3"))?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        if log.contains("hit clock") {
            Outcome::of(&out)?.expect(expected)?;
            let count = tally.met.entry((name, job.name)).or_default();
            *count = Count {
                n: count.n + 1,
                n_survived: count.n_survived + 1,
            };
        }
        let _ = fs::remove_dir_all(&out); // what reads alone makes none
        Ok(())
    }
}

/// A job on a disk that is really full: a file system in memory of too small a size, and then of one that is enough.
/// `None` where none can be mounted.
///
/// # Errors
/// As [`Faults::run`].
pub fn small_disk(program: &Program, toys: &Toys, work: &Path) -> Result<Option<String>> {
    let disk = work.join("disk");
    fs::create_dir_all(&disk)?;
    let mount = |options: &str| {
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", options, "none"])
            .arg(&disk);
        command.output().is_ok_and(|output| output.status.success())
    };
    if !mount("size=1m") {
        return Ok(None);
    }
    let unmount = Unmount(disk.clone());
    let (server, cache) = (toys.serve()?, work.join("cache"));
    let (mut n, mut tried) = (0, Vec::new());
    for job in toys.jobs(&server, &work.join("inputs"), &cache)? {
        let reference = work.join("reference");
        program.finish(&job, &reference)?;
        let expected = Outcome::of(&reference)?;
        let needed: u64 = crate::outcome::read_tree(&reference)?
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        fs::remove_dir_all(&reference)?;
        let out = disk.join("out");
        for share in [0.1, 0.5, 0.8] {
            ensure!(
                mount(&format!("remount,size={}", (needed as f64 * share) as u64)),
                "mount does not resize"
            );
            let output = program.start(&job, &out).output()?;
            if !output.status.success() {
                expect_clear(&output, FULL)
                    .with_context(|| format!("{} on a small disk", job.name))?;
                n += 1;
            }
            expect_no_halves(&out, &expected)?;
            ensure!(mount("remount,size=256m"), "mount does not resize");
            program.finish(&job, &out)?;
            Outcome::of(&out)?
                .expect(&expected)
                .with_context(|| format!("{} on a small disk", job.name))?;
            fs::remove_dir_all(&out)?;
        }
        tried.push(job.name);
    }
    drop(unmount);
    ensure!(n > 0, "no disk was too small");
    let measured = format!(
        "{n} times full in {}: the error names it, all restarts as undisturbed",
        tried.join(", ")
    );
    Ok(Some(row(
        "a disk that is full",
        &measured,
        "a clear error, then no difference",
        true,
    )))
}

/// Takes a file system away again.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output(); // it goes with its folder's machine, else
    }
}

/// A run whose data fail saves the steps that it made; one that cannot save names the step.
fn expect_saved(output: &Output, fault: &Fault, out: &Path) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("checkpoints/.tmp-step-") {
        ensure!(said.contains("saving after step"), "no step in: {said}");
    }
    let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    let last = metrics
        .lines()
        .last()
        .filter(|_| fault.place == Place::Input);
    let Some(last) = last else {
        return Ok(()); // no step was made
    };
    let last: Value = serde_json::from_str(last)?;
    let saved = fs::read_to_string(out.join("checkpoints/latest")).unwrap_or_default();
    let expected = format!("step-{:0>8}", last["step"].to_string());
    ensure!(
        saved.trim() == expected,
        "the newest checkpoint is {saved:?}, expected {expected}"
    );
    Ok(())
}

/// One line with the system's words for what happened and a path, exit code 1, and no panic.
fn expect_clear(output: &Output, words: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("pairquet: "))
        .collect();
    let [error] = errors.as_slice() else {
        bail!(
            "expected one line of error, found {} in: {said}",
            errors.len()
        );
    };
    ensure!(
        output.status.code() == Some(1),
        "ended with {}, expected exit code 1: {said}",
        output.status
    );
    ensure!(!said.contains("panicked"), "{said}");
    ensure!(error.contains(words), "expected {words:?} in: {error}");
    ensure!(error.contains('/'), "expected a path in: {error}");
    Ok(())
}
