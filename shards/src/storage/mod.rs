//! Storage: the one place that opens files and buckets. Everything goes through `object_store`, except that files on
//! a disk are written by [`local`], which alone can promise what a crash leaves behind.
//!
//! The methods block. For a disk the work is done in the calling thread; other backends share one runtime, which is
//! started when the first of them is used. None of them may be called from within an asynchronous task.

mod address;
mod backend;
mod body;
mod cache;
mod disk;
mod fault;
mod hub;
mod local;
mod options;
mod profile;
mod remote;
mod runtime;
mod upload;
mod writer;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    UpdateVersion, coalesce_ranges,
};

use crate::error::{Error, Result};
use address::Address;
pub(crate) use address::SCHEMES;
pub use address::{check_address, is_remote};
use backend::Backend;
use cache::Cache;
pub use cache::{CacheOptions, CacheStats};
use disk::Disk;
use fault::Fault;
use local::FileWriter;
pub use local::{Lock, Sharing};
pub use options::{Environment, StoreOptions};
use remote::{GaveUp, Remote};
use upload::Upload;
use writer::Sink;
pub use writer::{ObjectWriter, Written};

/// A folder on a disk, or a prefix in a bucket. Paths are relative to it, with `/` between their parts.
#[derive(Clone)]
pub struct Store {
    /// What is read from.
    reads: Arc<dyn ObjectStore>,
    /// What is written to, if that is possible.
    writes: Option<Arc<dyn ObjectStore>>,
    /// What the backend's paths begin with.
    prefix: Path,
    /// As it was opened, for messages.
    uri: String,
    place: Place,
    /// What keeps parts of remote objects.
    cache: Option<Arc<Cache>>,
}

/// Gap between two parts up to which [`Store::read_two_parts`] reads what lies between them rather than ask twice: so little
/// that a plan which counts the parts alone is right.
const PAIR_GAP_BYTES: u64 = 1 << 10;

/// Which of the two kinds of store it is.
#[derive(Clone)]
enum Place {
    Disk(Arc<Disk>),
    Remote(Arc<Remote>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.uri).finish()
    }
}

