//! Every operation on the GPU against the CPU.

use candle_core::{DType, Device, Tensor, Var};
use pipeline::rng::Purpose;
use trainer::masking::{StepRandomness, random_masking};
use trainer::nn::dropout::KeepMask;
use trainer::{ops, tape};

use super::{Result, numbers};

/// Errors allowed, relative to the largest value, in f32 (whose products the GPU sums in another order) and in bf16.
const TOLERANCE: [(DType, f64); 2] = [(DType::F32, 1e-4), (DType::BF16, 3e-2)];

type Op<'a> = &'a dyn Fn(&[Tensor]) -> trainer::error::Result<Tensor>;

/// An operation at some sizes; arguments from `n_activations` on are parameters, which stay f32.
struct Case<'a> {
    name: String,
    arguments: Vec<Vec<usize>>,
    n_activations: usize,
    op: Op<'a>,
}

pub fn check(gpu: &Device) -> Result<()> {
    let mut failed = 0;
    for heads_of in [16, 32, 64, 128] {
        let (batch, n, m, heads) = (3, 197, 50, 2);
        let width = heads * heads_of;
        let within = mask(batch, heads * n * n)?;
        let across = mask(batch, heads * n * m)?;
        for drop in [false, true] {
            let (within, across) = (drop.then_some(&within), drop.then_some(&across));
            failed += run(
                gpu,
                &Case {
                    name: format!("self-attention, heads of {heads_of}, dropout {drop}"),
                    arguments: vec![vec![batch, n, 3 * width]],
                    n_activations: 1,
                    op: &|t| ops::self_attention(&t[0], heads, within),
                },
            )?;
            failed += run(
                gpu,
                &Case {
                    name: format!("cross-attention, heads of {heads_of}, dropout {drop}"),
                    arguments: vec![vec![batch, n, width], vec![batch, m, 2 * width]],
                    n_activations: 2,
                    op: &|t| ops::cross_attention(&t[0], &t[1], heads, across),
                },
            )?;
        }
    }
    for (rows, width) in [(7, 13), (1000, 384), (513, 768), (100, 3072)] {
        let size = format!("{rows} x {width}");
        let elements = mask(rows, width)?;
        failed += run(
            gpu,
            &Case {
                name: format!("layer norm, {size}"),
                arguments: vec![vec![rows, width], vec![width], vec![width]],
                n_activations: 1,
                op: &|t| ops::layer_norm(&t[0], &t[1], &t[2], 1e-6),
            },
        )?;
        failed += run(
            gpu,
            &Case {
                name: format!("sum and layer norm, {size}"),
                arguments: vec![
                    vec![rows, width],
                    vec![rows, width],
                    vec![width],
                    vec![width],
                ],
                n_activations: 2,
                op: &|t| {
                    let (sum, y) = ops::add_layer_norm(&t[0], &t[1], None, (&t[2], &t[3]), 1e-6)?;
                    Ok((sum + y)?)
                },
            },
        )?;
        failed += run(
            gpu,
            &Case {
                name: format!("gelu, {size}"),
                arguments: vec![vec![rows, width]],
                n_activations: 1,
                op: &|t| ops::gelu(&t[0]),
            },
        )?;
        failed += run(
            gpu,
            &Case {
                name: format!("dropout, {size}"),
                arguments: vec![vec![rows, width]],
                n_activations: 1,
                op: &|t| ops::dropout(&t[0], &elements),
            },
        )?;
        failed += run(
            gpu,
            &Case {
                name: format!("sum with a dropped branch, {size}"),
                arguments: vec![vec![rows, width], vec![rows, width]],
                n_activations: 2,
                op: &|t| ops::add(&t[0], &t[1], Some(&elements)),
            },
        )?;
        failed += run(
            gpu,
            &Case {
                name: format!("linear, {size} to 96"),
                arguments: vec![vec![rows, width], vec![96, width], vec![96]],
                n_activations: 1,
                op: &|t| ops::linear(&t[0], &t[1], &t[2]),
            },
        )?;
        failed += run(
            gpu,
            &Case {
                name: format!("linear of gelu, {size} to 96"),
                arguments: vec![vec![rows, width], vec![96, width], vec![96]],
                n_activations: 1,
                op: &|t| ops::gelu_linear(&t[0], None, &t[1], &t[2]),
            },
        )?;
    }
    failed += tokens(gpu)?;
    match failed {
        0 => Ok(()),
        _ => Err(format!("{failed} operations differ from the CPU's").into()),
    }
}

