//! Ctrl-C, SIGTERM, a closed terminal (SIGHUP) and SIGUSR1: the first asks the work to stop cleanly, a second one ends
//! the program at once. SIGUSR1 is what mpirun passes on to its ranks, and what Slurm can send before a job's time is up.
//! A limit on time is one more wish to stop.

use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pipeline::Stop;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::output::{Output, talk};

const SIGNALS: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGUSR1];

/// Leaves these signals to the process that started this one: a scheduler may send them to all of a job's.
pub fn ignore() -> Result<()> {
    let unseen = Arc::new(AtomicBool::new(false));
    for signal in SIGNALS {
        signal_hook::flag::register(signal, Arc::clone(&unseen))
            .context("cannot listen for signals")?;
    }
    Ok(())
}

/// Returns a flag that the first of these signals raises.
pub fn stop_on_signal(out: &Output) -> Result<Stop> {
    let stop = Stop::new();
    let raised = stop.clone();
    let quiet = out.is_quiet();
    let mut signals = Signals::new(SIGNALS).context("cannot listen for signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if raised.is_requested() {
                    process::exit(128 + signal);
                }
                raised.request();
                if !quiet {
                    talk("stopping: work in hand is finished and saved first; once more ends at once");
                }
            }
        })
        .context("cannot start the signal thread")?;
    Ok(stop)
}

/// Longest limit on time, in hours: a century and more, so that no clock runs over.
const MAX_HOURS: f64 = 1e6;

/// For verbs whose work is saved and gone on with.
#[derive(clap::Args)]
pub struct TimeLimit {
    /// Stop after so many hours since the program's start, such as 0.5, as at SIGTERM: what is done is saved, the exit code
    /// is 1, and the same command goes on.
    #[arg(long = "max-hours", value_name = "H", value_parser = limit)]
    limit: Option<Limit>,
}

/// A stretch of time that begins when the command line is read, which is when the program starts.
#[derive(Clone, Copy)]
struct Limit {
    hours: f64,
    deadline: Instant,
}

impl TimeLimit {
    /// As [`stop_on_signal`], and raised when the time is up.
    pub fn stop(&self, out: &Output) -> Result<Stop> {
        let deadline = self.limit.map(|limit| limit.deadline);
        Ok(stop_on_signal(out)?.by(deadline))
    }

    /// That the work has stopped, whether for lack of time, and how to go on.
    pub fn stopped(&self, stop: &Stop) -> String {
        let why = match self.limit.filter(|_| stop.is_overdue()) {
            Some(limit) => format!(" as --max-hours {} are over", limit.hours),
            None => String::new(),
        };
        format!("stopped{why}; the same command goes on from here")
    }
}

fn limit(text: &str) -> Result<Limit, String> {
    let hours = text.parse().unwrap_or(f64::NAN);
    if !(hours > 0.0 && hours <= MAX_HOURS) {
        return Err(format!(
            "expected a number of hours above 0 and up to {MAX_HOURS}"
        ));
    }
    let deadline = Instant::now() + Duration::from_secs_f64(hours * 3600.0);
    Ok(Limit { hours, deadline })
}
