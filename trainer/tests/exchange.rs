//! Checkpoints there and back: every method and format, bit by bit, and what must not be passed over.

// The helpers of a test may fail as the test itself may.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use pipeline::loader::LoaderState;
use trainer::TrainConfig;
use trainer::checkpoint::{Checkpoints, Keep, LossBits, State};
use trainer::exchange::{
    CARD_FILE, ExportOptions, Format, IMPORT_FILE, ImportOptions, Imported, PROBE_FILE, Target,
    checkpoint_info, export, import, start_from,
};
use trainer::models::{self, ModelConfig, ModelKind};
use trainer::nn::params::Params;
use trainer::optim::{AdamW, AdamWOptions, param_groups};

fn tiny(kind: ModelKind) -> ModelConfig {
    let mut config = ModelConfig {
        kind,
        img_size: Some(32),
        patch_size: Some(8),
        embed_dim: Some(24),
        depth: Some(2),
        num_heads: Some(3),
        decoder_embed_dim: Some(16),
        decoder_depth: Some(2),
        decoder_num_heads: Some(2),
        // a float that JSON alone would not bring back
        mask_ratio: Some(0.723_456_789_012_345_7),
        ..Default::default()
    };
    config.contrastive.projector_hidden_dim = 20;
    config.contrastive.projector_dim = 12;
    config.contrastive.predictor = true;
    config.resolved(32).unwrap()
}

/// The contrastive loss alone, with a momentum branch.
fn moco() -> ModelConfig {
    let mut config = ModelConfig {
        reconstruction_weight: 0.0,
        mask_ratio: Some(0.0),
        ..tiny(ModelKind::MultiView)
    };
    config.contrastive.momentum = Some(0.99);
    config
}

type Tensors = BTreeMap<String, Tensor>;

fn parameters(config: &ModelConfig, seed: u64) -> Tensors {
    let mut params = Params::new(seed, DType::F32, &Device::Cpu);
    models::build(config, &mut params).unwrap();
    params
        .iter()
        .map(|param| (param.name.clone(), param.var.as_tensor().clone()))
        .collect()
}

