//! One process a run folder: two that train in it would write over each other's checkpoints and metrics.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use crate::error::{Error, Result};

/// Name of the file whose lock the training process holds.
const LOCK_FILE: &str = ".lock";

/// Makes the run folder and takes its lock, which goes with the returned file, however the process ends.
///
/// # Errors
/// [`Error::RunBusy`] if another process holds it.
pub(crate) fn lock(run_dir: &Path) -> Result<File> {
    fs::create_dir_all(run_dir).map_err(Error::io(run_dir))?;
    let path = run_dir.join(LOCK_FILE);
    let file = File::create(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::RunBusy {
            path: run_dir.into(),
        }),
        // Some network file systems have no locks; a run there goes unguarded rather than not at all.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_in_the_folder_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let held = lock(&run_dir).unwrap();
        assert!(matches!(lock(&run_dir), Err(Error::RunBusy { .. })));
        drop(held);
        lock(&run_dir).unwrap();
    }
}
