//! Files that appear whole or not at all: written under another name, flushed to the disk, renamed, and the folder
//! flushed too, so that after a power cut a name never stands for half a file.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// What the name of an unfinished file begins with; the final name follows, then a dot and letters by chance.
const TEMP_PREFIX: &str = ".pairquet-tmp-";

/// Buffer of a writer, so that page headers of a few bytes do not become a system call each.
const BUFFER_BYTES: usize = 1 << 20;

/// Who else may hold a lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All who say the same.
    Shared,
    /// Nobody.
    Alone,
}

/// A lock that is held until this is dropped, see [`Store::try_lock`](super::Store::try_lock).
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] pub(super) Option<File>); // held, never read

pub(super) fn try_lock(path: &Path, sharing: Sharing) -> Result<Option<Lock>> {
    let io = |e| fault("locking", path, e);
    let (folder, _) = folder_and_name(path)?;
    make_folder(folder)?;
    let opened = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        // Where nothing may be written, a lock that is there can be held, and one that is not there guards nothing.
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            match File::open(path) {
                Ok(file) => file,
                Err(missing) if missing.kind() == ErrorKind::NotFound => {
                    return Ok(Some(Lock(None)));
                }
                Err(_) => return Err(io(e)),
            }
        }
        Err(e) => return Err(io(e)),
    };
    let taken = match sharing {
        Sharing::Shared => file.try_lock_shared(),
        Sharing::Alone => file.try_lock(),
    };
    match taken {
        Ok(()) => Ok(Some(Lock(Some(file)))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(Some(Lock(None))),
        Err(TryLockError::Error(e)) => Err(io(e)),
    }
}

/// Writes one file. Without [`commit`](Self::commit) nothing remains of it.
pub(super) struct FileWriter {
    file: BufWriter<NamedTempFile>,
    target: PathBuf,
}

impl FileWriter {
    /// Starts the file `target`; folders that are missing are made.
    pub fn create(target: &Path) -> Result<Self> {
        let (folder, name) = folder_and_name(target)?;
        make_folder(folder)?;
        let file = new_temp(folder, name).map_err(|e| fault("writing", target, e))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(FileWriter {
            file,
            target: target.to_owned(),
        })
    }

    pub fn commit(self) -> Result<()> {
        let FileWriter { file, target } = self;
        let io = |e| fault("writing", &target, e);
        let file = file.into_inner().map_err(|e| io(e.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        // The standard library's rename, not `persist`'s own system call: this one a test can make fail.
        let mut temp = file.into_temp_path();
        std::fs::rename(&temp, &target).map_err(io)?;
        temp.disable_cleanup(true); // its name is not there any more
        let (folder, _) = folder_and_name(&target)?;
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(io)
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| fault("making the folder", folder, e))
}

/// A failed file operation. The temporary name of a file, which the library puts into its errors, says nothing to
/// whoever reads it.
fn fault(doing: &'static str, path: &Path, error: std::io::Error) -> Error {
    let path = path.display().to_string();
    match error.kind() {
        ErrorKind::NotFound => Error::NotFound { path },
        kind => {
            let system = error
                .get_ref()
                .and_then(|inner| inner.source())
                .and_then(|inner| inner.downcast_ref::<std::io::Error>())
                .and_then(std::io::Error::raw_os_error);
            let source = match system {
                Some(code) => std::io::Error::from_raw_os_error(code),
                None => match error.get_ref() {
                    Some(inner) => std::io::Error::new(kind, inner.to_string()),
                    None => error,
                },
            };
            Error::Store {
                path,
                range: None,
                doing,
                source,
            }
        }
    }
}

fn folder_and_name(target: &Path) -> Result<(&Path, &str)> {
    let name = target.file_name().and_then(|name| name.to_str());
    let parts = target.parent().zip(name);
    parts.ok_or_else(|| Error::BadPath {
        path: target.display().to_string(),
        reason: "expected a file name".to_owned(),
    })
}

fn new_temp(folder: &Path, name: &str) -> std::io::Result<NamedTempFile> {
    let prefix = format!("{TEMP_PREFIX}{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    {
        // Like any new file, not for the owner alone: shards are made by one person and read by a group.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// Whether a path is that of an unfinished file.
pub(super) fn is_temp(path: &str) -> bool {
    temp_target(path).is_some()
}

/// The path that an unfinished file would have had.
pub(super) fn temp_target(path: &str) -> Option<String> {
    let (folder, name) = path
        .rsplit_once('/')
        .map_or(("", path), |(folder, name)| (folder, name));
    let (target, _) = name.strip_prefix(TEMP_PREFIX)?.rsplit_once('.')?;
    Some(if folder.is_empty() {
        target.to_owned()
    } else {
        format!("{folder}/{target}")
    })
}
