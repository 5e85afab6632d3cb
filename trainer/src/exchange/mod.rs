//! Checkpoints from and to other programs.
//!
//! [`import`] reads what MAE, CropMAE, SiamMAE, timm and Hugging Face wrote; [`Imported::write`] makes a checkpoint
//! folder of it. [`export`] goes the other way. Importing an export gives the same parameters bit by bit.
//!
//! A tour, in reading order:
//!
//! - `pickle`: a pickle as plain values. `pth`: PyTorch's files as tensors.
//! - `names`: what parameters are called elsewhere.
//! - `foreign`: any file as named tensors. `sizes`: the model's sizes out of their shapes.
//! - `import`, `moments`: the model, and AdamW's state. `folder`: the checkpoint folder.
//!   `start`: a run's beginning from one. `read`: the encoder of any of these.
//! - `export`: the way out, with `torch_file`; `probe`: input and features to check it by.
//!
//! Invariants: nothing that a file contains is executed. A file is input: whatever is wrong with it is an
//! [`Error`](crate::Error) that says where. No tensor is passed over in silence: what a model does not take is an error
//! or, where it is known to be of no use (a classifier's head), a note.

mod export;
mod folder;
mod foreign;
mod hashing;
mod import;
mod moments;
mod names;
mod pickle;
mod probe;
mod pth;
mod read;
mod sizes;
mod start;
mod torch_file;

pub use export::{
    CARD_FILE, ExportOptions, ExportReport, ExportedFile, PROBE_FILE, Target, export,
};
pub use folder::{CheckpointInfo, IMPORT_FILE, Source, checkpoint_info};
pub use foreign::Format;
pub use import::{ImportOptions, Imported, import};
pub use moments::OptimizerState;
pub use names::Tensors;
pub(crate) use names::is_encoder;
pub use read::{Read, ReadOptions, read};
pub use start::start_from;

use std::path::Path;

use crate::error::{Error, Result};

/// Mean and standard deviation of the colour channels that views are normalised with: ImageNet's.
const NORMALISATION: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// SHA-256 of a file, in hexadecimal, and its length.
fn sha256_of(path: &Path) -> Result<(String, u64)> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut hasher = hashing::Hashing::new(std::io::sink());
    let n_bytes = std::io::copy(&mut file, &mut hasher).map_err(Error::io(path))?;
    Ok((hasher.finish().1, n_bytes))
}
