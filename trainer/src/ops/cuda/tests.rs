//! The kernels, emulated, against the plain operations in f64: forward and backward, f32 and bf16, with the threads of a
//! block in either order.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use pipeline::rng::Purpose;

use super::{activation, attention, emulation, loss, norm, optim, random, tokens};
use crate::masking::StepRandomness;
use crate::models::{self, ContrastiveConfig, ModelConfig, ModelKind};
use crate::nn::dropout::KeepMask;
use crate::nn::init::Init;
use crate::nn::params::Params;
use crate::nn::patch_embed;
use crate::ops::{Precision, plain, with_precision};
use crate::tape;

/// Errors, relative to the largest value of a tensor (at least 0.1), of f32 and of bf16 whose sums are f32.
const TOLERANCE: [(DType, f64); 2] = [(DType::F32, 2e-5), (DType::BF16, 2e-2)];

type Op<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;
type Plain<'a> = &'a dyn Fn(&[Tensor]) -> crate::error::Result<Tensor>;

fn random(name: &str, shape: &[usize]) -> Tensor {
    let values = Init::Normal { std: 1.0 }.values(0, name, shape);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn mask(n_samples: usize, per_sample: usize) -> KeepMask {
    let step = StepRandomness {
        seed: 0x0123_4567_89ab_cdef,
        epoch: 3,
        samples: (0..n_samples as u64).map(|i| i * 0x1_0000_0001).collect(),
    };
    KeepMask::draw(&step, Purpose::Dropout, "a layer", per_sample, 0.3).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Result and gradients of `f` at `arguments`, the result weighted by fixed random numbers.
fn run(f: &dyn Fn(&[Tensor]) -> Tensor, arguments: &[Tensor]) -> Vec<Vec<f64>> {
    let vars: Vec<Var> = arguments
        .iter()
        .map(|t| Var::from_tensor(t).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors).to_dtype(DType::F64).unwrap();
    let weights = random("weights of the result", y.dims())
        .to_dtype(DType::F64)
        .unwrap();
    let sum = (&y * weights).unwrap().sum_all().unwrap();
    let gradients = sum.backward().unwrap();
    let mut results = vec![values(&y)];
    results.extend(vars.iter().map(|var| values(gradients.get(var).unwrap())));
    results
}

fn expect_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.1f64, |size, v| size.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (got - want).abs() <= tolerance * size,
            "{what}, element {i}: {got}, expected {want}, the largest being {size}"
        );
    }
}

/// * `activations`: arguments in the type that is tested; `params`: those after them, which stay f32.
fn compare(what: &str, op: Op, plain: Plain, activations: &[Tensor], params: &[Tensor]) {
    for (dtype, tolerance) in TOLERANCE {
        let rounded = activations.iter().map(|t| t.to_dtype(dtype).unwrap());
        let arguments: Vec<Tensor> = rounded.chain(params.iter().cloned()).collect();
        let exact: Vec<Tensor> = arguments
            .iter()
            .map(|t| t.to_dtype(DType::F64).unwrap())
            .collect();
        let want = run(&|t| plain(t).unwrap(), &exact);
        let mut of_orders = Vec::new();
        for reverse in [false, true] {
            emulation::reverse(reverse);
            let got = run(&|t| op(t).unwrap(), &arguments);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let what =
                    format!("{what} in {dtype:?}, reversed {reverse}, result or gradient {i}");
                expect_close(&what, got, want, tolerance);
            }
            of_orders.push(got);
        }
        emulation::reverse(false);
        assert!(
            of_orders[0] == of_orders[1],
            "{what} in {dtype:?}: bits depend on the order of the threads"
        );
    }
}

#[test]
fn layer_norm_is_the_plain_one() {
    if !emulation::is_there("layer_norm_is_the_plain_one") {
        return;
    }
    for (rows, width) in [(1, 3), (75, 24), (5, 101), (33, 384), (2, 3000), (1, 13001)] {
        let x = ((random("x", &[rows, width]) * 3.0).unwrap() + 1.0).unwrap();
        let params = [random("w", &[width]), random("b", &[width])];
        compare(
            &format!("layer norm of {rows} x {width}"),
            &|t| norm::layer_norm(&t[0], &t[1], &t[2], 1e-6),
            &|t| plain::layer_norm(&t[0], &t[1], &t[2], 1e-6),
            &[x],
            &params,
        );
    }
}

