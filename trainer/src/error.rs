//! What can go wrong in this crate, one variant for each thing a caller can do differently.

use std::path::PathBuf;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong while a model is built, trained, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names a value that cannot be used; the message names it and what was expected.
    #[error("config: {0}")]
    Config(String),

    /// The configuration file (or one `key=value` override) is not what its structs describe.
    #[error("config: {0}")]
    ConfigSyntax(String),

    /// A tensor does not have the shape that an operation or a checkpoint asks for.
    #[error("{what}: shape {got:?}, expected {expected}")]
    Shape {
        /// The tensor or parameter, by name.
        what: String,
        /// Its shape.
        got: Vec<usize>,
        /// The expected shape in words, for example `[B, 2, 3, 224, 224]`.
        expected: String,
    },

    /// A mask ratio leaves no patch to look at.
    #[error(
        "mask_ratio {mask_ratio} keeps none of {n_patches} patches, expected at least one kept"
    )]
    NothingKept {
        /// Share of patches removed.
        mask_ratio: f64,
        /// Patches in a view.
        n_patches: usize,
    },

    /// A parameter is missing or met twice.
    #[error("parameter {name}: {problem}")]
    Parameter {
        /// Its name in the reference's checkpoint layout.
        name: String,
        /// What is wrong with it.
        problem: String,
    },

    /// A split is not what an evaluation with labels needs.
    #[error("split {split} of {path} {problem}")]
    Labels {
        /// Folder or address of the set.
        path: String,
        /// Name of the split.
        split: String,
        /// What is wrong with it, and what was expected.
        problem: String,
    },

    /// The device that was asked for cannot be used.
    #[error("device {asked}: {problem}")]
    Device {
        /// As written in the configuration.
        asked: String,
        /// Why not, and what would help.
        problem: String,
    },

    /// The processes of a run do not come together, or have lost each other.
    #[error("ranks: {0}")]
    Ranks(String),

    /// The loss, a gradient or an updated parameter is NaN or infinite; nothing of that step was saved.
    #[error(
        "step {step}: {what} is {value}, expected a finite number; samples of this step: {keys}; \
         last good checkpoint: {last_checkpoint}"
    )]
    NotFinite {
        /// The optimizer step, counted from 1.
        step: u64,
        /// The loss, the gradient of which parameter, or the parameter.
        what: String,
        /// The value met.
        value: f64,
        /// Keys of the samples in the step's batches, as this rank saw them.
        keys: String,
        /// Folder of the newest checkpoint from before the step, or `none`.
        last_checkpoint: String,
    },

    /// A checkpoint could not be written, mostly because the disk is full.
    #[error("saving after step {step}: {source}; last good checkpoint: {last_checkpoint}")]
    Saving {
        /// Optimizer steps made.
        step: u64,
        /// Folder of the newest checkpoint, or `none`.
        last_checkpoint: String,
        /// What failed, and at which file.
        source: Box<Error>,
    },

    /// The data failed in mid-run, and what was made until then could not be saved either.
    #[error("{data}; {saving}")]
    Unsaved {
        /// What happened first.
        data: Box<Error>,
        /// Mostly an [`Error::Saving`]; an [`Error::NotFinite`] where the weights are not worth it.
        saving: Box<Error>,
    },

    /// Trainable parameters got no gradient, or a zero or non-finite one, in the first step.
    #[error("after the first backward pass these parameters have no usable gradient: {0}")]
    GradientCoverage(String),

    /// A checkpoint is damaged or incomplete.
    #[error("checkpoint {path}: {problem}")]
    Checkpoint {
        /// The checkpoint's folder or the file in it.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A file is of a format that this version of the program does not read.
    #[error("{path} {source}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its version and the one that is read.
        source: pipeline::OtherFormat,
    },

    /// The run folder's checkpoint belongs to another experiment.
    #[error(
        "checkpoint {path} was made with a different config, so the run cannot go on from it: {differences}"
    )]
    ConfigChanged {
        /// The checkpoint's folder.
        path: PathBuf,
        /// `key: old -> new`, separated by `; `.
        differences: String,
    },

    /// Another process trains in the run folder.
    #[error("another process is training in {path}, expected to be the only one")]
    RunBusy {
        /// The run folder.
        path: PathBuf,
    },

    /// A file of an evaluation's data is not what the protocol needs.
    #[error("{path}: {problem}")]
    Evaluation {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        problem: String,
    },

    /// The work was asked to stop before it was done.
    #[error("stopped")]
    Stopped,

    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },

    /// A JSON file is not what its struct describes.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },

    /// A PNG picture could not be written.
    #[error("{path}: {source}")]
    Png {
        /// The file.
        path: PathBuf,
        /// The encoder's error.
        source: png::EncodingError,
    },

    /// The data could not be opened, or too much of it is bad.
    #[error(transparent)]
    Data(#[from] pipeline::error::Error),

    /// Tensor arithmetic failed: a bug in a model, or memory that ran out.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),

    /// A safetensors file could not be parsed or written.
    #[error("safetensors: {0}")]
    SafeTensors(#[from] safetensors::SafeTensorError),
}

impl Error {
    /// An [`Error::Evaluation`] at `path`.
    pub(crate) fn evaluation(path: impl Into<PathBuf>, problem: impl ToString) -> Error {
        Error::Evaluation {
            path: path.into(),
            problem: problem.to_string(),
        }
    }

    /// An [`Error::Format`] at `path`, for `map_err`.
    pub(crate) fn format(path: impl Into<PathBuf>) -> impl FnOnce(pipeline::OtherFormat) -> Error {
        let path = path.into();
        move |source| Error::Format { path, source }
    }

    /// An [`Error::Io`] at `path`, for `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
