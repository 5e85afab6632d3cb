//! One training step of CropMAE ViT-S/16 on the CPU, for timing beside others: forward, backward, clip, AdamW.
//!
//! `trainer/benches/torch_reference/run.py` runs it in turn with the same step in PyTorch. Reads lines from standard
//! input: at `go` it makes one step and prints `{"ms": .., "cpu_ms": .., "loss": ..}`, at the end of input
//! `{"peak_mib": ..}`. Alone: `yes go | head -5 | cargo bench -p pairquet-trainer --bench train_step`.

use std::error::Error;
use std::io::BufRead;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use pipeline::process;
use trainer::device;
use trainer::masking::StepRandomness;
use trainer::models::{ModelConfig, build};
use trainer::nn::params::Params;
use trainer::ops::{Precision, with_precision};
use trainer::optim::{AdamW, AdamWOptions, Gradients, clip, param_groups};
use trainer::tape;

fn main() -> Result<(), Box<dyn Error>> {
    device::prepare_process();
    let mut config = ModelConfig::default();
    let mut batch = 8;
    let mut precision = Precision::F32;
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} without a value"))
        };
        match argument.as_str() {
            "--batch" => batch = value()?.parse()?,
            "--dropout" => config.decoder_dropout = value()?.parse()?,
            "--precision" => {
                precision = match value()?.as_str() {
                    "f32" => Precision::F32,
                    "bf16" => Precision::Bf16,
                    other => return Err(format!("precision {other}, expected f32 or bf16").into()),
                }
            }
            "--checkpoint" => config.checkpoint_blocks = true,
            other => {
                let expected = "expected --batch, --dropout, --precision or --checkpoint";
                return Err(format!("argument {other}, {expected}").into());
            }
        }
    }
    let mut params = Params::new(0, DType::F32, &Device::Cpu);
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
    let side = config.sizes().img_size;
    let n_values = batch * config.n_views() * 3 * side * side;
    let values: Vec<f32> = (0..n_values).map(|i| ((i % 977) as f32).sin()).collect();
    let shape = (batch, config.n_views(), 3, side, side);
    let views = Tensor::from_vec(values, shape, &Device::Cpu)?;

    for (step, line) in std::io::stdin().lock().lines().enumerate() {
        if line?.trim() != "go" {
            return Err("a line of input that is not go".into());
        }
        let (start, cpu_start) = (Instant::now(), process::cpu_time().unwrap_or_default());
        let randomness = StepRandomness {
            seed: 0,
            epoch: step as u64,
            samples: (0..batch as u64).collect(),
        };
        grads.clear();
        let (forward, tape) = with_precision(precision, || {
            tape::record(|| model.forward(&views, &randomness, true))
        })?;
        let loss = forward.loss.to_scalar::<f32>()?;
        grads.backward(tape, &forward.loss, 1.0, &mut |_, _| Ok(()))?;
        let norms = clip::norms(&grads)?;
        let before_step = Instant::now();
        optim.step_scaled(&grads, clip::factor(&norms, 1.0), 1e-5)?;
        let optimizer_ms = before_step.elapsed().as_secs_f64() * 1e3;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let cpu = process::cpu_time().unwrap_or_default().since(cpu_start);
        let report = serde_json::json!({
            "ms": ms,
            "optimizer_ms": optimizer_ms,
            "cpu_ms": cpu.running_s * 1e3,
            "loss": loss,
        });
        println!("{report}");
    }
    let peak = process::peak_memory_bytes().unwrap_or_default() as f64 / f64::from(1 << 20);
    println!("{}", serde_json::json!({ "peak_mib": peak }));
    Ok(())
}
