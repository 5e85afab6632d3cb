//! The converting thread's side: workers started, watched, replaced. Nothing that a worker sends is trusted.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shards::{FrameRow, MAX_ROW_GROUP_BYTES, printable};

use super::Containment;
use super::wire::{self, Kind};
use super::worker::Start;
use crate::codec::{ImageFormat, ImageInfo, VideoLimits, probe};
use crate::convert::clip_frames::Ending;
use crate::convert::error::{Error, Result};
use crate::convert::options::{CommonOptions, KineticsOptions};
use crate::stop::Stop;

/// Clips that a worker decodes before it is replaced: what a library leaks adds up over so many at most.
const CLIPS_A_WORKER: u32 = 256;

/// How long a worker may take to start: a program may have to come over a network first.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a thread that waits for its worker looks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

/// Most of a dead worker's last words that are passed on, in bytes.
const MAX_WORDS_BYTES: u64 = 16 << 10;

/// The bytes of a frame's message before its JPEG.
const FRAME_HEAD_BYTES: usize = 16;

/// A converting thread's worker: started when it is needed, replaced when it fails, ended with this.
#[derive(Debug, Default)]
pub(crate) struct Host {
    worker: Option<Worker>,
}

impl Host {
    /// Has a worker read the frames of a clip. What a worker fails at is tried once more, alone in a fresh one, so that
    /// no clip is blamed for what its predecessors did to the worker or others to the machine.
    ///
    /// # Errors
    /// [`Error::Worker`] if no worker can be started, [`Error::Stopped`].
    pub fn read_frames(
        &mut self,
        containment: &Containment,
        path: &Path,
        options: &KineticsOptions,
        stop: &Stop,
    ) -> Result<(Vec<FrameRow>, Ending)> {
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::start(containment, options, stop)?,
        };
        match worker.read_frames(path, containment.timeout, stop) {
            Ok(read) if !is_doubtful(&read.1, worker.n_clips) => {
                worker.n_clips += 1;
                self.worker = (worker.n_clips < CLIPS_A_WORKER).then_some(worker);
                return Ok(read);
            }
            Err(Trouble::Stopped) => return Err(stopped()),
            Ok(_) | Err(_) => drop(worker),
        }
        let mut alone = Worker::start(containment, options, stop)?;
        match alone.read_frames(path, containment.timeout, stop) {
            Ok((_, Ending::OutOfMemory)) => {
                Ok((Vec::new(), out_of_memory(containment.memory_bytes)))
            }
            Ok(read) => Ok(read),
            Err(Trouble::Stopped) => Err(stopped()),
            Err(trouble) => Ok((Vec::new(), alone.blame(&trouble, containment))),
        }
    }
}

/// Whether a worker's word about a clip is to be asked for once more: one that earlier clips have used may lack memory where
/// it finds damage.
fn is_doubtful(ending: &Ending, n_clips_before: u32) -> bool {
    match ending {
        Ending::Kept { damage: None } => false,
        Ending::Kept { damage: Some(_) } | Ending::Refused { .. } => n_clips_before > 0,
        Ending::OutOfMemory | Ending::Failed { .. } => true,
    }
}

fn stopped() -> Error {
    Error::Stopped {
        done: 0,
        planned: 0,
    }
}

/// Why a worker is of no more use.
#[derive(Debug)]
enum Trouble {
    /// It is not at fault: somebody asked to stop.
    Stopped,
    /// It closed the connection, mostly because it died.
    Ended,
    /// It said nothing for too long.
    Silent,
    /// It said what it should not.
    Nonsense(String),
}

/// A process that decodes.
#[derive(Debug)]
struct Worker {
    process: Child,
    stream: UnixStream,
    /// What it writes to standard error.
    words: UnixStream,
    n_clips: u32,
}