impl Store {
    /// Opens a path or address, see [`Store::open_with`], with the default options and the environment of the process.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub fn open(uri: &str) -> Result<Self> {
        Self::open_with(uri, &StoreOptions::default(), &Environment::of_process())
    }

    /// Opens a path or address. Nothing is asked of it yet, and it need not exist.
    ///
    /// | address | store | says where and who |
    /// | --- | --- | --- |
    /// | a path, `file:///path` | a disk | |
    /// | `s3://BUCKET/path` | S3 and its like | `AWS_*`, `~/.aws` |
    /// | `gs://BUCKET/path` | Google Cloud Storage | `GOOGLE_*`, the gcloud tools |
    /// | `az://CONTAINER/path` | Azure Blob Storage | `AZURE_*` |
    /// | `http://`, `https://` | a web server that answers range requests; read only, and not listed | |
    /// | `hf://datasets/OWNER/NAME[@REVISION]/path` | the Hugging Face hub; read only | `HF_TOKEN`, `HF_ENDPOINT` |
    ///
    /// S3 and its like (in each row the first that is set counts):
    ///
    /// | what | from |
    /// | --- | --- |
    /// | endpoint | `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `S3_ENDPOINT_URL`, `AWS_ENDPOINT`, the profile's `services` section, its `endpoint_url`, Amazon's own; `http://` means no TLS |
    /// | region | `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's `region`, `us-east-1` |
    /// | bucket in the path or in the host's name | `AWS_VIRTUAL_HOSTED_STYLE_REQUEST` (`true`: the host), the profile's `s3` `addressing_style` (`virtual`), the path |
    /// | credentials | none with `AWS_SKIP_SIGNATURE=true`; `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; the profile's, by keys or by `role_arn` with `web_identity_token_file`; `AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`; a container's role (`AWS_CONTAINER_CREDENTIALS_*`); the machine's, unless `AWS_EC2_METADATA_DISABLED=true` |
    /// | profile | `AWS_PROFILE`, `default`; in `AWS_CONFIG_FILE` and `AWS_SHARED_CREDENTIALS_FILE`, `~/.aws/config` and `~/.aws/credentials` |
    /// | who pays | `AWS_REQUEST_PAYER=requester` |
    ///
    /// Roles are renewed as they expire; keys of a profile or of the environment are read once.
    ///
    /// # Errors
    /// [`Error::UnsupportedStore`] for any other scheme, [`Error::BadPath`] if the path cannot be used,
    /// [`Error::Settings`] if the environment or the profile cannot, [`Error::Option`].
    pub fn open_with(uri: &str, options: &StoreOptions, environment: &Environment) -> Result<Self> {
        options.validate()?;
        let (backend, prefix) = match Address::parse(uri)? {
            Address::Path(_) | Address::FileUrl(_) => return Self::open_disk(uri),
            Address::S3(at) => (backend::s3(&at.bucket, options, environment)?, at.prefix),
            Address::Gcs(at) => (backend::gcs(&at.bucket, options, environment)?, at.prefix),
            Address::Azure(at) => (backend::azure(&at.bucket, options, environment)?, at.prefix),
            Address::Http(url) => (backend::http(&url, options)?, String::new()),
            Address::Hub(at) => (backend::hub(&at, options, environment)?, at.prefix),
        };
        let Backend {
            reads,
            writes,
            can_list,
            identity,
            namespace,
        } = backend;
        let remote = Remote::new(options.clone(), identity, namespace, can_list);
        Ok(Store {
            reads,
            writes,
            prefix: Path::parse(&prefix).map_err(|e| bad_path(uri, e))?,
            uri: uri.to_owned(),
            place: Place::Remote(Arc::new(remote)),
            cache: None,
        })
    }

    fn open_disk(uri: &str) -> Result<Self> {
        let prefix = match Address::parse(uri)? {
            Address::FileUrl(path) => Path::from_url_path(path).map_err(|e| bad_path(uri, e))?,
            _ => {
                let absolute = std::path::absolute(uri).map_err(|e| bad_path(uri, e))?;
                Path::from_absolute_path(absolute).map_err(|e| bad_path(uri, e))?
            }
        };
        let disk = LocalFileSystem::new();
        // An empty path is the root itself, which the store would not name.
        let folder = if prefix.as_ref().is_empty() {
            PathBuf::from("/")
        } else {
            disk.path_to_filesystem(&prefix)
                .map_err(|e| bad_path(uri, e))?
        };
        let disk: Arc<dyn ObjectStore> = Arc::new(disk);
        Ok(Store {
            reads: disk.clone(),
            writes: Some(disk),
            prefix,
            uri: uri.to_owned(),
            place: Place::Disk(Arc::new(Disk::new(folder))),
            cache: None,
        })
    }

    /// A store over any backend. What it fails at is not tried again.
    ///
    /// * `uri`: what messages call it.
    pub fn with_backend(backend: Arc<dyn ObjectStore>, uri: &str) -> Self {
        let options = StoreOptions {
            patience_ms: 0,
            ..StoreOptions::default()
        };
        let remote = Remote::new(options, backend.to_string(), uri.to_owned(), true);
        Store {
            reads: backend.clone(),
            writes: Some(backend),
            prefix: Path::default(),
            uri: uri.to_owned(),
            place: Place::Remote(Arc::new(remote)),
            cache: None,
        }
    }

    /// The same store, with the parts that are read of its objects kept on a disk of this machine: exactly those that
    /// are fetched, so what is planned in the same way is found again. A disk needs no cache and gets none.
    ///
    /// An object that was replaced is not taken from the cache: of each that has entries, its etag is asked for once.
    ///
    /// # Errors
    /// [`Error::Option`]. A folder that cannot be used is none, but a warning when it is first needed.
    pub fn with_cache(mut self, options: &CacheOptions) -> Result<Self> {
        options.validate()?;
        if let Place::Remote(remote) = &self.place {
            let namespace = format!("{}/{}", remote.namespace, self.prefix);
            self.cache = Some(Arc::new(Cache::new(options, namespace)));
        }
        Ok(self)
    }

    /// What the cache did since the store was opened; `None` without one.
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.cache.as_ref().map(|cache| cache.stats())
    }

    /// The address, as it was opened.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The folder, if this is a disk.
    pub fn folder(&self) -> Option<&std::path::Path> {
        match &self.place {
            Place::Disk(disk) => Some(&disk.folder),
            Place::Remote(_) => None,
        }
    }

    /// Takes a lock file, made if it is not there; `None` if somebody else holds it in a way that excludes this one.
    ///
    /// The lock ends when it is dropped, or its process in whatever way. Its file stays: to remove it could take it
    /// from under somebody who waits. Always granted where there are no locks: in a bucket, and on network disks
    /// without them. There two writers at once are not kept apart: each object is whole and one of theirs.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn try_lock(&self, path: &str, sharing: Sharing) -> Result<Option<Lock>> {
        self.locate(path)?;
        match &self.place {
            Place::Disk(disk) => local::try_lock(&disk.folder.join(path), sharing),
            Place::Remote(_) => Ok(Some(Lock(None))),
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
        let place = self.locate(path)?;
        let doing = Doing::to("looking at", path);
        let error = match self.run(&doing, || self.reads.head(&place)) {
            Err(error @ Error::Refused { .. }) => error,
            done => return Ok(done?.size),
        };
        // The answer to this question has no body and so no reason; that to another one has.
        let first = GetOptions::new().with_range(Some(0..1));
        match self.run(&doing, || self.reads.get_opts(&place, first.clone())) {
            Err(reason @ Error::Refused { .. }) => Err(reason),
            _ => Err(error),
        }
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
        let place = self.locate(path)?;
        self.run(&Doing::to("reading", path), || async {
            self.reads.get(&place).await?.bytes().await
        })
    }

    /// A part of an object, by one request.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Changed`] if the parts read before were of another object of this name, or the
    /// store's error, also if the object ends before the range does.
    pub fn read_range(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        let mut parts = self.read_ranges(path, std::slice::from_ref(&range))?;
        parts.pop().ok_or_else(|| self.cut(path, &range, 0))
    }

    /// [`Store::read_range`] of an object that does not change while this store is in use: a disk keeps the file open.
    ///
    /// # Errors
    /// As [`Store::read_range`].
    pub(crate) fn read_part(&self, path: &str, range: Range<u64>) -> Result<Bytes> {
        match &self.place {
            Place::Disk(disk) => disk
                .read(path, &range)
                .or_else(|_| self.read_range(path, range)), // which says what is wrong
            Place::Remote(_) => self.read_range(path, range),
        }
    }

    /// Two parts of an object that does not change, asked for at once if it is at the other end of a line. A gap of a few
    /// bytes between them is read, too.
    ///
    /// # Errors
    /// As [`Store::read_range`].
    pub(crate) fn read_two_parts(&self, path: &str, ranges: [Range<u64>; 2]) -> Result<[Bytes; 2]> {
        if let Place::Disk(_) = &self.place {
            let [one, two] = ranges;
            return Ok([self.read_part(path, one)?, self.read_part(path, two)?]);
        }
        let parts = self.read_ranges_merging(path, &ranges, PAIR_GAP_BYTES)?;
        let [one, two] = ranges;
        let missing = |_| self.cut(path, &(one.start..two.end), 0);
        <[Bytes; 2]>::try_from(parts).map_err(missing)
    }

    /// Parts of an object; parts that lie close to each other become one request, see
    /// [`StoreOptions::merge_gap_bytes`].
    ///
    /// # Errors
    /// As [`Store::read_range`].
    pub fn read_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let gap = self.options().merge_gap_bytes;
        self.read_ranges_merging(path, ranges, gap)
    }

    /// [`Store::read_ranges`] for whoever knows better which gaps are worth a request of their own.
    ///
    /// * `max_gap_bytes`: with 0 only parts that touch become one request, and nothing else is fetched. A disk has no
    ///   use for it.
    ///
    /// # Errors
    /// As [`Store::read_range`].
    pub fn read_ranges_merging(
        &self,
        path: &str,
        ranges: &[Range<u64>],
        max_gap_bytes: u64,
    ) -> Result<Vec<Bytes>> {
        let place = self.locate(path)?;
        match &self.place {
            Place::Disk(_) => {
                let read = futures::executor::block_on(self.reads.get_ranges(&place, ranges));
                let parts = read.map_err(|error| {
                    let doing = Doing::to("reading", path);
                    let fault = self.fault(&doing, Fault::of(&error), Duration::ZERO);
                    // A disk names a range that begins past the end in its own words.
                    if let Error::Store { .. } = &fault
                        && let Ok(bytes) = self.size(path)
                        && let Some(range) = ranges.iter().find(|range| range.end > bytes)
                    {
                        return self.cut(path, range, bytes.saturating_sub(range.start));
                    }
                    fault
                })?;
                for (part, range) in parts.iter().zip(ranges) {
                    self.check_length(path, range, part)?;
                }
                Ok(parts)
            }
            Place::Remote(remote) => {
                let part = |range| self.fetch(remote, path, &place, range);
                runtime::shared()?.block_on(coalesce_ranges(ranges, part, max_gap_bytes))
            }
        }
    }

    /// One part of an object at the other end of a line.
    async fn fetch(
        &self,
        remote: &Remote,
        path: &str,
        place: &Path,
        range: Range<u64>,
    ) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if let Some(cache) = &self.cache {
            let known = match remote.version(path) {
                None if cache.knows(path) => self.learn_version(remote, path, place).await?,
                known => known,
            };
            if let Some(bytes) = known.and_then(|etag| cache.get(path, &etag, &range)) {
                return Ok(bytes);
            }
        }
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(range.clone())));
        let attempt = || async {
            let reply = self.reads.get_opts(place, options.clone()).await?;
            let etag = reply.meta.e_tag.clone();
            Ok((etag, body::collect(reply, range.end - range.start).await?))
        };
        let _room = remote.room_for(range.end - range.start).await;
        let (etag, bytes) = match remote.patiently(|| remote.hedged(&attempt)).await {
            Ok(fetched) => fetched,
            Err(GaveUp { fault, waited }) => {
                let ends = match &fault {
                    Fault::PastEnd | Fault::Other(_) => self.reads.head(place).await.ok(),
                    _ => None,
                };
                if let Some(object) = ends.filter(|object| object.size < range.end) {
                    let found = object.size.saturating_sub(range.start);
                    return Err(self.cut(path, &range, found));
                }
                let doing = Doing {
                    what: "reading",
                    path,
                    range: Some(range),
                };
                return Err(self.fault(&doing, fault, waited));
            }
        };
        if let Err(was) = remote.check_version(path, etag.as_deref()) {
            return Err(Error::Changed {
                path: self.full_path(path),
                range: Some(range),
                was: was.into(),
                is: etag.unwrap_or_default().into(),
            });
        }
        self.check_length(path, &range, &bytes)?;
        if let (Some(cache), Some(etag)) = (&self.cache, &etag) {
            cache.put(path, etag, &range, &bytes);
        }
        Ok(bytes)
    }

    /// The etag of an object of which no part was read yet.
    async fn learn_version(
        &self,
        remote: &Remote,
        path: &str,
        place: &Path,
    ) -> Result<Option<String>> {
        match remote.patiently(|| self.reads.head(place)).await {
            Ok(object) => {
                // Another thread may have been faster, and have seen another version: then parts of this one differ.
                let _ = remote.check_version(path, object.e_tag.as_deref());
                Ok(remote.version(path))
            }
            Err(GaveUp {
                fault: fault @ Fault::Passing(_),
                waited,
            }) => Err(self.fault(&Doing::to("looking at", path), fault, waited)),
            Err(_) => Ok(None), // the read that follows meets it too, and says more
        }
    }

    fn check_length(&self, path: &str, range: &Range<u64>, part: &Bytes) -> Result<()> {
        match part.len() as u64 == range.end.saturating_sub(range.start) {
            true => Ok(()),
            false => Err(self.cut(path, range, part.len() as u64)),
        }
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
        if let Place::Remote(remote) = &self.place
            && !remote.can_list
        {
            return Err(Error::CannotDo {
                path: self.full_path(prefix),
                doing: "listing",
                reason: "a web server does not say what it holds",
            });
        }
        // A store lists whole folders; the rest of the prefix is compared here.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let place = if folder.is_empty() {
            self.prefix.clone()
        } else {
            self.locate(folder)?
        };
        let objects = self.run(&Doing::to("listing", prefix), || {
            self.reads.list(Some(&place)).try_collect::<Vec<_>>()
        })?;
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

    /// Removes an object. A bucket does not say whether it was there.
    ///
    /// # Errors
    /// [`Error::NotFound`] on a disk, or the store's error.
    pub fn delete(&self, path: &str) -> Result<()> {
        let place = self.locate(path)?;
        let doing = Doing::to("deleting", path);
        let writes = self.writes(&doing)?;
        self.run(&doing, || writes.delete(&place))?;
        self.forget_version(path);
        Ok(())
    }

    /// Writes a whole object; whoever reads sees the old one or the new one, also after a crash.
    ///
    /// # Errors
    /// The store's error.
    pub fn put_atomic(&self, path: &str, bytes: &[u8]) -> Result<()> {
        if let Place::Disk(_) = self.place {
            use std::io::Write;
            let mut writer = self.create(path)?;
            writer.write_all(bytes).map_err(|e| Error::Store {
                path: self.full_path(path),
                range: None,
                doing: "writing",
                source: e,
            })?;
            return writer.commit().map(drop);
        }
        let place = self.locate(path)?;
        let doing = Doing::to("writing", path);
        let writes = self.writes(&doing)?;
        let payload = PutPayload::from(Bytes::copy_from_slice(bytes));
        self.run(&doing, || writes.put(&place, payload.clone()))?;
        self.forget_version(path);
        Ok(())
    }

    /// All bytes of an object, and which version of it they are.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn read_version(&self, path: &str) -> Result<(Bytes, Version)> {
        let place = self.locate(path)?;
        self.run(&Doing::to("reading", path), || async {
            let reply = self.reads.get(&place).await?;
            let version = Version(UpdateVersion {
                e_tag: reply.meta.e_tag.clone(),
                version: reply.meta.version.clone(),
            });
            Ok((reply.bytes().await?, version))
        })
    }

    /// [`Store::put_atomic`], unless somebody else wrote the object since.
    ///
    /// Some stores cannot do this, and of those some write without saying so: a guard against accidents, and no lock.
    /// On a disk nothing is compared, as a [lock](Store::try_lock) keeps others away.
    ///
    /// * `known`: the version that is to be replaced, or `None` if there is to be none.
    ///
    /// # Errors
    /// [`Error::Conflict`] if there is another version, and other bytes; or the store's error.
    pub fn replace(&self, path: &str, known: Option<&Version>, bytes: &[u8]) -> Result<()> {
        if let Place::Disk(_) = self.place {
            return self.put_atomic(path, bytes);
        }
        let place = self.locate(path)?;
        let doing = Doing::to("writing", path);
        let writes = self.writes(&doing)?;
        let mode = match known {
            None => PutMode::Create,
            Some(Version(known)) => PutMode::Update(known.clone()),
        };
        let payload = PutPayload::from(Bytes::copy_from_slice(bytes));
        let options = PutOptions::from(mode);
        let put = || async {
            match writes
                .put_opts(&place, payload.clone(), options.clone())
                .await
            {
                Err(
                    object_store::Error::NotImplemented { .. }
                    | object_store::Error::NotSupported { .. },
                ) => writes.put(&place, payload.clone()).await,
                done => done,
            }
        };
        match self.run(&doing, put) {
            // One's own, if the reply to the first attempt was lost.
            Err(conflict @ Error::Conflict { .. }) => match self.read(path) {
                Ok(found) if found == bytes => {}
                _ => return Err(conflict),
            },
            done => drop(done?),
        }
        self.forget_version(path);
        Ok(())
    }

    /// Starts an object that appears when it is committed, and not before.
    ///
    /// Into a bucket it goes in parts, of which [`StoreOptions::parts_in_flight`] and one more are in memory. Of a
    /// writer that is killed, a bucket keeps the parts that had arrived, unseen and paid for, until a rule of the bucket
    /// removes them: give it one that aborts incomplete multipart uploads after a few days.
    ///
    /// # Errors
    /// [`Error::CannotDo`] if the store can only be read, or the store's error.
    pub fn create(&self, path: &str) -> Result<ObjectWriter> {
        let place = self.locate(path)?;
        let sink = match &self.place {
            Place::Disk(disk) => Sink::File(FileWriter::create(&disk.folder.join(path))?),
            Place::Remote(_) => {
                let backend = self.writes(&Doing::to("writing", path))?.clone();
                Sink::Upload(Upload::new(self, backend, path, place)?)
            }
        };
        Ok(ObjectWriter::new(sink))
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

    fn locate(&self, path: &str) -> Result<Path> {
        let relative = Path::parse(path).map_err(|e| bad_path(path, e))?;
        if relative.as_ref().is_empty() {
            return Err(bad_path(path, "an empty path"));
        }
        Ok(self.prefix.parts().chain(relative.parts()).collect())
    }

    fn writes(&self, doing: &Doing<'_>) -> Result<&Arc<dyn ObjectStore>> {
        self.writes.as_ref().ok_or_else(|| Error::CannotDo {
            path: self.full_path(doing.path),
            doing: doing.what,
            reason: "this store can only be read",
        })
    }

    /// Those it was opened with; a disk has the default ones, and no use for them.
    fn options(&self) -> StoreOptions {
        match &self.place {
            Place::Disk(_) => StoreOptions::default(),
            Place::Remote(remote) => remote.options.clone(),
        }
    }

    fn forget_version(&self, path: &str) {
        if let Place::Remote(remote) = &self.place {
            remote.forget_version(path);
        }
    }

    /// Does something that can be done again, with patience if it is at the other end of a line.
    fn run<T, F>(&self, doing: &Doing<'_>, mut attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        match &self.place {
            Place::Disk(_) => futures::executor::block_on(attempt())
                .map_err(|error| self.fault(doing, Fault::of(&error), Duration::ZERO)),
            Place::Remote(remote) => {
                let done = runtime::shared()?.block_on(remote.patiently(attempt));
                done.map_err(|GaveUp { fault, waited }| self.fault(doing, fault, waited))
            }
        }
    }

    fn fault(&self, doing: &Doing<'_>, fault: Fault, waited: Duration) -> Error {
        let path = self.full_path(doing.path);
        let (range, doing) = (doing.range.clone(), doing.what);
        let store = |source| Error::Store {
            path: path.clone(),
            range: range.clone(),
            doing,
            source,
        };
        match fault {
            Fault::Missing => Error::NotFound { path },
            Fault::Conflict => Error::Conflict { path },
            Fault::PastEnd => store(std::io::ErrorKind::UnexpectedEof.into()),
            Fault::Other(source) => store(source),
            Fault::Passing(reason) => Error::Gone {
                path,
                range,
                doing,
                reason: reason.into(),
                waited_ms: waited.as_millis() as u64,
            },
            Fault::Refused(reason) => Error::Refused {
                path,
                doing,
                reason,
                identity: match &self.place {
                    Place::Disk(_) => Box::default(),
                    Place::Remote(remote) => remote.identity.as_str().into(),
                },
            },
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
            range: None,
            doing: "reading",
            source: std::io::Error::new(std::io::ErrorKind::UnexpectedEof, reason),
        }
    }
}

/// Which version of an object was read, see [`Store::replace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(UpdateVersion);

/// What is done to which object, for messages.
struct Doing<'a> {
    what: &'static str,
    path: &'a str,
    range: Option<Range<u64>>,
}

impl<'a> Doing<'a> {
    fn to(what: &'static str, path: &'a str) -> Self {
        Doing {
            what,
            path,
            range: None,
        }
    }
}

fn bad_path(path: &str, reason: impl ToString) -> Error {
    Error::BadPath {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
