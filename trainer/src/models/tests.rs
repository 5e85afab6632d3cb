//! What every method must do: train each of its parameters, learn one batch, and treat each sample alone.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::nn::params::Param;
use crate::ops::{Precision, with_precision};
use crate::optim::Gradients;
use crate::optim::clip::ZERO_BY_NATURE;
use crate::tape;

/// A model of a few thousand parameters on views of 32 x 32 with patches of 8.
fn tiny(kind: ModelKind) -> ModelConfig {
    ModelConfig {
        kind,
        img_size: Some(32),
        patch_size: Some(8),
        embed_dim: Some(24),
        depth: Some(2),
        num_heads: Some(3),
        decoder_embed_dim: Some(16),
        decoder_depth: Some(2),
        decoder_num_heads: Some(2),
        mask_ratio: Some(0.75),
        contrastive: ContrastiveConfig {
            projector_hidden_dim: 12,
            projector_dim: 8,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Every method and every option that changes which parameters there are or what flows where.
fn all_kinds() -> Vec<(String, ModelConfig)> {
    let mut kinds = vec![
        ("siamese".to_owned(), tiny(ModelKind::Siamese)),
        ("mae".to_owned(), tiny(ModelKind::Mae)),
    ];
    for targets in [Targets::Own, Targets::Shared, Targets::Cross] {
        kinds.push((
            format!("multi_view {targets:?}"),
            ModelConfig {
                targets,
                ..tiny(ModelKind::MultiView)
            },
        ));
    }
    let mut with = |name: &str, change: &dyn Fn(&mut ContrastiveConfig)| {
        let mut config = tiny(ModelKind::MultiView);
        change(&mut config.contrastive);
        kinds.push((format!("multi_view {name}"), config));
    };
    with("mean pool", &|c| c.pool = Pool::Mean);
    with("predictor", &|c| c.predictor = true);
    with("momentum", &|c| c.momentum = Some(0.5));
    with("no contrastive", &|c| c.weight = 0.0);
    let alone = |change: &dyn Fn(&mut ContrastiveConfig)| {
        let mut config = ModelConfig {
            reconstruction_weight: 0.0,
            mask_ratio: Some(0.0),
            ..tiny(ModelKind::MultiView)
        };
        change(&mut config.contrastive);
        config
    };
    kinds.push(("contrastive alone".to_owned(), alone(&|_| ())));
    let moco = alone(&|c| (c.predictor, c.momentum) = (true, Some(0.5)));
    kinds.push(("moco".to_owned(), moco));
    kinds
}

/// Smooth pictures, different for each sample, view and channel, `[B, V, 3, 32, 32]`.
fn views(batch: usize, n_views: usize, dtype: DType) -> Tensor {
    let mut values = Vec::new();
    for sample in 0..batch * n_views * 3 {
        let (fx, fy) = (
            0.1 + 0.07 * (sample % 5) as f64,
            0.15 + 0.05 * (sample % 7) as f64,
        );
        for y in 0..32 {
            for x in 0..32 {
                let phase = sample as f64;
                values.push((fx * x as f64 + phase).sin() + (fy * y as f64 - phase).cos());
            }
        }
    }
    Tensor::from_vec(values, (batch, n_views, 3, 32, 32), &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

fn step(batch: u64, epoch: u64) -> StepRandomness {
    StepRandomness {
        seed: 11,
        epoch,
        samples: (0..batch).collect(),
    }
}

fn scalar(tensor: &Tensor) -> f64 {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .to_scalar::<f64>()
        .unwrap()
}

/// The gradient's values without what is zero by nature: attention is blind to a bias of its keys, the batch norm of
/// the projector to a bias before it.
fn gradient_that_matters(param: &Param, gradient: &Tensor) -> Option<Vec<f64>> {
    let values = gradient
        .flatten_all()
        .unwrap()
        .to_dtype(DType::F64)
        .unwrap()
        .to_vec1::<f64>()
        .unwrap();
    let third = values.len() / 3;
    if param.name.ends_with("qkv.bias") || param.name.ends_with("in_proj_bias") {
        return Some([&values[..third], &values[2 * third..]].concat());
    }
    let before_batch_norm = ZERO_BY_NATURE.contains(&param.name.as_str());
    (!before_batch_norm).then_some(values)
}

#[test]
fn every_trainable_parameter_gets_a_gradient() {
    for train in [false, true] {
        for (name, config) in all_kinds() {
            let mut params = Params::new(1, DType::F32, &Device::Cpu);
            let model = build(&config, &mut params).unwrap();
            let forward = model
                .forward(&views(3, config.n_views(), DType::F32), &step(3, 0), train)
                .unwrap();
            let gradients = forward.loss.backward().unwrap();
            for param in params.iter_trainable() {
                let gradient = gradients
                    .get(&param.var)
                    .unwrap_or_else(|| panic!("{name}: {} has none", param.name));
                assert_eq!(gradient.dims(), param.var.dims(), "{name}: {}", param.name);
                let Some(values) = gradient_that_matters(param, gradient) else {
                    continue;
                };
                assert!(
                    values.iter().all(|v| v.is_finite()),
                    "{name}: {} is not finite",
                    param.name
                );
                assert!(
                    values.iter().any(|v| v.abs() > 1e-9),
                    "{name}: {} is zero",
                    param.name
                );
            }
        }
    }
}

/// Gradients by name, in the order in which the tape gave them.
fn taped(
    model: &dyn Pretrain,
    params: &Params,
    views: &Tensor,
    step: &StepRandomness,
) -> (Tensor, Vec<(String, Tensor)>) {
    let (forward, tape) = tape::record(|| model.forward(views, step, true)).unwrap();
    let trainable = params.iter_trainable();
    let mut gradients =
        Gradients::new(trainable.map(|param| (param.name.clone(), param.var.clone())));
    let mut given = Vec::new();
    let mut on_ready = |name: &str, gradient: &Tensor| {
        given.push((name.to_owned(), gradient.clone()));
        Ok(())
    };
    gradients
        .backward(tape, &forward.loss, 1.0, &mut on_ready)
        .unwrap();
    (forward.loss, given)
}

fn sorted(mut given: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    given.sort_by(|a, b| a.0.cmp(&b.0));
    given
}

/// A piece that the tape does not see would cut the gradient of all before it, or of one branch.
#[test]
fn the_tapes_gradients_are_candles() {
    for (name, config) in all_kinds() {
        let config = ModelConfig {
            drop_path: 0.2,
            ..config
        };
        let mut params = Params::new(1, DType::F64, &Device::Cpu);
        let model = build(&config, &mut params).unwrap();
        let (views, step) = (views(3, config.n_views(), DType::F64), step(3, 0));
        let loss = model.forward(&views, &step, true).unwrap().loss;
        let expected = loss.backward().unwrap();
        let (taped_loss, given) = taped(model.as_ref(), &params, &views, &step);
        assert!(
            (scalar(&loss) - scalar(&taped_loss)).abs() < 1e-12,
            "{name}"
        );
        let reached = params
            .iter_trainable()
            .filter(|param| expected.get(&param.var).is_some());
        assert_eq!(given.len(), reached.count(), "{name}: each once");
        for (param_name, gradient) in given {
            let expected = expected.get(&params.get(&param_name).unwrap().var).unwrap();
            let largest = |t: &Tensor| scalar(&t.abs().unwrap().max_all().unwrap());
            let gap = largest(&(expected - &gradient).unwrap());
            assert!(
                gap <= 1e-12 + 1e-10 * largest(expected),
                "{name}: {param_name} is off by {gap:e}"
            );
        }
    }
}

/// In f32, where operations are fused, against f64, where they are compositions.
#[test]
fn fused_operations_on_the_tape_are_the_plain_ones() {
    for (name, config) in all_kinds() {
        let of = |dtype: DType| {
            let mut params = Params::new(1, dtype, &Device::Cpu);
            let model = build(&config, &mut params).unwrap();
            taped(
                model.as_ref(),
                &params,
                &views(3, config.n_views(), dtype),
                &step(3, 0),
            )
        };
        let ((fused_loss, fused), (plain_loss, plain)) = (of(DType::F32), of(DType::F64));
        assert!(
            (scalar(&fused_loss) - scalar(&plain_loss)).abs() < 1e-5,
            "{name}"
        );
        for ((param_name, fused), (_, plain)) in sorted(fused).iter().zip(&sorted(plain)) {
            let norm = |t: &Tensor| scalar(&t.sqr().unwrap().sum_all().unwrap()).sqrt();
            let gap = norm(&(fused.to_dtype(DType::F64).unwrap() - plain).unwrap());
            assert!(
                gap <= 1e-5 + 1e-4 * norm(plain),
                "{name}: {param_name} is off by {gap:e}"
            );
        }
    }
}

#[test]
fn checkpointed_blocks_give_the_same_bits() {
    for (name, config) in all_kinds() {
        let of = |checkpoint_blocks: bool| {
            let config = ModelConfig {
                drop_path: 0.2,
                checkpoint_blocks,
                ..config.clone()
            };
            let mut params = Params::new(1, DType::F32, &Device::Cpu);
            let model = build(&config, &mut params).unwrap();
            taped(
                model.as_ref(),
                &params,
                &views(3, config.n_views(), DType::F32),
                &step(3, 0),
            )
        };
        let ((loss, kept), (again_loss, again)) = (of(false), of(true));
        assert_eq!(scalar(&loss), scalar(&again_loss), "{name}");
        assert_eq!(kept.len(), again.len(), "{name}");
        for ((param_name, kept), (_, again)) in sorted(kept).iter().zip(&sorted(again)) {
            let bits = |t: &Tensor| -> Vec<u32> {
                let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect()
            };
            assert!(bits(kept) == bits(again), "{name}: {param_name}");
        }
    }
}

#[test]
fn one_batch_is_learned() {
    for (name, config) in all_kinds() {
        let mut params = Params::new(2, DType::F32, &Device::Cpu);
        let model = build(&config, &mut params).unwrap();
        let views = views(4, config.n_views(), DType::F32);
        let mut moments: Vec<(Tensor, Tensor)> = params
            .iter_trainable()
            .map(|p| (p.var.zeros_like().unwrap(), p.var.zeros_like().unwrap()))
            .collect();
        let mut losses = Vec::new();
        for i in 1..=80 {
            let loss = model.forward(&views, &step(4, 0), false).unwrap().loss;
            losses.push(scalar(&loss));
            let gradients = loss.backward().unwrap();
            for (param, (m, v)) in params.iter_trainable().zip(&mut moments) {
                adam(param, gradients.get(&param.var).unwrap(), m, v, i);
            }
            if let Some(keep) = config.contrastive.momentum_at(0.0) {
                params.follow(keep).unwrap();
            }
        }
        let (first, last) = (losses[0], *losses.last().unwrap());
        assert!(last < 0.3 * first, "{name}: from {first} to {last}");
    }
}

/// Mixed precision learns the same: its curve is nearer to f32's than that of another draw of masks and dropout.
#[test]
fn the_loss_falls_alike_in_bf16() {
    for kind in [ModelKind::Siamese, ModelKind::Mae, ModelKind::MultiView] {
        let config = tiny(kind);
        let views = views(4, config.n_views(), DType::F32);
        // Means of ten steps each.
        let curve = |precision: Precision, first_epoch: u64| -> Vec<f64> {
            let mut params = Params::new(2, DType::F32, &Device::Cpu);
            let model = build(&config, &mut params).unwrap();
            let zeros = |p: &Param| p.var.zeros_like().unwrap();
            let trainable = params.iter_trainable();
            let mut moments: Vec<_> = trainable.map(|p| (zeros(p), zeros(p))).collect();
            let mut losses = Vec::new();
            for i in 1..=60 {
                let step = step(4, first_epoch + i as u64);
                let (loss, given) =
                    with_precision(precision, || taped(model.as_ref(), &params, &views, &step));
                let given: HashMap<String, Tensor> = given.into_iter().collect();
                for (param, (m, v)) in params.iter_trainable().zip(&mut moments) {
                    adam(param, &given[&param.name], m, v, i);
                }
                losses.push(scalar(&loss));
            }
            let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
            losses.chunks(10).map(mean).collect()
        };
        let (exact, mixed) = (curve(Precision::F32, 0), curve(Precision::Bf16, 0));
        let other_draw = curve(Precision::F32, 1000);
        let gap = |a: &[f64], b: &[f64]| -> f64 {
            a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64
        };
        let (of_rounding, of_draws) = (gap(&exact, &mixed), gap(&exact, &other_draw));
        assert!(of_rounding > 0.0, "{kind:?}: nothing was rounded");
        assert!(
            of_rounding < of_draws,
            "{kind:?}: {of_rounding} by rounding, {of_draws} by another draw"
        );
        assert!(mixed[5] < 0.8 * mixed[0], "{kind:?} learns: {mixed:?}");
    }
}

fn adam(param: &Param, gradient: &Tensor, m: &mut Tensor, v: &mut Tensor, i: i32) {
    *m = ((&*m * 0.9).unwrap() + (gradient * 0.1).unwrap()).unwrap();
    *v = ((&*v * 0.95).unwrap() + (gradient.sqr().unwrap() * 0.05).unwrap()).unwrap();
    let root = ((&*v / (1.0 - 0.95f64.powi(i))).unwrap().sqrt().unwrap() + 1e-8).unwrap();
    let update = ((&*m / (1.0 - 0.9f64.powi(i))).unwrap() / root).unwrap();
    param
        .var
        .set(&(param.var.as_tensor() - (update * 5e-3).unwrap()).unwrap())
        .unwrap();
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    for config in [tiny(ModelKind::Siamese), tiny(ModelKind::Mae)] {
        let config = ModelConfig {
            drop_path: 0.3,
            ..config
        };
        let mut params = Params::new(3, DType::F32, &Device::Cpu);
        let model = build(&config, &mut params).unwrap();
        let views = views(3, config.n_views(), DType::F32);
        let together = model.forward(&views, &step(3, 0), true).unwrap();
        let together = together.reconstruction.unwrap();
        for sample in 0..3u64 {
            let alone = StepRandomness {
                samples: vec![sample],
                ..step(1, 0)
            };
            let alone = model
                .forward(&views.narrow(0, sample as usize, 1).unwrap(), &alone, true)
                .unwrap();
            let of_batch = |t: &Tensor| t.narrow(0, sample as usize, 1).unwrap();
            let distance = |a: &Tensor, b: &Tensor| {
                scalar(&(a - b).unwrap().abs().unwrap().max_all().unwrap())
            };
            let alone = alone.reconstruction.unwrap();
            assert_eq!(distance(&of_batch(&together.mask), &alone.mask), 0.0);
            assert!(
                distance(&of_batch(&together.pred), &alone.pred) < 1e-5,
                "dropout depends on the batch"
            );
        }
    }
}

#[test]
fn dropout_acts_in_training_alone_and_epochs_differ() {
    let config = tiny(ModelKind::Siamese);
    let mut params = Params::new(4, DType::F32, &Device::Cpu);
    let model = build(&config, &mut params).unwrap();
    let views = views(2, 2, DType::F32);
    let loss = |epoch, train| scalar(&model.forward(&views, &step(2, epoch), train).unwrap().loss);
    assert_eq!(loss(0, true), loss(0, true));
    assert_eq!(loss(0, false), loss(0, false));
    assert_ne!(loss(0, true), loss(0, false));
    assert_ne!(loss(0, false), loss(1, false));
}

#[test]
fn the_papers_model_has_the_papers_size() {
    let mut params = Params::new(0, DType::F32, &Device::Cpu);
    build(&ModelConfig::default(), &mut params).unwrap();
    assert_eq!(params.counts(), (28_201_728, 126_080));
    assert_eq!(
        params.get("patch_embed.proj.weight").unwrap().var.dims(),
        [384, 3, 16, 16]
    );
}

#[test]
fn wrong_views_are_errors() {
    for (config, wrong) in [
        (tiny(ModelKind::Siamese), views(2, 1, DType::F32)),
        (tiny(ModelKind::Mae), views(2, 2, DType::F32)),
    ] {
        let mut params = Params::new(0, DType::F32, &Device::Cpu);
        let model = build(&config, &mut params).unwrap();
        assert!(matches!(
            model.forward(&wrong, &step(2, 0), true),
            Err(Error::Shape { .. })
        ));
    }
    let mut params = Params::new(0, DType::F32, &Device::Cpu);
    let model = build(&tiny(ModelKind::Siamese), &mut params).unwrap();
    let other_batch = model.forward(&views(2, 2, DType::F32), &step(3, 0), false);
    assert!(matches!(other_batch, Err(Error::Shape { .. })));
}

/// Central differences of the whole loss in f64, over a few values of every parameter.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for (name, config) in all_kinds() {
        let mut params = Params::new(5, DType::F64, &Device::Cpu);
        let model = build(&config, &mut params).unwrap();
        let views = views(3, config.n_views(), DType::F64);
        let loss = || model.forward(&views, &step(3, 0), true).unwrap().loss;
        let gradients = loss().backward().unwrap();
        for param in params.iter_trainable() {
            let gradient = gradients
                .get(&param.var)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap();
            let values = param.var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let set = |values: &[f64]| {
                param
                    .var
                    .set(&Tensor::from_slice(values, param.var.dims(), &Device::Cpu).unwrap())
                    .unwrap();
            };
            let i = (values.len() * 5) / 7;
            let shifted = |by: f64| {
                let mut shifted = values.clone();
                shifted[i] += by;
                set(&shifted);
                scalar(&loss())
            };
            let h = 1e-5;
            let slope = (shifted(h) - shifted(-h)) / (2.0 * h);
            set(&values);
            // With a predictor the keys are constants of the gradient but not of the slope; a momentum branch's are
            // constants of both.
            if name.contains("predictor")
                && !param.name.starts_with("predictor")
                && !param.name.starts_with("decoder")
            {
                continue;
            }
            let difference = (slope - gradient[i]).abs();
            assert!(
                difference < 1e-7 + 1e-5 * slope.abs(),
                "{name}: {} {slope} {}",
                param.name,
                gradient[i]
            );
        }
    }
}

/// The branch changes the loss through its own weights, follows where it is led, and is outside of all that trains.
#[test]
fn a_momentum_branch_makes_the_keys_and_takes_no_gradient() {
    let mut config = tiny(ModelKind::MultiView);
    config.contrastive.momentum = Some(0.5);
    let mut params = Params::new(6, DType::F32, &Device::Cpu);
    let model = build(&config, &mut params).unwrap();
    let mut without = Params::new(6, DType::F32, &Device::Cpu);
    config.contrastive.momentum = None;
    let plain = build(&config, &mut without).unwrap();
    let names = |params: &Params| -> Vec<String> {
        let trainable = params.iter_trainable();
        trainable.map(|param| param.name.clone()).collect()
    };
    assert_eq!(names(&params), names(&without), "nothing more is trained");

    let views = views(4, 2, DType::F32);
    let loss = |model: &dyn Pretrain| model.forward(&views, &step(4, 0), true).unwrap().loss;
    let same = scalar(&loss(model.as_ref()));
    assert_eq!(same, scalar(&loss(plain.as_ref())), "equal at the start");

    let gradients = loss(model.as_ref()).backward().unwrap();
    let followers: Vec<_> = params
        .iter()
        .filter(|p| p.name.starts_with("momentum."))
        .collect();
    assert!(followers.len() > 20);
    for param in &followers {
        assert!(gradients.get(&param.var).is_none(), "{}", param.name);
    }
    let moved = &params.get("momentum.blocks.1.mlp.fc2.weight").unwrap().var;
    moved.set(&(moved.as_tensor() * 3.0).unwrap()).unwrap();
    assert_ne!(
        scalar(&loss(model.as_ref())),
        same,
        "the keys are the branch's"
    );
    params.follow(0.0).unwrap();
    assert_eq!(scalar(&loss(model.as_ref())), same);
}

#[test]
fn without_reconstruction_there_is_no_decoder() {
    let config = ModelConfig {
        reconstruction_weight: 0.0,
        mask_ratio: Some(0.0),
        ..tiny(ModelKind::MultiView)
    };
    let mut params = Params::new(6, DType::F32, &Device::Cpu);
    let model = build(&config, &mut params).unwrap();
    let decoder = |name: &str| name.starts_with("decoder") || name == "mask_token";
    assert!(!params.iter().any(|param| decoder(&param.name)));
    let forward = model
        .forward(&views(3, 2, DType::F32), &step(3, 0), true)
        .unwrap();
    assert!(forward.reconstruction.is_none());
    let parts: Vec<&str> = forward.parts.iter().map(|(name, _)| *name).collect();
    assert_eq!(parts, ["contrastive"]);
    let weighted = 2.0 * scalar(&forward.parts[0].1);
    assert!((scalar(&forward.loss) - weighted).abs() < 1e-6);
}
