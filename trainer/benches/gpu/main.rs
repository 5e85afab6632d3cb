//! The training step of CropMAE on a GPU: a check of every operation, the time of a step, and where it goes.
//!
//! `run.py` beside this file runs all of it, and the same step in PyTorch, within the ten minutes of one lease, and
//! prints tables. Alone, with one JSON object a line on standard output:
//!
//! - `check`: every operation on the GPU against the CPU, in f32 and bf16, forward and backward; fails if one is off.
//! - `peak`: the rate of a large bf16 product, which shares are of.
//! - `step --encoder vit_b16 --batch 256 --steps 20`: whole steps in bf16: upload, forward, backward, norms, clip, AdamW.
//! - `profile --encoder vit_b16 --batch 256`: each operation at the sizes of a step, and how often a step has it.

mod check;
mod profile;
mod step;

use std::error::Error;
use std::process::ExitCode;

use candle_core::Device;
use trainer::device;
use trainer::models::{EncoderPreset, ModelConfig};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the arguments say.
struct Arguments {
    mode: String,
    encoder: EncoderPreset,
    batch: usize,
    steps: usize,
}

impl Arguments {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Arguments> {
        let mut parsed = Arguments {
            mode: "check".to_owned(),
            encoder: EncoderPreset::VitB16,
            batch: 256,
            steps: 20,
        };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        if let Some(mode) = arguments.next() {
            parsed.mode = mode;
        }
        while let Some(argument) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{argument} without a value"))?;
            match argument.as_str() {
                "--encoder" => {
                    parsed.encoder = match value.as_str() {
                        "vit_s16" => EncoderPreset::VitS16,
                        "vit_b16" => EncoderPreset::VitB16,
                        _ => {
                            return Err(
                                format!("encoder {value}, expected vit_s16 or vit_b16").into()
                            );
                        }
                    }
                }
                "--batch" => parsed.batch = value.parse()?,
                "--steps" => parsed.steps = value.parse()?,
                other => {
                    let expected = "expected --encoder, --batch or --steps";
                    return Err(format!("argument {other}, {expected}").into());
                }
            }
        }
        Ok(parsed)
    }

    fn model(&self) -> ModelConfig {
        ModelConfig {
            encoder: self.encoder,
            ..Default::default()
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    device::prepare_process();
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let gpu = device::open("cuda")?;
    match arguments.mode.as_str() {
        "check" => check::check(&gpu),
        "peak" => step::peak(&gpu),
        "step" => step::step(&gpu, &arguments),
        "profile" => profile::profile(&gpu, &arguments),
        other => Err(format!("mode {other}, expected check, peak, step or profile").into()),
    }
}

/// Seconds that `f`, repeated, takes on the GPU each time, after a first time that is not counted.
fn seconds_each(gpu: &Device, times: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    gpu.synchronize()?;
    let start = std::time::Instant::now();
    for _ in 0..times {
        f()?;
    }
    gpu.synchronize()?;
    Ok(start.elapsed().as_secs_f64() / times as f64)
}

/// Numbers between -1.7 and 1.7 with a mean near 0, the same in every run.
fn numbers(n: usize, salt: usize) -> Vec<f32> {
    let number = |i: usize| {
        let hashed = (i + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(salt.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let unit = ((hashed ^ (hashed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32
            / (1u32 << 24) as f32;
        (unit - 0.5) * 3.4
    };
    (0..n).map(number).collect()
}
