//! Threads that stay on a core of their own (`data.pin`).

use crate::error::{Error, Result};

/// Cores for `n_threads` threads that stay on one each: the last ones of those given to this process.
///
/// # Errors
/// [`Error::Invalid`] for more threads than cores, and on systems other than Linux.
pub(super) fn cores(n_threads: usize) -> Result<Vec<usize>> {
    let mut cores = given()?;
    let Some(spare) = cores.len().checked_sub(n_threads) else {
        return Err(Error::Invalid {
            name: "data.threads",
            value: n_threads.to_string(),
            expected: format!(
                "at most the {} cores of the affinity mask, as data.pin = true gives each thread one",
                cores.len()
            ),
        });
    };
    Ok(cores.split_off(spare))
}

#[cfg(target_os = "linux")]
mod system {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::{Error, Result};

    /// The cores of the calling thread's affinity mask, ascending.
    pub(super) fn given() -> Result<Vec<usize>> {
        let mask = sched_getaffinity(None).map_err(refused)?;
        Ok((0..CpuSet::MAX_CPU)
            .filter(|&core| mask.is_set(core))
            .collect())
    }

    /// Keeps the calling thread on `core`.
    ///
    /// # Errors
    /// [`Error::Thread`] if the system refuses.
    pub(in crate::loader) fn stay_on(core: usize) -> Result<()> {
        let mut mask = CpuSet::new();
        mask.set(core);
        sched_setaffinity(None, &mask).map_err(refused)
    }

    fn refused(error: rustix::io::Errno) -> Error {
        Error::Thread {
            source: error.into(),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::{Error, Result};

    pub(super) fn given() -> Result<Vec<usize>> {
        Err(unsupported())
    }

    pub(in crate::loader) fn stay_on(_core: usize) -> Result<()> {
        Err(unsupported())
    }

    fn unsupported() -> Error {
        Error::Invalid {
            name: "data.pin",
            value: "true".to_owned(),
            expected: format!(
                "false on {}: threads stay on cores on Linux only",
                std::env::consts::OS
            ),
        }
    }
}

use system::given;
pub(super) use system::stay_on;

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_on_the_core_it_was_given() {
        let given = given().unwrap();
        assert_eq!(cores(given.len()).unwrap(), given);
        let last = *given.last().unwrap();
        assert_eq!(cores(1).unwrap(), [last]);
        let pinned = std::thread::spawn(move || {
            stay_on(last).unwrap();
            super::given().unwrap()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
        assert!(stay_on(1000).is_err() || given.contains(&1000));
        let message = cores(given.len() + 1).unwrap_err().to_string();
        assert!(message.starts_with("data.threads"), "{message}");
    }
}