#[test]
fn layer_norm_after_a_sum_is_the_plain_one() {
    if !emulation::is_there("layer_norm_after_a_sum_is_the_plain_one") {
        return;
    }
    for (rows, width) in [(40, 24), (5, 101)] {
        compare(
            &format!("sum and layer norm of {rows} x {width}"),
            &|t| {
                let (sum, y) = norm::add_layer_norm(&t[0], &t[1], &t[2], &t[3], 1e-6).unwrap();
                Tensor::cat(&[sum, y], 0)
            },
            &|t| {
                let sum = (&t[0] + &t[1])?;
                let y = plain::layer_norm(&sum, &t[2], &t[3], 1e-6)?;
                Ok(Tensor::cat(&[sum, y], 0)?)
            },
            &[
                random("x", &[rows, width]),
                random("branch", &[rows, width]),
            ],
            &[random("w", &[width]), random("b", &[width])],
        );
    }
}

#[test]
fn linear_with_and_without_gelu_is_the_plain_one() {
    if !emulation::is_there("linear_with_and_without_gelu_is_the_plain_one") {
        return;
    }
    for (rows, n_in, n_out) in [
        (1, 5, 3),
        (90, 40, 7),
        (9, 20, 260),
        (3, 16, 133),
        (1500, 2, 3),
    ] {
        let what = format!("linear of {rows} x {n_in} to {n_out}");
        let x = [random("x", &[1, rows, n_in])];
        let params = [random("w", &[n_out, n_in]), random("b", &[n_out])];
        compare(
            &what,
            &|t| activation::linear(&t[0], &t[1], &t[2]),
            &|t| plain::linear(&t[0], &t[1], &t[2]),
            &x,
            &params,
        );
        compare(
            &format!("{what} and gelu"),
            &|t| activation::linear_gelu(&t[0], &t[1], &t[2]),
            &|t| plain::gelu(&plain::linear(&t[0], &t[1], &t[2])?),
            &x,
            &params,
        );
    }
}

#[test]
fn gelu_is_the_plain_one() {
    if !emulation::is_there("gelu_is_the_plain_one") {
        return;
    }
    for shape in [[3, 777], [2, 128]] {
        compare(
            "gelu",
            &|t| activation::gelu(&t[0]),
            &|t| plain::gelu(&t[0]),
            &[(random("x", &shape) * 3.0).unwrap()],
            &[],
        );
    }
}

#[test]
fn masks_are_drawn_as_on_the_host() {
    if !emulation::is_there("masks_are_drawn_as_on_the_host") {
        return;
    }
    for per_sample in [1, 31, 32, 33, 1000] {
        let mask = mask(5, per_sample);
        let bits = random::keep_bits(&mask, &random("x", &[1])).unwrap();
        let bits: Vec<Vec<u32>> = bits.to_vec2().unwrap();
        for (sample, words) in bits.iter().enumerate() {
            for element in 0..words.len() * 32 {
                let bit = (words[element / 32] >> (element % 32)) & 1;
                let keep = mask.keep()[sample * per_sample..][..per_sample].get(element);
                assert_eq!(bit, u32::from(*keep.unwrap_or(&0)), "{sample}, {element}");
            }
        }
    }
}

#[test]
fn dropout_is_the_plain_one() {
    if !emulation::is_there("dropout_is_the_plain_one") {
        return;
    }
    for per_sample in [[5, 10], [3, 7], [40, 32]] {
        let mask = mask(3, per_sample.iter().product());
        compare(
            "dropout",
            &|t| random::dropout(&t[0], &mask),
            &|t| plain::dropout(&t[0], &mask),
            &[random("x", &[3, per_sample[0], per_sample[1]])],
            &[],
        );
    }
}

#[test]
fn a_dropped_branch_is_added_as_by_the_plain_one() {
    if !emulation::is_there("a_dropped_branch_is_added_as_by_the_plain_one") {
        return;
    }
    for shape in [[3, 5, 10], [3, 3, 7]] {
        for per_sample in [1, shape[1] * shape[2]] {
            let mask = mask(3, per_sample);
            compare(
                &format!("sum with a branch of {shape:?}, {per_sample} bits a sample"),
                &|t| random::add_dropped(&t[0], &t[1], &mask),
                &|t| plain::add(&t[0], &t[1], Some(&mask)),
                &[random("x", &shape), random("branch", &shape)],
                &[],
            );
        }
    }
}