impl Worker {
    fn start(containment: &Containment, options: &KineticsOptions, stop: &Stop) -> Result<Self> {
        let failed = |reason: String| Error::Worker {
            program: containment.program.clone(),
            reason,
        };
        let mut worker =
            Self::spawn(containment).map_err(|error| failed(format!("cannot start: {error}")))?;
        let start = Start {
            memory_bytes: containment.memory_bytes,
            options: KineticsOptions {
                common: CommonOptions::default(),
                list: None,
                containment: None,
                ..options.clone()
            },
        };
        let start = serde_json::to_vec(&start).map_err(|error| failed(error.to_string()))?;
        let greeted = worker
            .expect_greeting(stop)
            .and_then(|()| worker.send(Kind::Start, &start));
        let reason = match greeted {
            Ok(()) => return Ok(worker),
            Err(Trouble::Stopped) => return Err(stopped()),
            Err(Trouble::Ended) => {
                let (status, words) = worker.end();
                let words = words
                    .lines()
                    .last()
                    .map(|line| format!(": {}", printable(line)));
                format!("ended at once, {status}{}", words.unwrap_or_default())
            }
            Err(Trouble::Silent) => format!("said nothing for {} s", START_TIMEOUT.as_secs()),
            Err(Trouble::Nonsense(what)) => format!("is not the program expected: {what}"),
        };
        Err(failed(reason))
    }

    fn spawn(containment: &Containment) -> io::Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        let (words, said) = UnixStream::pair()?;
        // Nobody listens before the worker is dead: words that find no room are lost, and do not hold it up.
        said.set_nonblocking(true)?;
        words.set_nonblocking(true)?;
        let process = Command::new(&containment.program)
            .args(&containment.args)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(OwnedFd::from(said))
            // What is typed at a terminal is for the conversion, which decides what becomes of its workers.
            .process_group(0)
            .spawn()?;
        Ok(Self {
            process,
            stream,
            words,
            n_clips: 0,
        })
    }

    fn expect_greeting(&mut self, stop: &Stop) -> Result<(), Trouble> {
        let (kind, body) = self.receive(START_TIMEOUT, stop)?;
        let (said, expected) = (String::from_utf8_lossy(&body), wire::greeting());
        if kind == Kind::Hello && said == expected {
            return Ok(());
        }
        let said: String = said.chars().take(200).collect();
        Err(Trouble::Nonsense(format!(
            "it says '{}', expected '{expected}'",
            printable(&said)
        )))
    }

    fn read_frames(
        &mut self,
        path: &Path,
        timeout: Duration,
        stop: &Stop,
    ) -> Result<(Vec<FrameRow>, Ending), Trouble> {
        self.send(Kind::Clip, path.as_os_str().as_bytes())?;
        let mut frames = Vec::new();
        let (mut n_steps, mut n_bytes, mut last_us) = (0_u64, 0_u64, i64::MIN);
        loop {
            let (kind, body) = self.receive(timeout, stop)?;
            n_steps += 1;
            if n_steps > VideoLimits::default().max_frames + 1 {
                return Err(Trouble::Nonsense("more frames than any clip has".into()));
            }
            match kind {
                Kind::Passed => {}
                Kind::Frame => {
                    n_bytes += body.len() as u64;
                    let frame = checked_frame(body, last_us).map_err(Trouble::Nonsense)?;
                    if n_bytes > MAX_ROW_GROUP_BYTES + n_steps * FRAME_HEAD_BYTES as u64 {
                        return Err(Trouble::Nonsense("more bytes than any clip has".into()));
                    }
                    last_us = frame.time_us;
                    frames.push(frame);
                }
                Kind::Ending => {
                    let ending: Ending = serde_json::from_slice(&body).map_err(|error| {
                        Trouble::Nonsense(format!("an ending that is none: {error}"))
                    })?;
                    if matches!(ending, Ending::Kept { .. }) && frames.is_empty() {
                        return Err(Trouble::Nonsense("a clip without a frame".into()));
                    }
                    return Ok((frames, ending));
                }
                Kind::Hello | Kind::Start | Kind::Clip => {
                    return Err(Trouble::Nonsense(format!("a message of kind {kind:?}")));
                }
            }
        }
    }

    fn send(&mut self, kind: Kind, body: &[u8]) -> Result<(), Trouble> {
        // A worker that is told something waits for it, so there is room.
        wire::send(&mut self.stream, kind, &[body]).map_err(|_| Trouble::Ended)
    }

    fn receive(&mut self, timeout: Duration, stop: &Stop) -> Result<(Kind, Vec<u8>), Trouble> {
        let mut patient = Patient {
            stream: &self.stream,
            until: Instant::now().checked_add(timeout),
            stop,
        };
        wire::receive(&mut patient).map_err(|error| match error.kind() {
            _ if stop.is_requested() => Trouble::Stopped,
            ErrorKind::TimedOut => Trouble::Silent,
            ErrorKind::InvalidData => Trouble::Nonsense(error.to_string()),
            _ => Trouble::Ended,
        })
    }

    /// What the clip did that this worker had alone.
    fn blame(&mut self, trouble: &Trouble, containment: &Containment) -> Ending {
        match trouble {
            Trouble::Stopped | Trouble::Ended => {}
            Trouble::Silent => {
                let reason = format!("no frame within {} s", containment.timeout.as_secs_f64());
                return refused("timeout", reason);
            }
            Trouble::Nonsense(what) => {
                return refused(
                    "nonsense",
                    format!("the process that decodes it sent {what}"),
                );
            }
        }
        let (status, words) = self.end();
        if tells_of_no_memory(&words) {
            return out_of_memory(containment.memory_bytes);
        }
        // They went where everybody's words go, had the library crashed in this process.
        for line in words.lines() {
            let _ = io::Write::write_all(
                &mut io::stderr(),
                format!("{}\n", printable(line)).as_bytes(),
            );
        }
        let reason = match (status.signal(), status.code()) {
            (Some(libc::SIGKILL), _) => {
                "the process that decodes it was killed (SIGKILL), as a system does that is out of memory"
                    .to_owned()
            }
            (Some(signal), _) => format!("the video library crashed ({})", Signal(signal)),
            (None, code) => format!(
                "the process that decodes it ended with exit code {}",
                code.unwrap_or_default()
            ),
        };
        refused("crash", reason)
    }

    /// Ends the process, if it has not ended itself: how it ended, and its last words.
    fn end(&mut self) -> (ExitStatus, String) {
        // A process that is dying of something else already is not changed by this.
        let _ = self.process.kill();
        let status = self.process.wait().unwrap_or_default();
        let mut words = Vec::new();
        // Up to the end or to where there are no more for now.
        let _ = (&self.words).take(MAX_WORDS_BYTES).read_to_end(&mut words);
        (status, String::from_utf8_lossy(&words).into_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads on through silences, until it takes too long or somebody asks to stop.
struct Patient<'a> {
    stream: &'a UnixStream,
    /// `None` if that is further off than clocks go.
    until: Option<Instant>,
    stop: &'a Stop,
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.stream.read(buffer);
            if self.stop.is_requested() {
                return Err(io::Error::other("stopped"));
            }
            // Also of a message that trickles in.
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Err(ErrorKind::TimedOut.into());
            }
            match read {
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                read => return read,
            }
        }
    }
}

