//! Part b: the real ViT-S/16 with weights made from parameter names, and the reference's initialisation.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use trainer::masking::random_masking;
use trainer::models::siamese::Siamese;
use trainer::models::{EncoderPreset, ModelConfig};
use trainer::nn::params::Params;
use trainer::nn::pass::{Pass, Probe};

use crate::support::{
    ACTIVATION, GRADIENT, LOSS, Report, Tensors, files, gradients, json, part, scalar, values,
};

#[test]
fn part_b_vits16() {
    let name = "b_siammae_vits16";
    let Some((folder, manifest)) = part(name) else {
        return;
    };
    let mut report = Report::default();
    for (file, entry) in files(&manifest) {
        match file.as_str() {
            "init_stats.json" => initialisation(&json(&folder.join(&file)), &mut report),
            _ if entry["meta"]["fill_rules"].is_object() => {
                filled_model(&folder.join(&file), entry, &mut report)
            }
            _ => report.fail(format!("{file}: a case that this test does not understand")),
        }
    }
    report.finish(name);
}

fn filled_model(path: &Path, entry: &Value, report: &mut Report) {
    let meta = &entry["meta"];
    let mut tensors = Tensors::read(path, entry, report);
    let config = ModelConfig {
        encoder: EncoderPreset::VitS16,
        ..Default::default()
    };
    let mut params = Params::new(0, DType::F32, &Device::Cpu);
    Siamese::new(&config, &mut params).unwrap();
    let (trainable, frozen) = params.counts();
    report.number(
        "trainable",
        trainable as f64,
        meta["trainable"].as_f64().unwrap(),
        0.0,
    );
    report.number(
        "params",
        (trainable + frozen) as f64,
        meta["params"].as_f64().unwrap(),
        0.0,
    );
    let weights = fill(&params, meta, report);

    let views = tensors.expect("imgs");
    let pixels = tensors.expect("imgs_u8");
    report.tensor("imgs", &normalise(&pixels), &views, ACTIVATION);
    for (case, summary) in meta["summary"].as_object().unwrap() {
        filled_case(case, summary, meta, &views, &weights, &mut tensors, report);
    }
    tensors.finish(report);
}

/// ImageNet's mean and standard deviation of each channel.
fn normalise(pixels: &Tensor) -> Tensor {
    let channel =
        |values: [f32; 3]| Tensor::from_slice(&values, (1, 1, 3, 1, 1), &Device::Cpu).unwrap();
    let unit = (pixels.to_dtype(DType::F32).unwrap() / 255.0).unwrap();
    let centred = unit.broadcast_sub(&channel([0.485, 0.456, 0.406])).unwrap();
    centred
        .broadcast_div(&channel([0.229, 0.224, 0.225]))
        .unwrap()
}

