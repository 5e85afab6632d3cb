//! Many threads finish jobs in any order; one thread takes the results in the order of the jobs.

use std::collections::BTreeMap;

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Hands out job numbers `0..n_jobs` and gives the results back in that order.
///
/// Results that wait for an earlier one are bounded: no new job is handed out while they hold `limit_bytes` or more,
/// so at most that and one result a thread are in memory. The earliest job is always in some thread's hands or next
/// to be handed out with nothing waiting, so this cannot lock up.
pub(crate) struct InOrder<T> {
    state: Mutex<State<T>>,
    /// Somebody took a result: there may be room for another job.
    taken: Condvar,
    /// Somebody brought a result: it may be the next one.
    brought: Condvar,
    n_jobs: u64,
    limit_bytes: u64,
}

struct State<T> {
    next_job: u64,
    next_result: u64,
    waiting: BTreeMap<u64, (T, u64)>,
    waiting_bytes: u64,
    is_closed: bool,
}

impl<T> InOrder<T> {
    pub fn new(n_jobs: u64, limit_bytes: u64) -> Self {
        let state = State {
            next_job: 0,
            next_result: 0,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            taken: Condvar::new(),
            brought: Condvar::new(),
            n_jobs,
            limit_bytes,
        }
    }

    /// The next job to do, once there is room for its result; `None` if there are no more or it is closed.
    pub fn claim(&self) -> Option<u64> {
        let mut state = self.lock();
        while !state.is_closed
            && state.next_job < self.n_jobs
            && state.waiting_bytes >= self.limit_bytes
        {
            state = self
                .taken
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed || state.next_job >= self.n_jobs {
            return None;
        }
        state.next_job += 1;
        Some(state.next_job - 1)
    }

    /// Brings the result of a job; `bytes` is what it holds in memory.
    pub fn bring(&self, job: u64, result: T, bytes: u64) {
        let mut state = self.lock();
        state.waiting_bytes += bytes;
        state.waiting.insert(job, (result, bytes));
        if job == state.next_result {
            self.brought.notify_one();
        }
    }

    /// The result of the next job in order; `None` after the last one or when it is closed.
    pub fn take(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.is_closed || state.next_result >= self.n_jobs {
                return None;
            }
            let next = state.next_result;
            if let Some((result, bytes)) = state.waiting.remove(&next) {
                state.next_result += 1;
                state.waiting_bytes -= bytes;
                self.taken.notify_all();
                return Some(result);
            }
            state = self
                .brought
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends it: nothing is handed out or taken any more.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.taken.notify_all();
        self.brought.notify_all();
    }

    /// Closes it when dropped, unless all jobs were handed out and done without a panic.
    pub fn close_on_panic(&self) -> CloseOnPanic<'_, T> {
        CloseOnPanic(self)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while it holds the lock; a poisoned one is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`InOrder::close_on_panic`]: without it, one thread's panic would leave the others waiting for ever.
pub(crate) struct CloseOnPanic<'a, T>(&'a InOrder<T>);

impl<T> Drop for CloseOnPanic<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_come_in_order_and_within_the_limit() {
        let queue = InOrder::new(300, 50);
        let in_memory = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(job) = queue.claim() {
                        let most = in_memory.fetch_add(10, Ordering::SeqCst) + 10;
                        assert!(most <= 50 + 4 * 10, "{most} bytes in memory");
                        // Jobs of uneven length, so that they overtake each other.
                        std::thread::sleep(Duration::from_micros(job * 7919 % 300));
                        queue.bring(job, job, 10);
                    }
                });
            }
            for expected in 0..300 {
                assert_eq!(queue.take(), Some(expected));
                in_memory.fetch_sub(10, Ordering::SeqCst);
            }
            assert_eq!(queue.take(), None);
        });
    }

    #[test]
    fn a_result_larger_than_the_limit_passes() {
        let queue = InOrder::new(3, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while let Some(job) = queue.claim() {
                    queue.bring(job, job, 1000);
                }
            });
            assert_eq!(
                [queue.take(), queue.take(), queue.take(), queue.take()],
                [Some(0), Some(1), Some(2), None]
            );
        });
    }

    #[test]
    fn closing_ends_everybody() {
        let queue: InOrder<u64> = InOrder::new(1_000_000, 1);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| while queue.claim().is_some() {});
            }
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(10));
                queue.close();
            });
            assert_eq!(queue.take(), None);
        });
    }

    #[test]
    fn a_panic_of_one_thread_ends_the_others() {
        let queue: InOrder<u64> = InOrder::new(10, 1);
        let result = std::panic::catch_unwind(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _guard = queue.close_on_panic();
                    queue.claim();
                    panic!("a codec's bug");
                });
                assert_eq!(queue.take(), None);
            });
        });
        assert!(result.is_err());
    }
}
