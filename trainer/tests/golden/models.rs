//! Parts a and i: tiny siamese and plain masked autoencoders, every activation, loss and gradient.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use trainer::loss::pixel_targets;
use trainer::masking::{Masking, random_masking};
use trainer::models::mae::Mae;
use trainer::models::siamese::Siamese;
use trainer::models::{Forward, ModelConfig, ModelKind};
use trainer::nn::params::Params;
use trainer::nn::pass::{Pass, Probe};
use trainer::nn::patch_embed::patchify;

use crate::support::{ACTIVATION, LOSS, Report, Tensors, files, gradients, part, scalar};

#[test]
fn part_a_siamese() {
    run("a_siammae_tiny", ModelKind::Siamese);
}

#[test]
fn part_i_mae() {
    run("i_mae_tiny", ModelKind::Mae);
}

fn run(name: &str, kind: ModelKind) {
    let Some((folder, manifest)) = part(name) else {
        return;
    };
    let mut report = Report::default();
    for (file, entry) in files(&manifest) {
        let tensors = Tensors::read(&folder.join(&file), entry, &mut report);
        file_cases(&file, &entry["meta"], tensors, kind, &mut report);
    }
    report.finish(name);
}

/// The model of a file, in `dtype` with the file's weights.
enum Model {
    Siamese(Siamese),
    Mae(Mae),
}

impl Model {
    fn new(
        config: &ModelConfig,
        weights: &HashMap<String, Tensor>,
        dtype: DType,
    ) -> (Model, Params) {
        let mut params = Params::new(0, dtype, &Device::Cpu);
        let model = match config.kind {
            ModelKind::Siamese => Model::Siamese(Siamese::new(config, &mut params).unwrap()),
            ModelKind::Mae => Model::Mae(Mae::new(config, &mut params).unwrap()),
            ModelKind::MultiView => unreachable!("the reference has no such model"),
        };
        params.load(weights).unwrap();
        (model, params)
    }

    fn forward(&self, views: &Tensor, masking: &Masking, pass: Pass) -> Forward {
        match self {
            Model::Siamese(model) => model.forward_masked(views, masking, pass).unwrap(),
            Model::Mae(model) => model.forward_masked(views, masking, pass).unwrap(),
        }
    }
}

fn file_cases(
    file: &str,
    meta: &Value,
    mut tensors: Tensors,
    kind: ModelKind,
    report: &mut Report,
) {
    let config = config(&meta["config"], meta["mask_ratio"].as_f64().unwrap(), kind);
    let weights: HashMap<String, Tensor> = tensors.take_prefixed("w.").into_iter().collect();
    let views = tensors.expect("imgs");
    let views = if views.rank() == 4 {
        views.unsqueeze(1).unwrap()
    } else {
        views
    };
    let masking = masking(&mut tensors, &config, report);
    assert_eq!(
        meta["len_keep"].as_u64(),
        Some(masking.n_kept() as u64),
        "{file}: len_keep"
    );

    // Activations do not depend on the loss.
    let (model, params) = Model::new(&config, &weights, DType::F32);
    let probe = Probe::default();
    let forward = model.forward(&views, &masking, Pass::evaluation().watched(&probe));
    let seen: HashMap<String, Tensor> = probe.into_seen().into_iter().collect();
    let reconstruction = forward.reconstruction.unwrap();
    report.tensor(
        "pred",
        &reconstruction.pred,
        &tensors.expect("pred"),
        ACTIVATION,
    );
    for (name, want) in tensors.take_prefixed("act.") {
        match seen.get(&name) {
            Some(got) => activation(file, &name, got, want, &masking, report),
            None => report.fail(format!("{file}: activation {name} is not understood")),
        }
    }
    drop(params);

    let target_view = views
        .narrow(1, reconstruction.target_view, 1)
        .unwrap()
        .squeeze(1)
        .unwrap();
    let patches = patchify(&target_view, config.sizes().patch_size).unwrap();
    for (loss_name, norm_pix_loss) in [("norm_pix", true), ("raw_pix", false)] {
        if let Some(want) = tensors.take(&format!("target.{loss_name}")) {
            let got = pixel_targets(&patches, norm_pix_loss).unwrap();
            report.tensor(
                &format!("{file}: target.{loss_name}"),
                &got,
                &want,
                ACTIVATION,
            );
        }
        let config = ModelConfig {
            norm_pix_loss,
            ..config.clone()
        };
        if let Some(want) = tensors.take(&format!("loss.{loss_name}")) {
            let (model, params) = Model::new(&config, &weights, DType::F32);
            let loss = model.forward(&views, &masking, Pass::evaluation()).loss;
            report.number(
                &format!("{file}: loss.{loss_name}"),
                scalar(&loss),
                scalar(&want),
                LOSS,
            );
            let wanted = tensors.take_prefixed(&format!("grad.{loss_name}."));
            if wanted.is_empty() {
                continue;
            }
            let gradients = gradients(&params, || {
                Ok(model.forward(&views, &masking, Pass::evaluation()))
            });
            assert_eq!(
                wanted.len(),
                params.iter_trainable().count(),
                "{file}: gradients of {loss_name}"
            );
            for (name, want) in wanted {
                let got = gradients
                    .get(&name)
                    .unwrap_or_else(|| panic!("{file}: gradient of {name} is not understood"));
                report.gradient(&format!("{file}: grad.{loss_name}.{name}"), got, &want);
            }
        }
    }
    for (loss_name, norm_pix_loss) in [("norm_pix", true), ("raw_pix", false)] {
        if let Some(want) = tensors.take(&format!("loss64.{loss_name}")) {
            let config = ModelConfig {
                norm_pix_loss,
                ..config.clone()
            };
            let (model, _params) = Model::new(&config, &weights, DType::F64);
            let loss = model
                .forward(
                    &views.to_dtype(DType::F64).unwrap(),
                    &masking,
                    Pass::evaluation(),
                )
                .loss;
            report.number(
                &format!("{file}: loss64.{loss_name}"),
                scalar(&loss),
                scalar(&want),
                1e-10,
            );
        }
    }
    tensors.finish(report);
}

