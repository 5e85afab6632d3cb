//! Any checkpoint as an encoder's parameters: a run's, an imported one, or another program's file.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::folder;
use super::import::{ImportOptions, import};
use super::names::{Tensors, is_encoder};
use crate::checkpoint::{EMA_FILE, MODEL_FILE, read_tensors};
use crate::error::{Error, Result};
use crate::models::ModelConfig;

/// How to read a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Attention heads of the encoder, which no tensor of another program's file tells; by default the papers' for the
    /// width.
    pub num_heads: Option<usize>,
    /// Whether parameters that another program's file lacks may keep initial values, with a note.
    pub allow_missing: bool,
    /// The running mean of the weights, which runs with `optim.ema_decay` keep, in place of the weights.
    pub ema: bool,
}

/// A model's encoder as [`read`] found it.
#[derive(Debug)]
pub struct Read {
    /// The checkpoint that was taken: its folder, or the file.
    pub path: PathBuf,
    /// The model.
    pub model: ModelConfig,
    /// The encoder's parameters and tables, f32 on the CPU, with the reference's names.
    pub encoder: Tensors,
    /// The last epoch that was trained to its end, counted from 0, if it is said.
    pub epoch: Option<u64>,
    /// Optimizer steps made, if it is said.
    pub step: Option<u64>,
    /// What was guessed, converted, left out or kept at its initial value: one sentence each.
    pub notes: Vec<String>,
}

/// Reads a run folder (its newest checkpoint), a checkpoint folder, or a file that [`import`] reads.
///
/// # Errors
/// As [`import`]; [`Error::Checkpoint`] if a folder is damaged or has no running mean where that is asked for.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Read> {
    let refused = |problem: &str| Error::Checkpoint {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    if path.is_dir() {
        if options.num_heads.is_some() {
            return Err(refused(
                "says itself how many heads it has, expected none to be given",
            ));
        }
        return read_folder(path, options.ema);
    }
    if options.ema {
        return Err(refused(
            "is a file, expected a run's folder for a running mean",
        ));
    }
    let imported = import(
        path,
        &ImportOptions {
            num_heads: options.num_heads,
            allow_missing: options.allow_missing,
            optimizer: false,
            ..ImportOptions::default()
        },
    )?;
    Ok(Read {
        path: path.to_owned(),
        encoder: encoder_of(imported.tensors()),
        model: imported.model,
        epoch: imported.epoch,
        step: None,
        notes: imported.notes,
    })
}

fn read_folder(path: &Path, ema: bool) -> Result<Read> {
    let (dir, info) = folder::open(path)?;
    let name = if ema { EMA_FILE } else { MODEL_FILE };
    let file = dir.join(name);
    if !file.is_file() {
        let problem = format!("has no {name}, expected a run with optim.ema_decay");
        return Err(Error::Checkpoint { path: dir, problem });
    }
    Ok(Read {
        encoder: encoder_of(read_tensors(&file, &Device::Cpu)?),
        path: dir,
        model: info.model,
        epoch: info.epoch,
        step: info.step,
        notes: Vec::new(),
    })
}

/// Those of the tensors that are the encoder's.
pub(super) fn encoder_of(
    tensors: impl IntoIterator<Item = (String, candle_core::Tensor)>,
) -> Tensors {
    tensors
        .into_iter()
        .filter(|(name, _)| is_encoder(name))
        .collect()
}
