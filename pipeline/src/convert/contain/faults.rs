//! Failures on purpose: what a broken video library does to a process, done for real, so that tests can see it contained.

use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use crate::convert::error::{Error, Result};

const EXPECTED: &str = "FAULT:CLIP, ... with crash, crash-if-used, abort, panic, hang, grow or garbage, \
                        and the clip's file name without its ending";

/// Which clips make a worker fail, and how: `crash:CLIP,hang:CLIP`, where a clip is called by its file's name without the
/// ending. The worker fails once it has sent the first frame of the clip.
///
/// | fault | what the worker does |
/// | --- | --- |
/// | `crash` | dies of SIGSEGV |
/// | `crash-if-used` | the same, unless this is its first clip |
/// | `abort` | dies of SIGABRT |
/// | `panic` | panics |
/// | `hang` | computes for ever |
/// | `grow` | takes memory until there is no more |
/// | `garbage` | sends bytes that are no message |
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<(Fault, String)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Crash,
    CrashIfUsed,
    Abort,
    Panic,
    Hang,
    Grow,
    Garbage,
}

impl FromStr for Faults {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Option {
            name: "worker fault",
            value: text.into(),
            expected: EXPECTED,
        };
        let fault = |part: &str| {
            let (fault, clip) = part.split_once(':').ok_or_else(wrong)?;
            let fault = match fault {
                "crash" => Fault::Crash,
                "crash-if-used" => Fault::CrashIfUsed,
                "abort" => Fault::Abort,
                "panic" => Fault::Panic,
                "hang" => Fault::Hang,
                "grow" => Fault::Grow,
                "garbage" => Fault::Garbage,
                _ => return Err(wrong()),
            };
            Ok((fault, clip.to_owned()))
        };
        text.split(',')
            .map(str::trim)
            .map(fault)
            .collect::<Result<_>>()
            .map(Self)
    }
}

impl Faults {
    /// The fault of a clip, if it has one; `n_before` is how many clips this worker had before.
    pub(super) fn of(&self, clip: &Path, n_before: u64) -> Option<Fault> {
        let (fault, _) = self
            .0
            .iter()
            .find(|(_, name)| clip.file_stem().is_some_and(|stem| stem == name.as_str()))?;
        (*fault != Fault::CrashIfUsed || n_before > 0).then_some(*fault)
    }
}

impl Fault {
    /// Fails; comes back after [`Garbage`](Self::Garbage) alone.
    #[allow(clippy::panic, reason = "on purpose")]
    pub(super) fn commit(self, host: &mut impl Write) -> Result<()> {
        match self {
            Self::Crash | Self::CrashIfUsed => segmentation_fault(),
            Self::Abort => std::process::abort(),
            Self::Panic => panic!("a panic on purpose"),
            Self::Hang => loop {
                std::hint::spin_loop();
            },
            Self::Grow => {
                let mut held = Vec::new();
                loop {
                    held.push(vec![1_u8; 16 << 20]);
                }
            }
            Self::Garbage => {
                let garbage: Vec<u8> = (0..=255).cycle().take(4096).collect();
                host.write_all(&garbage).map_err(|source| Error::Read {
                    path: "the conversion".into(),
                    source,
                })
            }
        }
    }
}

/// The signal of a wild pointer, which ends the process as one does. The first is spent on the handler of Rust's
/// runtime, which lets the next one have its way.
#[cfg(target_os = "linux")]
fn segmentation_fault() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    loop {
        // Only a process that is no more could not be sent a signal.
        let _ = kill_process(getpid(), Signal::SEGV);
    }
}

#[cfg(not(target_os = "linux"))]
fn segmentation_fault() -> ! {
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_of_the_clips_they_name() {
        let faults: Faults = "crash:a b, hang:c,crash-if-used:d".parse().unwrap();
        let of = |clip: &str, n_before| faults.of(Path::new(clip), n_before);
        assert_eq!(of("x/a b.mp4", 0), Some(Fault::Crash));
        assert_eq!(of("/y/c.webm", 3), Some(Fault::Hang));
        assert_eq!(of("c/other.mp4", 0), None);
        assert_eq!(
            (of("d.mp4", 0), of("d.mp4", 1)),
            (None, Some(Fault::CrashIfUsed))
        );
        for text in ["", "crash", "explode:a", "hang:a,b"] {
            let message = text.parse::<Faults>().unwrap_err().to_string();
            assert!(message.contains("crash-if-used"), "{text}: {message}");
        }
    }
}
