//! The crate's error type: one variant for each thing a caller can do differently.

use std::ops::Range;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with shards, their manifest, and the store they lie in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address names a kind of store that is not known.
    #[error(
        "{uri}: {scheme} is not a kind of store, expected {}",
        crate::storage::SCHEMES
    )]
    UnsupportedStore {
        /// The address as given.
        uri: String,
        /// Its scheme, such as `ftp`.
        scheme: String,
    },
    /// The store can do other things, and not this.
    #[error("{doing} {path}: {reason}")]
    CannotDo {
        /// Full path of the object, or the store's address.
        path: String,
        /// What was asked for, such as `writing`.
        doing: &'static str,
        /// Why it cannot be done.
        reason: &'static str,
    },
    /// What the environment or a profile says about a store cannot be used.
    #[error("settings of the store: {reason}")]
    Settings {
        /// Which one, and what was expected; never its value if that may be a secret.
        reason: String,
    },
    /// An option has a value outside its range.
    #[error("{name} is {value}, expected {expected}")]
    Option {
        /// The option.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The address or path cannot name an object.
    #[error("{path:?} is not a usable path: {reason}")]
    BadPath {
        /// The path as given.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such object.
    #[error("{path}: not found")]
    NotFound {
        /// Full path of the object.
        path: String,
    },
    /// The store failed at one object.
    #[error("{doing} {}: {source}", place(path, range))]
    Store {
        /// Full path of the object.
        path: String,
        /// The bytes that were asked for, if it was a part of the object.
        range: Option<Range<u64>>,
        /// What was being done, such as `reading`.
        doing: &'static str,
        /// The operating system's reason, or else the store's.
        source: std::io::Error,
    },
    /// The store did not do its part, however often it was asked: it or the way to it is gone. The object may be fine.
    #[error(
        "{doing} {}: {reason}; given up after {:.1} s of trying",
        place(path, range),
        *waited_ms as f64 / 1000.0
    )]
    Gone {
        /// Full path of the object.
        path: String,
        /// The bytes that were asked for, if it was a part of the object.
        range: Option<Range<u64>>,
        /// What was being done, such as `reading`.
        doing: &'static str,
        /// What happened the last time.
        reason: Box<str>,
        /// How long it was tried, in milliseconds.
        waited_ms: u64,
    },
    /// The store answered and refused: wrong credentials, bucket, region or clock. To ask again is no use.
    #[error("{doing} {path}: {reason} ({identity})")]
    Refused {
        /// Full path of the object.
        path: String,
        /// What was being done, such as `reading`.
        doing: &'static str,
        /// What is wrong, with the store's own word for it.
        reason: String,
        /// Who asked and where, without secrets.
        identity: Box<str>,
    },
    /// The object was replaced by another one while it was being read in parts.
    #[error(
        "reading {}: the object was replaced while it was being read, its etag was {was} and is {is}",
        place(path, range)
    )]
    Changed {
        /// Full path of the object.
        path: String,
        /// The bytes that were asked for.
        range: Option<Range<u64>>,
        /// The etag of the parts read before.
        was: Box<str>,
        /// The etag now.
        is: Box<str>,
    },
    /// The object was to be written over what was known of it, and somebody else was faster.
    #[error("writing {path}: somebody else wrote it in the meantime")]
    Conflict {
        /// Full path of the object.
        path: String,
    },
    /// There is no manifest: not a shard set, or one whose conversion has not finished.
    #[error(
        "{uri} {}",
        if *is_missing {
            "does not exist"
        } else {
            "has no manifest.json: not a shard set, or its conversion has not finished"
        }
    )]
    Unfinished {
        /// Address of the set.
        uri: String,
        /// Whether there is not even a folder.
        is_missing: bool,
    },
    /// The manifest is there and cannot be used.
    #[error("{path}: {reason}")]
    Manifest {
        /// Full path of the manifest.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The set has no such split.
    #[error("{uri} has no split {split:?}, expected one of {known:?}")]
    NoSplit {
        /// Address of the set.
        uri: String,
        /// The split asked for.
        split: String,
        /// The splits there are.
        known: Vec<String>,
    },
    /// A shard is truncated, foreign or damaged; none of its rows can be trusted.
    #[error("shard {shard}: {reason}")]
    Shard {
        /// File name of the shard.
        shard: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One row is damaged; the others may be fine.
    #[error("shard {shard}, row {row}: {reason}")]
    Row {
        /// File name of the shard.
        shard: String,
        /// Row of the shard, from 0.
        row: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// An index beyond the end.
    #[error("{what} {index} is out of range, expected less than {len}")]
    OutOfRange {
        /// What was counted, such as `sample`.
        what: &'static str,
        /// The index asked for.
        index: u64,
        /// How many there are.
        len: u64,
    },
    /// A row given to the writer cannot be stored.
    #[error("row {key:?}: {reason}")]
    Input {
        /// Key or clip of the row.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The Parquet writer failed, mostly because its output did.
    #[error("writing a shard: {source}")]
    Write {
        /// The Parquet writer's reason.
        source: parquet::errors::ParquetError,
    },
    /// The runtime for remote stores could not be started.
    #[error("starting the storage runtime: {source}")]
    Runtime {
        /// The operating system's reason.
        source: std::io::Error,
    },
}

/// An object, or the part of it that is meant.
fn place(path: &str, range: &Option<Range<u64>>) -> String {
    match range {
        Some(Range { start, end }) => format!("{path}, bytes {start}..{end}"),
        None => path.to_owned(),
    }
}

impl Error {
    /// Whether the store is at fault and not the object, so that the same may succeed when the store is back.
    pub fn is_store_gone(&self) -> bool {
        matches!(self, Error::Gone { .. })
    }

    /// Whether the fault is one row's alone, and not its shard's, so that a reader may skip the sample, count it and go on.
    pub fn is_bad_sample(&self) -> bool {
        matches!(self, Error::Row { .. })
    }
}

/// Why bytes are not what the format says, before it is known which shard and row they belong to.
///
/// The pure readers return it; whoever knows the place turns it into [`Error::Shard`] or [`Error::Row`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    /// The same fault, laid at the door of a shard.
    pub fn in_shard(self, shard: &str) -> Error {
        Error::Shard {
            shard: shard.to_owned(),
            reason: self.0,
        }
    }

    /// The same fault, laid at the door of one row.
    pub fn in_row(self, shard: &str, row: u64) -> Error {
        Error::Row {
            shard: shard.to_owned(),
            row,
            reason: self.0,
        }
    }
}

/// `malformed!("...")` builds a [`Malformed`] from a format string.
macro_rules! malformed {
    ($($arg:tt)*) => { $crate::error::Malformed(format!($($arg)*)) };
}
pub(crate) use malformed;
