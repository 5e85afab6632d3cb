//! Milliseconds of a forward and a backward pass on the CPU.
//!
//! `cargo bench -p pairquet-trainer --bench forward_backward -- [KIND] [BATCH] [STEPS]`, KIND being `siamese` (ViT-S/16,
//! decoder 4x256x8, the default), `mae` (ViT-B/16) or `multi_view` (ViT-B/16). Dropout is on. The first step is left
//! out; the median, the least and the views per second are printed.

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use trainer::masking::StepRandomness;
use trainer::models::{EncoderPreset, ModelConfig, ModelKind, build};
use trainer::nn::params::Params;
use trainer::optim::Gradients;
use trainer::tape;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let number =
        |i: usize, default: usize| arguments.get(i).map_or(Ok(default), |text| text.parse());
    let (kind, encoder) = match arguments.first().map_or("siamese", String::as_str) {
        "siamese" => (ModelKind::Siamese, EncoderPreset::VitS16),
        "mae" => (ModelKind::Mae, EncoderPreset::VitB16),
        "multi_view" => (ModelKind::MultiView, EncoderPreset::VitB16),
        other => return Err(format!("kind {other}, expected siamese, mae or multi_view").into()),
    };
    let (batch, steps) = (number(1, 8)?, number(2, 5)?);

    let config = ModelConfig {
        kind,
        encoder,
        ..Default::default()
    };
    let mut params = Params::new(0, DType::F32, &Device::Cpu);
    let model = build(&config, &mut params)?;
    let side = config.sizes().img_size;
    let shape = (batch, config.n_views(), 3, side, side);
    let values: Vec<f32> = (0..batch * config.n_views() * 3 * side * side)
        .map(|i| ((i % 977) as f32).sin())
        .collect();
    let views = Tensor::from_vec(values, shape, &Device::Cpu)?;

    let trainable = params.iter_trainable();
    let mut grads = Gradients::new(trainable.map(|param| (param.name.clone(), param.var.clone())));
    let (mut forward_ms, mut total_ms) = (Vec::new(), Vec::new());
    for step in 0..=steps {
        let randomness = StepRandomness {
            seed: 0,
            epoch: step as u64,
            samples: (0..batch as u64).collect(),
        };
        let start = Instant::now();
        let (forward, tape) = tape::record(|| model.forward(&views, &randomness, true))?;
        let after_forward = start.elapsed();
        grads.clear();
        grads.backward(tape, &forward.loss, 1.0, &mut |_, _| Ok(()))?;
        if step > 0 {
            forward_ms.push(after_forward.as_secs_f64() * 1e3);
            total_ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    total_ms.sort_by(f64::total_cmp);
    forward_ms.sort_by(f64::total_cmp);
    let median = total_ms[total_ms.len() / 2];
    println!(
        "{kind:?} {encoder:?} batch {batch} threads {}: forward {:.0} ms, forward + backward {median:.0} ms (least {:.0}), \
         {:.1} samples/s",
        rayon::current_num_threads(),
        forward_ms[forward_ms.len() / 2],
        total_ms[0],
        batch as f64 / median * 1e3,
    );
    Ok(())
}
