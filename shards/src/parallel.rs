//! The same work on many things, some of them at a time: reads that mostly wait.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Does `work` on 0 to `n`, as many at a time as there are `threads`; gives the results in order.
///
/// # Errors
/// The first in order of those that were met. Nothing new is begun after one.
pub fn in_parallel<T: Send, E: Send>(
    n: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let some = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= n {
                return done;
            }
            let outcome = work(at);
            if outcome.is_err() {
                next.store(n, Ordering::Relaxed);
            }
            done.push((at, outcome));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(n)).map(|_| scope.spawn(some)).collect();
        let outcomes = threads.into_iter().map(|thread| match thread.join() {
            Ok(outcomes) => outcomes,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        outcomes.flatten().collect::<Vec<_>>()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_the_first_error_counts() {
        for threads in [1, 3, 50] {
            let squares = in_parallel(20, threads, |n| Ok::<_, ()>(n * n)).unwrap();
            assert!(squares.into_iter().eq((0..20).map(|n| n * n)));
            let refuse = |n| if n % 7 == 5 { Err(n) } else { Ok(n) };
            assert_eq!(in_parallel(20, threads, refuse), Err(5));
        }
        assert_eq!(in_parallel(0, 4, |_| Err::<(), ()>(())), Ok(vec![]));
    }
}