#[test]
fn self_attention_is_the_plain_one() {
    if !emulation::is_there("self_attention_is_the_plain_one") {
        return;
    }
    let sizes = [
        (1, 1, 1, 4),
        (3, 17, 2, 8),
        (2, 33, 3, 5),
        (1, 70, 2, 64),
        (1, 130, 1, 32),
        (1, 40, 1, 128),
        (1, 18, 1, 96),
    ];
    for (batch, n, heads, d) in sizes {
        let qkv = [random("qkv", &[batch, n, 3 * heads * d])];
        let mask = mask(batch, heads * n * n);
        for drop in [None, Some(&mask)] {
            compare(
                &format!(
                    "self-attention {batch} x {n}, {heads} heads of {d}, dropout {}",
                    drop.is_some()
                ),
                &|t| attention::self_attention(&t[0], heads, drop),
                &|t| plain::self_attention(&t[0], heads, drop),
                &qkv,
                &[],
            );
        }
    }
}

#[test]
fn cross_attention_is_the_plain_one() {
    if !emulation::is_there("cross_attention_is_the_plain_one") {
        return;
    }
    let sizes = [
        (1, 2, 1, 1, 4),
        (3, 9, 17, 2, 8),
        (2, 20, 3, 3, 5),
        (1, 66, 75, 1, 64),
        (2, 3, 90, 2, 32),
    ];
    for (batch, n, m, heads, d) in sizes {
        let arguments = [
            random("q", &[batch, n, heads * d]),
            random("kv", &[batch, m, 2 * heads * d]),
        ];
        let mask = mask(batch, heads * n * m);
        for drop in [None, Some(&mask)] {
            compare(
                &format!(
                    "cross-attention {batch} x {n} to {m}, {heads} heads of {d}, dropout {}",
                    drop.is_some()
                ),
                &|t| attention::cross_attention(&t[0], &t[1], heads, drop),
                &|t| plain::cross_attention(&t[0], &t[1], heads, drop),
                &arguments,
                &[],
            );
        }
    }
}

/// Rows of scores in the hundreds must neither overflow nor lose the small ones.
#[test]
fn attention_with_large_scores_is_finite() {
    if !emulation::is_there("attention_with_large_scores_is_finite") {
        return;
    }
    let qkv = [(random("qkv", &[1, 40, 3 * 16]) * 30.0).unwrap()];
    for dtype in [DType::F32, DType::BF16] {
        let qkv = qkv[0].to_dtype(dtype).unwrap();
        let got = run(
            &|t| attention::self_attention(&t[0], 2, None).unwrap(),
            &[qkv],
        );
        assert!(
            got.iter().flatten().all(|value| value.is_finite()),
            "{dtype:?}"
        );
    }
}

#[test]
fn pictures_are_normalised_and_cut_as_on_the_host() {
    if !emulation::is_there("pictures_are_normalised_and_cut_as_on_the_host") {
        return;
    }
    let (batch, views, height, width, side) = (3, 2, 6, 9, 3);
    let bytes: Vec<u8> = (0..batch * views * height * width * 3)
        .map(|i| (i * 37 % 256) as u8)
        .collect();
    let bytes = Tensor::from_vec(bytes, (batch, views, height, width, 3), &Device::Cpu).unwrap();
    let (mean, std) = (crate::device::IMAGENET_MEAN, crate::device::IMAGENET_STD);
    let channels = |values: &[f32; 3]| Tensor::new(values, &Device::Cpu).unwrap();
    let unit = (bytes.to_dtype(DType::F32).unwrap() / 255.0).unwrap();
    let want = unit
        .broadcast_sub(&channels(&mean))
        .unwrap()
        .broadcast_div(&channels(&std))
        .unwrap()
        .permute((0, 1, 4, 2, 3))
        .unwrap();
    for (dtype, tolerance) in TOLERANCE {
        let planes = tokens::normalise(&bytes, mean, std, dtype).unwrap();
        expect_close("planes", &values(&planes), &values(&want), tolerance);
        for view in 0..views {
            let picture = planes.narrow(1, view, 1).unwrap().squeeze(1).unwrap();
            let patches = tokens::patchify(&picture, side).unwrap();
            let exact = picture.to_dtype(DType::F32).unwrap().contiguous().unwrap();
            let want = patch_embed::patchify(&exact, side).unwrap();
            assert_eq!(patches.dims(), want.dims());
            expect_close("patches", &values(&patches), &values(&want), 0.0);
        }
    }
}

