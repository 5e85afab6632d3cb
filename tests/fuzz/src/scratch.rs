//! A folder for the parsers that want files: in memory where the system has such a place, one for each process.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

/// Where Linux keeps files in memory.
const IN_MEMORY: &str = "/dev/shm";

/// The path of `name` in this process's folder, with these contents.
///
/// # Panics
/// If the system cannot give a folder: then there is nothing to test.
#[allow(clippy::expect_used)]
pub(crate) fn file(name: &str, contents: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, contents).expect("a writable folder for temporary files");
    path
}

/// The folder itself.
#[allow(clippy::expect_used)]
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let made = tempfile::Builder::new()
            .prefix("pairquet-fuzz-")
            .tempdir_in(IN_MEMORY)
            .or_else(|_| tempfile::tempdir());
        made.expect("a folder for temporary files")
    });
    made.path()
}

/// Removes the folder; a static is never dropped.
pub(crate) fn remove() {
    // What is left lies among temporary files.
    drop(std::fs::remove_dir_all(folder()));
}
