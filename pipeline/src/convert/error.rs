//! What can end a conversion. A broken picture or clip does not: it is skipped and named in the report.

use std::path::PathBuf;

/// Errors of [`convert`](crate::convert).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the source could not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Two things of the source would get the same key.
    #[error("two sources have the key '{key}': {first} and {second}; keys must be unique")]
    DuplicateKey {
        /// The key.
        key: String,
        /// The first file, as a path inside the source.
        first: String,
        /// The second one.
        second: String,
    },
    /// The source holds nothing to convert.
    #[error("nothing to convert in {}: {expected}", path.display())]
    NothingFound {
        /// The source.
        path: PathBuf,
        /// What was looked for.
        expected: String,
    },
    /// An archive is damaged or of a kind that cannot be read in place.
    #[error("cannot use the archive {}: {reason}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A list, a table or a file of class names is not as expected.
    #[error("{}, line {line}: {reason}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// The classes of the source do not go with the class names given or with another split's.
    #[error("{0}")]
    Classes(String),
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
    /// The destination was begun with other options or from another source.
    #[error(
        "{dst} was begun differently: {differences}; run with the same options and source to go on, \
         or delete {dst} to start over"
    )]
    OtherPlan {
        /// The destination.
        dst: String,
        /// What differs: name, then, now.
        differences: String,
    },
    /// Another process is at work there.
    #[error("another pairquet is converting into {dst} ({what}); wait for it, or stop it first")]
    Busy {
        /// The destination.
        dst: String,
        /// The split, the part of it, or the manifest.
        what: String,
    },
    /// The destination already holds this split, made by another run.
    #[error(
        "{dst} already holds a split '{split}' that this run did not make; choose another destination or delete it"
    )]
    SplitExists {
        /// The destination.
        dst: String,
        /// The split.
        split: String,
    },
    /// More items are broken than allowed.
    #[error(
        "{bad} of {of} items so far are broken, allowed are {allowed}: {first}; \
         finished shards are kept, a run that allows more goes on from here"
    )]
    TooManyBad {
        /// Items skipped.
        bad: u64,
        /// Items of this run.
        of: u64,
        /// The limit as given.
        allowed: String,
        /// The first few, with their reasons.
        first: String,
    },
    /// Somebody asked to stop.
    #[error("stopped with {done} of {planned} shards done; the same command goes on from here")]
    Stopped {
        /// Shards of this run that are complete.
        done: u64,
        /// Shards of this run.
        planned: u64,
    },
    /// `finish` came before all shards were there.
    #[error(
        "split '{split}' of {dst} lacks {missing} of {planned} shards, the first is {first}; run the missing parts, then finish again"
    )]
    Unfinished {
        /// The destination.
        dst: String,
        /// The split.
        split: String,
        /// Shards without a complete file and record.
        missing: u64,
        /// Shards of the plan.
        planned: u64,
        /// Name of the first missing shard.
        first: String,
    },
    /// There is no conversion to finish.
    #[error("{dst} holds no conversion: no plan in {dst}/.pairquet")]
    NoPlan {
        /// The destination.
        dst: String,
    },
    /// Not one item of a set could be read.
    #[error("none of the {of} items of split '{split}' could be read: {first}")]
    NothingLeft {
        /// The split.
        split: String,
        /// Items of the split.
        of: u64,
        /// The first few, with their reasons.
        first: String,
    },
    /// No process can be started to decode clips.
    #[error("cannot decode clips in a process of their own: {}: {reason}", program.display())]
    Worker {
        /// The program.
        program: PathBuf,
        /// What happened instead.
        reason: String,
    },
    /// A source file is not the one that was listed any more.
    #[error("{} changed while it was being converted: {reason}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A file of the work folder is not what this program wrote.
    #[error("{path} is damaged: {reason}; delete it to redo its part")]
    State {
        /// Path within the destination.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The variables of a job array are incomplete or senseless.
    #[error("{name} is '{value}': {expected}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// Its value, empty if it is not set.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A shard could not be written, mostly because the disk is full.
    #[error("{path}: {source}")]
    Shard {
        /// The shard, with the destination.
        path: String,
        /// What the writer said.
        source: shards::Error,
    },
    /// A row of a Parquet file has no picture that could be read; it is skipped.
    #[error("{reason}")]
    BadRow {
        /// The kind of fault in a word or two.
        fault: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Parquet files that are the source could not be read; the message names the file.
    #[error(transparent)]
    Source(shards::Error),
    /// The destination could not be written or read; the message names the file.
    #[error(transparent)]
    Destination(#[from] shards::Error),
    /// A program error that a caller can do nothing about.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Result of [`convert`](crate::convert).
pub type Result<T, E = Error> = std::result::Result<T, E>;