fn filled_case(
    case: &str,
    summary: &Value,
    meta: &Value,
    views: &Tensor,
    weights: &HashMap<String, Tensor>,
    tensors: &mut Tensors,
    report: &mut Report,
) {
    let (ratio, kind) = case
        .strip_prefix('r')
        .and_then(|rest| rest.split_once('_'))
        .expect("a case is rRATIO_LOSS");
    let norm_pix_loss = match kind {
        "norm" => true,
        "raw" => false,
        _ => panic!("{case}: loss {kind} is not understood"),
    };
    let config = ModelConfig {
        mask_ratio: Some(ratio.parse().unwrap()),
        norm_pix_loss,
        ..Default::default()
    };
    let sizes = config.sizes();
    let mut params = Params::new(0, DType::F32, &Device::Cpu);
    let model = Siamese::new(&config, &mut params).unwrap();
    params.load(weights).unwrap();

    let noise = tensors
        .expect(&format!("{case}.mask.noise"))
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    let masking = random_masking(&noise, sizes.n_patches(), sizes.mask_ratio).unwrap();
    report.number(
        &format!("{case}.len_keep"),
        masking.n_kept() as f64,
        summary["len_keep"].as_f64().unwrap(),
        0.0,
    );
    let shuffle = tensors.expect(&format!("{case}.mask.ids_shuffle"));
    let n = sizes.n_patches();
    for (row, restore) in values(&shuffle)
        .chunks_exact(n)
        .zip(masking.ids_restore().chunks_exact(n))
    {
        let undone = (0..n).all(|place| restore[row[place] as usize] as usize == place);
        report.check(undone, || format!("{case}.mask.ids_shuffle"));
    }
    let restore =
        Tensor::from_slice(masking.ids_restore(), (masking.batch(), n), &Device::Cpu).unwrap();
    report.tensor(
        "ids_restore",
        &restore,
        &tensors.expect(&format!("{case}.mask.ids_restore")),
        0.0,
    );
    let mask = masking.mask(DType::F32, &Device::Cpu).unwrap();
    report.tensor(
        "mask",
        &mask,
        &tensors.expect(&format!("{case}.mask.mask")),
        0.0,
    );

    let probe = Probe::default();
    let forward = model
        .forward_masked(views, &masking, Pass::evaluation().watched(&probe))
        .unwrap();
    let mut seen: HashMap<String, Tensor> = probe.into_seen().into_iter().collect();
    let loss = scalar(&forward.loss);
    report.number(
        &format!("{case}.loss"),
        loss,
        scalar(&tensors.expect(&format!("{case}.loss"))),
        LOSS,
    );
    report.number(
        &format!("{case} summary loss"),
        loss,
        summary["loss"].as_f64().unwrap(),
        LOSS,
    );
    let pred = forward.reconstruction.unwrap().pred;
    let (pred_mean, pred_std) = moments(&pred);
    report.number(
        &format!("{case}.pred_mean"),
        pred_mean,
        summary["pred_mean"].as_f64().unwrap(),
        ACTIVATION,
    );
    report.number(
        &format!("{case}.pred_std"),
        pred_std,
        summary["pred_std"].as_f64().unwrap(),
        ACTIVATION,
    );

    let every = |tensor: &Tensor, stride: usize| {
        let ids: Vec<u32> = (0..tensor.dim(1).unwrap() as u32).step_by(stride).collect();
        tensor
            .index_select(&Tensor::new(ids, &Device::Cpu).unwrap(), 1)
            .unwrap()
    };
    let pred_slice = every(&pred, 14).narrow(2, 0, 48).unwrap();
    let mut slice = |part: &str, got: &Tensor| {
        let want = tensors.expect(&format!("{case}.{part}"));
        report.tensor(&format!("{case}.{part}"), got, &want, ACTIVATION);
    };
    slice("pred_slice", &pred_slice);
    slice("view1_norm_slice", &every(&seen["view1.norm"], 28));
    slice("view2_norm", &seen["view2.norm"]);

    let gradients = gradients(&params, || {
        model.forward_masked(views, &masking, Pass::evaluation())
    });
    let want = tensors
        .expect(&format!("{case}.grad_stats"))
        .to_vec2::<f64>()
        .unwrap();
    let names = meta["grad_names"].as_array().unwrap();
    let ours: Vec<&str> = params
        .iter_trainable()
        .map(|param| param.name.as_str())
        .collect();
    report.check(
        names.iter().map(|name| name.as_str().unwrap()).eq(ours),
        || "order of parameters".to_owned(),
    );
    let mut total = 0.0;
    for (name, want) in names.iter().map(|name| name.as_str().unwrap()).zip(want) {
        let gradient = values(&gradients[name]);
        let l2 = gradient.iter().map(|v| v * v).sum::<f64>().sqrt();
        let mean = gradient.iter().sum::<f64>() / gradient.len() as f64;
        let largest = gradient
            .iter()
            .fold(0f64, |largest, v| largest.max(v.abs()));
        total += l2 * l2;
        let got = [l2, mean, largest, gradient[0], gradient[gradient.len() - 1]];
        for ((got, want_one), what) in got
            .iter()
            .zip(&want)
            .zip(["l2 norm", "mean", "max", "first", "last"])
        {
            report.number(
                &format!("{case}: {what} of the gradient of {name}"),
                *got,
                *want_one,
                GRADIENT * want[0],
            );
        }
    }
    let total_want = summary["total_grad_norm"].as_f64().unwrap();
    report.number(
        &format!("{case}.total_grad_norm"),
        total.sqrt(),
        total_want,
        GRADIENT * total_want,
    );

    if let Some(want) = summary["loss_float64"].as_f64() {
        let mut params = Params::new(0, DType::F64, &Device::Cpu);
        let model = Siamese::new(&config, &mut params).unwrap();
        params.load(weights).unwrap();
        let views = views.to_dtype(DType::F64).unwrap();
        let loss = model
            .forward_masked(&views, &masking, Pass::evaluation())
            .unwrap()
            .loss;
        report.number(&format!("{case}: loss_float64"), scalar(&loss), want, 1e-10);
    }

    complete(&mut seen, &model, views, &masking, &params);
    for (name, want) in summary["act"].as_object().unwrap() {
        let Some(got) = seen.get(name.trim_start_matches("act.")) else {
            report.fail(format!("{case}: activation {name} is not understood"));
            continue;
        };
        let (mean, std) = moments(got);
        report.number(
            &format!("{case}: mean of {name}"),
            mean,
            want[0].as_f64().unwrap(),
            ACTIVATION,
        );
        report.number(
            &format!("{case}: std of {name}"),
            std,
            want[1].as_f64().unwrap(),
            ACTIVATION,
        );
    }
    for key in summary.as_object().unwrap().keys() {
        let known = [
            "len_keep",
            "loss",
            "loss_float64",
            "pred_mean",
            "pred_std",
            "total_grad_norm",
            "act",
            // How exact the reference itself is; nothing to compare.
            "pred_max_abs_float32_vs_float64",
        ];
        report.check(known.contains(&key.as_str()), || {
            format!("{case}: summary {key} is not understood")
        });
    }
}

