//! Shards in, batches of views out: the same batches for any number of threads and ranks and after any resume.
//!
//! Reading order: [`order`] (which sample stands at which position), [`state`] (which positions a batch holds),
//! [`source`] (where pictures come from; [`open`] makes one of a configuration), [`plan`] (how they are read), `read_ahead`, `fetch` and `stage` (the stages),
//! [`batch`] (batches filled out of order and handed out in order), [`stats`]; [`audit`] looks at an order alone.
//!
//! ```text
//! order -> fetch (threads that wait) -> bounded queue -> views (threads that compute: decode + cut) -> batch in its place
//!            ^ read (whole row groups ahead, where they are worth it)
//! ```
//!
//! A computing thread reads a picture's header, draws the sample's boxes, decodes only what they need of the picture, and
//! cuts the views straight into the batch.
//!
//! - At most `prefetch_batches` batches are being made or waiting, so memory is bounded whatever the consumer does.
//! - A bad sample is replaced by one that its place in the epoch determines; a failure surfaces with the batch it
//!   belongs to. Both are the same for any number of threads.
//! - Dropping the loader ends and joins its threads.

pub mod audit;
pub mod batch;
mod fetch;
mod foreign;
mod mix;
pub mod open;
pub mod order;
mod pin;
pub mod plan;
mod read_ahead;
mod select;
pub mod source;
mod stage;
pub mod state;
pub mod stats;

pub use batch::Batch;
pub use plan::{Line, ReadPlan};
pub use source::{Pictures, Sample, Source};
pub use state::{LoaderState, Rank};
pub use stats::{BadSample, LoaderStats, ReducedStats, StageStats};

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::config::{DataConfig, ReadKind};
use crate::error::{Error, Result};
use crate::stall::Task;
use crate::views::Views;
use batch::{BatchShape, Window};
use order::Order;
use read_ahead::ReadAhead;
use state::Batching;
use stats::{Clock, ReducedCounters, StageCounters};

/// Makes batches in the background, from now until dropped.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    n_read_threads: usize,
    n_fetch_threads: usize,
    batching: Batching,
    next: LoaderState,
    started: Instant,
    handed_out: HandedOut,
    max_bad: u64,
    waiting: Task,
}

/// What went out in batches so far.
#[derive(Debug, Default)]
struct HandedOut {
    batches: u64,
    pairs: u64,
    waiting: Clock,
    replaced: u64,
    bad: BTreeMap<u64, BadSample>,
}

/// What the threads share.
struct Shared {
    source: Arc<dyn Source>,
    views: Views,
    order: Order,
    window: Window,
    /// Where whole row groups are read.
    read_ahead: Option<ReadAhead>,
    seed: u64,
    read: StageCounters,
    fetch: StageCounters,
    compute: StageCounters,
    decode: Clock,
    render: Clock,
    reduced: ReducedCounters,
    bytes_read: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("views", &self.views)
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn count_read(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends the loader: nobody waits any longer, and the caller gets `failure` if there is one.
    fn stop(&self, failure: Option<Error>) {
        self.window.stop(failure);
        if let Some(ahead) = &self.read_ahead {
            ahead.stop();
        }
    }
}

impl Loader {
    /// Opens the sets of `config` and starts making batches from `start`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a configuration that does not fit itself, the set or the ranks; [`Error::Shards`] if the
    /// set does not open.
    pub fn new(config: &DataConfig, seed: u64, rank: Rank, start: LoaderState) -> Result<Self> {
        Self::from_source(open::source(config)?, config, seed, rank, start)
    }

