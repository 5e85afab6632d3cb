//! From a checkpoint folder to files that other programs load.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use serde_json::json;

use super::folder::{self, CheckpointInfo, NewFolder, model_to_toml, write_json};
use super::foreign::{Foreign, Format};
use super::import::{EPOCH_KEY, MODEL_KEY};
use super::names::{Tensors, is_encoder, to_hugging_face};
use super::{NORMALISATION, probe, sha256_of, torch_file};
use crate::checkpoint::{EMA_FILE, MODEL_FILE, write_tensors};
use crate::error::{Error, Result};
use crate::models::{ModelConfig, ModelKind};

/// What was exported, from what, with which files: JSON.
pub const CARD_FILE: &str = "card.json";
/// A fixed input and the encoder's features for it, to check another program by.
pub const PROBE_FILE: &str = "probe.safetensors";
/// Hugging Face's description of the model.
const CONFIG_FILE: &str = "config.json";

/// Whose names and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// timm's `VisionTransformer`: the encoder in one safetensors file. Load it with `num_classes=0`.
    Timm,
    /// The reference's names, the whole model: a safetensors file, and a `.pth` with `model` and `epoch` that the
    /// reference's loaders and `torch.load(.., weights_only=True)` read. It has no optimizer in it.
    Torch,
    /// Hugging Face: `ViTMAEForPreTraining` for MAE, whole; `ViTModel` with the encoder for the other methods, whose
    /// decoders that library does not have. With `config.json`.
    HuggingFace,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Target::Timm => "timm",
            Target::Torch => "torch",
            Target::HuggingFace => "hf",
        }
    }
}

/// What to write.
#[derive(Debug, Clone, Copy)]
pub struct ExportOptions {
    /// Whose names and files.
    pub to: Target,
    /// Whether to add [`PROBE_FILE`].
    pub probe: bool,
    /// Whether to take the running mean of the weights (`optim.ema_decay`) in place of the weights.
    pub ema: bool,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedFile {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of all of it, in hexadecimal.
    pub sha256: String,
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportReport {
    /// The model.
    pub model: ModelConfig,
    /// The files, the card left out.
    pub files: Vec<ExportedFile>,
    /// Tensors in the model's file.
    pub n_tensors: usize,
    /// Values in these tensors.
    pub n_values: usize,
    /// Parameters of the checkpoint that the target has no place for.
    pub left_out: Vec<String>,
}

/// Writes a checkpoint to the new folder `dst`, which appears when it is whole. Bytes depend on the checkpoint and the
/// options alone.
///
/// * `checkpoint_dir`: a checkpoint's folder, a run's or an imported one, or a run's folder for its newest.
///
/// # Errors
/// [`Error::Checkpoint`] if the checkpoint cannot be read, has no running mean where that is asked for, or `dst` is there
/// already and not empty; [`Error::Io`].
pub fn export(checkpoint_dir: &Path, dst: &Path, options: &ExportOptions) -> Result<ExportReport> {
    let (dir, info) = folder::open(checkpoint_dir)?;
    let file = if options.ema { EMA_FILE } else { MODEL_FILE };
    let source = dir.join(file);
    if !source.is_file() {
        let problem = format!("has no {file}, expected a run with optim.ema_decay");
        return Err(Error::Checkpoint { path: dir, problem });
    }
    let (source_sha256, _) = sha256_of(&source)?;
    let whole: Tensors = Foreign::read(&source, Format::Safetensors, false)?
        .tensors
        .into_iter()
        .collect();
    let whole_kept = match options.to {
        Target::Torch => true,
        Target::HuggingFace => info.model.kind == ModelKind::Mae,
        Target::Timm => false,
    };
    let (kept, left): (Tensors, Tensors) = whole
        .into_iter()
        .partition(|(name, _)| whole_kept || is_encoder(name));
    let renamed = if options.to == Target::HuggingFace {
        to_hugging_face(&kept)?
    } else {
        kept.clone()
    };

    let folder = NewFolder::create(dst)?;
    write_tensors(&folder.path(MODEL_FILE), &renamed, &metadata(&info)?)?;
    let mut names = vec![MODEL_FILE.to_owned()];
    match options.to {
        Target::Timm => {}
        Target::Torch => {
            // the reference's name; its loaders read the epoch from the file
            let name = match info.epoch {
                Some(epoch) => format!("checkpoint-{epoch}.pth"),
                None => "checkpoint.pth".to_owned(),
            };
            let tensors = renamed.iter().map(|(name, tensor)| (name.as_str(), tensor));
            torch_file::write(&folder.path(&name), tensors, info.epoch)?;
            names.push(name);
        }
        Target::HuggingFace => {
            write_json(&folder.path(CONFIG_FILE), &hugging_face_config(&info.model))?;
            names.push(CONFIG_FILE.to_owned());
        }
    }
    if options.probe {
        let probe = probe::probe(&info.model, &kept, &Device::Cpu)?;
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write_tensors(&folder.path(PROBE_FILE), &probe, &metadata)?;
        names.push(PROBE_FILE.to_owned());
    }
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        let (sha256, bytes) = sha256_of(&folder.path(&name))?;
        files.push(ExportedFile {
            name,
            bytes,
            sha256,
        });
    }
    let report = ExportReport {
        model: info.model.clone(),
        files,
        n_tensors: renamed.len(),
        n_values: renamed.values().map(|tensor| tensor.elem_count()).sum(),
        left_out: left.into_keys().collect(),
    };
    write_json(
        &folder.path(CARD_FILE),
        &card(&info, (file, &source_sha256), options.to, &report)?,
    )?;
    folder.commit()?;
    Ok(report)
}

/// `format: pt` is what Hugging Face's reader asks for; the rest lets an import know what no tensor tells.
fn metadata(info: &CheckpointInfo) -> Result<BTreeMap<String, String>> {
    let mut metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        (MODEL_KEY.to_owned(), model_to_toml(&info.model)?),
    ]);
    if let Some(epoch) = info.epoch {
        metadata.insert(EPOCH_KEY.to_owned(), epoch.to_string());
    }
    Ok(metadata)
}