fn tokens(gpu: &Device) -> Result<usize> {
    let (batch, n, width) = (5, 196, 256);
    let masking = random_masking(&numbers(batch * n, 1), n, 0.9)?;
    let kept = masking.n_kept();
    let table =
        |rows: usize| Tensor::from_vec(numbers(rows * width, 2), (1, rows, width), &Device::Cpu);
    let (positions, all_positions) = (table(1 + kept)?, table(1 + n)?);
    let rows: Vec<u32> = (0..300).map(|i| i * 3 % (batch * n) as u32).collect();
    let patches = Tensor::from_vec(
        numbers(batch * n * width, 3),
        (batch * n, width),
        &Device::Cpu,
    )?;
    let there = |tensor: &Tensor, like: &Tensor| -> trainer::error::Result<Tensor> {
        let dtype = match like.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        Ok(tensor.to_device(like.device())?.to_dtype(dtype)?)
    };
    let cases = [
        Case {
            name: "class token in front".to_owned(),
            arguments: vec![vec![batch, kept, width], vec![1, 1, width]],
            n_activations: 1,
            op: &|t| ops::class_in_front(&t[0], &t[1], &there(&positions, &t[0])?),
        },
        Case {
            name: "restored tokens".to_owned(),
            arguments: vec![vec![batch, 1 + kept, width], vec![1, 1, width]],
            n_activations: 1,
            op: &|t| {
                let positions = there(&all_positions, &t[0])?;
                ops::restore(&t[0], &t[1], &positions, masking.ids_restore())
            },
        },
        Case {
            name: "selected rows".to_owned(),
            arguments: vec![vec![batch, n, width]],
            n_activations: 1,
            op: &|t| ops::select_rows(&t[0], &rows),
        },
        Case {
            name: "reconstruction loss".to_owned(),
            arguments: vec![vec![rows.len(), width]],
            n_activations: 1,
            op: &|t| ops::patch_mse(&t[0], &there(&patches, &t[0])?, &rows, true),
        },
    ];
    let mut failed = 0;
    for case in &cases {
        failed += run(gpu, case)?;
    }
    Ok(failed)
}

fn mask(n_samples: usize, per_sample: usize) -> Result<KeepMask> {
    let step = StepRandomness {
        seed: 1,
        epoch: 2,
        samples: (0..n_samples as u64).collect(),
    };
    Ok(KeepMask::draw(
        &step,
        Purpose::Dropout,
        "check",
        per_sample,
        0.1,
    )?)
}

/// Prints a line for each type; returns how many of them are off.
fn run(gpu: &Device, case: &Case) -> Result<usize> {
    let mut failed = 0;
    for (dtype, tolerance) in TOLERANCE {
        let mut arguments = Vec::new();
        for (i, shape) in case.arguments.iter().enumerate() {
            let values = numbers(shape.iter().product(), i);
            let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?;
            arguments.push(match i < case.n_activations {
                true => tensor.to_dtype(dtype)?,
                false => tensor,
            });
        }
        let on = |device: &Device, exact: bool| -> Result<Vec<Vec<f64>>> {
            let mut vars = Vec::new();
            for argument in &arguments {
                let argument = argument.to_device(device)?;
                vars.push(Var::from_tensor(&match exact {
                    true => argument.to_dtype(DType::F64)?,
                    false => argument,
                })?);
            }
            results(case.op, &vars)
        };
        let (got, want) = (on(gpu, false)?, on(&Device::Cpu, true)?);
        let error = got.iter().zip(&want).map(|(got, want)| relative(got, want));
        let error = error.fold(0.0, f64::max);
        let is_right = error <= tolerance && got.len() == want.len();
        failed += usize::from(!is_right);
        let report = serde_json::json!({
            "check": case.name, "dtype": format!("{dtype:?}"), "error": error, "tolerance": tolerance, "ok": is_right,
        });
        println!("{report}");
    }
    Ok(failed)
}

/// The result and the gradients with respect to all arguments, by the tape.
fn results(op: Op, vars: &[Var]) -> Result<Vec<Vec<f64>>> {
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let (result, tape) = tape::record(|| {
        let y = op(&tensors)?;
        let loss = tape::composed(&[&y], |y| {
            let factors = numbers(y[0].elem_count(), 9);
            let factors = Tensor::from_vec(factors, y[0].shape(), y[0].device())?;
            Ok((y[0].to_dtype(DType::F32)? * factors)?.sum_all()?)
        })?;
        Ok((y, loss))
    })?;
    let (y, loss) = result;
    let mut gradients = std::collections::HashMap::new();
    tape.backward(&loss, 1.0, &mut |id, gradient| {
        gradients.insert(id, gradient);
        Ok(())
    })?;
    let mut all = vec![values(&y)?];
    for var in vars {
        let gradient = gradients
            .get(&var.id())
            .ok_or("an argument has no gradient")?;
        all.push(values(gradient)?);
    }
    Ok(all)
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// The largest difference over the largest value; infinite if one is not a number.
fn relative(got: &[f64], want: &[f64]) -> f64 {
    let size = want.iter().fold(1e-3f64, |size, v| size.max(v.abs()));
    let gaps = got
        .iter()
        .zip(want)
        .map(|(got, want)| (got - want).abs() / size);
    gaps.fold(0.0, |most, gap| {
        if gap.is_nan() {
            f64::INFINITY
        } else {
            most.max(gap)
        }
    })
}