/// A frame as it may be stored.
fn checked_frame(body: Vec<u8>, last_us: i64) -> Result<FrameRow, String> {
    let body = Bytes::from(body);
    let Some(
        &[
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            t6,
            t7,
            w0,
            w1,
            w2,
            w3,
            h0,
            h1,
            h2,
            h3,
        ],
    ) = body.first_chunk::<FRAME_HEAD_BYTES>()
    else {
        return Err(format!("a frame of {} bytes", body.len()));
    };
    let time_us = i64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
    let width = i32::from_le_bytes([w0, w1, w2, w3]);
    let height = i32::from_le_bytes([h0, h1, h2, h3]);
    if time_us < last_us {
        return Err(format!("a frame of time {time_us} after one of {last_us}"));
    }
    let bytes = body.slice(FRAME_HEAD_BYTES..);
    match probe(&bytes) {
        Ok(ImageInfo {
            format: ImageFormat::Jpeg,
            width: w,
            height: h,
        }) if i32::try_from(w) == Ok(width) && i32::try_from(h) == Ok(height) => Ok(FrameRow {
            time_us,
            bytes,
            width,
            height,
        }),
        Ok(found) => Err(format!(
            "a {} of {} x {} as a JPEG of {width} x {height}",
            found.format, found.width, found.height
        )),
        Err(error) => Err(format!("a frame that is no JPEG: {error}")),
    }
}

fn refused(fault: &str, reason: String) -> Ending {
    Ending::Refused {
        fault: fault.to_owned(),
        reason,
    }
}

fn out_of_memory(limit_bytes: u64) -> Ending {
    let limit = if limit_bytes.is_multiple_of(1 << 30) {
        format!("{} GiB", limit_bytes >> 30)
    } else {
        format!("{} MiB", limit_bytes >> 20)
    };
    refused(
        "out of memory",
        format!("needs more than {limit} of memory"),
    )
}