/// Compares an activation. Ours are without what the reference computes in vain: embeddings of removed patches, and
/// the class token's prediction.
fn activation(
    file: &str,
    name: &str,
    got: &Tensor,
    want: Tensor,
    masking: &Masking,
    report: &mut Report,
) {
    let want = match name {
        "patch_embed" | "view2.patch_embed" => masking.gather(&want).unwrap(),
        "decoder_pred" => want.narrow(1, 1, want.dim(1).unwrap() - 1).unwrap(),
        _ => want,
    };
    report.tensor(&format!("{file}: act.{name}"), got, &want, ACTIVATION);
}

/// The mask that the noise gives, compared with the reference's.
fn masking(tensors: &mut Tensors, config: &ModelConfig, report: &mut Report) -> Masking {
    let sizes = config.sizes();
    let noise = tensors
        .expect("mask.noise")
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    let masking = random_masking(&noise, sizes.n_patches(), sizes.mask_ratio).unwrap();
    let (batch, n, k) = (masking.batch(), sizes.n_patches(), masking.n_kept());
    let ids = |ids: &[u32], width| {
        let ids = Tensor::from_slice(ids, (batch, width), &Device::Cpu).unwrap();
        ids.to_dtype(DType::I64).unwrap()
    };
    let mut shuffle = vec![0u32; batch * n];
    for (shuffle, restore) in shuffle
        .chunks_exact_mut(n)
        .zip(masking.ids_restore().chunks_exact(n))
    {
        for (patch, &place) in restore.iter().enumerate() {
            shuffle[place as usize] = patch as u32;
        }
    }
    report.tensor(
        "mask.ids_shuffle",
        &ids(&shuffle, n),
        &tensors.expect("mask.ids_shuffle"),
        0.0,
    );
    report.tensor(
        "mask.ids_restore",
        &ids(masking.ids_restore(), n),
        &tensors.expect("mask.ids_restore"),
        0.0,
    );
    if let Some(want) = tensors.take("mask.ids_keep") {
        report.tensor("mask.ids_keep", &ids(masking.ids_keep(), k), &want, 0.0);
    }
    let mask = masking.mask(DType::F32, &Device::Cpu).unwrap();
    report.tensor("mask.mask", &mask, &tensors.expect("mask.mask"), 0.0);
    masking
}

/// The configuration that a manifest describes; an option that we do not know is an error.
fn config(described: &Value, mask_ratio: f64, kind: ModelKind) -> ModelConfig {
    let mut config = ModelConfig {
        kind,
        mask_ratio: Some(mask_ratio),
        ..Default::default()
    };
    for (key, value) in described.as_object().unwrap() {
        let size = value.as_u64().map(|n| n as usize);
        match key.as_str() {
            "img_size" => config.img_size = size,
            "patch_size" => config.patch_size = size,
            "embed_dim" => config.embed_dim = size,
            "depth" => config.depth = size,
            "num_heads" => config.num_heads = size,
            "decoder_embed_dim" => config.decoder_embed_dim = size,
            "decoder_depth" => config.decoder_depth = size,
            "decoder_num_heads" => config.decoder_num_heads = size,
            "in_chans" => assert_eq!(size, Some(3), "only colour images"),
            _ => panic!("option {key} = {value} of a golden model is not understood"),
        }
    }
    config
}
