//! The ordered hand-over of a conversion under a model checker: the program's own source, with every order in which its
//! threads can take its lock and wake each other.
//!
//! A lost wake-up is a deadlock in one of these orders, which the checker reports, as it does a failed assertion.

#[path = "../../../pipeline/src/convert/in_order.rs"]
mod in_order;

/// What `pipeline/src/sync.rs` is there.
mod sync {
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
    pub use std::sync::PoisonError;
}

use in_order::InOrder;
use loom::sync::Arc;
use loom::thread;

/// Orders of the threads that are looked at, each with at most so many interruptions where nothing forces one.
const PREEMPTIONS: usize = 2;

fn check(name: &str, model: impl Fn() + Sync + Send + 'static) {
    let orders = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&orders);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    println!(
        "| {name} | {} orders, no fault | no fault | ok |",
        orders.load(std::sync::atomic::Ordering::Relaxed)
    );
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
    check("hand-over: 2 threads, 3 jobs, room for one result", || {
        let queue = Arc::new(InOrder::new(3, 10));
        let workers = [work(&queue), work(&queue)];
        for expected in 0..3 {
            assert_eq!(queue.take(), Some(expected));
        }
        assert_eq!(queue.take(), None);
        for worker in workers {
            worker.join().unwrap();
        }
    });
    check(
        "hand-over: closed while 2 threads work and one waits",
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
            for thread in workers.into_iter().chain([taker]) {
                thread.join().unwrap();
            }
        },
    );
    check("hand-over: a thread that gives up ends the others", || {
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
        worker.join().unwrap();
        gives_up.join().unwrap();
    });
}