#[test]
fn tokens_are_put_together_as_by_candle() {
    if !emulation::is_there("tokens_are_put_together_as_by_candle") {
        return;
    }
    for (batch, kept, width) in [(3, 4, 12), (40, 2, 7)] {
        for tables in [1, batch] {
            let positions = random("positions", &[tables, 1 + kept, width]);
            compare(
                "class token in front",
                &|t| tokens::class_in_front(&t[0], &t[1], &positions),
                &|t| {
                    let class = t[1].broadcast_as((batch, 1, width))?;
                    let positions = positions.to_dtype(DType::F64)?;
                    Ok(Tensor::cat(&[&class, &t[0]], 1)?.broadcast_add(&positions)?)
                },
                &[random("tokens", &[batch, kept, width])],
                &[random("class", &[1, 1, width])],
            );
        }
    }
}

#[test]
fn removed_tokens_come_back_as_by_candle() {
    if !emulation::is_there("removed_tokens_come_back_as_by_candle") {
        return;
    }
    for (batch, n, width) in [(2, 16, 12), (11, 9, 7)] {
        let noise: Vec<f32> = values(&random("noise", &[batch * n]))
            .into_iter()
            .map(|v| v as f32)
            .collect();
        let masking = crate::masking::random_masking(&noise, n, 0.7).unwrap();
        let positions = random("positions", &[1, 1 + n, width]);
        let n_tokens = 1 + masking.n_kept();
        // Sample b's row of [class, kept tokens, mask token] for each place.
        let rows: Vec<u32> = (0..batch)
            .flat_map(|b| {
                let first = (b * (n_tokens + 1)) as u32;
                let places = masking.ids_restore()[b * n..][..n].iter();
                let row = move |&place: &u32| first + 1 + place.min(n_tokens as u32 - 1);
                std::iter::once(first).chain(places.map(row))
            })
            .collect();
        let rows = Tensor::from_vec(rows, batch * (1 + n), &Device::Cpu).unwrap();
        compare(
            "restored tokens",
            &|t| tokens::restore(&t[0], &t[1], &positions, masking.ids_restore()),
            &|t| {
                let mask = t[1].broadcast_as((batch, 1, width))?;
                let all = Tensor::cat(&[&t[0], &mask], 1)?.reshape(((), width))?;
                let restored = all.index_select(&rows, 0)?.reshape((batch, 1 + n, width))?;
                Ok(restored.broadcast_add(&positions.to_dtype(DType::F64)?)?)
            },
            &[random("tokens", &[batch, n_tokens, width])],
            &[random("mask token", &[1, 1, width])],
        );
    }
}

#[test]
fn rows_are_selected_as_by_candle() {
    if !emulation::is_there("rows_are_selected_as_by_candle") {
        return;
    }
    for width in [8, 5] {
        let rows = [7, 0, 3, 11];
        let ids = Tensor::new(&rows, &Device::Cpu).unwrap();
        compare(
            "selected rows",
            &|t| tokens::select_rows(&t[0], &rows),
            &|t| Ok(t[0].reshape(((), width))?.index_select(&ids, 0)?),
            &[random("x", &[3, 4, width])],
            &[],
        );
    }
}

#[test]
fn the_reconstruction_loss_is_the_plain_one() {
    if !emulation::is_there("the_reconstruction_loss_is_the_plain_one") {
        return;
    }
    for (n_rows, width) in [(1, 12), (70, 27), (9, 100)] {
        let patches = (random("patches", &[n_rows + 5, width]) + 2.0).unwrap();
        let rows: Vec<u32> = (0..n_rows as u32)
            .map(|row| row * 3 % (n_rows as u32 + 5))
            .collect();
        let ids = Tensor::new(rows.as_slice(), &Device::Cpu).unwrap();
        for normalised in [false, true] {
            compare(
                &format!("loss of {n_rows} x {width}, normalised {normalised}"),
                &|t| loss::patch_mse(&t[0], &patches, &rows, normalised),
                &|t| {
                    let patches = patches.to_dtype(DType::F64)?;
                    let target = crate::loss::pixel_targets(&patches, normalised)?;
                    let target = target.index_select(&ids, 0)?;
                    Ok((&t[0] - target)?.sqr()?.mean_all()?)
                },
                &[random("pred", &[n_rows, width])],
                &[],
            );
        }
    }
}