    /// As [`Self::new`], from any source of samples; the addresses in `config` then only tell remote sets from local ones.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_source(
        source: Arc<dyn Source>,
        config: &DataConfig,
        seed: u64,
        rank: Rank,
        start: LoaderState,
    ) -> Result<Self> {
        config.validate()?;
        let views = Views::new(config);
        if views.needs_clips() && !source.holds_clips() {
            return Err(Error::Invalid {
                name: "data.views",
                value: "frame_pair".to_owned(),
                expected: "another kind: frame pairs need clips, and the data holds images"
                    .to_owned(),
            });
        }
        let order = open::order(source.as_ref(), config, seed)?;
        let batching = Batching::new(order.n_positions(), config.batch_size as u64, rank)?;
        let start = batching.start(start)?;
        let plan = ReadPlan::new(config, source.as_ref(), &order, rank)?;
        let read_ahead = (plan.read == ReadKind::Groups)
            .then(|| ReadAhead::new(order.clone(), batching, plan.budget_bytes, start));
        let shape = BatchShape {
            n_samples: batching.local_batch_size(),
            n_views: views.n_views(),
            size: config.size as usize,
        };
        let max_bad = config.max_bad.limit(source.n_samples());
        let shared = Arc::new(Shared {
            source,
            views,
            window: Window::new(
                order.clone(),
                batching,
                shape,
                config.prefetch_batches,
                start,
            ),
            order,
            read_ahead,
            seed,
            read: StageCounters::default(),
            fetch: StageCounters::default(),
            compute: StageCounters::default(),
            decode: Clock::default(),
            render: Clock::default(),
            reduced: ReducedCounters::default(),
            bytes_read: AtomicU64::new(0),
        });
        let mut loader = Self {
            shared,
            threads: Vec::new(),
            n_read_threads: plan.read_threads,
            n_fetch_threads: plan.fetch_threads,
            batching,
            next: start,
            started: Instant::now(),
            handed_out: HandedOut::default(),
            max_bad,
            waiting: Task::new("batching", |batch| format!("batch {batch} of its epoch")),
        };
        loader.start_threads(compute_threads(config), config.pin)?;
        Ok(loader)
    }

    /// Starts both stages; on an error the loader's drop ends those that did start.
    fn start_threads(&mut self, n_compute_threads: usize, pin: bool) -> Result<()> {
        let mut cores = if pin {
            pin::cores(n_compute_threads)?.into_iter()
        } else {
            Vec::new().into_iter()
        };
        for number in 0..self.n_read_threads {
            self.start_thread(format!("read-{number}"), |shared| {
                if let Some(ahead) = &shared.read_ahead {
                    fetch::run_ahead(shared, ahead);
                }
            })?;
        }
        let (sender, receiver) = crossbeam_channel::bounded(QUEUE_PER_WORKER * n_compute_threads);
        for number in 0..self.n_fetch_threads {
            let sender = sender.clone();
            self.start_thread(format!("fetch-{number}"), move |shared| {
                fetch::run(shared, &sender)
            })?;
        }
        for number in 0..n_compute_threads {
            let (receiver, core) = (receiver.clone(), cores.next());
            self.start_thread(format!("views-{number}"), move |shared| {
                let pinned = core.map_or(Ok(()), pin::stay_on);
                match pinned {
                    Ok(()) => stage::run(shared, &receiver),
                    Err(error) => shared.window.stop(Some(error)),
                }
            })?;
        }
        Ok(())
    }

