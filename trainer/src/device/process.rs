//! Settings of the whole process that CPU training needs: the allocator's, and how many threads candle starts.
//!
//! - Every tensor operation allocates its result. glibc takes blocks above 128 KiB from the kernel one by one and gives
//!   them back when they are freed, so each step spends a third of its time on page faults. Keeping freed memory made a
//!   ViT-S step 1.8 times faster; the price is that the process holds its peak until it ends.
//! - candle starts one thread for each processor that the machine has, whatever share of it this process was given, and
//!   its element-wise operations wait for each other spinning, without end. Beside other work, the loader's threads
//!   included, a training step then takes several times as long: the spinning thread holds the processor that the one it
//!   waits for needs. The heavy operations (matrix products, attention, the optimizer) run on rayon's threads, which
//!   sleep while they wait.

#![allow(unsafe_code)] // C functions; nothing safer reaches the allocator's settings or the environment

use crate::distributed::World;

/// Threads of candle's spinning pool; 1 is the caller alone, which then never waits.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Threads of rayon's pool.
const RAYON_THREADS: &str = "RAYON_NUM_THREADS";

/// Prepares the process for training on the CPU. Call it first thing in `main`: the threads can be bounded only before
/// the first one is started, and glibc serves large blocks from one heap only to the main thread.
///
/// What the environment already says of threads (`CANDLE_NUM_THREADS`, `RAYON_NUM_THREADS`) stays.
///
/// Of several processes on a machine each takes its [`cores`].
pub fn prepare_process() {
    keep_freed_memory();
    if is_single_threaded() {
        for (name, threads) in [(CANDLE_THREADS, 1), (RAYON_THREADS, cores())] {
            if std::env::var_os(name).is_none() {
                // SAFETY: setting the environment races only with other threads that read it, and there are none, as
                // was just checked; only this thread could start one.
                unsafe { std::env::set_var(name, threads.to_string()) };
            }
        }
    }
}

/// Cores that this process should use: those it was given, or its share of them where the ranks of this machine were given
/// the same ones.
pub fn cores() -> usize {
    let given = std::thread::available_parallelism().map_or(1, usize::from);
    // A wrong environment is an error where the ranks are asked for.
    match World::from_env() {
        Ok(world) if !is_bound_by_launcher() => (given / world.local_size).max(1),
        _ => given,
    }
}

/// Whether the launcher bound this process to some of its own cores, as mpirun and srun do and torchrun does not.
///
/// A script between the two is bound as well and hides it: the rank then takes too small a share. The machine's cores are
/// nothing to compare with instead, since a container or a job that holds only some of them would look like a binding, and
/// each rank would take all of those.
#[cfg(target_os = "linux")]
fn is_bound_by_launcher() -> bool {
    let allowed = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        count_listed(list)
    };
    let own = allowed(std::process::id());
    let launchers = allowed(std::os::unix::process::parent_id());
    own.zip(launchers).is_some_and(|(own, all)| own < all)
}

#[cfg(not(target_os = "linux"))]
fn is_bound_by_launcher() -> bool {
    false
}

/// How many numbers a list such as `0-3,8` holds.
#[cfg(target_os = "linux")]
fn count_listed(list: &str) -> Option<usize> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    list.trim().split(',').map(count).sum()
}

/// Whether this is certainly the only thread: Linux lists a process's threads, other systems are not asked.
fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

/// Tells glibc to keep freed memory for the next allocation instead of returning it to the kernel; nothing is done with
/// other C libraries.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Above every tensor of the largest model; the largest round value that mallopt's argument holds.
        const LARGE_BYTES: libc::c_int = 1 << 30;
        /// The largest threshold that older versions of glibc accept.
        const OLD_LIMIT_BYTES: libc::c_int = 32 << 20;
        // SAFETY: mallopt takes two integers, touches only the allocator's own settings under its lock, and reports a
        // value that it cannot use by returning 0.
        unsafe {
            if libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) == 0 {
                libc::mallopt(libc::M_MMAP_THRESHOLD, OLD_LIMIT_BYTES);
            }
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn listed_cores_are_counted() {
        assert_eq!(count_listed("\t0-3,8,10-11"), Some(7));
        assert_eq!(count_listed("5"), Some(1));
        assert_eq!(count_listed("3-1"), None);
        assert_eq!(count_listed("all"), None);
    }

    #[test]
    fn the_environment_is_left_alone_beside_other_threads() {
        let before = [CANDLE_THREADS, RAYON_THREADS].map(std::env::var_os);
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || receiver.recv());
            assert!(!is_single_threaded());
            prepare_process();
            drop(sender);
        });
        assert_eq!(
            [CANDLE_THREADS, RAYON_THREADS].map(std::env::var_os),
            before
        );
    }
}