/// Norms, clipping, AdamW and the running mean over parameters of many sizes, one of them without a gradient.
#[test]
fn an_optimizer_step_is_the_hosts() {
    if !emulation::is_there("an_optimizer_step_is_the_hosts") {
        return;
    }
    let sizes = [1usize, 9000, 3, 16384, 8192, 100];
    let of = |name: &str| -> Vec<Tensor> {
        let tensor = |(i, &n): (usize, &usize)| random(&format!("{name} {i}"), &[n]);
        sizes.iter().enumerate().map(tensor).collect()
    };
    let (weights, m, gradients, means) = (of("w"), of("m"), of("g"), of("mean"));
    let v: Vec<Tensor> = of("v").iter().map(|v| v.sqr().unwrap()).collect();
    let step = optim::Step {
        grad_scale: 0.5,
        one_minus_beta1: 0.1,
        beta2: 0.95,
        one_minus_beta2: 0.05,
        step_size: 0.02,
        bias_correction2_sqrt: 0.3,
        eps: 1e-8,
    };
    let max_norm = 7.0;
    let split = optim::Split::new(sizes.to_vec(), &Device::Cpu).unwrap();
    let without = 2;
    let given = |i: usize| (i != without).then(|| &gradients[i]);
    let given: Vec<Option<&Tensor>> = (0..sizes.len()).map(given).collect();
    let before: Vec<[Vec<f64>; 3]> = (0..sizes.len())
        .map(|i| [values(&weights[i]), values(&m[i]), values(&v[i])])
        .collect();

    let norms = split.norms(&given, Some(max_norm)).unwrap();
    let squares: Vec<f64> = given
        .iter()
        .map(|g| g.map_or(0.0, |g| values(g).iter().map(|g| g * g).sum()))
        .collect();
    expect_close("sums of squares", &values(&norms.squares), &squares, 1e-12);
    let norm = squares.iter().sum::<f64>().sqrt();
    let factor = max_norm / (norm + 1e-6);
    let got = values(&norms.norm_and_factor);
    assert!(
        (got[0] / norm - 1.0).abs() < 1e-6 && (got[1] / factor - 1.0).abs() < 1e-6,
        "{got:?}"
    );

    let entries = || {
        (0..sizes.len()).map(|i| optim::Entry {
            weight: Some(&weights[i]),
            exp_avg: Some(&m[i]),
            exp_avg_sq: Some(&v[i]),
            gradient: given[i],
            keep: 1.0 - 0.01 * i as f32,
        })
    };
    split.adamw(entries(), step, Some(&norms)).unwrap();
    for i in 0..sizes.len() {
        let g = values(&gradients[i]);
        let keep = f64::from(1.0 - 0.01 * i as f32);
        let [w, m0, v0] = &before[i];
        let (mut wants, mut want_m, mut want_v) = (w.clone(), m0.clone(), v0.clone());
        if i != without {
            for j in 0..sizes[i] {
                let g = g[j] * factor * 0.5;
                want_m[j] = m0[j] + 0.1 * (g - m0[j]);
                want_v[j] = 0.95 * v0[j] + 0.05 * g * g;
                wants[j] = w[j] * keep - 0.02 * want_m[j] / (want_v[j].sqrt() / 0.3 + 1e-8);
            }
        }
        expect_close("weights", &values(&weights[i]), &wants, 1e-5);
        expect_close("first moments", &values(&m[i]), &want_m, 1e-6);
        expect_close("second moments", &values(&v[i]), &want_v, 1e-6);
    }

    let old: Vec<Vec<f64>> = means.iter().map(values).collect();
    split.running_mean(means.iter().zip(&weights), 0.9).unwrap();
    for ((mean, old), weight) in means.iter().zip(old).zip(&weights) {
        let want: Vec<f64> = old
            .iter()
            .zip(values(weight))
            .map(|(a, b)| 0.9 * a + 0.1 * b)
            .collect();
        expect_close("running mean", &values(mean), &want, 1e-6);
    }

    // Neither weights nor moments take anything from gradients that are not finite.
    let all: Vec<Vec<f64>> = weights.iter().chain(&m).chain(&v).map(values).collect();
    let broken = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
    let mut with_nan = given.clone();
    with_nan[0] = Some(&broken);
    let norms = split.norms(&with_nan, None).unwrap();
    assert!(
        values(&norms.norm_and_factor)
            .iter()
            .all(|value| value.is_nan())
    );
    split.adamw(entries(), step, Some(&norms)).unwrap();
    let after: Vec<Vec<f64>> = weights.iter().chain(&m).chain(&v).map(values).collect();
    assert!(all == after, "a gradient of NaN reached the weights");
}

