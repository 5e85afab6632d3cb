//! One error type for the crate; a variant for each thing a caller can do differently.

use std::path::{Path, PathBuf};

use crate::codec::CodecError;

/// Result of the crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong in the pipeline, and where.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A picture or a clip does not decode: data at fault, to be skipped, counted and named.
    #[error("{path}: {source}")]
    Codec {
        /// File, member of an archive, or key of a sample.
        path: String,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The file system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as in "reading".
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A value of the options or the configuration cannot be used.
    #[error("{name} = {value}: expected {expected}")]
    Invalid {
        /// Name of the option or field.
        name: &'static str,
        /// The value given.
        value: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The shard set cannot be read.
    #[error(transparent)]
    Shards(#[from] shards::Error),
    /// More samples had to be replaced than the limit allows.
    #[error("{found} bad samples, expected at most {limit}: {}", named.join("; "))]
    TooManyBad {
        /// Bad samples met.
        found: u64,
        /// The limit.
        limit: u64,
        /// The first of them, each with its reason.
        named: Vec<String>,
    },
    /// A loader's thread panicked: a bug.
    #[error("the {stage} stage of the loader panicked: {message}")]
    Panic {
        /// Which stage.
        stage: &'static str,
        /// What the panic said.
        message: String,
    },
    /// The loader has failed before and makes no more batches.
    #[error("the loader has stopped after an earlier error")]
    LoaderStopped,
    /// The operating system gave no thread.
    #[error("starting a loader thread: {source}")]
    Thread {
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// For `map_err` on I/O results: `fs::read(p).map_err(Error::io("reading", p))`.
    pub fn io<'a>(
        doing: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| Error::Io {
            doing,
            path: path.to_path_buf(),
            source,
        }
    }

    /// For `map_err` on codec results, adding which file or sample it was.
    pub fn codec(path: impl Into<String>) -> impl FnOnce(CodecError) -> Error {
        move |source| Error::Codec {
            path: path.into(),
            source,
        }
    }
}
