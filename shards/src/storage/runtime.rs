//! The runtime that stores other than disks share.

use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::runtime::{Builder, Runtime};

use crate::error::{Error, Result};

/// Threads of the runtime. They wait for the network and hash nothing, so a few serve many readers.
const WORKER_THREADS: usize = 2;

/// The one runtime of the process, started at the first call.
pub(super) fn shared() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let started = Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("shards-io")
        .enable_all()
        .build()
        .map_err(|source| Error::Runtime { source })?;
    Ok(RUNTIME.get_or_init(|| started))
}
