//! Parts of remote objects, kept on a disk of this machine by all processes that are given the same folder.
//!
//! ```text
//! <dir>/pairquet-cache-1/used                        bytes of all entries; its lock is held by who adds or removes
//! <dir>/pairquet-cache-1/3f/<object>/<etag>-<start>-<end>   an entry: magic number, checksum, the bytes
//! <dir>/pairquet-cache-1/3f/<object>/.tmp-<random>          an entry that is being written
//! ```
//!
//! `<object>` is a hash of store and path, `<etag>` one of the etag: an object that was replaced has other entries. An
//! entry gets its name when it is complete, and is compared with its checksum whenever it is read, so neither a killed
//! process nor a dying disk can pass off bytes that are not the object's. Room is counted before it is taken. When there
//! is none, the entries that were not read for the longest time go. Nothing that is not named like this is ever removed.
//!
//! The cache is never needed: what cannot be written is not kept, with one warning, and what cannot be read is fetched.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::hex::hex;

/// The folder within the one that was given; the number is that of the layout.
const FOLDER: &str = "pairquet-cache-1";

/// What an entry begins with; then come four bytes of its checksum, little endian.
const MAGIC: &[u8; 8] = b"pqcache1";
const HEADER_BYTES: u64 = MAGIC.len() as u64 + 4;

const TEMP_PREFIX: &str = ".tmp-";

/// An unfinished entry of this age belongs to no living process.
const STALE: Duration = Duration::from_secs(3600);

/// An entry that is read says so once in this time, which is exact enough to tell old ones from new ones.
const TOUCH: Duration = Duration::from_secs(30);

/// When there is no room, one part in so many is made free.
const EVICTED_SHARE: u64 = 10;

/// How long somebody waits for the lock before the entry is not kept.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);

/// Least size of a cache: a few row groups.
const MIN_BYTES: u64 = 64 << 20;

/// Where parts of remote objects are kept, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheOptions {
    /// A folder of this machine, made if it is not there. Several processes may share it, and other things may lie in it.
    pub dir: PathBuf,
    /// Most bytes of the entries of all processes together, at least 64 MiB.
    pub max_bytes: u64,
}

impl CacheOptions {
    /// Checks every value; opens nothing.
    ///
    /// # Errors
    /// [`Error::Option`] naming the field, its value and what was expected.
    pub fn validate(&self) -> Result<()> {
        if self.max_bytes < MIN_BYTES {
            return Err(Error::Option {
                name: "max_bytes",
                value: self.max_bytes.to_string(),
                expected: "at least 67108864 (64 MiB)",
            });
        }
        Ok(())
    }
}

/// What a cache did for one store since it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Parts that were there.
    pub hits: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// Parts that had to be fetched.
    pub misses: u64,
    /// Entries that were not what they should be, and fetched again.
    pub damaged: u64,
    /// Entries removed to make room.
    pub evicted: u64,
    /// Why nothing is kept any more, if that is so.
    pub fault: Option<String>,
}

/// The cache as one store uses it.
pub(super) struct Cache {
    /// The folder of this layout.
    folder: PathBuf,
    max_bytes: u64,
    /// Which store it is, so that equal paths of different stores are different objects.
    namespace: String,
    hits: AtomicU64,
    hit_bytes: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    evicted: AtomicU64,
    is_off: AtomicBool,
    fault: std::sync::OnceLock<String>,
}

/// An entry on the disk.
struct Entry {
    path: PathBuf,
    bytes: u64,
    read_at: SystemTime,
}

impl Cache {
    pub fn new(options: &CacheOptions, namespace: String) -> Self {
        Cache {
            folder: options.dir.join(FOLDER),
            max_bytes: options.max_bytes,
            namespace,
            hits: AtomicU64::new(0),
            hit_bytes: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            is_off: AtomicBool::new(false),
            fault: std::sync::OnceLock::new(),
        }
    }

    pub fn stats(&self) -> CacheStats {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheStats {
            hits: of(&self.hits),
            hit_bytes: of(&self.hit_bytes),
            misses: of(&self.misses),
            damaged: of(&self.damaged),
            evicted: of(&self.evicted),
            fault: self.fault.get().cloned(),
        }
    }

