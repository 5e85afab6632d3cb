//! Where threads of the program wait for each other, under a model checker: the program's own sources, with every order
//! in which the threads can take a lock and wake each other.
//!
//! - here: the ordered hand-over of a conversion;
//! - [`loader`]: the loader's window of batches, and its row groups read ahead.
//!
//! A lost wake-up is a deadlock in one of these orders, which the checker reports, as it does a failed assertion.

#[path = "../../../pipeline/src/convert/in_order.rs"]
mod in_order;
mod loader;

// The sources call them by these names.
extern crate self as shards;
type Name = std::sync::Arc<str>;

/// As much of `pipeline/src/error.rs` as the sources use.
mod error {
    #[derive(Debug)]
    pub enum Error {
        LoaderStopped,
        #[expect(dead_code)] // what it says is for people
        Invalid {
            name: &'static str,
            value: String,
            expected: String,
        },
    }

    pub type Result<T> = std::result::Result<T, Error>;
}

/// What `pipeline/src/sync.rs` is there.
mod sync {
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
    pub use std::sync::PoisonError;
}

use in_order::InOrder;
use loom::sync::Arc;
use loom::thread;

/// Runs a model in every order of its threads that has at most so many interruptions where nothing forces one.
fn check(name: &str, preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&orders);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    println!(
        "| {name} | {} orders, no fault | no fault | ok |",
        orders.load(std::sync::atomic::Ordering::Relaxed)
    );
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

fn work(queue: &Arc<InOrder<u64>>) -> thread::JoinHandle<()> {
    let queue = Arc::clone(queue);
    thread::spawn(move || {
        while let Some(job) = queue.claim() {
            queue.bring(job, job, 10);
        }
    })
}

fn main() {
    check(
        "hand-over: 2 threads, 3 jobs, room for one result",
        2,
        || {
            let queue = Arc::new(InOrder::new(3, 10));
            let workers = [work(&queue), work(&queue)];
            for expected in 0..3 {
                assert_eq!(queue.take(), Some(expected));
            }
            assert_eq!(queue.take(), None);
            join(workers);
        },
    );
    check(
        "hand-over: closed while 2 threads work and one waits",
        2,
        || {
            let queue = Arc::new(InOrder::new(3, 10));
            let workers = [work(&queue), work(&queue)];
            let taker = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let mut last = None;
                    while let Some(result) = queue.take() {
                        assert_eq!(result, last.map_or(0, |last: u64| last + 1));
                        last = Some(result);
                    }
                })
            };
            queue.close();
            join(workers.into_iter().chain([taker]));
        },
    );
    check(
        "hand-over: a thread that gives up ends the others",
        2,
        || {
            let queue = Arc::new(InOrder::<u64>::new(3, 10));
            let worker = work(&queue);
            let gives_up = {
                let queue = Arc::clone(&queue);
                // What a panic does, see `close_on_panic`; the checker itself would stop at one.
                thread::spawn(move || {
                    let _guard = queue.close_on_panic();
                    if queue.claim().is_some() {
                        queue.close();
                    }
                })
            };
            let mut n_taken = 0;
            while queue.take().is_some() {
                n_taken += 1;
            }
            assert!(n_taken <= 3);
            join([worker, gives_up]);
        },
    );
    loader::models();
}
