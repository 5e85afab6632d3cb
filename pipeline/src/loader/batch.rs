//! Batches, filled by many threads and handed out in order.
//!
//! The [`Window`] holds the batches being made. Readers take places in it in order and wait when it is full, so memory is
//! bounded; workers fill the places in any order; the caller takes the front batch once it is complete.
//!
//! A batch's views are one piece of memory that many threads write without a lock or a copy: each place owns its row of
//! it, split off when the place is taken, and once all rows are back they are joined again, in constant time each.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use shards::Name;

use crate::error::{Error, Result};
use crate::loader::order::{EpochOrder, Order};
use crate::loader::state::{Batching, LoaderState};
use crate::loader::stats::BadSample;
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Views of a batch of samples, in the order of the epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Batch of the epoch, from 0.
    pub index: u64,
    /// Views of a sample, V.
    pub n_views: usize,
    /// Side of a view in px.
    pub size: usize,
    /// `[B, V, H, W, 3]`; view 0 is the whole one (`f1`), view 1 the masked one (`f2`).
    pub views: BytesMut,
    /// Class of each sample.
    pub labels: Vec<Option<i32>>,
    /// Sample ids, which key the samples' randomness.
    pub samples: Vec<u64>,
    /// Name of each sample's image or clip.
    pub keys: Vec<String>,
}

impl Batch {
    /// Samples in the batch, B.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// Shape of every batch of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchShape {
    pub(super) n_samples: usize,
    pub(super) n_views: usize,
    pub(super) size: usize,
}

impl BatchShape {
    pub(super) fn sample_bytes(&self) -> usize {
        self.n_views * self.size * self.size * 3
    }
}

/// One place in a batch to be filled.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) slot: Arc<Slot>,
    pub(super) row: usize,
    /// Position in the epoch.
    pub(super) position: u64,
    /// The sample id that the order puts there.
    pub(super) sample: u64,
    /// The place's own row of the batch, `[V, H, W, 3]`, with what the memory held before.
    pub(super) views: BytesMut,
}

/// What fills a place beside its views.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) label: Option<i32>,
    pub(super) sample: u64,
    pub(super) key: Name,
}

/// A batch being made.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) at: LoaderState,
    contents: Mutex<Contents>,
}

/// A finished batch and what happened on the way.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) batch: Batch,
    /// The bad samples met on the way, each with the row that it was to fill.
    pub(super) bad: Vec<(usize, BadSample)>,
    /// The first row that failed, and why.
    pub(super) failure: Option<(usize, Error)>,
    /// The rows of views that are back, to be joined.
    rows: Vec<BytesMut>,
    missing: usize,
}

impl Slot {
    /// A batch with no row filled; takes over the memory of `spare`.
    fn new(at: LoaderState, shape: BatchShape, spare: Batch) -> Self {
        let n = shape.n_samples;
        let Batch {
            mut labels,
            mut samples,
            mut keys,
            ..
        } = spare;
        labels.resize(n, None);
        samples.resize(n, 0);
        keys.resize(n, String::new());
        let batch = Batch {
            epoch: at.epoch,
            index: at.batch,
            n_views: shape.n_views,
            size: shape.size,
            views: BytesMut::new(),
            labels,
            samples,
            keys,
        };
        Self {
            at,
            contents: Mutex::new(Contents {
                batch,
                rows: vec![BytesMut::new(); n],
                missing: n,
                ..Contents::default()
            }),
        }
    }

    /// Puts a sample or a failure in its place. True if the batch is complete with it.
    fn fill(
        &self,
        row: usize,
        views: BytesMut,
        filling: Result<Filling>,
        bad: Vec<BadSample>,
    ) -> bool {
        let mut contents = lock(&self.contents);
        contents.bad.extend(bad.into_iter().map(|bad| (row, bad)));
        contents.rows[row] = views;
        match filling {
            Ok(filling) => {
                let batch = &mut contents.batch;
                batch.labels[row] = filling.label;
                batch.samples[row] = filling.sample;
                (*filling.key).clone_into(&mut batch.keys[row]);
            }
            // The first failing row speaks for the batch, whichever thread was first.
            Err(failure) => {
                if contents
                    .failure
                    .as_ref()
                    .is_none_or(|(first, _)| row < *first)
                {
                    contents.failure = Some((row, failure));
                }
            }
        }
        contents.missing -= 1;
        contents.missing == 0
    }

    fn is_complete(&self) -> bool {
        lock(&self.contents).missing == 0
    }

    fn take(&self) -> Contents {
        let mut contents = std::mem::take(&mut *lock(&self.contents));
        for row in contents.rows.drain(..) {
            contents.batch.views.unsplit(row);
        }
        // Threads fill in any order; what is told of a batch depends on its rows alone.
        contents.bad.sort_by_key(|(row, _)| *row);
        contents
    }
}

/// The batches being made, oldest first.
#[derive(Debug)]
pub(super) struct Window {
    order: Order,
    batching: Batching,
    shape: BatchShape,
    max_slots: usize,
    state: Mutex<WindowState>,
    /// Signalled when a place can be taken.
    room: Condvar,
    /// Signalled when a batch is complete.
    ready: Condvar,
}

#[derive(Debug)]
struct WindowState {
    slots: VecDeque<Arc<Slot>>,
    /// The slot whose places are being handed out, its next row, and the views from that row on.
    open: Option<(Arc<Slot>, usize, BytesMut)>,
    /// The next batch to open.
    next: LoaderState,
    epoch: EpochOrder,
    /// Batches that came back, for their memory.
    spare: Vec<Batch>,
    stopped: bool,
    failure: Option<Error>,
}

