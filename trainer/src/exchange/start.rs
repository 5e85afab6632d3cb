//! Starting a run from the weights of another.

use std::path::Path;

use super::folder::{self, CheckpointInfo};
use crate::checkpoint::{MODEL_FILE, read_tensors};
use crate::error::{Error, Result};
use crate::models::ModelConfig;
use crate::nn::params::Params;

/// Sets all parameters from a checkpoint, a run's or an imported one; the optimizer starts anew.
///
/// * `path`: a checkpoint's folder, or a run's folder for its newest.
/// * `model`: the model that `params` belongs to. Heads, which no shape tells, must be the checkpoint's.
///
/// # Errors
/// [`Error::Checkpoint`] if the checkpoint is damaged or has other heads; [`Error::Parameter`] or [`Error::Shape`] if it
/// does not hold exactly the model's parameters.
pub fn start_from(path: &Path, model: &ModelConfig, params: &Params) -> Result<CheckpointInfo> {
    let (dir, info) = folder::open(path)?;
    let (theirs, ours) = (info.model.sizes(), model.sizes());
    for (what, theirs, ours) in [
        ("num_heads", theirs.num_heads, ours.num_heads),
        (
            "decoder_num_heads",
            theirs.decoder_num_heads,
            ours.decoder_num_heads,
        ),
    ] {
        if theirs != ours {
            let problem = format!("has {what} = {theirs}, expected {ours} as in the config");
            return Err(Error::Checkpoint { path: dir, problem });
        }
    }
    params.load(&read_tensors(&dir.join(MODEL_FILE), params.device())?)?;
    Ok(info)
}
