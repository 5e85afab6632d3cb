//! Any checkpoint file as named tensors, and what else it says about itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use super::moments::RawMoments;
use super::pickle::{Id, Pickle, Value};
use super::pth::PthFile;
use crate::error::{Error, Result};

/// What a file is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Told from the file's first bytes.
    #[default]
    Auto,
    /// PyTorch's `torch.save`, whatever the file is called (`.pth`, `.pt`, `.bin`, `.ckpt`).
    Pth,
    /// safetensors.
    Safetensors,
}

/// Keys under which checkpoints keep the model's state dict.
const MODEL_KEYS: [&str; 2] = ["model", "state_dict"];

/// Prefixes that wrappers of a model put in front of every name.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// A file's contents.
pub(super) struct Foreign {
    /// The model's tensors in the file's order, wrappers' prefixes taken off.
    pub tensors: Vec<(String, Tensor)>,
    /// Last epoch that was trained.
    pub epoch: Option<u64>,
    /// What the program that wrote it was told.
    pub hints: Hints,
    /// AdamW's state as the file has it.
    pub moments: Option<RawMoments>,
    /// Text entries beside the tensors (safetensors alone).
    pub metadata: BTreeMap<String, String>,
    /// What a reader of the result should know.
    pub notes: Vec<String>,
}

/// Options of the run that wrote a checkpoint, out of its `args`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Hints {
    pub decoder_num_heads: Option<usize>,
    pub mask_ratio: Option<f64>,
    pub norm_pix_loss: Option<bool>,
}

impl Foreign {
    /// Reads a file.
    ///
    /// * `with_moments`: whether to read the optimizer's state too, which is twice as large as the model.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Checkpoint`] saying what is wrong with the file.
    pub(super) fn read(path: &Path, format: Format, with_moments: bool) -> Result<Foreign> {
        let mut foreign = match format {
            Format::Pth => read_pth(path, with_moments),
            Format::Safetensors => read_safetensors(path),
            Format::Auto => match looks_like_torch(path)? {
                true => read_pth(path, with_moments),
                false => read_safetensors(path),
            },
        }?;
        for prefix in WRAPPERS {
            if !foreign.tensors.is_empty()
                && foreign
                    .tensors
                    .iter()
                    .all(|(name, _)| name.starts_with(prefix))
            {
                foreign
                    .notes
                    .push(format!("prefix {prefix} taken off every name"));
                for (name, _) in &mut foreign.tensors {
                    name.drain(..prefix.len());
                }
            }
        }
        Ok(foreign)
    }
}

fn looks_like_torch(path: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    let file = fs::File::open(path).map_err(Error::io(path))?;
    file.take(9)
        .read_to_end(&mut magic)
        .map_err(Error::io(path))?;
    // A safetensors file begins with its header's length and an opening brace.
    match magic.as_slice() {
        [.., b'{'] if magic.len() == 9 => Ok(false),
        [b'P', b'K', ..] | [0x80, ..] => Ok(true),
        _ => Err(Error::Checkpoint {
            path: path.to_owned(),
            problem: "neither a PyTorch nor a safetensors file by its first bytes".to_owned(),
        }),
    }
}

fn read_safetensors(path: &Path) -> Result<Foreign> {
    let damaged = |problem: String| Error::Checkpoint {
        path: path.to_owned(),
        problem,
    };
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let (_, header) =
        SafeTensors::read_metadata(&bytes).map_err(|e| damaged(format!("not safetensors: {e}")))?;
    let metadata = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| damaged(format!("not a whole safetensors file: {e}")))?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        let at = |problem: String| damaged(format!("tensor {name}: {problem}"));
        let dtype = match view.dtype() {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::BOOL | Dtype::U8 => DType::U8,
            Dtype::I32 => DType::I32,
            Dtype::I64 => DType::I64,
            other => return Err(at(format!("is {other:?}, expected f16, bf16, f32 or f64"))),
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu);
        let tensor = tensor.map_err(|e| at(e.to_string()))?;
        tensors.push((name.to_owned(), tensor));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Foreign {
        tensors,
        epoch: None,
        hints: Hints::default(),
        moments: None,
        metadata,
        notes: Vec::new(),
    })
}

fn read_pth(path: &Path, with_moments: bool) -> Result<Foreign> {
    let mut file = PthFile::open(path)?;
    let root = file.pickle().root();
    if !matches!(file.pickle().get(root), Value::Dict(_)) {
        return Err(Error::Checkpoint {
            path: path.to_owned(),
            problem: format!(
                "holds {}, expected a dict of tensors or of a checkpoint",
                file.pickle().get(root).kind()
            ),
        });
    }
    let mut notes = Vec::new();
    let nested = MODEL_KEYS.iter().find_map(|key| {
        let id = file.pickle().entry(root, key)?;
        matches!(file.pickle().get(id), Value::Dict(_)).then_some((*key, id))
    });
    let (tensors, others) = file.tensors(nested.map_or(root, |(_, id)| id))?;
    if !others.is_empty() {
        notes.push(format!(
            "entries that are no tensors: {}",
            others.join(", ")
        ));
    }
    if tensors.is_empty() {
        return Err(Error::Checkpoint {
            path: path.to_owned(),
            problem: format!(
                "no tensors under {}, expected a state dict",
                nested.map_or("the root", |(key, _)| key)
            ),
        });
    }
    let pickle = file.pickle();
    let epoch = match pickle.entry(root, "epoch").map(|id| pickle.get(id)) {
        Some(Value::Int(epoch)) => u64::try_from(*epoch).ok(),
        _ => None,
    };
    let hints = pickle
        .entry(root, "args")
        .map(|id| hints(pickle, id))
        .unwrap_or_default();
    let optimizer = pickle
        .entry(root, "optimizer")
        .filter(|_| with_moments && nested.is_some());
    let moments = match optimizer {
        Some(id) => RawMoments::read(&mut file, id).map_err(|problem| Error::Checkpoint {
            path: path.to_owned(),
            problem: format!("optimizer: {problem}"),
        })?,
        None => None,
    };
    Ok(Foreign {
        tensors,
        epoch,
        hints,
        moments,
        metadata: BTreeMap::new(),
        notes,
    })
}

/// Out of an `argparse.Namespace`, whose attributes are in its state, or a dict.
fn hints(pickle: &Pickle, id: Id) -> Hints {
    let id = match pickle.get(id) {
        Value::Call {
            state: Some(state), ..
        } => *state,
        _ => id,
    };
    let get = |name: &str| pickle.entry(id, name).map(|id| pickle.get(id));
    let mask_ratio = match get("masking_ratio").or(get("mask_ratio")) {
        Some(Value::Float(ratio)) => Some(*ratio),
        _ => None,
    };
    let norm_pix_loss = match get("norm_pix_loss") {
        Some(Value::Bool(norm)) => Some(*norm),
        _ => None,
    };
    let decoder_num_heads = pickle
        .entry(id, "decoder_num_heads")
        .and_then(|id| pickle.size(id));
    Hints {
        decoder_num_heads,
        mask_ratio,
        norm_pix_loss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_read_and_not_made() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/odd.pth");
        let foreign = Foreign::read(&path, Format::Auto, true).unwrap();
        assert_eq!(
            foreign.hints,
            Hints {
                decoder_num_heads: Some(2),
                mask_ratio: None,
                norm_pix_loss: None
            }
        );
        assert_eq!(foreign.tensors.len(), 14);
        assert!(foreign.moments.is_none() && foreign.epoch.is_none());
    }
}
