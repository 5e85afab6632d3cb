//! The wish to stop: set by a signal handler or by the clock, looked at by long work between two items.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A flag that long work looks at between two steps. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Stop {
    /// A flag that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same flag, which counts as raised from `deadline` on. Clones made before know nothing of that.
    pub fn by(self, deadline: Option<Instant>) -> Self {
        Self { deadline, ..self }
    }

    /// Asks the work to stop at its next look.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked, or the time is up.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst) || self.is_overdue()
    }

    /// Whether the time is up.
    pub fn is_overdue(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wish_and_a_deadline_both_stop() {
        let stop = Stop::new();
        let raised = stop.clone();
        let far = stop.by(Instant::now().checked_add(Duration::from_secs(1000)));
        assert!(!far.is_requested());
        raised.request();
        assert!(far.is_requested() && !far.is_overdue());
        let over = Stop::new().by(Some(Instant::now()));
        assert!(over.is_requested() && over.is_overdue());
    }
}