    /// Whether there may be an entry of some version of an object.
    pub fn knows(&self, path: &str) -> bool {
        self.object(path).is_dir()
    }

    /// An entry, if it is there and sound. One that is damaged is removed.
    pub fn get(&self, path: &str, etag: &str, range: &Range<u64>) -> Option<Bytes> {
        let name = entry_name(etag, range);
        let place = self.object(path).join(&name);
        let Ok(mut file) = File::open(&place) else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let Some(bytes) = read_entry(&mut file, &name, range) else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            self.damaged.fetch_add(1, Ordering::Relaxed);
            let _ = fs::remove_file(&place); // else it is found damaged again
            return None;
        };
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.hit_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        touch(&file);
        Some(bytes)
    }

    /// Keeps a part of an object, if that is possible.
    pub fn put(&self, path: &str, etag: &str, range: &Range<u64>, bytes: &[u8]) {
        let size = HEADER_BYTES + bytes.len() as u64;
        if size > self.max_bytes || self.is_off.load(Ordering::Relaxed) {
            return;
        }
        match self.write(path, etag, range, bytes, size) {
            Ok(()) => {}
            // Somebody made room between two of the steps; there will be other entries.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => self.turn_off(&error),
        }
    }

    fn write(
        &self,
        path: &str,
        etag: &str,
        range: &Range<u64>,
        bytes: &[u8],
        size: u64,
    ) -> io::Result<()> {
        let object = self.object(path);
        let name = entry_name(etag, range);
        let place = object.join(&name);
        if place.exists() {
            return Ok(()); // another process was faster
        }
        let Some(mut file) = self.reserve(&object, size)? else {
            return Ok(());
        };
        file.write_all(MAGIC)?;
        file.write_all(&checksum(&name, bytes).to_le_bytes())?;
        file.write_all(bytes)?;
        file.persist(&place).map_err(|failed| failed.error)?;
        Ok(())
    }

    /// Starts an entry of so many bytes, after making room for it; `None` if others are at it for too long.
    ///
    /// The unfinished entry has its full length at once, so that whoever counts counts it.
    fn reserve(&self, object: &Path, bytes: u64) -> io::Result<Option<NamedTempFile>> {
        fs::create_dir_all(&self.folder)?;
        let mut used = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.folder.join("used"))?;
        let start = std::time::Instant::now();
        loop {
            match used.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        let mut number = [0; 8];
        let known = match used.read_exact(&mut number) {
            Ok(()) => Some(u64::from_le_bytes(number)),
            Err(_) => None, // new, or cut by a crash: counted again
        };
        let total = match known {
            Some(known) if known.saturating_add(bytes) <= self.max_bytes => known,
            _ => self.make_room(bytes)?,
        };
        used.seek(SeekFrom::Start(0))?;
        used.write_all(&(total + bytes).to_le_bytes())?;
        fs::create_dir_all(object)?;
        let file = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempfile_in(object)?;
        file.as_file().set_len(bytes)?;
        Ok(Some(file))
    }

    /// Counts what is there, and if there is no room for so many bytes, removes what was not read for the longest time.
    /// Returns the bytes of what remains.
    fn make_room(&self, bytes: u64) -> io::Result<u64> {
        let mut entries = self.entries()?;
        let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
        if total + bytes <= self.max_bytes {
            return Ok(total);
        }
        let goal = (self.max_bytes - self.max_bytes / EVICTED_SHARE).saturating_sub(bytes);
        entries.sort_by(|a, b| (a.read_at, &a.path).cmp(&(b.read_at, &b.path)));
        for entry in entries {
            if total <= goal {
                break;
            }
            match fs::remove_file(&entry.path) {
                Ok(()) => _ = self.evicted.fetch_add(1, Ordering::Relaxed),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            total -= entry.bytes;
            if let Some(object) = entry.path.parent() {
                let _ = fs::remove_dir(object); // unless there are other entries of it
            }
        }
        Ok(total)
    }

    /// What this program put there. Unfinished entries that nobody writes any more are removed on the way.
    fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for shelf in folders(&self.folder)? {
            for object in folders(&shelf)? {
                for file in list(&object)? {
                    let name = file.file_name();
                    let name = name.to_string_lossy();
                    let Ok(meta) = file.metadata() else {
                        continue; // removed by another process
                    };
                    let read_at = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                    let age = read_at.elapsed().unwrap_or_default();
                    if name.starts_with(TEMP_PREFIX) && age > STALE {
                        let _ = fs::remove_file(file.path());
                    } else if name.starts_with(TEMP_PREFIX) || is_entry_name(&name) {
                        entries.push(Entry {
                            path: file.path(),
                            bytes: meta.len(),
                            read_at,
                        });
                    }
                }
            }
        }
        Ok(entries)
    }

    fn turn_off(&self, error: &io::Error) {
        self.is_off.store(true, Ordering::Relaxed);
        let fault = format!(
            "nothing more is kept in the cache {}: {error}",
            self.folder.display()
        );
        if self.fault.set(fault.clone()).is_ok() {
            // There is nobody to hand it to: the read that met it succeeds.
            let _ = writeln!(io::stderr(), "warning: {fault}");
        }
    }

    /// The folder of an object's entries.
    fn object(&self, path: &str) -> PathBuf {
        let hash = hash(&[&self.namespace, path]);
        self.folder.join(&hash[..2]).join(&hash[2..])
    }
}

