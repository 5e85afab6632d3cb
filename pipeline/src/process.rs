//! What this process used so far, as Linux tells it; nothing is known elsewhere.

use std::path::Path;

/// Time of all threads that still run, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuTime {
    /// On a core.
    pub running_s: f64,
    /// Ready to run while others had the cores.
    pub queued_s: f64,
}

impl CpuTime {
    /// What was added since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            running_s: self.running_s - earlier.running_s,
            queued_s: self.queued_s - earlier.queued_s,
        }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            running_s: self.running_s + other.running_s,
            queued_s: self.queued_s + other.queued_s,
        }
    }
}

/// Time of all threads that still run (`/proc/self/task/*/schedstat`).
pub fn cpu_time() -> Option<CpuTime> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?.flatten();
    let total = threads
        // One may end in between.
        .filter_map(|thread| thread_time(&thread.path()))
        .fold(CpuTime::default(), CpuTime::plus);
    (total.running_s > 0.0).then_some(total)
}

fn thread_time(folder: &Path) -> Option<CpuTime> {
    let text = std::fs::read_to_string(folder.join("schedstat")).ok()?;
    let mut nanoseconds = text.split_whitespace().map(str::parse::<u64>);
    let mut next = || Some(nanoseconds.next()?.ok()? as f64 / 1e9);
    Some(CpuTime {
        running_s: next()?,
        queued_s: next()?,
    })
}

/// The most memory that this process ever held (`VmHWM`).
pub fn peak_memory_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The memory that this process holds (`VmRSS`).
pub fn memory_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The address space that this process holds (`VmSize`).
pub fn address_space_bytes() -> Option<u64> {
    status_bytes("VmSize:")
}

fn status_bytes(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn work_and_memory_are_seen() {
        // Of this thread alone: those of other tests end in between.
        let own = || thread_time(Path::new("/proc/thread-self")).unwrap();
        let (before, held) = (own(), memory_bytes().unwrap());
        let mut memory = vec![0u8; 32 << 20];
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 60 {
            for (value, byte) in (0u8..=255).cycle().zip(&mut memory) {
                *byte = byte.wrapping_add(value);
            }
        }
        let spent = own().since(before).running_s;
        assert!(spent > 0.005 && cpu_time().unwrap().running_s > spent / 2.0);
        assert!(memory_bytes().unwrap() > held.min(16 << 20));
        assert!(peak_memory_bytes().unwrap() >= 32 << 20);
        assert!(memory.iter().any(|&byte| byte != 0));
    }
}