fn model_json(model: &ModelConfig) -> Result<serde_json::Value> {
    serde_json::to_value(model).map_err(|source| Error::Json {
        path: CARD_FILE.into(),
        source,
    })
}

fn card(
    info: &CheckpointInfo,
    (file, sha256): (&str, &str),
    to: Target,
    report: &ExportReport,
) -> Result<serde_json::Value> {
    let files: Vec<_> = report
        .files
        .iter()
        .map(|f| json!({"name": f.name, "bytes": f.bytes, "sha256": f.sha256}))
        .collect();
    let imported_from = info
        .source
        .as_ref()
        .map(|s| json!({"file": s.file, "bytes": s.bytes, "sha256": s.sha256}));
    Ok(json!({
        "format": to.name(),
        "program": format!("pairquet {}", env!("CARGO_PKG_VERSION")),
        "checkpoint": {
            "file": file,
            "model_sha256": sha256,
            "epoch": info.epoch,
            "step": info.step,
            "imported_from": imported_from,
        },
        "model": model_json(&info.model)?,
        "normalisation": {"mean": NORMALISATION.0, "std": NORMALISATION.1},
        "files": files,
        "tensors": report.n_tensors,
        "values": report.n_values,
        "left_out": report.left_out,
    }))
}

/// `config.json`. Heads and norms are written out: the library's defaults are those of other models (its ViT has an
/// epsilon of 1e-12, ours and timm's is 1e-6).
fn hugging_face_config(model: &ModelConfig) -> serde_json::Value {
    let sizes = model.sizes();
    let mut config = json!({
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": sizes.embed_dim,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": 4 * sizes.embed_dim,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "image_size": sizes.img_size,
        "patch_size": sizes.patch_size,
        "num_channels": 3,
        "qkv_bias": true,
        "torch_dtype": "float32",
    });
    if model.kind == ModelKind::Mae {
        config["architectures"] = json!(["ViTMAEForPreTraining"]);
        config["model_type"] = json!("vit_mae");
        config["decoder_hidden_size"] = json!(sizes.decoder_embed_dim);
        config["decoder_num_hidden_layers"] = json!(sizes.decoder_depth);
        config["decoder_num_attention_heads"] = json!(sizes.decoder_num_heads);
        config["decoder_intermediate_size"] = json!(4 * sizes.decoder_embed_dim);
        config["mask_ratio"] = json!(sizes.mask_ratio);
        config["norm_pix_loss"] = json!(model.norm_pix_loss);
    }
    config
}