/// Adds what the reference computes in vain and we do not: embeddings of view 2's removed patches (got by swapping the
/// views) and the class token's prediction.
fn complete(
    seen: &mut HashMap<String, Tensor>,
    model: &Siamese,
    views: &Tensor,
    masking: &trainer::masking::Masking,
    params: &Params,
) {
    let swapped = Tensor::cat(
        &[
            views.narrow(1, 1, 1).unwrap(),
            views.narrow(1, 0, 1).unwrap(),
        ],
        1,
    )
    .unwrap();
    let probe = Probe::default();
    model
        .forward_masked(&swapped, masking, Pass::evaluation().watched(&probe))
        .unwrap();
    let embedded = probe
        .into_seen()
        .into_iter()
        .find(|(name, _)| name == "view1.patch_embed")
        .unwrap()
        .1;
    seen.insert("view2.patch_embed".to_owned(), embedded);
    let value = |name: &str| params.get(name).unwrap().var.as_detached_tensor();
    let class = seen["decoder_norm"]
        .narrow(1, 0, 1)
        .unwrap()
        .squeeze(1)
        .unwrap();
    let class = class
        .matmul(&value("decoder_pred.weight").t().unwrap())
        .unwrap();
    let class = class
        .broadcast_add(&value("decoder_pred.bias"))
        .unwrap()
        .unsqueeze(1)
        .unwrap();
    let pred = Tensor::cat(&[&class, &seen["decoder_pred"]], 1).unwrap();
    seen.insert("decoder_pred".to_owned(), pred);
}

/// Mean and standard deviation (n - 1).
fn moments(tensor: &Tensor) -> (f64, f64) {
    let values = values(tensor);
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, var.sqrt())
}

