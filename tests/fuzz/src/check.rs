//! One input in one target, and what it may cost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use pipeline::process::cpu_time;

use crate::memory::peak_while;
use crate::targets::Target;

/// Whatever an input's length, it may take this much memory, in bytes.
const FREE_BYTES: usize = 256 << 20;
/// And for each of its bytes this many more.
const BYTES_PER_BYTE: usize = 64;
/// Time for each KiB that an input begins, in seconds.
const SECONDS_PER_KIB: f64 = 1.0;

/// What an input cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Time in seconds.
    pub seconds: f64,
    /// Most memory of the Rust allocator at once, in bytes.
    pub peak_bytes: usize,
}

/// Runs a target on an input.
///
/// # Errors
/// A sentence if it panicked, or took more time or memory than its length allows. Time is measured once more before it
/// counts, without what other programs had the cores for.
pub fn check(target: &Target, input: &[u8]) -> Result<Cost, String> {
    let first = cost(target, input)?;
    let most_bytes = FREE_BYTES + BYTES_PER_BYTE * input.len();
    if first.peak_bytes > most_bytes {
        return Err(format!(
            "{} bytes of memory for {} bytes of input, expected at most {most_bytes}",
            first.peak_bytes,
            input.len()
        ));
    }
    let most_seconds = SECONDS_PER_KIB * input.len().div_ceil(1024).max(1) as f64;
    if first.seconds > most_seconds {
        let before = cpu_time().unwrap_or_default();
        let wall = cost(target, input)?.seconds;
        let queued = cpu_time().unwrap_or_default().since(before).queued_s;
        let again = wall - queued.max(0.0);
        if again > most_seconds {
            return Err(format!(
                "{again:.1} s for {} bytes of input, expected at most {most_seconds} s",
                input.len()
            ));
        }
    }
    Ok(first)
}

/// [`check`] for a fuzzer, which takes note of panics.
#[allow(clippy::panic)] // it is what the caller wants
pub fn must_hold(name: &str, input: &[u8]) {
    let held = crate::target(name).and_then(|target| check(target, input));
    if let Err(problem) = held {
        panic!("{name}: {problem}");
    }
}

fn cost(target: &Target, input: &[u8]) -> Result<Cost, String> {
    let start = Instant::now();
    let mut outcome = Ok(());
    let peak_bytes = peak_while(|| {
        outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    });
    let seconds = start.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => Ok(Cost {
            seconds,
            peak_bytes,
        }),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("panicked: {}", said.unwrap_or("no words")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(run: fn(&[u8])) -> Result<Cost, String> {
        let seeds = Vec::new;
        let target = Target {
            name: "made up",
            run,
            seeds,
            rounds: 0,
        };
        check(&target, b"input")
    }

    #[test]
    fn each_limit_is_one() {
        assert!(outcome(|_| ()).is_ok());
        let message = outcome(|_| panic!("by hand")).unwrap_err();
        assert_eq!(message, "panicked: by hand");
        let message = outcome(|_| drop(std::hint::black_box(vec![0u8; 257 << 20]))).unwrap_err();
        assert!(message.contains("bytes of memory for 5 bytes"), "{message}");
        // One after the other they are more than the limit, at once they are not.
        fn one_of_many(_: usize) {
            drop(std::hint::black_box(vec![1u8; 3 << 20]));
        }
        assert!(outcome(|_| (0..200).for_each(one_of_many)).is_ok());
        let message =
            outcome(|_| std::thread::sleep(std::time::Duration::from_millis(1020))).unwrap_err();
        assert!(message.contains("expected at most 1 s"), "{message}");
    }
}
