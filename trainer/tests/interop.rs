//! Exports in the hands of timm, PyTorch and transformers, and what these write, back here.
//!
//! Needs a Python with the packages of `tests/interop/requirements-torch.txt`, named by `PAIRQUET_INTEROP_PYTHON`;
//! without it the test is skipped aloud.

// The helpers of a test may fail as the test itself may.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use trainer::exchange::{ExportOptions, ImportOptions, Target, export, import};
use trainer::models::{self, EncoderPreset, ModelConfig, ModelKind};
use trainer::nn::params::Params;

/// Exit status of the script when a package is missing.
const MISSING_PACKAGES: i32 = 77;

/// Parameters of which none is zero or one throughout, so that none could be lost unseen.
fn uneven_parameters(config: &ModelConfig) -> HashMap<String, Tensor> {
    let mut params = Params::new(5, DType::F32, &Device::Cpu);
    models::build(config, &mut params).unwrap();
    let uneven = |(i, tensor): (usize, &Tensor)| {
        let n = tensor.elem_count();
        let noise: Vec<f32> = (0..n)
            .map(|j| ((i * 131 + j * 71) % 997) as f32 / 997.0 * 0.1 - 0.05)
            .collect();
        (tensor + Tensor::from_vec(noise, tensor.shape(), &Device::Cpu).unwrap()).unwrap()
    };
    params
        .iter()
        .enumerate()
        .map(|(i, p)| (p.name.clone(), uneven((i, p.var.as_tensor()))))
        .collect()
}

fn odd_mae() -> ModelConfig {
    ModelConfig {
        kind: ModelKind::Mae,
        img_size: Some(56),
        patch_size: Some(14),
        embed_dim: Some(48),
        depth: Some(3),
        num_heads: Some(3),
        decoder_embed_dim: Some(32),
        decoder_depth: Some(2),
        decoder_num_heads: Some(4),
        ..Default::default()
    }
}

#[test]
fn other_programs_load_exports_and_give_the_same_features() {
    let Ok(python) = std::env::var("PAIRQUET_INTEROP_PYTHON") else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: PAIRQUET_INTEROP_PYTHON names no Python with timm, torch and transformers"
        );
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let multi_view = ModelConfig {
        kind: ModelKind::MultiView,
        encoder: EncoderPreset::VitTi16,
        ..Default::default()
    };
    let mut exports = Vec::new();
    for (name, config) in [
        ("siamese", ModelConfig::default()),
        ("mae", odd_mae()),
        ("multi_view", multi_view),
    ] {
        let config = config.resolved(config.sizes().img_size).unwrap();
        let parameters = uneven_parameters(&config);
        let file = root.path().join(format!("{name}.safetensors"));
        candle_core::safetensors::save(&parameters, &file).unwrap();
        let sizes = config.sizes();
        let options = ImportOptions {
            num_heads: Some(sizes.num_heads),
            decoder_num_heads: Some(sizes.decoder_num_heads),
            ..Default::default()
        };
        let checkpoint = root.path().join(format!("{name}.checkpoint"));
        import(&file, &options).unwrap().write(&checkpoint).unwrap();
        for to in [Target::Timm, Target::Torch, Target::HuggingFace] {
            let dst = root.path().join(format!("{name}-{to:?}"));
            let report = export(
                &checkpoint,
                &dst,
                &ExportOptions {
                    to,
                    probe: true,
                    ema: false,
                },
            )
            .unwrap();
            exports.push((dst, report, options.clone(), parameters.clone()));
        }
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interop/export_check.py");
    let output = Command::new(python)
        .arg(script)
        .args(exports.iter().map(|(dst, ..)| dst))
        .output()
        .unwrap();
    let _ = writeln!(
        std::io::stderr(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    if output.status.code() == Some(MISSING_PACKAGES) {
        return;
    }
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let mut n_back = 0;
    for (dst, report, options, parameters) in &exports {
        let back = dst.with_file_name(format!(
            "{}.back",
            dst.file_name().unwrap().to_string_lossy()
        ));
        for file in ["timm.pth", "ddp.pth", "hf/model.safetensors"].map(|name| back.join(name)) {
            if !file.is_file() {
                continue;
            }
            let kind = Some(report.model.kind);
            let imported = import(
                &file,
                &ImportOptions {
                    kind,
                    ..options.clone()
                },
            )
            .unwrap();
            let tensors: BTreeMap<String, Tensor> = imported.tensors();
            for (name, expected) in parameters
                .iter()
                .filter(|(name, _)| !report.left_out.contains(name))
            {
                let bits = |t: &Tensor| -> Vec<u32> {
                    t.flatten_all()
                        .unwrap()
                        .to_vec1::<f32>()
                        .unwrap()
                        .into_iter()
                        .map(f32::to_bits)
                        .collect()
                };
                assert!(
                    bits(expected) == bits(&tensors[name]),
                    "{}: {name}",
                    file.display()
                );
            }
            n_back += 1;
        }
    }
    assert_eq!(n_back, exports.len());
    let _ = writeln!(
        std::io::stderr(),
        "{n_back} files that other programs wrote came back bit by bit"
    );
}