/// The weights that the manifest's rules give, checked against its probes.
pub fn fill(params: &Params, meta: &Value, report: &mut Report) -> HashMap<String, Tensor> {
    let salt = meta["salt"].as_str().unwrap();
    let mut filled = HashMap::new();
    for (name, rule) in meta["fill_rules"].as_object().unwrap() {
        let param = params
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not a parameter of ours"));
        let n = param.var.elem_count();
        let tensor = match rule.as_str().unwrap() {
            "fixed sin-cos" => param.var.as_detached_tensor().copy().unwrap(),
            rule => {
                let (offset, factor) = affine(rule);
                let values: Vec<f32> = noise(&format!("{salt}{name}"), n)
                    .map(|v| (offset + factor * v) as f32)
                    .collect();
                Tensor::from_vec(values, param.var.dims(), &Device::Cpu).unwrap()
            }
        };
        filled.insert(name.clone(), tensor);
    }
    for (name, probes) in meta["probes_first4_and_last"].as_object().unwrap() {
        let got = values(&filled[name]);
        let got = [&got[..4], &got[got.len() - 1..]].concat();
        for (got, want) in got.iter().zip(probes.as_array().unwrap()) {
            // As f32: the JSON parser may be off in the last digit of a double.
            report.number(
                &format!("fill of {name}"),
                *got,
                f64::from(want.as_f64().unwrap() as f32),
                0.0,
            );
        }
    }
    filled
}

/// `0.1*v`, `1+0.1*v` or `sqrt(6/(768+384))*v` as offset and factor of v.
fn affine(rule: &str) -> (f64, f64) {
    let number = |text: &str| {
        text.parse::<f64>()
            .unwrap_or_else(|_| panic!("fill rule {rule} is not understood"))
    };
    let factor = rule
        .strip_suffix("*v")
        .unwrap_or_else(|| panic!("fill rule {rule} is not understood"));
    if let Some(fans) = factor
        .strip_prefix("sqrt(6/(")
        .and_then(|rest| rest.strip_suffix("))"))
    {
        return (0.0, (6.0 / fans.split('+').map(number).sum::<f64>()).sqrt());
    }
    match factor.split_once('+') {
        Some((offset, factor)) => (number(offset), number(factor)),
        None => (0.0, number(factor)),
    }
}

/// SplitMix64 from the FNV-1a hash of the name, its top 24 bits as values in [-1, 1).
fn noise(name: &str, n: usize) -> impl Iterator<Item = f64> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    (0..n).map(move |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let x = z ^ (z >> 31);
        2.0 * ((x >> 40) as f64 / f64::from(1u32 << 24)) - 1.0
    })
}

/// Our initialisation has the reference's names, order, shapes and distributions.
fn initialisation(stats: &Value, report: &mut Report) {
    let mut params = Params::new(0, DType::F32, &Device::Cpu);
    Siamese::new(&ModelConfig::default(), &mut params).unwrap();
    let wanted = stats["parameters"].as_array().unwrap();
    assert_eq!(wanted.len(), params.iter().count());
    for (param, want) in params.iter().zip(wanted) {
        let name = want["name"].as_str().unwrap();
        let shape: Vec<usize> = want["shape"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap() as usize)
            .collect();
        report.check(param.name == name, || {
            format!("{} is where the reference has {name}", param.name)
        });
        report.check(param.var.dims() == shape, || {
            format!("{name}: shape {:?}", param.var.dims())
        });
        report.check(Some(param.trainable) == want["trainable"].as_bool(), || {
            format!("{name}: trainable")
        });

        let stat = |key: &str| want[key].as_f64().unwrap();
        let (mean, std) = moments(&param.var);
        let values = values(&param.var);
        let n = values.len() as f64;
        let (min, max) = values
            .iter()
            .fold((f64::MAX, f64::MIN), |(lo, hi), &v| (lo.min(v), hi.max(v)));
        if !param.trainable || stat("std") == 0.0 {
            for (what, got) in [("mean", mean), ("std", std), ("min", min), ("max", max)] {
                report.number(&format!("{what} of {name}"), got, stat(what), 1e-6);
            }
            continue;
        }
        // Two samples of one distribution: six standard errors of the difference.
        report.number(
            &format!("mean of {name}"),
            mean,
            stat("mean"),
            6.0 * stat("std") * (2.0 / n).sqrt(),
        );
        report.number(
            &format!("std of {name}"),
            std,
            stat("std"),
            6.0 * stat("std") / n.sqrt(),
        );
        if n >= 10_000.0 {
            report.number(
                &format!("min of {name}"),
                min,
                stat("min"),
                0.01 * stat("max"),
            );
            report.number(
                &format!("max of {name}"),
                max,
                stat("max"),
                0.01 * stat("max"),
            );
        }
    }
}
