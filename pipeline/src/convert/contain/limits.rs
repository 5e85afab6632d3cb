//! What a worker takes from itself before it meets a clip.

#[cfg(target_os = "linux")]
mod system {
    use std::io;

    use rustix::process::{
        Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
    };

    use crate::process::address_space_bytes;

    /// Ends this process with the thread that started it, however that ends, and turns core dumps off: a crash is
    /// expected here, and its dump would hold up the next clip.
    pub(in crate::convert::contain) fn belong_to_parent() -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        lower(Resource::Core, 0)
    }

    /// Lets this process take so many bytes more than it has. Address space counts, so that a request for more than
    /// that fails at once, whether or not it would ever be filled.
    pub(in crate::convert::contain) fn limit_memory(bytes: u64) -> io::Result<()> {
        let held = address_space_bytes()
            .ok_or_else(|| io::Error::other("/proc/self/status does not tell the memory held"))?;
        lower(Resource::As, held.saturating_add(bytes))
    }

    fn lower(resource: Resource, limit: u64) -> io::Result<()> {
        let most = getrlimit(resource).maximum;
        let limit = Some(most.map_or(limit, |most| most.min(limit)));
        let limits = Rlimit {
            current: limit,
            maximum: limit,
        };
        Ok(setrlimit(resource, limits)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::io;

    /// The end of standard input alone tells this process that its parent is gone.
    pub(in crate::convert::contain) fn belong_to_parent() -> io::Result<()> {
        Ok(())
    }

    /// There is no limit here.
    pub(in crate::convert::contain) fn limit_memory(_bytes: u64) -> io::Result<()> {
        Ok(())
    }
}

pub(super) use system::{belong_to_parent, limit_memory};
