//! Whole row groups, read ahead of the samples that need them within a budget of memory.
//!
//! An epoch's groups form windows whose samples are drawn from one window after the other. The window in use is read
//! first, those behind it as far as the budget goes, over the end of the epoch too. Each group is read at most once an
//! epoch. A group takes of the budget from when it is asked for until the last picture taken from it is decoded: those on
//! their way through the queue keep the bytes of their whole group.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};

use crate::error::Error;
use crate::loader::batch::lock;
use crate::loader::order::{EpochOrder, Order};
use crate::loader::source::Pictures;
use crate::loader::state::{Batching, LoaderState};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The groups being read or in use.
pub(super) struct ReadAhead {
    order: Order,
    batching: Batching,
    budget_bytes: u64,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Signalled when a group has come, and when there is room for more.
    changed: Condvar,
}

/// What a group takes of the budget, given back with the last that holds it.
pub(super) struct Room {
    bytes: u64,
    shared: Weak<Shared>,
}

impl Drop for Room {
    // Never while the state is locked.
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.state).taken_bytes -= self.bytes;
            shared.changed.notify_all();
        }
    }
}

/// A group that was read. Whoever takes pictures of it keeps the room for as long as the pictures.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) pictures: Arc<dyn Pictures>,
    pub(super) room: Arc<Room>,
}

struct State {
    /// Oldest first; the samples come from the first one.
    windows: VecDeque<OpenWindow>,
    /// Windows that were closed.
    n_closed: u64,
    /// Bytes of the groups that are being read, or have come and are not done with.
    taken_bytes: u64,
    next: Next,
    stopped: bool,
}

/// The window to open next.
struct Next {
    epoch: u64,
    order: EpochOrder,
    window: usize,
}

struct OpenWindow {
    epoch: u64,
    positions: Range<u64>,
    groups: Vec<(usize, Progress)>,
}

enum Progress {
    Waiting,
    Reading,
    Ready(Loaded),
    /// Until it has been told.
    Failed(Option<Error>),
}

/// A group to be read: its window, counted over the run, its place there, and its number.
struct Task {
    window: u64,
    place: usize,
    group: usize,
    room: Room,
}