#[test]
fn what_kernels_cannot_take_is_an_error() {
    if !emulation::is_there("what_kernels_cannot_take_is_an_error") {
        return;
    }
    let f64s = random("x", &[2, 8]).to_dtype(DType::F64).unwrap();
    let message = activation::gelu(&f64s).unwrap_err().to_string();
    assert!(message.contains("f32 or bf16, not F64"), "{message}");
    let columns = random("x", &[4, 8]).t().unwrap();
    let message = activation::gelu(&columns).unwrap_err().to_string();
    assert!(message.contains("strides [1, 8]"), "{message}");
    let wide = random("qkv", &[1, 2, 3 * 130]);
    let message = attention::self_attention(&wide, 1, None)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("attention") && message.contains("error 1"),
        "{message}"
    );
}

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
        decoder_depth: Some(1),
        decoder_num_heads: Some(2),
        mask_ratio: Some(0.75),
        drop_path: 0.2,
        contrastive: ContrastiveConfig {
            projector_hidden_dim: 12,
            projector_dim: 8,
            // Sharper similarities of a small batch would make much of a rounding.
            temperature: 1.0,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Loss and gradients by name of a step of a model.
fn step_of(
    config: &ModelConfig,
    dtype: DType,
    precision: Precision,
) -> (f64, Vec<(String, Tensor)>) {
    let mut params = Params::new(1, dtype, &Device::Cpu);
    let model = models::build(config, &mut params).unwrap();
    let views = random("views", &[6, config.n_views(), 3, 32, 32]);
    let views = views.to_dtype(dtype).unwrap();
    let randomness = StepRandomness {
        seed: 5,
        epoch: 1,
        samples: vec![3, 1, 4, 15, 9, 2],
    };
    let forward = || tape::record(|| model.forward(&views, &randomness, true));
    let (forward, tape) = with_precision(precision, forward).unwrap();
    let mut gradients = Vec::new();
    let names: HashMap<_, _> = params
        .iter_trainable()
        .map(|param| (param.var.id(), param.name.clone()))
        .collect();
    tape.backward(&forward.loss, 1.0, &mut |id, gradient| {
        gradients.push((names[&id].clone(), gradient));
        Ok(())
    })
    .unwrap();
    gradients.sort_by(|a, b| a.0.cmp(&b.0));
    (values(&forward.loss)[0], gradients)
}

/// Whole models with the kernels in place of everything else, on the tape, in f32 and in bf16 with f32 masters, dropout
/// and stochastic depth included.
#[test]
fn models_of_kernels_are_the_plain_ones() {
    if !emulation::is_there("models_of_kernels_are_the_plain_ones") {
        return;
    }
    for kind in [ModelKind::Siamese, ModelKind::Mae, ModelKind::MultiView] {
        let config = tiny(kind);
        let (want_loss, want) = step_of(&config, DType::F64, Precision::F32);
        for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 0.15)] {
            let (loss, got) = emulation::instead(|| step_of(&config, DType::F32, precision));
            assert!(
                (loss - want_loss).abs() <= 0.1 * tolerance * want_loss,
                "{kind:?} in {precision:?}: loss {loss}, expected {want_loss}"
            );
            assert_eq!(got.len(), want.len(), "{kind:?}");
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                assert_eq!(got.dtype(), DType::F32, "{name}");
                let norm = |t: &Tensor| values(t).iter().map(|v| v * v).sum::<f64>().sqrt();
                let gap = norm(&(got.to_dtype(DType::F64).unwrap() - want).unwrap());
                assert!(
                    gap <= 1e-2 * tolerance + tolerance * norm(want),
                    "{kind:?} in {precision:?}: {name} is off by {gap:e} of {:e}",
                    norm(want)
                );
            }
        }
    }
}
