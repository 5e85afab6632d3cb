//! What a conversion tells while it runs.

/// Hears of a conversion's progress; called on the thread that started it, one event at a time.
pub trait Progress {
    /// Something happened.
    fn on(&self, event: &ProgressEvent);
}

/// Hears nothing.
impl Progress for () {
    fn on(&self, _: &ProgressEvent) {}
}

/// One step of a conversion.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressEvent {
    /// The work is planned. Sent once, before the first item.
    Planned {
        /// Items of this run, those of shards made earlier included.
        items: u64,
        /// Their size in the source, in bytes.
        bytes: u64,
        /// Shards of this run.
        shards: u64,
        /// Items that an earlier run has done.
        items_done: u64,
        /// Bytes that an earlier run has done.
        bytes_done: u64,
        /// Shards that an earlier run has done.
        shards_done: u64,
    },
    /// An item is done: written or skipped.
    Item {
        /// Its size in the source, in bytes.
        bytes: u64,
        /// Pictures written: 1 for an image, the frames of a clip, 0 if it was skipped.
        pictures: u64,
    },
    /// An item could not be used.
    Skipped {
        /// Its key.
        key: String,
        /// Why.
        reason: String,
    },
    /// A shard is complete and safely on disk.
    Shard {
        /// Its file name.
        name: String,
        /// Its size, in bytes.
        bytes: u64,
    },
    /// Something to say in words: what is being listed or measured, what was ignored.
    Message(String),
}
