//! The worker's side: clips are named, frames go back.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::faults::Faults;
use super::limits;
use super::wire::{self, Kind};
use crate::convert::clip_frames::{Step, read_frames};
use crate::convert::error::Error;
use crate::convert::options::KineticsOptions;
use crate::convert::outcome::Scratch;

/// What a worker is told once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    /// See [`Containment::memory_bytes`](super::Containment::memory_bytes).
    pub memory_bytes: u64,
    /// How frames are chosen and coded; what else the options hold plays no part.
    pub options: KineticsOptions,
}

/// Decodes the clips that the process which started this one names, until it closes the connection or ends. To be called
/// in a process that [`Containment`](super::Containment) describes, before any thread is started: it lowers this
/// process's limits for good.
///
/// * `faults`: failures on purpose, none outside of tests.
///
/// # Errors
/// If standard input is no connection to a conversion, or the system refuses the limits. Never because of a clip.
pub fn serve_clips(faults: &Faults) -> io::Result<()> {
    let mut host = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    host.peer_addr().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("standard input is no connection to a conversion: {error}"),
        )
    })?;
    limits::belong_to_parent()?;
    wire::send(&mut host, Kind::Hello, &[wire::greeting().as_bytes()])?;
    let Some(body) = receive(&mut host, Kind::Start)? else {
        return Ok(());
    };
    let start: Start = serde_json::from_slice(&body)?;
    limits::limit_memory(start.memory_bytes)?;
    let mut scratch = Scratch::default();
    for n_before in 0_u64.. {
        let Some(path) = receive(&mut host, Kind::Clip)? else {
            break;
        };
        let path = Path::new(OsStr::from_bytes(&path));
        let mut fault = faults.of(path, n_before);
        let ending = read_frames(path, &start.options, &mut scratch, &mut |step| {
            send_step(&mut host, &step).map_err(|source| Error::Read {
                path: "the conversion".into(),
                source,
            })?;
            // In the middle of the clip: what was sent of it before has to be forgotten.
            fault.take().map_or(Ok(()), |fault| fault.commit(&mut host))
        })
        .map_err(io::Error::other)?;
        wire::send(&mut host, Kind::Ending, &[&serde_json::to_vec(&ending)?])?;
    }
    Ok(())
}

/// The body of the next message; `None` if there is none any more.
fn receive(host: &mut UnixStream, expected: Kind) -> io::Result<Option<Vec<u8>>> {
    match wire::receive(host) {
        Ok((kind, body)) if kind == expected => Ok(Some(body)),
        Ok((kind, _)) => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("a message of kind {kind:?}, expected {expected:?}"),
        )),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn send_step(host: &mut UnixStream, step: &Step) -> io::Result<()> {
    match step {
        Step::Passed => wire::send(host, Kind::Passed, &[]),
        Step::Frame(frame) => wire::send(
            host,
            Kind::Frame,
            &[
                &frame.time_us.to_le_bytes(),
                &frame.width.to_le_bytes(),
                &frame.height.to_le_bytes(),
                &frame.bytes,
            ],
        ),
    }
}
