//! Part j of the golden numerics: a checkpoint of the reference, and its tensors as safetensors.
//!
//! Reads the folder `j_checkpoint` in `PAIRQUET_GOLDEN_DIR` by its `manifest.json` and runs every case listed there: each
//! `<name>.pth` is imported and compared bit by bit with `<name>.twin.safetensors`. A file that is neither fails the
//! test. Absent folders are skipped aloud.

// The helpers of a test may fail as the test itself may.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;
use trainer::exchange::{
    ExportOptions, ImportOptions, Imported, Target, checkpoint_info, export, import,
};

const PART: &str = "j_checkpoint";

/// The folder of the part, if it is there.
fn part() -> Option<PathBuf> {
    let shared = std::env::var("PAIRQUET_SHARED_DIR")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared").to_owned());
    let golden =
        std::env::var("PAIRQUET_GOLDEN_DIR").unwrap_or_else(|_| format!("{shared}/golden"));
    let dir = Path::new(&golden).join(PART);
    if !dir.join("manifest.json").is_file() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no {} there",
            dir.join("manifest.json").display()
        );
        return None;
    }
    Some(dir)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

/// Names of tensors in the twin that a check has compared.
type Compared = BTreeSet<String>;

#[test]
fn every_checkpoint_of_the_part_is_imported_exactly() {
    let Some(dir) = part() else { return };
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let files: BTreeMap<&str, &Value> = manifest["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (file["file"].as_str().unwrap(), file))
        .collect();
    let mut n_cases = 0;
    for &name in files.keys() {
        if let Some(stem) = name.strip_suffix(".pth") {
            let twin = format!("{stem}.twin.safetensors");
            let entry = files
                .get(twin.as_str())
                .unwrap_or_else(|| panic!("{name} has no {twin} in the manifest"));
            run_case(&dir, name, &twin, entry);
            n_cases += 1;
        } else {
            let stem = name.strip_suffix(".twin.safetensors");
            let stem = stem.unwrap_or_else(|| {
                panic!("the manifest has {name}, which this test does not understand")
            });
            assert!(
                files.contains_key(format!("{stem}.pth").as_str()),
                "{name} has no {stem}.pth in the manifest"
            );
        }
    }
    assert!(n_cases > 0, "the manifest lists no checkpoint");
    let _ = writeln!(std::io::stderr(), "{PART}: {n_cases} cases");
}

fn run_case(dir: &Path, name: &str, twin_name: &str, entry: &Value) {
    let meta = &entry["meta"];
    let config = &meta["config"];
    let size = |key: &str| config[key].as_u64().map(|n| n as usize);
    let options = ImportOptions {
        num_heads: size("num_heads"),
        // the decoder's heads are in the file's own args
        ..Default::default()
    };
    let imported = import(&dir.join(name), &options).unwrap();

    for (key, value) in config.as_object().unwrap() {
        let got = serde_json::to_value(&imported.model).unwrap()[key].clone();
        assert_eq!(&got, value, "{name}: {key}");
    }
    assert_eq!(imported.epoch, meta["epoch"].as_u64(), "{name}: epoch");
    if let Some(norm_pix_loss) = meta["args"]["norm_pix_loss"].as_bool() {
        assert_eq!(
            imported.model.norm_pix_loss, norm_pix_loss,
            "{name}: norm_pix_loss"
        );
    }

    let twin = candle_core::safetensors::load(dir.join(twin_name), &Device::Cpu).unwrap();
    let mut compared = Compared::new();
    compare_model(name, &imported, &twin, &mut compared);
    if meta["optimizer_param_order"].is_array() {
        compare_moments(name, &imported, &twin, meta, &mut compared);
    }
    let forgotten: Vec<&String> = twin.keys().filter(|key| !compared.contains(*key)).collect();
    assert!(
        forgotten.is_empty(),
        "{name}: this test does not understand {forgotten:?}"
    );
    let listed: BTreeSet<&String> = entry["tensors"].as_object().unwrap().keys().collect();
    assert_eq!(
        listed,
        twin.keys().collect(),
        "{name}: the manifest's list of tensors"
    );
    moves_on(name, &imported);
    let _ = writeln!(
        std::io::stderr(),
        "{name}: {} tensors equal; {}",
        compared.len(),
        imported.notes.join("; ")
    );
}

fn compare_model(
    name: &str,
    imported: &Imported,
    twin: &std::collections::HashMap<String, Tensor>,
    compared: &mut Compared,
) {
    let tensors = imported.tensors();
    for (key, expected) in twin {
        let Some(parameter) = key.strip_prefix("model.") else {
            continue;
        };
        let got = tensors
            .get(parameter)
            .unwrap_or_else(|| panic!("{name}: {parameter} was not imported"));
        assert_eq!(got.dims(), expected.dims(), "{name}: {parameter}");
        assert_eq!(bits(got), bits(expected), "{name}: {parameter}");
        compared.insert(key.clone());
    }
    assert_eq!(
        compared.len(),
        tensors.len(),
        "{name}: parameters that the twin does not have"
    );
}

fn compare_moments(
    name: &str,
    imported: &Imported,
    twin: &std::collections::HashMap<String, Tensor>,
    meta: &Value,
    compared: &mut Compared,
) {
    let state = imported
        .optimizer
        .as_ref()
        .unwrap_or_else(|| panic!("{name}: {:?}", imported.notes));
    let order = meta["optimizer_param_order"].as_array().unwrap();
    assert_eq!(state.exp_avg.len(), order.len(), "{name}");
    for (number, parameter) in order.iter().enumerate() {
        let parameter = parameter.as_str().unwrap();
        for (kind, moments) in [
            ("exp_avg", &state.exp_avg),
            ("exp_avg_sq", &state.exp_avg_sq),
        ] {
            let key = format!("optimizer.{number}.{kind}");
            assert_eq!(
                moments[parameter].dims(),
                twin[&key].dims(),
                "{name}: {key}"
            );
            assert_eq!(
                bits(&moments[parameter]),
                bits(&twin[&key]),
                "{name}: {key}"
            );
            compared.insert(key);
        }
        let key = format!("optimizer.{number}.step");
        assert_eq!(
            twin[&key].to_scalar::<f32>().unwrap() as u64,
            state.steps,
            "{name}: {key}"
        );
        compared.insert(key);
    }
}

/// The imported checkpoint as a folder, and exported in every format.
fn moves_on(name: &str, imported: &Imported) {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = root.path().join("imported");
    imported.write(&checkpoint).unwrap();
    assert_eq!(checkpoint_info(&checkpoint).unwrap().model, imported.model);
    for to in [Target::Timm, Target::Torch, Target::HuggingFace] {
        let dst = root.path().join(format!("{to:?}"));
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
        let back = import(&dst.join("model.safetensors"), &ImportOptions::default()).unwrap();
        assert_eq!(back.model, imported.model, "{name} {to:?}");
        let (before, after) = (imported.tensors(), back.tensors());
        for (parameter, tensor) in &before {
            if !report.left_out.contains(parameter) {
                assert_eq!(
                    bits(tensor),
                    bits(&after[parameter]),
                    "{name} {to:?}: {parameter}"
                );
            }
        }
    }
}