fn save(tensors: &Tensors, path: &Path) {
    let tensors: std::collections::HashMap<_, _> = tensors.clone().into_iter().collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn heads() -> ImportOptions {
    ImportOptions {
        num_heads: Some(3),
        decoder_num_heads: Some(2),
        ..Default::default()
    }
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

fn assert_same(expected: &Tensors, got: &Tensors, left_out: &[String]) {
    for (name, tensor) in expected.iter().filter(|(name, _)| !left_out.contains(name)) {
        assert_eq!(tensor.dims(), got[name].dims(), "{name}");
        assert_eq!(bits(tensor), bits(&got[name]), "{name}");
    }
}

/// A checkpoint folder with a tiny model, imported from its own parameters.
fn checkpoint(root: &Path, kind: ModelKind) -> (PathBuf, Tensors, Imported) {
    let tensors = parameters(&tiny(kind), 7);
    let file = root.join("own.safetensors");
    save(&tensors, &file);
    let imported = import(&file, &heads()).unwrap();
    let dir = root.join("checkpoint");
    imported.write(&dir).unwrap();
    (dir, tensors, imported)
}

#[test]
fn every_format_comes_back_bit_by_bit() {
    for kind in [ModelKind::Siamese, ModelKind::Mae, ModelKind::MultiView] {
        let root = tempfile::tempdir().unwrap();
        let (dir, tensors, imported) = checkpoint(root.path(), kind);
        assert_eq!(imported.model.kind, kind);
        // no tensor tells the ratio
        let expected = ModelConfig {
            mask_ratio: imported.model.mask_ratio,
            ..tiny(kind)
        };
        assert_eq!(imported.model.sizes(), expected.sizes());
        assert_same(&tensors, &imported.tensors(), &[]);
        assert_eq!(checkpoint_info(&dir).unwrap().model, imported.model);
        for to in [Target::Timm, Target::Torch, Target::HuggingFace] {
            let dst = root.path().join(format!("{to:?}"));
            let report = export(
                &dir,
                &dst,
                &ExportOptions {
                    to,
                    probe: true,
                    ema: false,
                },
            )
            .unwrap();
            let whole = to == Target::Torch || to == Target::HuggingFace && kind == ModelKind::Mae;
            assert_eq!(report.left_out.is_empty(), whole, "{kind:?} {to:?}");
            for file in report
                .files
                .iter()
                .filter(|f| f.name != PROBE_FILE && !f.name.ends_with(".json"))
            {
                // the .pth carries no configuration, so its heads have to be told
                let back = import(&dst.join(&file.name), &heads()).unwrap();
                assert_same(&tensors, &back.tensors(), &report.left_out);
                assert_eq!(back.model.kind, kind);
                assert_eq!(back.tensors().len(), tensors.len());
            }
            let own = import(&dst.join("model.safetensors"), &ImportOptions::default()).unwrap();
            assert_eq!(
                own.model, imported.model,
                "{kind:?} {to:?}: the configuration comes along"
            );
        }
    }
}

#[test]
fn a_model_without_a_decoder_comes_back_with_its_momentum_branch() {
    let root = tempfile::tempdir().unwrap();
    let mut tensors = parameters(&moco(), 7);
    let slow = tensors.get_mut("momentum.norm.weight").unwrap();
    *slow = (&*slow * 2.0).unwrap(); // it lags behind what it follows
    let file = root.path().join("own.safetensors");
    save(&tensors, &file);
    let imported = import(&file, &heads()).unwrap();
    let no_ratio = |model: &ModelConfig| ModelConfig {
        mask_ratio: None,
        ..model.clone()
    };
    assert_eq!(imported.model.reconstruction_weight, 0.0);
    assert_eq!(imported.model.contrastive, moco().contrastive);
    assert_same(&tensors, &imported.tensors(), &[]);
    let dir = root.path().join("checkpoint");
    imported.write(&dir).unwrap();
    for to in [Target::Timm, Target::Torch] {
        let dst = root.path().join(format!("{to:?}"));
        let report = export(
            &dir,
            &dst,
            &ExportOptions {
                to,
                probe: true,
                ema: false,
            },
        )
        .unwrap();
        let back = import(&dst.join("model.safetensors"), &ImportOptions::default()).unwrap();
        assert_eq!(no_ratio(&back.model), no_ratio(&imported.model));
        assert_same(&tensors, &back.tensors(), &report.left_out);
        if to == Target::Timm {
            // only the encoder came along: the branch begins where the encoder stands
            let got = back.tensors();
            assert_eq!(
                bits(&got["momentum.norm.weight"]),
                bits(&tensors["norm.weight"])
            );
        }
    }
}

#[test]
fn exports_are_reproducible_and_carded() {
    let root = tempfile::tempdir().unwrap();
    let (dir, ..) = checkpoint(root.path(), ModelKind::Mae);
    let [a, b] = ["a", "b"].map(|name| {
        let dst = root.path().join(name);
        let report = export(
            &dir,
            &dst,
            &ExportOptions {
                to: Target::Torch,
                probe: false,
                ema: false,
            },
        )
        .unwrap();
        for file in &report.files {
            assert_eq!(
                std::fs::metadata(dst.join(&file.name)).unwrap().len(),
                file.bytes
            );
        }
        (report.files, std::fs::read(dst.join(CARD_FILE)).unwrap())
    });
    assert_eq!(a, b);
    let card: serde_json::Value = serde_json::from_slice(&a.1).unwrap();
    assert_eq!(card["model"]["embed_dim"], 24);
    assert_eq!(card["format"], "torch");
    assert_eq!(card["files"].as_array().unwrap().len(), 2);
    assert_eq!(
        card["checkpoint"]["imported_from"]["file"],
        "own.safetensors"
    );
    let again = export(
        &dir,
        &root.path().join("a"),
        &ExportOptions {
            to: Target::Timm,
            probe: false,
            ema: false,
        },
    );
    assert!(again.unwrap_err().to_string().contains("is there already"));
    assert!(dir.join(IMPORT_FILE).is_file());
}

#[test]
fn the_encoder_alone_needs_no_permission_and_the_rest_does() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("vit.safetensors");
    let mut tensors = parameters(&tiny(ModelKind::Mae), 7);
    tensors.retain(|name, _| !name.contains("decoder") && name != "mask_token");
    let head = Tensor::zeros((10, 24), DType::F32, &Device::Cpu).unwrap();
    tensors.insert("head.weight".to_owned(), head.clone());
    save(&tensors, &file);
    let imported = import(&file, &heads()).unwrap();
    assert_eq!(imported.model.kind, ModelKind::Siamese);
    assert!(
        imported
            .notes
            .iter()
            .any(|note| note.contains("head.weight")),
        "{:?}",
        imported.notes
    );
    assert!(
        imported
            .notes
            .iter()
            .any(|note| note.contains("encoder alone")),
        "{:?}",
        imported.notes
    );
    let mae = import(
        &file,
        &ImportOptions {
            kind: Some(ModelKind::Mae),
            ..heads()
        },
    )
    .unwrap();
    assert_eq!(mae.model.kind, ModelKind::Mae);
    tensors.remove("head.weight");
    assert_same(&tensors, &mae.tensors(), &[]);

    let lost = tensors.remove("blocks.1.mlp.fc1.bias").unwrap();
    tensors.insert("blocks.1.ls1.gamma".to_owned(), head);
    save(&tensors, &file);
    let message = import(&file, &heads()).unwrap_err().to_string();
    assert!(
        message.contains("missing: blocks.1.mlp.fc1.bias"),
        "{message}"
    );
    assert!(
        message.contains("unexpected: blocks.1.ls1.gamma"),
        "{message}"
    );
    let allowed = import(
        &file,
        &ImportOptions {
            allow_missing: true,
            ..heads()
        },
    )
    .unwrap();
    assert!(
        allowed
            .notes
            .iter()
            .any(|note| note.contains("blocks.1.mlp.fc1.bias")),
        "{:?}",
        allowed.notes
    );

    let wrong = Tensor::cat(&[&lost, &lost], 0).unwrap();
    tensors.insert("blocks.1.mlp.fc1.bias".to_owned(), wrong);
    save(&tensors, &file);
    let message = import(
        &file,
        &ImportOptions {
            allow_missing: true,
            ..heads()
        },
    )
    .unwrap_err()
    .to_string();
    assert!(
        message.contains("blocks.1.mlp.fc1.bias is [192], expected [96]"),
        "{message}"
    );
}

#[test]
fn prefixes_half_precision_and_unknown_heads() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("ddp.safetensors");
    let tensors = parameters(&tiny(ModelKind::Siamese), 7);
    let halves: Tensors = tensors
        .iter()
        .map(|(name, tensor)| {
            (
                format!("module.{name}"),
                tensor.to_dtype(DType::F16).unwrap(),
            )
        })
        .collect();
    save(&halves, &file);
    let message = import(&file, &ImportOptions::default())
        .unwrap_err()
        .to_string();
    assert!(message.contains("give num_heads"), "{message}");
    let message = import(
        &file,
        &ImportOptions {
            num_heads: Some(5),
            ..heads()
        },
    )
    .unwrap_err()
    .to_string();
    assert!(message.contains("num_heads is 5"), "{message}");
    let imported = import(&file, &heads()).unwrap();
    let rounded: Tensors = halves
        .iter()
        .map(|(name, tensor)| {
            (
                name["module.".len()..].to_owned(),
                tensor.to_dtype(DType::F32).unwrap(),
            )
        })
        .collect();
    assert_same(&rounded, &imported.tensors(), &[]);
    assert!(
        imported.notes.iter().any(|note| note.contains("f16")),
        "{:?}",
        imported.notes
    );
    let message = import(
        &file,
        &ImportOptions {
            kind: Some(ModelKind::Mae),
            ..heads()
        },
    )
    .unwrap_err()
    .to_string();
    assert!(message.contains("expected Siamese"), "{message}");
}

