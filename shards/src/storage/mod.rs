//! Storage: the one place that opens files and buckets. Everything goes through `object_store`, except that files on
//! a disk are written by [`local`], which alone can promise what a crash leaves behind.
//!
//! The methods block. For a disk the work is done in the calling thread; other backends share one runtime, which is
//! started when the first of them is used. None of them may be called from within an asynchronous task.

mod local;
mod runtime;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use crate::error::{Error, Result};
pub(crate) use local::hex;
pub use local::{Lock, ObjectWriter, Sharing, Written};

/// Whether an address is that of a bucket and not of a disk.
pub fn is_remote(uri: &str) -> bool {
    uri.split_once("://")
        .is_some_and(|(scheme, _)| scheme != "file")
}

/// A folder on a disk, or a prefix in a bucket. Paths are relative to it, with `/` between their parts.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn ObjectStore>,
    /// What the backend's paths begin with.
    prefix: Path,
    /// As it was opened, for messages.
    uri: String,
    /// The folder, if this is a disk.
    folder: Option<PathBuf>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.uri).finish()
    }
}

impl Store {
    /// Opens a local path or a `file://` address. The folder need not exist yet.
    ///
    /// # Errors
    /// [`Error::UnsupportedStore`] for any other scheme, [`Error::BadPath`] if the path cannot be used.
    pub fn open(uri: &str) -> Result<Self> {
        let bad = |reason: String| Error::BadPath {
            path: uri.to_owned(),
            reason,
        };
        if is_remote(uri) {
            return Err(Error::UnsupportedStore {
                uri: uri.to_owned(),
                scheme: uri.split("://").next().unwrap_or_default().to_owned(),
            });
        }
        let prefix = match uri.split_once("://") {
            None if uri.is_empty() => return Err(bad("an empty path".to_owned())),
            None => {
                let absolute = std::path::absolute(uri).map_err(|e| bad(e.to_string()))?;
                Path::from_absolute_path(absolute).map_err(|e| bad(e.to_string()))?
            }
            Some((_, path)) if path.starts_with('/') => {
                Path::from_url_path(path).map_err(|e| bad(e.to_string()))?
            }
            Some(_) => {
                return Err(bad("expected file:// and an absolute path".to_owned()));
            }
        };
        let disk = LocalFileSystem::new();
        // An empty path is the root itself, which the store would not name.
        let folder = if prefix.as_ref().is_empty() {
            PathBuf::from("/")
        } else {
            disk.path_to_filesystem(&prefix)
                .map_err(|e| bad(e.to_string()))?
        };
        Ok(Store {
            backend: Arc::new(disk),
            prefix,
            uri: uri.to_owned(),
            folder: Some(folder),
        })
    }

    /// A store over any backend, which can be read and put to; [`create`](Self::create) needs a disk.
    ///
    /// * `uri`: what messages call it.
    pub fn with_backend(backend: Arc<dyn ObjectStore>, uri: &str) -> Self {
        Store {
            backend,
            prefix: Path::default(),
            uri: uri.to_owned(),
            folder: None,
        }
    }

    /// The address, as it was opened.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The folder, if this is a disk.
    pub fn folder(&self) -> Option<&std::path::Path> {
        self.folder.as_deref()
    }