    fn start_thread(
        &mut self,
        name: String,
        body: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let handle = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                if let Err(panic) = guarded("loader", || body(&shared)) {
                    shared.stop(Some(panic));
                }
            })
            .map_err(|source| Error::Thread { source })?;
        self.threads.push(handle);
        Ok(())
    }

    /// The next batch; waits until it is made. Epochs follow each other without end.
    ///
    /// # Errors
    /// What went wrong in the batch: [`Error::Shards`] for a broken set, [`Error::Panic`] for a bug in a thread,
    /// [`Error::TooManyBad`] once more than `data.max_bad` samples were replaced. The loader then makes no more batches;
    /// further calls give [`Error::LoaderStopped`].
    pub fn next_batch(&mut self) -> Result<Batch> {
        let asked = Instant::now();
        let waiting = self.waiting.begin(self.next.batch);
        let contents = self.shared.window.take_front()?;
        drop(waiting);
        self.handed_out.waiting.add(asked.elapsed());
        self.handed_out.replaced += contents.bad.len() as u64;
        self.handed_out
            .bad
            .extend(contents.bad.into_iter().map(|(_, bad)| (bad.index, bad)));
        let checked = match contents.failure {
            Some((_, failure)) => Err(failure),
            None => self.check_bad(&self.handed_out.bad),
        };
        if let Err(failure) = checked {
            self.shared.stop(None);
            return Err(failure);
        }
        self.handed_out.batches += 1;
        self.handed_out.pairs += contents.batch.len() as u64;
        self.next = self.batching.next(self.next);
        Ok(contents.batch)
    }

    /// Holds bad samples, by their indexes, against `data.max_bad`: this loader's, or those of all ranks.
    ///
    /// # Errors
    /// [`Error::TooManyBad`] if they are more than it allows.
    pub fn check_bad(&self, bad: &BTreeMap<u64, BadSample>) -> Result<()> {
        let (found, limit) = (bad.len() as u64, self.max_bad);
        match found > limit {
            true => Err(Error::TooManyBad {
                found,
                limit,
                named: stage::name_some(bad.values()),
            }),
            false => Ok(()),
        }
    }

    /// The bad samples that were replaced in batches so far, by their indexes.
    pub fn bad(&self) -> &BTreeMap<u64, BadSample> {
        &self.handed_out.bad
    }

    /// Gives a batch's memory back to be filled again: fresh memory costs as much as a third of the resizing.
    pub fn recycle(&self, batch: Batch) {
        self.shared.window.recycle(batch);
    }

    /// Batches in an epoch; the last, partial one is dropped.
    pub fn batches_per_epoch(&self) -> u64 {
        self.batching.batches_per_epoch()
    }

    /// The next batch that [`Self::next_batch`] will give.
    pub fn state(&self) -> LoaderState {
        self.next
    }

    /// What the loader did so far.
    pub fn stats(&self) -> LoaderStats {
        let shared = &self.shared;
        let n_compute_threads = self.threads.len() - self.n_read_threads - self.n_fetch_threads;
        let reading =
            (self.n_read_threads > 0).then(|| shared.read.read("read", self.n_read_threads));
        let others = [
            shared.fetch.read("fetch", self.n_fetch_threads),
            shared.compute.read("views", n_compute_threads),
        ];
        LoaderStats {
            stages: reading.into_iter().chain(others).collect(),
            decode_s: shared.decode.seconds(),
            views_s: shared.render.seconds(),
            reduced: shared.reduced.read(),
            bytes_read: shared.bytes_read.load(Ordering::Relaxed),
            pairs: self.handed_out.pairs,
            batches: self.handed_out.batches,
            elapsed_s: self.started.elapsed().as_secs_f64(),
            consumer_waiting_s: self.handed_out.waiting.seconds(),
            replaced: self.handed_out.replaced,
            bad: self.handed_out.bad.values().cloned().collect(),
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Readers waiting for room wake up and leave; workers leave after the sample in hand, whereupon readers waiting
        // to hand something over find nobody there.
        self.shared.stop(None);
        for thread in self.threads.drain(..) {
            // A panic was caught and reported inside of the thread.
            let _ = thread.join();
        }
    }
}

/// Fetched samples that wait for each computing thread: enough to ride out uneven reads.
const QUEUE_PER_WORKER: usize = 8;

/// Asked for, or one less than the cores that affinity and cgroup limits leave.
fn compute_threads(config: &DataConfig) -> usize {
    match config.threads {
        0 => std::thread::available_parallelism()
            .map_or(1, |cores| cores.get() - 1)
            .max(1),
        n => n,
    }
}

/// Runs `work` and turns its panic into an error.
fn guarded<T>(stage: &'static str, work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Error::Panic {
            stage,
            message: text.unwrap_or("no message").to_owned(),
        }
    })
}
