//! Clips decoded in processes of their own, so that what a clip does to the video library ends no conversion.
//!
//! Each converting thread has a worker: the program of [`Containment`], which calls [`serve_clips`]. They talk through one
//! socket, the worker's standard input: the thread names a clip, the worker answers with its frames, coded as they are
//! stored. A worker that ends, says nothing for too long or says nonsense is replaced, and the clip is tried once more,
//! alone in a fresh worker, before it is held to be at fault.
//!
//! Reading order: `wire` (messages), `host` (the thread's side, which trusts no message), `worker` (the other side),
//! `limits` (what a worker takes from itself), `faults` (failures on purpose, for tests).
//!
//! This contains failures. It is no wall against a clip that takes a worker over: that has the user's rights.

mod faults;
mod host;
mod limits;
mod wire;
mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Error, Result};

pub use faults::Faults;
pub(crate) use host::Host;
pub use worker::serve_clips;

/// How clips are decoded in processes of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containment {
    /// Program that calls [`serve_clips`] when it is started with `args`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// A clip that brings no frame for so long is left out.
    pub timeout: Duration,
    /// Memory that a worker may take beside what its program takes at the start, in bytes; a clip that needs more is left
    /// out. Holds on Linux alone.
    pub memory_bytes: u64,
}

impl Containment {
    /// Default of [`timeout`](Self::timeout). The slowest frames of sound clips take a second or two, on a machine with
    /// other work too.
    pub const TIMEOUT: Duration = Duration::from_secs(60);
    /// Default of [`memory_bytes`](Self::memory_bytes): 2 GiB.
    pub const MEMORY_BYTES: u64 = 2 << 30;
    /// Least of it: 64 MiB, with which small clips decode.
    pub const LEAST_MEMORY_BYTES: u64 = 64 << 20;

    /// With the default limits.
    pub fn new(program: PathBuf, args: Vec<OsString>) -> Self {
        Self {
            program,
            args,
            timeout: Self::TIMEOUT,
            memory_bytes: Self::MEMORY_BYTES,
        }
    }

    /// # Errors
    /// [`Error::Option`] for the first value outside its range.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.timeout.is_zero() {
            return Err(Error::Option {
                name: "clip timeout",
                value: "0".into(),
                expected: "more than 0 seconds",
            });
        }
        if self.memory_bytes < Self::LEAST_MEMORY_BYTES {
            return Err(Error::Option {
                name: "clip memory",
                value: format!("{} bytes", self.memory_bytes),
                expected: "at least 64 MiB",
            });
        }
        Ok(())
    }
}