    /// Takes a lock file, made if it is not there; `None` if somebody else holds it in a way that excludes this one.
    ///
    /// The lock ends when it is dropped, or its process in whatever way. Its file stays: to remove it could take it
    /// from under somebody who waits. Always granted where there are no locks: in a bucket, and on network disks
    /// without them.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn try_lock(&self, path: &str, sharing: Sharing) -> Result<Option<Lock>> {
        self.place(path)?;
        match &self.folder {
            Some(folder) => local::try_lock(&folder.join(path), sharing),
            None => Ok(Some(Lock(None))),
        }
    }

    /// What to call an object in a message.
    pub fn full_path(&self, path: &str) -> String {
        format!("{}/{path}", self.uri.trim_end_matches('/'))
    }

    /// Bytes of an object.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store's error.
    pub fn size(&self, path: &str) -> Result<u64> {
        let place = self.place(path)?;
        let meta = self.wait(self.backend.head(&place))?;
        Ok(meta.map_err(|e| self.fault("looking at", path, e))?.size)
    }

    /// Whether there is such an object.
    ///
    /// # Errors
    /// The store's error.
    pub fn exists(&self, path: &str) -> Result<bool> {
        match self.size(path) {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All bytes of an object.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store's error.
    pub fn read(&self, path: &str) -> Result<Bytes> {
        let place = self.place(path)?;
        let whole = async { self.backend.get(&place).await?.bytes().await };
        self.wait(whole)?
            .map_err(|e| self.fault("reading", path, e))
    }

    /// A part of an object, by one request.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store's error, also if the object ends before the range does.
    pub fn read_range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        let mut parts = self.read_ranges(path, std::slice::from_ref(&range))?;
        parts.pop().ok_or_else(|| self.cut(path, &range, 0))
    }

    /// Two parts of an object; a remote store is asked for both at once, by two requests.
    ///
    /// # Errors
    /// As [`Store::read_range`].
    pub fn read_pair(&self, path: &str, [one, two]: [Range<u64>; 2]) -> Result<[Bytes; 2]> {
        Ok([self.read_range(path, one)?, self.read_range(path, two)?])
    }

    /// Parts of an object; parts that lie beside each other become one request.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store's error, also if the object ends before a range does.
    pub fn read_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let place = self.place(path)?;
        let parts = match self.wait(self.backend.get_ranges(&place, ranges))? {
            Ok(parts) => parts,
            Err(error) => {
                let fault = self.fault("reading", path, error);
                // A store names a range that begins past the end in its own words.
                if let Error::Store { .. } = &fault
                    && let Ok(bytes) = self.size(path)
                    && let Some(range) = ranges.iter().find(|range| range.end > bytes)
                {
                    let found = bytes.saturating_sub(range.start);
                    return Err(self.cut(path, range, found));
                }
                return Err(fault);
            }
        };
        for (part, range) in parts.iter().zip(ranges) {
            if part.len() as u64 != range.end - range.start {
                return Err(self.cut(path, range, part.len() as u64));
            }
        }
        Ok(parts)
    }

    /// The objects whose path begins with `prefix`, and their bytes, sorted by path. Unfinished files are left out.
    ///
    /// # Errors
    /// The store's error.
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        let mut found = self.list_all(prefix)?;
        found.retain(|(path, _)| !local::is_temp(path));
        Ok(found)
    }

    fn list_all(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        // A store lists whole folders; the rest of the prefix is compared here.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let place = if folder.is_empty() {
            self.prefix.clone()
        } else {
            self.place(folder)?
        };
        let objects = self.backend.list(Some(&place)).try_collect::<Vec<_>>();
        let objects = self
            .wait(objects)?
            .map_err(|e| self.fault("listing", prefix, e))?;
        let relative = |path: &Path| {
            Some(
                Path::from_iter(path.prefix_match(&self.prefix)?)
                    .as_ref()
                    .to_owned(),
            )
        };
        let mut found: Vec<(String, u64)> = objects
            .into_iter()
            .filter_map(|object| Some((relative(&object.location)?, object.size)))
            .collect();
        found.retain(|(path, _)| {
            path.starts_with(prefix)
                || local::temp_target(path).is_some_and(|t| t.starts_with(prefix))
        });
        found.sort();
        Ok(found)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// [`Error::NotFound`], or the store's error.
    pub fn delete(&self, path: &str) -> Result<()> {
        let place = self.place(path)?;
        self.wait(self.backend.delete(&place))?
            .map_err(|e| self.fault("deleting", path, e))
    }

    /// Writes a whole object; whoever reads sees the old one or the new one, also after a crash.
    ///
    /// # Errors
    /// The store's error.
    pub fn put_atomic(&self, path: &str, bytes: &[u8]) -> Result<()> {
        if self.folder.is_some() {
            use std::io::Write;
            let mut writer = self.create(path)?;
            writer.write_all(bytes).map_err(|e| Error::Store {
                path: self.full_path(path),
                doing: "writing",
                source: e,
            })?;
            return writer.commit().map(drop);
        }
        let place = self.place(path)?;
        let payload = PutPayload::from(Bytes::copy_from_slice(bytes));
        self.wait(self.backend.put(&place, payload))?
            .map(drop)
            .map_err(|e| self.fault("writing", path, e))
    }

    /// Starts an object that appears when it is committed, and not before.
    ///
    /// # Errors
    /// [`Error::UnsupportedStore`] if this is not a disk, or the operating system's error.
    pub fn create(&self, path: &str) -> Result<ObjectWriter> {
        self.place(path)?;
        match &self.folder {
            Some(folder) => ObjectWriter::create(&folder.join(path)),
            None => Err(Error::UnsupportedStore {
                uri: self.uri.clone(),
                scheme: self.backend.to_string(),
            }),
        }
    }

    /// Removes what killed programs left of objects whose path begins with `prefix`, and says how many there were.
    ///
    /// Whoever calls it answers for there being no living writer under the prefix.
    ///
    /// # Errors
    /// The store's error.
    pub fn remove_stale_temps(&self, prefix: &str) -> Result<usize> {
        let mut found = self.list_all(prefix)?;
        found.retain(|(path, _)| local::is_temp(path));
        for (path, _) in &found {
            self.delete(path)?;
        }
        Ok(found.len())
    }

    fn place(&self, path: &str) -> Result<Path> {
        let bad = |reason: String| Error::BadPath {
            path: path.to_owned(),
            reason,
        };
        let relative = Path::parse(path).map_err(|e| bad(e.to_string()))?;
        if relative.as_ref().is_empty() {
            return Err(bad("an empty path".to_owned()));
        }
        Ok(self.prefix.parts().chain(relative.parts()).collect())
    }

    fn wait<F: Future>(&self, work: F) -> Result<F::Output> {
        match self.folder {
            Some(_) => Ok(futures::executor::block_on(work)),
            None => Ok(runtime::shared()?.block_on(work)),
        }
    }

    fn fault(&self, doing: &'static str, path: &str, error: object_store::Error) -> Error {
        let path = self.full_path(path);
        if let object_store::Error::NotFound { .. } = error {
            return Error::NotFound { path };
        }
        // The system's own reason, out of what the store wraps around it.
        let mut inner: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut system = None;
        while let Some(cause) = inner {
            system = cause.downcast_ref::<std::io::Error>().or(system);
            inner = cause.source();
        }
        let source = match system {
            Some(system) => match system.raw_os_error() {
                Some(code) => std::io::Error::from_raw_os_error(code),
                None => std::io::Error::new(system.kind(), system.to_string()),
            },
            None => std::io::Error::other(error),
        };
        Error::Store {
            path,
            doing,
            source,
        }
    }

    fn cut(&self, path: &str, range: &Range<u64>, found: u64) -> Error {
        let reason = format!(
            "it ends early: {found} bytes at byte {}, expected {}",
            range.start,
            range.end - range.start
        );
        Error::Store {
            path: self.full_path(path),
            doing: "reading",
            source: std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason),
        }
    }
}