/// Whether a process died of a refused request for memory: so say the runtimes of Rust and C++ before they abort.
fn tells_of_no_memory(words: &str) -> bool {
    words
        .lines()
        .any(|line| line.starts_with("memory allocation of ") || line.contains("std::bad_alloc"))
}

/// A signal by its name.
struct Signal(i32);

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::SIGABRT => "SIGABRT",
            libc::SIGBUS => "SIGBUS",
            libc::SIGFPE => "SIGFPE",
            libc::SIGILL => "SIGILL",
            libc::SIGSEGV => "SIGSEGV",
            libc::SIGSYS => "SIGSYS",
            libc::SIGTRAP => "SIGTRAP",
            other => return write!(f, "signal {other}"),
        };
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Rgb8Image, encode_rgb8};

    fn frame(time_us: i64, width: i32, height: i32, jpeg: &[u8]) -> Vec<u8> {
        [
            &time_us.to_le_bytes()[..],
            &width.to_le_bytes(),
            &height.to_le_bytes(),
            jpeg,
        ]
        .concat()
    }

    #[test]
    fn frames_are_what_they_say_or_refused() {
        let jpeg = encode_rgb8(&Rgb8Image::new(32, 16), 90).unwrap();
        let checked = checked_frame(frame(7, 32, 16, &jpeg), 7).unwrap();
        assert_eq!(
            (checked.time_us, checked.width, checked.height),
            (7, 32, 16)
        );
        assert!(checked.bytes == jpeg);
        let png = b"\x89PNG\r\n\x1a\n, or so it says";
        for (body, named) in [
            (frame(6, 32, 16, &jpeg), "time 6"),
            (frame(7, 16, 32, &jpeg), "16 x 32"),
            (frame(7, -32, 16, &jpeg), "-32 x 16"),
            (frame(7, 32, 16, &[]), "no JPEG"),
            (frame(7, 32, 16, &jpeg[1..]), "no JPEG"),
            (frame(7, 32, 16, png), "no JPEG"),
            (vec![0; 15], "15 bytes"),
            (vec![0; 7], "7 bytes"),
            (vec![], "0 bytes"),
        ] {
            let reason = checked_frame(body, 7).unwrap_err();
            assert!(reason.contains(named), "{named}: {reason}");
        }
    }

    fn first_read(program: &str, args: &[&str]) -> Error {
        let args = args.iter().map(Into::into).collect();
        let containment = Containment::new(program.into(), args);
        let options = KineticsOptions::default();
        Host::default()
            .read_frames(&containment, Path::new("a.mp4"), &options, &Stop::new())
            .unwrap_err()
    }

    #[test]
    fn a_worker_that_cannot_be_started_is_an_error_that_says_why() {
        for (program, args, named) in [
            ("/no/such/program", &[][..], "No such file"),
            (
                "/bin/sh",
                &["-c", "echo out of luck >&2; exit 3"],
                "exit status: 3: out of luck",
            ),
            (
                "/bin/sh",
                &["-c", "echo no greeting at all >&0"],
                "kind 0x6e",
            ),
            ("/bin/sh", &["-c", "kill -9 $$"], "SIGKILL"),
        ] {
            let error = first_read(program, args);
            assert!(matches!(error, Error::Worker { .. }));
            let message = error.to_string();
            assert!(
                message.contains(program) && message.contains(named),
                "{named}: {message}"
            );
        }
    }

    #[test]
    fn a_wish_to_stop_is_heard_while_a_worker_is_silent() {
        let containment = Containment::new("/bin/sleep".into(), vec!["100".into()]);
        let (options, stop) = (KineticsOptions::default(), Stop::new());
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(TICK);
                stop.request();
            });
            let read = Host::default().read_frames(&containment, Path::new("a"), &options, &stop);
            assert!(matches!(read, Err(Error::Stopped { .. })));
        });
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn reasons_name_limits_and_signals() {
        let reason = |bytes| match out_of_memory(bytes) {
            Ending::Refused { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(2 << 30), "needs more than 2 GiB of memory");
        assert_eq!(reason(100 << 20), "needs more than 100 MiB of memory");
        assert_eq!(Signal(libc::SIGSEGV).to_string(), "SIGSEGV");
        assert_eq!(Signal(42).to_string(), "signal 42");
        assert!(tells_of_no_memory("memory allocation of 16 bytes failed\n"));
        assert!(!tells_of_no_memory("free(): invalid pointer"));
    }
}
