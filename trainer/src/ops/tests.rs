//! Fused against plain (which runs in f64 here), and fused gradients against finite differences.

use candle_core::{Device, Var};

use super::*;
use crate::masking::StepRandomness;
use crate::nn::init::Init;
use pipeline::rng::Purpose;

fn random(name: &str, shape: &[usize]) -> Tensor {
    let values = Init::Normal { std: 1.0 }.values(0, name, shape);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn mask(batch: u64, per_sample: usize) -> KeepMask {
    let step = StepRandomness {
        seed: 0,
        epoch: 0,
        samples: (0..batch).collect(),
    };
    KeepMask::draw(&step, Purpose::Dropout, "test", per_sample, 0.3).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// Result and gradients of `f` at `arguments`, the result weighted by fixed random numbers.
fn run(
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    arguments: &[Tensor],
    dtype: DType,
) -> Vec<Vec<f64>> {
    let vars: Vec<Var> = arguments
        .iter()
        .map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let weights = random("weights of the result", y.dims())
        .to_dtype(dtype)
        .unwrap();
    let gradients = (&y * weights)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let mut results = vec![values(&y)];
    results.extend(vars.iter().map(|var| values(gradients.get(var).unwrap())));
    results
}

/// Result and all gradients within 1e-5 of the plain form in f64, relative to the largest of each.
fn compare(f: &dyn Fn(&[Tensor]) -> Result<Tensor>, arguments: &[Tensor]) {
    let fused = run(f, arguments, DType::F32);
    let plain = run(f, arguments, DType::F64);
    for (i, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
        let size = plain.iter().fold(0f64, |size, v| size.max(v.abs()));
        let worst = fused
            .iter()
            .zip(plain)
            .map(|(a, b)| (a - b).abs())
            .fold(0f64, f64::max);
        assert!(
            worst <= 1e-5 * size,
            "result or gradient {i}: off by {worst:e} of {size:e}"
        );
    }
    finite_differences(f, arguments, &fused);
}

/// The slope along one random direction for each argument, in f32 with a wide step.
fn finite_differences(
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    arguments: &[Tensor],
    results: &[Vec<f64>],
) {
    for (i, argument) in arguments.iter().enumerate() {
        let direction = random("direction", argument.dims());
        let at = |step: f64| {
            let mut moved = arguments.to_vec();
            moved[i] = (argument + (&direction * step).unwrap()).unwrap();
            let y = f(&moved).unwrap();
            let weights = values(&random("weights of the result", y.dims()));
            values(&y)
                .iter()
                .zip(weights)
                .map(|(y, w)| y * w)
                .sum::<f64>()
        };
        let h = 1e-2;
        let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        let gradient: f64 = results[i + 1]
            .iter()
            .zip(values(&direction))
            .map(|(g, d)| g * d)
            .sum();
        let size = results[i + 1].iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(
            (slope - gradient).abs() <= 2e-3 * size,
            "argument {i}: slope {slope}, gradient {gradient}"
        );
    }
}

#[test]
fn layer_norm_is_the_plain_one() {
    for (rows, width) in [(1, 3), (200, 24), (5, 100)] {
        let x = (random("x", &[rows, width]) * 3.0).unwrap();
        let arguments = [
            (x + 1.0).unwrap(),
            random("w", &[width]),
            random("b", &[width]),
        ];
        compare(&|t| layer_norm(&t[0], &t[1], &t[2], 1e-6), &arguments);
    }
}

#[test]
fn linear_is_the_plain_one() {
    for (rows, n_in, n_out) in [(1, 5, 3), (300, 40, 7), (9, 700, 33)] {
        let arguments = [
            random("x", &[1, rows, n_in]),
            random("w", &[n_out, n_in]),
            random("b", &[n_out]),
        ];
        compare(&|t| linear(&t[0], &t[1], &t[2]), &arguments);
        compare(&|t| linear_in_order(&t[0], &t[1], &t[2]), &arguments);
    }
}

#[test]
fn sums_in_order_are_one_chain() {
    let (x, w, b) = (
        random("x", &[7, 50]),
        random("w", &[17, 50]),
        random("b", &[17]),
    );
    let got = linear_in_order(&x, &w, &b)
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    let (x, w) = (x.to_vec2::<f32>().unwrap(), w.to_vec2::<f32>().unwrap());
    for (got, x) in got.iter().zip(&x) {
        for ((got, w), b) in got.iter().zip(&w).zip(b.to_vec1::<f32>().unwrap()) {
            let chain = |add: fn(f32, f32, f32) -> f32| {
                x.iter().zip(w).fold(0f32, |sum, (x, w)| add(*x, *w, sum)) + b
            };
            // Fused, or, on processors that cannot, not.
            assert!([chain(f32::mul_add), chain(|x, w, sum| sum + x * w)].contains(got));
        }
    }
}

#[test]
fn linear_of_a_constant_and_of_part_of_a_weight() {
    let x = random("x", &[6, 10]);
    let w = Var::from_tensor(&random("w", &[8, 10])).unwrap();
    let b = Var::from_tensor(&random("b", &[8])).unwrap();
    let y = linear(&x, &w.narrow(0, 3, 4).unwrap(), &b.narrow(0, 3, 4).unwrap()).unwrap();
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_none());
    let db = gradients.get(&b).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(db, [0.0, 0.0, 0.0, 6.0, 6.0, 6.0, 6.0, 0.0]);
    assert_eq!(gradients.get(&w).unwrap().dims(), [8, 10]);
    assert!(linear(&x, &random("w", &[8, 11]), &b).is_err());
}

#[test]
fn gelu_is_the_plain_one() {
    compare(&|t| gelu(&t[0]), &[(random("x", &[3, 777]) * 3.0).unwrap()]);
}

#[test]
fn dropout_is_the_plain_one() {
    let mask = mask(3, 50);
    compare(&|t| dropout(&t[0], &mask), &[random("x", &[3, 5, 10])]);
    assert!(matches!(
        dropout(&random("x", &[3, 5, 11]), &mask),
        Err(Error::Shape { .. })
    ));
}

#[test]
fn self_attention_is_the_plain_one() {
    for (batch, n, heads, d) in [(1, 1, 1, 4), (3, 17, 2, 8), (2, 33, 3, 5)] {
        let qkv = random("qkv", &[batch, n, 3 * heads * d]);
        compare(
            &|t| self_attention(&t[0], heads, None),
            std::slice::from_ref(&qkv),
        );
        let mask = mask(batch as u64, heads * n * n);
        compare(&|t| self_attention(&t[0], heads, Some(&mask)), &[qkv]);
    }
    assert!(self_attention(&random("x", &[1, 4, 10]), 2, None).is_err());
    assert!(self_attention(&random("x", &[1, 4, 12]), 2, Some(&mask(1, 4))).is_err());
}

#[test]
fn cross_attention_is_the_plain_one() {
    for (batch, n, m, heads, d) in [(1, 2, 1, 1, 4), (3, 9, 17, 2, 8), (2, 20, 3, 3, 5)] {
        let arguments = [
            random("q", &[batch, n, heads * d]),
            random("kv", &[batch, m, 2 * heads * d]),
        ];
        compare(&|t| cross_attention(&t[0], &t[1], heads, None), &arguments);
        let mask = mask(batch as u64, heads * n * m);
        compare(
            &|t| cross_attention(&t[0], &t[1], heads, Some(&mask)),
            &arguments,
        );
    }
    assert!(cross_attention(&random("q", &[1, 4, 8]), &random("kv", &[1, 4, 8]), 2, None).is_err());
}

#[test]
fn the_linear_map_of_a_gelu_is_the_plain_one() {
    for (rows, n_in, n_out) in [(1, 5, 3), (60, 40, 7), (9, 300, 33)] {
        let arguments = [
            random("h", &[3, rows, n_in]),
            random("w", &[n_out, n_in]),
            random("b", &[n_out]),
        ];
        compare(&|t| gelu_linear(&t[0], None, &t[1], &t[2]), &arguments);
        let mask = mask(3, rows * n_in);
        compare(
            &|t| gelu_linear(&t[0], Some(&mask), &t[1], &t[2]),
            &arguments,
        );
    }
    let (h, w, b) = (
        random("h", &[2, 4]),
        random("w", &[3, 4]),
        random("b", &[3]),
    );
    assert!(gelu_linear(&h, Some(&mask(1, 3)), &w, &b).is_err());
}

#[test]
fn sums_with_a_dropped_branch_are_the_plain_ones() {
    let arguments = [random("x", &[3, 5, 700]), random("branch", &[3, 5, 700])];
    compare(&|t| add(&t[0], &t[1], None), &arguments);
    let (elements, samples) = (mask(3, 3500), mask(3, 1));
    compare(&|t| add(&t[0], &t[1], Some(&elements)), &arguments);
    compare(&|t| add(&t[0], &t[1], Some(&samples)), &arguments);
    assert!(add(&arguments[0], &arguments[1], Some(&mask(3, 2))).is_err());
    assert!(add(&arguments[0], &random("x", &[3, 5]), None).is_err());
}

#[test]
fn sequences_are_put_together_as_plainly() {
    for (batch, n, width) in [(1, 2, 3), (3, 7, 20)] {
        for of_positions in [1, batch] {
            let positions = random("positions", &[of_positions, 1 + n, width]);
            let arguments = [
                random("tokens", &[batch, n, width]),
                random("class", &[1, 1, width]),
            ];
            let f = |t: &[Tensor]| class_in_front(&t[0], &t[1], &positions.to_dtype(t[0].dtype())?);
            compare(&f, &arguments);
        }
        let positions = random("positions", &[1, 1 + n, width]);
        // Patches in reverse order, the last `n / 2` of them removed.
        let places: Vec<u32> = (0..batch * n).map(|i| (n - 1 - i % n) as u32).collect();
        let kept = n - n / 2;
        let arguments = [
            random("tokens", &[batch, 1 + kept, width]),
            random("mask token", &[1, 1, width]),
        ];
        let f = |t: &[Tensor]| restore(&t[0], &t[1], &positions.to_dtype(t[0].dtype())?, &places);
        compare(&f, &arguments);
    }
}

#[test]
fn selected_rows_are_the_plain_ones() {
    let x = random("x", &[3, 7, 5]);
    compare(
        &|t| select_rows(&t[0], &[20, 0, 3]),
        std::slice::from_ref(&x),
    );
    assert!(matches!(select_rows(&x, &[21]), Err(Error::Shape { .. })));
}

#[test]
fn the_patch_error_is_the_plain_one() {
    let patches = (random("patches", &[2, 40, 27]) * 3.0).unwrap();
    let rows: Vec<u32> = (0..80).filter(|row| row % 3 > 0).collect();
    let pred = random("pred", &[rows.len(), 27]);
    for normalised in [false, true] {
        let f =
            |t: &[Tensor]| patch_mse(&t[0], &patches.to_dtype(t[0].dtype())?, &rows, normalised);
        compare(&f, std::slice::from_ref(&pred));
    }
    let wrong = patch_mse(&pred, &patches, &rows[1..], true);
    assert!(matches!(wrong, Err(Error::Shape { .. })));
    assert!(patch_mse(&pred, &patches, &vec![80; rows.len()], true).is_err());
}

#[test]
fn patches_are_cut_from_views_as_plainly() {
    let images = random("images", &[2, 2, 3, 8, 12])
        .narrow(1, 1, 1)
        .unwrap()
        .squeeze(1)
        .unwrap();
    let fused = patchify(&images, 4).unwrap().unwrap();
    let plain = images.reshape((2, 3, 2, 4, 3, 4)).unwrap();
    let plain = plain
        .permute((0, 2, 4, 3, 5, 1))
        .unwrap()
        .reshape((2, 6, 48))
        .unwrap();
    assert_eq!(
        fused.to_vec3::<f32>().unwrap(),
        plain.to_vec3::<f32>().unwrap()
    );
}

/// What does not lie without gaps is made to, on the tape and off it.
#[test]
fn gaps_cost_no_gradient() {
    let x = Var::from_tensor(&random("x", &[4, 6])).unwrap();
    let w = Var::from_tensor(&random("w", &[4, 5])).unwrap();
    let b = Var::from_tensor(&random("b", &[5])).unwrap();
    let f = || {
        let x = gelu(x.as_tensor())?;
        let x = tape::composed(&[&x], |t| Ok(t[0].t()?))?; // [6, 4], columns contiguous
        let y = linear(&x, &w.t()?, &b)?;
        tape::composed(&[&y], |t| Ok(t[0].sqr()?.sum_all()?))
    };
    let expected = f().unwrap().backward().unwrap();
    let (loss, tape) = tape::record(f).unwrap();
    let mut given = Vec::new();
    tape.backward(&loss, 1.0, &mut |id, gradient| {
        given.push((id, gradient));
        Ok(())
    })
    .unwrap();
    assert_eq!(given.len(), 3);
    for (id, gradient) in given {
        let expected = expected.get_id(id).unwrap();
        let gap = (gradient - expected)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        assert!(gap.to_scalar::<f32>().unwrap() < 1e-5);
    }
}

/// Sums must not depend on how many threads there are.
#[test]
fn the_number_of_threads_changes_no_bit() {
    let arguments = [
        random("x", &[1000, 48]),
        random("w", &[48]),
        random("b", &[48]),
        random("v", &[144, 48]),
    ];
    let f = |t: &[Tensor]| {
        let y = layer_norm(&t[0], &t[1], &t[2], 1e-6)?;
        let qkv = linear(&y, &t[3], &random("bias", &[144]))?;
        gelu(&self_attention(&qkv.reshape((10, 100, 144))?, 3, None)?)
    };
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| run(&f, &arguments, DType::F32))
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn a_cpu_rounds_nothing_to_tf32() {
    let [x, w, b] = [
        random("x", &[7, 50]),
        random("w", &[17, 50]),
        random("b", &[17]),
    ];
    let with = |precision| {
        let y = with_precision(precision, || linear(&x, &w, &b)).unwrap();
        y.to_vec2::<f32>().unwrap()
    };
    assert!(with(Precision::Tf32) == with(Precision::F32));
    assert!(with(Precision::Bf16) != with(Precision::F32));
}
