//! Small models in the files of other programs, for the importers.

use std::path::Path;
use std::sync::OnceLock;

use candle_core::{DType, Device};
use serde_json::{Map, json};
use trainer::exchange::{ExportOptions, ImportOptions, Target, export, import};
use trainer::models::{self, ModelConfig, ModelKind};
use trainer::nn::params::Params;

use crate::made;

/// What [`files`] made.
#[derive(Default)]
pub(super) struct Files {
    pub(super) safetensors: Vec<Vec<u8>>,
    pub(super) pth: Vec<Vec<u8>>,
}

/// A model of each of two methods, exported in every form.
pub(super) fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let mut files = Files::default();
        for kind in [ModelKind::Siamese, ModelKind::Mae] {
            let dir = made(tempfile::tempdir());
            let start = dir.path().join("start.safetensors");
            made(std::fs::write(&start, safetensors(&tiny(kind))));
            let checkpoint = dir.path().join("checkpoint");
            made(made(import(&start, &given_heads())).write(&checkpoint));
            for to in [Target::Timm, Target::Torch, Target::HuggingFace] {
                let folder = dir.path().join(format!("{to:?}"));
                let (probe, ema) = (false, false);
                let options = ExportOptions { to, probe, ema };
                made(export(&checkpoint, &folder, &options));
                add(&folder, &mut files);
            }
        }
        files
    })
}

/// What no tensor tells.
pub(super) fn given_heads() -> ImportOptions {
    ImportOptions {
        num_heads: Some(2),
        decoder_num_heads: Some(2),
        ..ImportOptions::default()
    }
}

fn add(folder: &Path, files: &mut Files) {
    for file in made(std::fs::read_dir(folder)) {
        let path = made(file).path();
        let into = match path.extension().and_then(|ending| ending.to_str()) {
            Some("safetensors") => &mut files.safetensors,
            Some("pth") => &mut files.pth,
            _ => continue,
        };
        into.push(made(std::fs::read(&path)));
    }
}

/// A model so small that its files are.
fn tiny(kind: ModelKind) -> ModelConfig {
    let config = ModelConfig {
        kind,
        img_size: Some(8),
        patch_size: Some(4),
        embed_dim: Some(8),
        depth: Some(1),
        num_heads: Some(2),
        decoder_embed_dim: Some(8),
        decoder_depth: Some(1),
        decoder_num_heads: Some(2),
        mask_ratio: Some(0.5),
        ..ModelConfig::default()
    };
    made(config.resolved(8))
}

/// Its parameters: a header's length, the header, and the values.
fn safetensors(config: &ModelConfig) -> Vec<u8> {
    let mut params = Params::new(0, DType::F32, &Device::Cpu);
    made(models::build(config, &mut params));
    let (mut header, mut values) = (Map::new(), Vec::new());
    for param in params.iter() {
        let start = values.len();
        let tensor = made(param.var.flatten_all());
        let numbers = made(tensor.to_vec1::<f32>());
        values.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let place = json!({
            "dtype": "F32", "shape": param.var.dims(), "data_offsets": [start, values.len()],
        });
        header.insert(param.name.clone(), place);
    }
    let header = serde_json::Value::from(header).to_string().into_bytes();
    let length = (header.len() as u64).to_le_bytes();
    [length.as_slice(), &header, &values].concat()
}
