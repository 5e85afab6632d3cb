//! Reading parts of files that do not change: files stay open, and memory comes from earlier parts, because a part of a
//! hundred kilobytes is read faster than its file is opened and its memory is made.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Files kept open, far below the usual limit of 1024 for a process; all are closed before there would be more.
const MOST_OPEN: usize = 256;

/// Parts whose memory is kept, and the largest of them in bytes.
const MOST_SPARE: usize = 64;
const LARGEST_SPARE: usize = 1 << 20;

/// A folder on a disk.
pub(super) struct Disk {
    pub folder: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
    spare: Arc<Spare>,
}

/// Memory of parts that are not used any more.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

/// A part of a file; its memory goes back when the last of its [`Bytes`] goes.
struct Part {
    memory: Vec<u8>,
    len: usize,
    spare: Arc<Spare>,
}

impl Disk {
    pub fn new(folder: PathBuf) -> Self {
        Disk {
            folder,
            open: Mutex::default(),
            spare: Arc::default(),
        }
    }

    /// A part of the file `path`, relative to the folder.
    ///
    /// # Errors
    /// The system's error; [`io::ErrorKind::UnexpectedEof`] if the file ends before the range does.
    pub fn read(&self, path: &str, range: &Range<u64>) -> io::Result<Bytes> {
        let len = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        let file = self.file(path)?;
        let mut part = self.part(len);
        file.read_exact_at(&mut part.memory[..len], range.start)?;
        Ok(Bytes::from_owner(part))
    }

    fn file(&self, path: &str) -> io::Result<Arc<File>> {
        if let Some(file) = lock(&self.open).get(path) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.folder.join(Path::new(path)))?);
        let mut open = lock(&self.open);
        if open.len() >= MOST_OPEN {
            open.clear();
        }
        open.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn part(&self, len: usize) -> Part {
        let mut memory = lock(&self.spare.0).pop().unwrap_or_default();
        // What is there already is overwritten, so it need not be cleared.
        if memory.len() < len {
            memory.resize(len, 0);
        }
        Part {
            memory,
            len,
            spare: Arc::clone(&self.spare),
        }
    }
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut spare = lock(&self.spare.0);
        if spare.len() < MOST_SPARE && self.memory.len() <= LARGEST_SPARE {
            spare.push(std::mem::take(&mut self.memory));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
