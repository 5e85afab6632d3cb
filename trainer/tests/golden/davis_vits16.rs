//! A whole evaluation with part b's ViT-S/16 on real sequences: J and F as the reference's computation gives them.
//!
//! The numbers come from `benches/propagation/reference.py`, PyTorch 2.9 with timm's encoder, on the same weights and the
//! same frames (`--frames`, `--size`).

use std::path::Path;

use candle_core::Device;
use pipeline::Stop;
use trainer::eval::davis::{self, DavisSettings};
use trainer::eval::encoder::FrozenEncoder;
use trainer::eval::frames::InputSize;
use trainer::eval::run::Video;
use trainer::eval::sampling::Size;
use trainer::eval::video::{Worker, identify};
use trainer::exchange::{self, ExportOptions, ImportOptions, ReadOptions, Target};
use trainer::models::ModelConfig;
use trainer::models::siamese::Siamese;
use trainer::nn::params::Params;

use crate::support::{Report, files, part, shared_data};
use crate::vits16::fill;

/// Height, width, frames of each sequence, and J and F of its objects.
type Case = (
    usize,
    usize,
    usize,
    &'static [(&'static str, &'static [(f64, f64)])],
);

const CASES: [Case; 2] = [
    (
        480,
        880,
        4,
        &[("car-shadow", &[(0.808_102_276, 0.629_212_867)])],
    ),
    (
        240,
        432,
        10,
        &[
            ("car-shadow", &[(0.651_897_476, 0.412_612_917)]),
            ("blackswan", &[(0.749_502_967, 0.622_222_161)]),
            (
                "horsejump-high",
                &[
                    (0.432_292_480, 0.420_760_442),
                    (0.032_118_980, 0.079_118_241),
                ],
            ),
        ],
    ),
];

#[test]
fn davis_with_vits16_scores_as_the_reference() {
    let (Some((_, manifest)), Some(data)) = (part("b_siammae_vits16"), shared_data("davis")) else {
        return;
    };
    let mut report = Report::default();
    let dir = tempfile::tempdir().unwrap();
    let encoder = dir.path().join("encoder.safetensors");
    write_encoder(&manifest, &encoder, &mut report);
    let imported = dir.path().join("imported");
    let exported = dir.path().join("exported");
    exchange::import(&encoder, &ImportOptions::default())
        .unwrap()
        .write(&imported)
        .unwrap();
    let options = ExportOptions {
        to: Target::Torch,
        probe: false,
        ema: false,
    };
    exchange::export(&imported, &exported, &options).unwrap();

    let pth = exported.join("checkpoint.pth");
    // Through the .pth one sequence is enough.
    for (file, cases, n_sequences) in [(&encoder, &CASES[..], 3), (&pth, &CASES[1..], 1)] {
        let read = ReadOptions::default();
        let (encoder, _) = FrozenEncoder::load(file, &read, &Device::Cpu).unwrap();
        for &(height, width, n_frames, sequences) in cases {
            for (name, want) in sequences.iter().take(n_sequences) {
                let got = score(&encoder, &data, name, n_frames, Size { height, width });
                assert_eq!(got.len(), want.len());
                for (i, (got, want)) in got.iter().zip(*want).enumerate() {
                    let what = format!("{} {height}x{width} {name}_{}", file.display(), i + 1);
                    report.number(&format!("{what} J"), got.0, want.0, 1e-4);
                    report.number(&format!("{what} F"), got.1, want.1, 1e-3);
                }
            }
        }
    }
    report.finish("b_siammae_vits16 on data/davis");
}

/// Part b's encoder under timm's names.
fn write_encoder(manifest: &serde_json::Value, path: &Path, report: &mut Report) {
    let mut params = Params::new(0, candle_core::DType::F32, &Device::Cpu);
    Siamese::new(&ModelConfig::default(), &mut params).unwrap();
    let listed = files(manifest);
    let (_, entry) = listed
        .iter()
        .find(|(_, entry)| entry["meta"]["fill_rules"].is_object())
        .expect("part b has rules to fill weights by");
    let mut weights = fill(&params, &entry["meta"], report);
    weights.retain(|name, _| {
        let parts = ["cls_token", "pos_embed", "patch_embed.", "blocks.", "norm."];
        parts.iter().any(|part| name.starts_with(part))
    });
    candle_core::safetensors::save(&weights, path).unwrap();
}

/// J and F of each object over the first frames of a sequence, at the size of the annotations.
fn score(
    encoder: &FrozenEncoder,
    data: &Path,
    name: &str,
    n_frames: usize,
    size: Size,
) -> Vec<(f64, f64)> {
    let found = davis::find(data, "val").unwrap();
    let (_, sequence) = found.into_iter().find(|(found, _)| found == name).unwrap();
    let mut sequence = sequence.unwrap();
    sequence.frames.truncate(n_frames);
    sequence.annotations.truncate(n_frames);
    let mut settings = DavisSettings::default();
    settings.input.size = InputSize::Exactly(size);
    let worker = Worker {
        encoder,
        propagation: &settings.propagation,
        input: &settings.input,
        batch: 4,
        stop: &Stop::new(),
    };
    let id = identify(data, sequence.files()).unwrap();
    let scores = davis::evaluate(&worker, &sequence, id, settings.label_order, None).unwrap();
    scores
        .objects
        .iter()
        .map(|object| (object.original.j.mean, object.original.f.mean))
        .collect()
}
