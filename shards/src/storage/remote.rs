//! What reading from the other end of a line needs besides a client: patience, and memory of which version of an
//! object the parts read so far were of.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{Either, select};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::fault::Fault;
use super::options::StoreOptions;

/// Waits between attempts: the first, and the longest. Each is twice the one before.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Of a store that is not a disk.
pub(super) struct Remote {
    pub options: StoreOptions,
    /// Who asks and where, without secrets.
    pub identity: String,
    /// Which store it is, whoever asks.
    pub namespace: String,
    /// Whether it can say what it holds.
    pub can_list: bool,
    /// Room for the requests under way, in units of [`ROOM_BYTES`].
    room: Semaphore,
    n_room: u32,
    /// Whether it ever did what it was asked to.
    answered: AtomicBool,
    /// By path, the etag of the object that parts were read of.
    versions: Mutex<HashMap<String, String>>,
}

/// What room for requests is counted in.
const ROOM_BYTES: u64 = 1 << 10;

fn in_room(bytes: u64) -> u32 {
    let most = u64::from(u32::MAX).min(Semaphore::MAX_PERMITS as u64);
    bytes.div_ceil(ROOM_BYTES).min(most) as u32
}

/// Why an attempt was the last one.
pub(super) struct GaveUp {
    pub fault: Fault,
    pub waited: Duration,
}

impl Remote {
    pub fn new(options: StoreOptions, identity: String, namespace: String, can_list: bool) -> Self {
        let n_room = in_room(options.in_flight_bytes);
        Remote {
            room: Semaphore::new(n_room as usize),
            n_room,
            options,
            identity,
            namespace,
            can_list,
            answered: AtomicBool::new(false),
            versions: Mutex::default(),
        }
    }

    /// Attempts something until it is done, or it fails for a reason that does not pass, or patience ends.
    ///
    /// Clients retry some failures themselves; this is for the others, such as replies that are not HTTP, and for bodies
    /// that broke off where a client could not resume them. So an attempt must be one that can be made again.
    pub async fn patiently<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, GaveUp>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let start = Instant::now();
        let mut wait = FIRST_WAIT;
        loop {
            let fault = match attempt().await {
                Ok(done) => {
                    self.answered.store(true, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(error) => Fault::of(&error),
            };
            let patience = match (&fault, self.answered.load(Ordering::Relaxed)) {
                (Fault::Passing(_), true) => self.options.patience(),
                (Fault::Passing(_), false) => self.options.first_patience(),
                _ => Duration::ZERO,
            };
            let waited = start.elapsed();
            if waited + wait > patience {
                return Err(GaveUp { fault, waited });
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Waits until so many bytes may be asked for; there is room for them until what this gives is dropped.
    pub async fn room_for(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let units = in_room(bytes).min(self.n_room);
        self.room.acquire_many(units).await.ok() // never closed
    }

    /// One attempt, or the faster of two where the first one is late. An attempt that fails leaves it to the other one.
    pub async fn hedged<T, F>(&self, attempt: impl Fn() -> F) -> object_store::Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let late = match self.options.hedge_after_ms {
            0 => return attempt().await,
            ms => tokio::time::sleep(Duration::from_millis(ms)),
        };
        match select(pin!(attempt()), pin!(late)).await {
            Either::Left((done, _)) => done,
            Either::Right((_, first)) => match select(first, pin!(attempt())).await {
                Either::Left((Err(_), other)) => other.await,
                Either::Right((Err(_), other)) => other.await,
                Either::Left((done, _)) | Either::Right((done, _)) => done,
            },
        }
    }

    /// Compares the etag of a part with that of the parts before it; gives the earlier one if they differ.
    pub fn check_version(&self, path: &str, etag: Option<&str>) -> Result<(), String> {
        let Some(etag) = etag else {
            return Ok(()); // a server that does not say cannot be caught
        };
        let mut versions = self.versions();
        match versions.get(path) {
            Some(known) if known != etag => Err(known.clone()),
            Some(_) => Ok(()),
            None => {
                versions.insert(path.to_owned(), etag.to_owned());
                Ok(())
            }
        }
    }

    /// The etag of the parts read so far.
    pub fn version(&self, path: &str) -> Option<String> {
        self.versions().get(path).cloned()
    }

    /// Forgets an object that was written or removed by this program itself.
    pub fn forget_version(&self, path: &str) {
        self.versions().remove(path);
    }

    fn versions(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
