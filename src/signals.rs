//! Ctrl-C, SIGTERM, a closed terminal (SIGHUP) and SIGUSR1: the first asks the work to stop cleanly, a second one ends
//! the program at once. SIGUSR1 is what mpirun passes on to its ranks, and what Slurm can send before a job's time is up.

use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