/// 128 bits in hexadecimal digits.
fn hash(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex(&hasher.finalize()[..16])
}

fn entry_name(etag: &str, range: &Range<u64>) -> String {
    format!("{}-{}-{}", hash(&[etag]), range.start, range.end)
}

fn is_entry_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('-').collect();
    let [etag, start, end] = parts.as_slice() else {
        return false;
    };
    let is_hash = etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash && start.parse::<u64>().is_ok() && end.parse::<u64>().is_ok()
}

/// Of name and bytes: an entry under the name of another is damaged.
fn checksum(name: &str, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(name.as_bytes()), bytes)
}

fn read_entry(file: &mut File, name: &str, range: &Range<u64>) -> Option<Bytes> {
    let expected = HEADER_BYTES + (range.end - range.start);
    if file.metadata().ok()?.len() != expected {
        return None;
    }
    let mut all = Vec::with_capacity(expected as usize);
    file.read_to_end(&mut all).ok()?;
    let all = Bytes::from(all);
    let (magic, rest) = all.split_at_checked(MAGIC.len())?;
    let (sum, bytes) = rest.split_first_chunk::<4>()?;
    let is_sound = magic == MAGIC
        && all.len() as u64 == expected
        && u32::from_le_bytes(*sum) == checksum(name, bytes);
    is_sound.then(|| all.slice(HEADER_BYTES as usize..))
}

/// Marks an entry as read just now.
fn touch(file: &File) {
    let now = SystemTime::now();
    let read_at = file.metadata().and_then(|meta| meta.modified());
    let is_old = read_at.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > TOUCH));
    if is_old {
        let _ = file.set_modified(now); // on a disk that cannot be written to nothing is evicted either
    }
}

fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = list(path)?;
    found.retain(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(found.into_iter().map(|entry| entry.path()).collect())
}