impl ReadAhead {
    pub(super) fn new(
        order: Order,
        batching: Batching,
        budget_bytes: u64,
        start: LoaderState,
    ) -> Self {
        let epoch = order.epoch(start.epoch);
        let first = batching.position(start.batch, 0);
        let next = Next {
            epoch: start.epoch,
            window: epoch.window_at(first).unwrap_or_default(),
            order: epoch,
        };
        let state = State {
            windows: VecDeque::new(),
            n_closed: 0,
            taken_bytes: 0,
            next,
            stopped: false,
        };
        Self {
            order,
            batching,
            budget_bytes,
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    /// The groups that the largest window takes, in bytes.
    pub(super) fn largest_window_bytes(order: &Order, window_groups: usize) -> u64 {
        let mut bytes: Vec<u64> = order.groups().iter().map(|group| group.bytes).collect();
        bytes.sort_unstable_by(|a, b| b.cmp(a));
        bytes.iter().take(window_groups).sum()
    }

    /// Reads the next group in turn; waits for room. False once the loader stops.
    pub(super) fn read_one(
        &self,
        read: impl FnOnce(usize) -> Result<Box<dyn Pictures>, Error>,
    ) -> bool {
        let Some(task) = self.next_task() else {
            return false;
        };
        let progress = match read(task.group) {
            Ok(group) => Progress::Ready(Loaded {
                pictures: group.into(),
                room: Arc::new(task.room),
            }),
            Err(error) => Progress::Failed(Some(error)),
        };
        let mut state = lock(&self.shared.state);
        // The window may have been closed in the meantime: this rank needed nothing of the group.
        let at = task.window.checked_sub(state.n_closed);
        if let Some(window) = at.and_then(|at| state.windows.get_mut(at as usize)) {
            window.groups[task.place].1 = progress;
        }
        drop(state);
        self.shared.changed.notify_all();
        true
    }

    fn next_task(&self) -> Option<Task> {
        let mut state = lock(&self.shared.state);
        loop {
            if state.stopped {
                return None;
            }
            if let Some(task) = self.take_task(&mut state) {
                return Some(task);
            }
            state = self.wait(state);
        }
    }

    fn take_task(&self, state: &mut State) -> Option<Task> {
        let bytes_of = |group: usize| self.order.groups()[group].bytes;
        loop {
            let n_closed = state.n_closed;
            let taken = state.taken_bytes;
            let waiting = state
                .windows
                .iter_mut()
                .enumerate()
                .find_map(|(at, window)| {
                    let is_waiting =
                        |(_, progress): &(usize, Progress)| matches!(progress, Progress::Waiting);
                    let place = window.groups.iter().position(is_waiting)?;
                    Some((at, place, &mut window.groups[place]))
                });
            if let Some((at, place, (group, progress))) = waiting {
                let (group, bytes) = (*group, bytes_of(*group));
                // A window always fits, so there is room once what lingers of those before it is done with.
                if taken + bytes > self.budget_bytes {
                    return None;
                }
                *progress = Progress::Reading;
                state.taken_bytes += bytes;
                let shared = Arc::downgrade(&self.shared);
                return Some(Task {
                    window: n_closed + at as u64,
                    place,
                    group,
                    room: Room { bytes, shared },
                });
            }
            if !state.windows.is_empty() && taken >= self.budget_bytes {
                return None;
            }
            let window = self.open_next(&mut state.next);
            state.windows.push_back(window);
        }
    }

    /// The next window, of the next epoch where this one has no more whole batches.
    fn open_next(&self, next: &mut Next) -> OpenWindow {
        let end = self.batching.batches_per_epoch() * self.batching.batch_size();
        loop {
            let window = next.order.window(next.window);
            next.window += 1;
            match window {
                Some((positions, groups)) if positions.start < end => {
                    let groups = groups.into_iter().map(|group| (group, Progress::Waiting));
                    return OpenWindow {
                        epoch: next.epoch,
                        positions,
                        groups: groups.collect(),
                    };
                }
                _ => {
                    next.epoch += 1;
                    next.order = self.order.epoch(next.epoch);
                    next.window = 0;
                }
            }
        }
    }

    /// The group of sample `index` of the source, which stands at `position` of `epoch`; waits until it has come. Positions
    /// must rise from call to call: windows before this one are closed.
    ///
    /// # Errors
    /// What reading the group met, or [`Error::LoaderStopped`].
    pub(super) fn group(&self, epoch: u64, position: u64, index: u64) -> Result<Loaded, Error> {
        let number = self.order.group_of(index);
        let mut state = lock(&self.shared.state);
        loop {
            if state.stopped {
                return Err(Error::LoaderStopped);
            }
            let closed = Self::close_before(&mut state, epoch, position);
            if !closed.is_empty() {
                drop(state);
                drop(closed);
                state = lock(&self.shared.state);
                continue;
            }
            let found = state.windows.front_mut().and_then(|window| {
                window
                    .groups
                    .iter_mut()
                    .find_map(|(group, progress)| (*group == number).then_some(progress))
            });
            match found {
                Some(Progress::Ready(group)) => return Ok(group.clone()),
                Some(Progress::Failed(error)) => {
                    return Err(error.take().unwrap_or(Error::LoaderStopped));
                }
                _ => state = self.wait(state),
            }
        }
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let woken = self.shared.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the windows that end before a position; their groups are to be dropped when the state is not locked.
    fn close_before(state: &mut State, epoch: u64, position: u64) -> Vec<OpenWindow> {
        let is_past =
            |window: &mut OpenWindow| (window.epoch, window.positions.end) <= (epoch, position);
        let closed: Vec<_> = std::iter::from_fn(|| state.windows.pop_front_if(is_past)).collect();
        state.n_closed += closed.len() as u64;
        closed
    }

    /// Ends the reading: nobody waits any longer.
    pub(super) fn stop(&self) {
        lock(&self.shared.state).stopped = true;
        self.shared.changed.notify_all();
    }
}
