//! What this process used so far, as Linux tells it; nothing is known elsewhere.

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
    let mut total = CpuTime::default();
    for thread in std::fs::read_dir("/proc/self/task").ok()?.flatten() {
        // A thread may end in between.
        let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else {
            continue;
        };
        let mut nanoseconds = text.split_whitespace().map(str::parse::<u64>);
        let mut next = || Some(nanoseconds.next()?.ok()? as f64 / 1e9);
        total.running_s += next()?;
        total.queued_s += next()?;
    }
    (total.running_s > 0.0).then_some(total)
}

/// The most memory that this process ever held (`VmHWM`).
pub fn peak_memory_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The memory that this process holds (`VmRSS`).
pub fn memory_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
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
        let (before, held) = (cpu_time().unwrap(), memory_bytes().unwrap());
        let mut memory = vec![0u8; 32 << 20];
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 60 {
            for (value, byte) in (0u8..=255).cycle().zip(&mut memory) {
                *byte = byte.wrapping_add(value);
            }
        }
        assert!(cpu_time().unwrap().since(before).running_s > 0.005);
        assert!(memory_bytes().unwrap() > held.min(16 << 20));
        assert!(peak_memory_bytes().unwrap() >= 32 << 20);
        assert!(memory.iter().any(|&byte| byte != 0));
    }
}