/// What is in a folder; one that was removed meanwhile is empty.
fn list(path: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(path) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn open(dir: &Path, max_bytes: u64) -> Cache {
        let dir = dir.to_owned();
        Cache::new(&CacheOptions { dir, max_bytes }, "store".to_owned())
    }

    /// What the object `path` holds there.
    fn content(path: &str, range: &Range<u64>) -> Vec<u8> {
        let salt = u64::from(crc32c::crc32c(path.as_bytes()));
        let byte = |at: u64| ((at ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        range.clone().map(byte).collect()
    }

    fn put(cache: &Cache, path: &str, range: Range<u64>) {
        cache.put(path, "etag", &range, &content(path, &range));
    }

    /// Whether an entry is there; if it is, it has to be right.
    fn has(cache: &Cache, path: &str, range: Range<u64>) -> bool {
        match cache.get(path, "etag", &range) {
            Some(bytes) => {
                assert!(bytes == content(path, &range), "{path} {range:?}");
                true
            }
            None => false,
        }
    }

    /// Bytes of all files that are entries, whole or not.
    fn bytes_on_disk(cache: &Cache) -> u64 {
        cache.entries().unwrap().iter().map(|e| e.bytes).sum()
    }

    #[test]
    fn an_entry_comes_back_for_the_same_store_object_version_and_range_alone() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 1 << 20);
        assert!(!cache.knows("a"));
        put(&cache, "a", 10..500);
        assert!(cache.knows("a") && has(&cache, "a", 10..500));
        assert!(!has(&cache, "b", 10..500) && !has(&cache, "a", 10..499));
        assert!(cache.get("a", "other", &(10..500)).is_none());
        let options = CacheOptions {
            dir: dir.path().to_owned(),
            max_bytes: 1 << 20,
        };
        let other = Cache::new(&options, "other store".to_owned());
        assert!(other.get("a", "etag", &(10..500)).is_none());
        // Another process finds it.
        assert!(has(&open(dir.path(), 1 << 20), "a", 10..500));
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.hit_bytes, stats.misses), (1, 490, 3));
    }

    #[test]
    fn a_damaged_entry_is_none_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 1 << 20);
        let damages: [fn(&mut Vec<u8>); 7] = [
            |bytes| bytes[0] ^= 1,
            |bytes| bytes[9] ^= 1,
            |bytes| bytes[12] ^= 0x80,
            |bytes| *bytes.last_mut().unwrap() ^= 1,
            |bytes| bytes.truncate(5),
            |bytes| bytes.truncate(bytes.len() - 1),
            |bytes| bytes.push(0),
        ];
        for damage in damages {
            put(&cache, "a", 0..300);
            let place = cache.object("a").join(entry_name("etag", &(0..300)));
            let mut bytes = fs::read(&place).unwrap();
            damage(&mut bytes);
            fs::write(&place, bytes).unwrap();
            assert!(!has(&cache, "a", 0..300) && !place.exists());
        }
        assert_eq!(cache.stats().damaged, 7);
        // An entry under the name of another.
        put(&cache, "a", 0..300);
        let of = |range| cache.object("a").join(entry_name("etag", &range));
        fs::rename(of(0..300), of(300..600)).unwrap();
        assert!(!has(&cache, "a", 300..600));
    }

    #[test]
    fn the_oldest_entries_make_room_and_strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 20_000);
        put(&cache, "first", 0..1000);
        let object = cache.object("first");
        let strangers = [
            dir.path().join("mine.parquet"),
            dir.path().join(FOLDER).join("mine"),
            object.join("mine-0-1"),
        ];
        for stranger in &strangers {
            fs::write(stranger, [0; 30_000]).unwrap();
        }
        let age = |path: &str, range: Range<u64>, seconds| {
            let place = cache.object(path).join(entry_name("etag", &range));
            let file = File::options().write(true).open(place).unwrap();
            let then = SystemTime::now() - Duration::from_secs(seconds);
            file.set_modified(then).unwrap();
        };
        age("first", 0..1000, 1000);
        put(&cache, "first", 1000..2000);
        age("first", 1000..2000, 1000);
        assert!(has(&cache, "first", 0..1000)); // read just now, so not old any more
        for n in 0..100 {
            put(&cache, &format!("object {n}"), 0..1000);
            if n < 10 {
                age(&format!("object {n}"), 0..1000, 100);
            }
            assert!(bytes_on_disk(&cache) <= 20_000, "after entry {n}");
            if n == 17 {
                assert!(has(&cache, "first", 0..1000) && !has(&cache, "first", 1000..2000));
            }
        }
        assert!(has(&cache, "object 99", 0..1000) && !has(&cache, "object 0", 0..1000));
        assert!(bytes_on_disk(&cache) > 15_000, "it is used");
        assert!(cache.stats().evicted > 80);
        for stranger in &strangers {
            assert_eq!(fs::metadata(stranger).unwrap().len(), 30_000);
        }
        put(&cache, "too large", 0..20_000);
        assert!(!has(&cache, "too large", 0..20_000));
    }

    #[test]
    fn a_wrong_count_is_counted_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 5_000);
        for wrong in [b"".as_slice(), b"abc", &u64::MAX.to_le_bytes()] {
            put(&cache, "a", 0..1000);
            fs::write(cache.folder.join("used"), wrong).unwrap();
            put(&cache, "b", 0..1000);
            assert!(has(&cache, "a", 0..1000) && has(&cache, "b", 0..1000));
            let used = fs::read(cache.folder.join("used")).unwrap();
            assert_eq!(used, bytes_on_disk(&cache).to_le_bytes());
            fs::remove_dir_all(&cache.folder).unwrap();
        }
    }

    #[test]
    fn what_killed_processes_left_unfinished_goes_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path(), 5_000);
        put(&cache, "a", 0..1000);
        let temp = cache.object("a").join(".tmp-abc");
        fs::write(&temp, [0; 2000]).unwrap();
        assert_eq!(cache.entries().unwrap().len(), 2, "it takes room");
        let file = File::options().write(true).open(&temp).unwrap();
        file.set_modified(SystemTime::now() - 2 * STALE).unwrap();
        assert_eq!(cache.entries().unwrap().len(), 1);
        assert!(!temp.exists() && has(&cache, "a", 0..1000));
    }

    #[test]
    fn a_folder_that_cannot_be_used_turns_it_off_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let cache = open(&dir.path().join("file"), 5_000);
        put(&cache, "a", 0..10);
        put(&cache, "a", 10..20);
        assert!(!has(&cache, "a", 0..10));
        let fault = cache.stats().fault.unwrap();
        assert!(fault.contains("Not a directory"), "{fault}");
    }

    const CHILD_DIR: &str = "PAIRQUET_TEST_CACHE_DIR";
    const SMALL: u64 = 400_000;

    /// A walk over the entries that depends on `seed`: each is asked for, checked if it is there, and put if not.
    fn work(cache: &Cache, seed: u64, steps: u64) {
        for step in 0..steps {
            let draw = (seed + step).wrapping_mul(0xd134_2543_de82_ef95) >> 40;
            let (path, start) = (format!("object {}", draw % 7), draw % 11 * 5_000);
            let range = start..start + 4_000 + draw % 5 * 2_000;
            if !has(cache, &path, range.clone()) {
                put(cache, &path, range);
            }
        }
    }

    /// Not a test by itself: what the next one starts as a process of its own and kills.
    #[test]
    fn child_that_fills_a_cache() {
        if let Some(dir) = std::env::var_os(CHILD_DIR) {
            work(
                &open(Path::new(&dir), SMALL),
                std::process::id().into(),
                u64::MAX,
            );
        }
    }

    #[test]
    fn processes_that_are_killed_while_they_share_a_cache_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let child = || -> Child {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "storage::cache::tests::child_that_fills_a_cache"])
                .env(CHILD_DIR, dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::inherit())
                .spawn()
                .unwrap()
        };
        let cache = open(dir.path(), SMALL);
        for round in 0..20_u64 {
            let mut children = [child(), child()];
            let lifetime = Duration::from_micros(15_000 + round * 7919 % 20_000);
            std::thread::sleep(lifetime);
            work(&cache, round, 50);
            for child in &mut children {
                // Alive: an entry that was not what it should be would have ended it.
                assert!(child.try_wait().unwrap().is_none(), "round {round}");
                child.kill().unwrap();
                child.wait().unwrap();
            }
            let bytes = bytes_on_disk(&cache);
            assert!(bytes <= SMALL, "{bytes} bytes after round {round}");
        }
        work(&cache, 0, 1000);
        let stats = cache.stats();
        assert!(stats.hits > 100 && stats.evicted > 0, "{stats:?}");
        assert_eq!((stats.damaged, stats.fault), (0, None));
    }
}
