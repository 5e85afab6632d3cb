//! Whole training steps.

use std::time::Instant;

use bytes::BytesMut;
use candle_core::{DType, Device, Tensor};
use pipeline::loader::Batch;
use trainer::device::{Uploader, peak_memory_bytes};
use trainer::masking::{StepRandomness, n_kept};
use trainer::models::{ModelConfig, Sizes, build};
use trainer::nn::params::Params;
use trainer::ops::{Precision, with_precision};
use trainer::optim::{AdamW, AdamWOptions, Gradients, clip, param_groups};
use trainer::tape;

use super::{Arguments, Result, numbers, seconds_each};

/// Width of the feed-forward part of the decoder's blocks.
const FEED_FORWARD: f64 = 2048.0;

/// Steps that are not counted: the driver compiles candle's kernels, and the pool grows.
const WARM_UP: usize = 3;

/// Prints one line: the times, and what they make of the GPU.
pub fn step(gpu: &Device, arguments: &Arguments) -> Result<()> {
    let config = arguments.model();
    let mut params = Params::new(0, DType::F32, gpu);
    let model = build(&config, &mut params)?;
    let trainable: Vec<_> = params
        .iter_trainable()
        .map(|param| (param.name.clone(), param.var.clone()))
        .collect();
    let options = AdamWOptions {
        beta1: 0.9,
        beta2: 0.95,
    };
    let mut optim = AdamW::new(param_groups(trainable.clone(), 0.05), options)?;
    let mut grads = Gradients::new(trainable);
    let mut uploader = Uploader::new(gpu)?;
    let batch = pictures(&config, arguments.batch);

    // As `train` steps, which looks at loss and norms before each update, and with nothing read until the end.
    let mut ms = [0.0; 2];
    let mut ends = (f64::NAN, f64::NAN);
    for (ms, reads) in ms.iter_mut().zip([true, false]) {
        let mut start = Instant::now();
        for step in 0..WARM_UP + arguments.steps {
            if step == WARM_UP {
                gpu.synchronize()?;
                start = Instant::now();
            }
            let views = uploader.upload(&batch)?;
            let randomness = StepRandomness {
                seed: 0,
                epoch: step as u64,
                samples: batch.samples.clone(),
            };
            grads.clear();
            let forward = || tape::record(|| model.forward(&views, &randomness, true));
            let (forward, tape) = with_precision(Precision::Bf16, forward)?;
            if reads {
                ends.0 = f64::from(forward.loss.to_scalar::<f32>()?);
            }
            grads.backward(tape, &forward.loss, 1.0, &mut |_, _| Ok(()))?;
            if reads {
                let norms = clip::norms(&grads)?;
                ends.1 = norms.global;
                optim.step_scaled(&grads, clip::factor(&norms, 1.0), 1e-5)?;
            } else {
                optim.step_unread(&grads, Some(1.0), 1e-5)?;
            }
        }
        gpu.synchronize()?;
        *ms = start.elapsed().as_secs_f64() / arguments.steps as f64 * 1e3;
    }
    let tflop = flops_of_a_pair(&config.sizes())? * arguments.batch as f64 / 1e12;
    let peak_bytes = peak_memory_bytes(gpu).ok_or("the GPU's memory is not known")?;
    let report = serde_json::json!({
        "encoder": format!("{:?}", arguments.encoder),
        "batch": arguments.batch,
        "ms": ms[0],
        "ms_unread": ms[1],
        "tflop": tflop,
        "peak_gib": peak_bytes as f64 / f64::from(1 << 30),
        "loss": ends.0,
        "grad_norm": ends.1,
    });
    println!("{report}");
    Ok(())
}

/// A batch of bytes as the loader makes them.
fn pictures(config: &ModelConfig, n_samples: usize) -> Batch {
    let side = config.sizes().img_size;
    let n = n_samples * config.n_views() * side * side * 3;
    let mut views = BytesMut::with_capacity(n);
    // A stretch of noise again and again: its values do not matter to the time.
    let noise: Vec<u8> = numbers(1 << 16, 7)
        .iter()
        .map(|v| (v * 70.0 + 128.0) as u8)
        .collect();
    while views.len() < n {
        let rest = (n - views.len()).min(noise.len());
        views.extend_from_slice(&noise[..rest]);
    }
    Batch {
        epoch: 0,
        index: 0,
        n_views: config.n_views(),
        size: side,
        views,
        labels: vec![None; n_samples],
        samples: (0..n_samples as u64).collect(),
        keys: vec![String::new(); n_samples],
    }
}

/// Floating-point operations of the matrix products of a step, per pair: two a multiply-add, three products (forward and
/// both gradients) for each of forward's.
fn flops_of_a_pair(sizes: &Sizes) -> Result<f64> {
    let n = sizes.n_patches() as f64;
    let kept = n_kept(sizes.n_patches(), sizes.mask_ratio)? as f64;
    let (d, values) = (sizes.embed_dim as f64, sizes.patch_values() as f64);
    let dd = sizes.decoder_embed_dim as f64;
    let (whole, masked) = (1.0 + n, 1.0 + kept);
    let block = |tokens: f64| tokens * 12.0 * d * d + 2.0 * tokens * tokens * d;
    let encoder = sizes.depth as f64 * (block(whole) + block(masked)) + (n + kept) * values * d;
    let into_decoder = (whole + masked) * d * dd;
    let cross = 2.0 * whole * dd * dd + 2.0 * whole * dd * dd + 2.0 * whole * whole * dd;
    let itself = 4.0 * whole * dd * dd + 2.0 * whole * whole * dd;
    let feed_forward = 2.0 * whole * dd * FEED_FORWARD;
    let decoder = sizes.decoder_depth as f64 * (cross + itself + feed_forward);
    let out = (n - kept) * dd * values;
    Ok(6.0 * (encoder + into_decoder + decoder + out))
}

/// Prints the rate of a product of two bf16 matrices of 8192 x 8192.
pub fn peak(gpu: &Device) -> Result<()> {
    const SIDE: usize = 8192;
    let matrix = |salt| -> Result<Tensor> {
        let values = numbers(SIDE * SIDE, salt);
        Ok(Tensor::from_vec(values, (SIDE, SIDE), gpu)?.to_dtype(DType::BF16)?)
    };
    let (a, b) = (matrix(1)?, matrix(2)?);
    let seconds = seconds_each(gpu, 50, || {
        a.matmul(&b.t()?)?;
        Ok(())
    })?;
    let tflops = 2.0 * (SIDE as f64).powi(3) / seconds / 1e12;
    println!("{}", serde_json::json!({ "peak_tflops": tflops }));
    Ok(())
}