#[test]
fn foreign_files_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x");
    assert!(import(&file, &heads()).is_err());
    let tensors = parameters(&tiny(ModelKind::Mae), 7);
    save(&tensors, &file);
    let whole = std::fs::read(&file).unwrap();
    let mut broken: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"PK".to_vec(),
        vec![0x80],
        b"hello, world".to_vec(),
    ];
    broken.extend([4, 9, 40, whole.len() / 2, whole.len() - 1].map(|n| whole[..n].to_vec()));
    for bytes in broken {
        std::fs::write(&file, &bytes).unwrap();
        for from in [Format::Auto, Format::Pth, Format::Safetensors] {
            assert!(
                import(&file, &ImportOptions { from, ..heads() }).is_err(),
                "{} bytes as {from:?}",
                bytes.len()
            );
        }
    }
    // sizes that no model has
    for (name, shape) in [
        ("patch_embed.proj.weight", vec![24, 4, 8, 8]),
        ("pos_embed", vec![1, 16, 24]),
        ("blocks.0.attn.qkv.weight", vec![71, 24]),
        ("decoder_embed.weight", vec![0, 24]),
    ] {
        let mut tensors = tensors.clone();
        tensors.insert(
            name.to_owned(),
            Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap(),
        );
        save(&tensors, &file);
        let message = import(&file, &heads()).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn a_configuration_in_the_file_is_not_believed() {
    let root = tempfile::tempdir().unwrap();
    let (dir, ..) = checkpoint(root.path(), ModelKind::Mae);
    let dst = root.path().join("timm");
    export(
        &dir,
        &dst,
        &ExportOptions {
            to: Target::Timm,
            probe: false,
            ema: false,
        },
    )
    .unwrap();
    let whole = std::fs::read(dst.join("model.safetensors")).unwrap();
    let n = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&whole[8..n]).unwrap();
    let model: toml::Table = header["__metadata__"]["pairquet.model"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let file = root.path().join("x.safetensors");
    let import_with = |key: &str, value: toml::Value| {
        let (mut header, mut model) = (header.clone(), model.clone());
        model.insert(key.to_owned(), value);
        header["__metadata__"]["pairquet.model"] = model.to_string().into();
        let header = header.to_string().into_bytes();
        let bytes = [
            &(header.len() as u64).to_le_bytes(),
            header.as_slice(),
            &whole[n..],
        ]
        .concat();
        std::fs::write(&file, bytes).unwrap();
        import(&file, &ImportOptions::default())
    };
    assert!(import_with("depth", 2.into()).is_ok());
    for (key, text) in [
        ("depth", "9"),
        ("depth", "-1"),
        ("patch_size", "0"),
        ("img_size", "64"),
        ("num_heads", "0"),
        ("decoder_num_heads", "0"),
        ("decoder_embed_dim", "9223372036854775807"),
        ("decoder_embed_dim", "65536"),
        ("decoder_depth", "4294967295"),
        ("contrastive", "{ weight = \"heavy\" }"),
        ("another", "1"),
    ] {
        let table: toml::Table = format!("x = {text}").parse().unwrap();
        let result = import_with(key, table["x"].clone());
        assert!(result.is_err(), "{key} = {text} was believed");
    }
    let replaced = import_with("mask_ratio", 9.75.into()).unwrap();
    assert!(
        replaced
            .notes
            .iter()
            .any(|note| note.contains("mask_ratio 9.75")),
        "{:?}",
        replaced.notes
    );
}

#[test]
fn damaged_checkpoints_never_panic() {
    let root = tempfile::tempdir().unwrap();
    let (dir, ..) = checkpoint(root.path(), ModelKind::Siamese);
    let dst = root.path().join("torch");
    let report = export(
        &dir,
        &dst,
        &ExportOptions {
            to: Target::Torch,
            probe: false,
            ema: false,
        },
    )
    .unwrap();
    let file = root.path().join("x");
    for exported in &report.files {
        let whole = std::fs::read(dst.join(&exported.name)).unwrap();
        // the pickle or the header is at the front, the zip's directory at the end
        let places = (0..2000)
            .step_by(31)
            .chain((whole.len() - 2000..whole.len()).step_by(37));
        for at in places {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x15;
            std::fs::write(&file, &bytes).unwrap();
            drop(import(&file, &heads()));
        }
    }
}

fn saved_run(root: &Path, config: &ModelConfig, epoch: u64) -> Tensors {
    let mut params = Params::new(11, DType::F32, &Device::Cpu);
    models::build(config, &mut params).unwrap();
    let trainable = params
        .iter_trainable()
        .map(|p| (p.name.clone(), p.var.clone()));
    let options = AdamWOptions {
        beta1: 0.9,
        beta2: 0.95,
    };
    let optim = AdamW::new(param_groups(trainable, 0.05), options).unwrap();
    let experiment = TrainConfig {
        model: config.clone(),
        ..Default::default()
    };
    let state = State::new(
        30,
        LoaderState { epoch, batch: 1 },
        10,
        experiment.to_toml().unwrap(),
        LossBits::default(),
    );
    let keep = Keep {
        last: 1,
        is_milestone: &|_| false,
    };
    Checkpoints::open(root)
        .unwrap()
        .save(&params, &optim, None, state, keep)
        .unwrap();
    params
        .iter()
        .map(|p| (p.name.clone(), p.var.as_tensor().clone()))
        .collect()
}

#[test]
fn a_runs_checkpoint_is_exported_from_the_runs_folder() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let config = tiny(ModelKind::Siamese);
    let tensors = saved_run(&run, &config, 3);
    let dst = root.path().join("out");
    let report = export(
        &run,
        &dst,
        &ExportOptions {
            to: Target::Torch,
            probe: true,
            ema: false,
        },
    )
    .unwrap();
    assert_eq!(report.model, config);
    assert_eq!(
        report.files[1].name, "checkpoint-2.pth",
        "epoch 3 is not over"
    );
    let back = import(&dst.join("model.safetensors"), &ImportOptions::default()).unwrap();
    assert_eq!((back.epoch, &back.model), (Some(2), &config));
    assert_same(&tensors, &back.tensors(), &[]);

    let model = run.join("checkpoints/step-00000030/model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&model, bytes).unwrap();
    let again = export(
        &run,
        &root.path().join("b"),
        &ExportOptions {
            to: Target::Torch,
            probe: false,
            ema: false,
        },
    );
    assert!(again.unwrap_err().to_string().contains("CRC-32C"));
    assert!(!root.path().join("b").exists());
}

#[test]
fn a_run_starts_from_an_import_of_its_own_shape_alone() {
    let root = tempfile::tempdir().unwrap();
    let (dir, tensors, imported) = checkpoint(root.path(), ModelKind::Siamese);
    let build = |config: &ModelConfig| {
        let mut params = Params::new(99, DType::F32, &Device::Cpu);
        models::build(config, &mut params).unwrap();
        params
    };
    let params = build(&imported.model);
    start_from(&dir, &imported.model, &params).unwrap();
    let got = params
        .iter()
        .map(|p| (p.name.clone(), p.var.as_tensor().clone()))
        .collect();
    assert_same(&tensors, &got, &[]);

    let heads = ModelConfig {
        num_heads: Some(6),
        ..imported.model.clone()
    };
    let message = start_from(&dir, &heads, &build(&heads))
        .unwrap_err()
        .to_string();
    assert!(message.contains("num_heads = 3"), "{message}");
    let deeper = ModelConfig {
        depth: Some(3),
        ..imported.model.clone()
    };
    let message = start_from(&dir, &deeper, &build(&deeper))
        .unwrap_err()
        .to_string();
    assert!(message.contains("blocks.2.norm1.weight"), "{message}");

    let mut bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    let message = start_from(&dir, &imported.model, &params)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("is not the file that was written"),
        "{message}"
    );
}
