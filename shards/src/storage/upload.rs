//! An object on its way into a bucket, in parts, of which a bounded number is in memory.
//!
//! The object appears when the parts are put together at the end, and not before. Parts that were sent and never put
//! together are not seen by anybody, but kept, and paid for: a writer that fails or is dropped tells the store to throw
//! them away, and after one that was killed only a rule of the bucket does (`AbortIncompleteMultipartUpload`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::fault::Fault;
use super::{Doing, Store, runtime};
use crate::error::{Error, Result};

/// What became of a part, and how long it took.
type Sent = (object_store::Result<()>, Duration);

/// Writes one object. Without [`commit`](Self::commit) nothing remains of it.
pub(super) struct Upload {
    store: Store,
    backend: Arc<dyn ObjectStore>,
    runtime: &'static Runtime,
    /// Relative to the store.
    path: String,
    place: Path,
    part_bytes: usize,
    parts_in_flight: usize,
    /// How long a dropped writer may take for each of two steps of cleaning up.
    farewell: Duration,
    /// The part that is being filled.
    buffer: Vec<u8>,
    /// Begun with the first full part: a small object is put whole.
    parts: Option<Box<dyn MultipartUpload>>,
    sending: JoinSet<Sent>,
}

impl Upload {
    pub fn new(
        store: &Store,
        backend: Arc<dyn ObjectStore>,
        path: &str,
        place: Path,
    ) -> Result<Self> {
        let options = store.options();
        Ok(Upload {
            store: store.clone(),
            backend,
            runtime: runtime::shared()?,
            path: path.to_owned(),
            place,
            part_bytes: options.part_bytes,
            parts_in_flight: options.parts_in_flight,
            farewell: options.stall_timeout(),
            buffer: Vec::new(),
            parts: None,
            sending: JoinSet::new(),
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.buffer.len() == self.part_bytes {
            self.send().map_err(std::io::Error::other)?;
        }
        if self.buffer.is_empty() {
            self.buffer.reserve_exact(self.part_bytes);
        }
        let n = bytes.len().min(self.part_bytes - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    pub fn commit(mut self) -> Result<()> {
        if self.parts.is_none() {
            let whole = std::mem::take(&mut self.buffer);
            return self.store.put_atomic(&self.path, &whole);
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        while !self.sending.is_empty() {
            self.settle_one()?;
        }
        let Some(parts) = &mut self.parts else {
            return Ok(());
        };
        let start = Instant::now();
        match self.runtime.block_on(parts.complete()) {
            Ok(_) => {
                self.parts = None;
                self.store.forget_version(&self.path);
                Ok(())
            }
            Err(error) => Err(match Fault::of(&error) {
                Fault::Missing => self.fault(
                    Fault::Other(std::io::Error::other(
                        "its parts are gone: somebody else has put them together or thrown them away",
                    )),
                    start.elapsed(),
                ),
                fault => self.fault(fault, start.elapsed()),
            }),
        }
    }

    /// Sends the buffer as the next part, when there is room for one.
    fn send(&mut self) -> Result<()> {
        if self.parts.is_none() {
            let doing = Doing::to("writing", &self.path);
            let begin = || self.backend.put_multipart(&self.place);
            self.parts = Some(self.store.run(&doing, begin)?);
        }
        while self.sending.len() >= self.parts_in_flight {
            self.settle_one()?;
        }
        let part = PutPayload::from(Bytes::from(std::mem::take(&mut self.buffer)));
        if let Some(parts) = &mut self.parts {
            let sent = parts.put_part(part);
            let timed = async move {
                let start = Instant::now();
                (sent.await, start.elapsed())
            };
            self.sending.spawn_on(timed, self.runtime.handle());
        }
        Ok(())
    }

    /// Waits until a part has arrived.
    fn settle_one(&mut self) -> Result<()> {
        match self.runtime.block_on(self.sending.join_next()) {
            None | Some(Ok((Ok(()), _))) => Ok(()),
            Some(Ok((Err(error), waited))) => Err(self.fault(Fault::of(&error), waited)),
            Some(Err(lost)) => {
                let lost = std::io::Error::other(lost.to_string());
                Err(self.fault(Fault::Other(lost), Duration::ZERO))
            }
        }
    }

    fn fault(&self, fault: Fault, waited: Duration) -> Error {
        let doing = Doing::to("writing", &self.path);
        self.store.fault(&doing, fault, waited)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(parts) = &mut self.parts else { return };
        let (sending, farewell) = (&mut self.sending, self.farewell);
        self.runtime.block_on(async {
            // A part that arrives after the others were thrown away stays, and is paid for: a store knows nothing of a
            // request given up here, so that those on their way are waited for, as long as a silence may last.
            let arrived = async { while sending.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(farewell, arrived).await;
            sending.shutdown().await;
            // Politeness: what does not work now is left to the bucket's own rule.
            let _ = tokio::time::timeout(farewell, parts.abort()).await;
        });
    }
}