impl Window {
    pub(super) fn new(
        order: Order,
        batching: Batching,
        shape: BatchShape,
        max_slots: usize,
        start: LoaderState,
    ) -> Self {
        let state = WindowState {
            slots: VecDeque::new(),
            open: None,
            next: start,
            epoch: order.epoch(start.epoch),
            spare: Vec::new(),
            stopped: false,
            failure: None,
        };
        let state = Mutex::new(state);
        Self {
            order,
            batching,
            shape,
            max_slots,
            state,
            room: Condvar::new(),
            ready: Condvar::new(),
        }
    }

    /// The next place to fill, in order; waits while the window is full. `None` once the loader stops.
    pub(super) fn next_place(&self) -> Option<Place> {
        let mut state = lock(&self.state);
        loop {
            if state.stopped {
                return None;
            }
            if let Some((slot, row, mut rest)) = state.open.take() {
                let views = rest.split_to(self.shape.sample_bytes());
                if row + 1 < self.shape.n_samples {
                    state.open = Some((Arc::clone(&slot), row + 1, rest));
                }
                let position = self.batching.position(slot.at.batch, row);
                return Some(Place {
                    sample: state.epoch.sample(position),
                    slot,
                    row,
                    position,
                    views,
                });
            }
            if state.slots.len() < self.max_slots {
                self.open_slot(&mut state);
            } else {
                state = self
                    .room
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn open_slot(&self, state: &mut WindowState) {
        let at = state.next;
        if at.batch == 0 {
            state.epoch = self.order.epoch(at.epoch);
        }
        let mut spare = state.spare.pop().unwrap_or_default();
        let n_bytes = self.shape.n_samples * self.shape.sample_bytes();
        let views = match std::mem::take(&mut spare.views) {
            views if views.len() == n_bytes => views,
            _ => BytesMut::zeroed(n_bytes),
        };
        let slot = Arc::new(Slot::new(at, self.shape, spare));
        state.slots.push_back(Arc::clone(&slot));
        state.open = Some((slot, 0, views));
        state.next = self.batching.next(at);
    }

    /// Fills a place, with the bad samples met on the way.
    pub(super) fn fill(&self, place: Place, filling: Result<Filling>, bad: Vec<BadSample>) {
        if place.slot.fill(place.row, place.views, filling, bad) {
            // Taking the lock orders this signal after the caller's look at the slot.
            drop(lock(&self.state));
            self.ready.notify_all();
        }
    }

    /// The oldest batch, once complete.
    ///
    /// # Errors
    /// What stopped the loader.
    pub(super) fn take_front(&self) -> Result<Contents> {
        let mut state = lock(&self.state);
        loop {
            if let Some(failure) = state.failure.take() {
                return Err(failure);
            }
            if state.stopped {
                return Err(Error::LoaderStopped);
            }
            if state.slots.front().is_some_and(|slot| slot.is_complete()) {
                let slot = state.slots.pop_front();
                drop(state);
                self.room.notify_all();
                return slot.map(|slot| slot.take()).ok_or(Error::LoaderStopped);
            }
            state = self
                .ready
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Keeps a batch's memory for a batch to come.
    pub(super) fn recycle(&self, batch: Batch) {
        let mut state = lock(&self.state);
        if state.spare.len() < self.max_slots {
            state.spare.push(batch);
        }
    }

    /// Ends the loader: nobody waits any longer, and the caller gets `failure` if there is one.
    pub(super) fn stop(&self, failure: Option<Error>) {
        let mut state = lock(&self.state);
        state.stopped = true;
        if state.failure.is_none() {
            state.failure = failure;
        }
        drop(state);
        self.room.notify_all();
        self.ready.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        lock(&self.state).stopped
    }
}

/// A panic in another thread is reported on its own way; the data behind the lock stays consistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> (Slot, [BytesMut; 2]) {
        let shape = BatchShape {
            n_samples: 2,
            n_views: 1,
            size: 1,
        };
        let mut views = BytesMut::from(&[1, 2, 3, 4, 5, 6][..]);
        let first = views.split_to(3);
        let slot = Slot::new(LoaderState::default(), shape, Batch::default());
        (slot, [first, views])
    }

    fn filling() -> Result<Filling> {
        Ok(Filling {
            label: None,
            sample: 0,
            key: Name::default(),
        })
    }

    #[test]
    fn bad_samples_come_in_the_order_of_their_rows() {
        let bad = |index| BadSample {
            index,
            key: String::new(),
            reason: String::new(),
        };
        let (slot, [first, second]) = slot();
        assert!(!slot.fill(1, second, filling(), vec![bad(9)]));
        assert!(slot.fill(0, first, filling(), vec![bad(8), bad(7)]));
        let contents = slot.take();
        let order: Vec<u64> = contents.bad.iter().map(|(_, bad)| bad.index).collect();
        assert_eq!(order, [8, 7, 9]);
        assert_eq!(contents.batch.views, [1, 2, 3, 4, 5, 6][..]);
    }

    #[test]
    fn rows_are_joined_where_they_lie() {
        let (slot, [mut first, second]) = slot();
        let memory = first.as_ptr();
        first[1] = 20;
        slot.fill(1, second, filling(), Vec::new());
        slot.fill(0, first, filling(), Vec::new());
        let views = slot.take().batch.views;
        assert_eq!(views, [1, 20, 3, 4, 5, 6][..]);
        assert_eq!(views.as_ptr(), memory);
    }
}
