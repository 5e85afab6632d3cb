//! Milliseconds of each operation on the CPU, forward and backward, at the sizes of ViT-S/16 with a batch of 8.
//!
//! `cargo bench -p pairquet-trainer --bench operations -- [ROUNDS]`. The operations take turns, round after round; printed
//! are medians, and for those that multiply matrices the rate beside that of the plain product.

use std::error::Error;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use pipeline::rng::Purpose;
use trainer::device;
use trainer::masking::StepRandomness;
use trainer::nn::dropout::KeepMask;
use trainer::ops::{self, Precision, with_precision};
use trainer::tape;

const BATCH: usize = 8;
const TOKENS: usize = 197;
const WIDTH: usize = 384;
const HIDDEN: usize = 4 * WIDTH;
const HEADS: usize = 6;
const PATCH_VALUES: usize = 768;

/// One operation on its own arguments.
struct Case {
    name: &'static str,
    precision: Precision,
    /// Multiply-adds of the forward pass.
    products: usize,
    run: Box<dyn Fn() -> trainer::Result<Tensor>>,
    times_ms: Vec<[f64; 2]>,
}

fn main() -> Result<(), Box<dyn Error>> {
    device::prepare_process();
    let rounds = std::env::args()
        .skip(1)
        .find(|argument| argument != "--bench")
        .map_or(Ok(15), |text| text.parse())?;
    let mut cases = cases()?;
    for round in 0..=rounds {
        for case in &mut cases {
            let start = Instant::now();
            let (y, tape) = with_precision(case.precision, || tape::record(&case.run))?;
            let middle = Instant::now();
            tape.backward(&y, 1.0, &mut |_, _| Ok(()))?;
            let end = Instant::now();
            if round > 0 {
                let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
                case.times_ms.push([ms(start, middle), ms(middle, end)]);
            }
        }
    }
    println!("batch {BATCH}, {} threads", rayon::current_num_threads());
    println!("| operation | forward ms | backward ms | GFLOP/s forward |");
    println!("| --- | ---: | ---: | ---: |");
    for case in &cases {
        let median = |which: usize| {
            let mut times: Vec<f64> = case.times_ms.iter().map(|ms| ms[which]).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let rate = match case.products {
            0 => String::new(),
            products => format!("{:.0}", 2e-6 * products as f64 / median(0)),
        };
        println!(
            "| {} | {:.2} | {:.2} | {rate} |",
            case.name,
            median(0),
            median(1)
        );
    }
    Ok(())
}

fn cases() -> Result<Vec<Case>, Box<dyn Error>> {
    let var = |shape: &[usize]| -> Result<Tensor, Box<dyn Error>> {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| ((i * 37 % 977) as f32).sin()).collect();
        Ok(Var::from_vec(values, shape, &Device::Cpu)?.into_inner())
    };
    let rows = BATCH * TOKENS;
    let x = var(&[BATCH, TOKENS, WIDTH])?;
    let narrow_bias = var(&[WIDTH])?;
    let (up, up_bias) = (var(&[HIDDEN, WIDTH])?, var(&[HIDDEN])?);
    let (hidden, down) = (var(&[BATCH, TOKENS, HIDDEN])?, var(&[WIDTH, HIDDEN])?);
    let (qkv, kv) = (
        var(&[BATCH, TOKENS, 3 * WIDTH])?,
        var(&[BATCH, TOKENS, 2 * WIDTH])?,
    );
    let step = StepRandomness {
        seed: 0,
        epoch: 0,
        samples: (0..BATCH as u64).collect(),
    };
    let mask = KeepMask::draw(&step, Purpose::Dropout, "bench", TOKENS * WIDTH, 0.1)?;
    let pred = var(&[BATCH * (TOKENS - 1), PATCH_VALUES])?;
    let patches = pred.detach();
    let targets: Vec<u32> = (0..(BATCH * (TOKENS - 1)) as u32).collect();

    let mut cases = Vec::new();
    let mut add = |name, precision, products, run: Box<dyn Fn() -> trainer::Result<Tensor>>| {
        cases.push(Case {
            name,
            precision,
            products,
            run,
            times_ms: Vec::new(),
        });
    };
    let attention = 2 * BATCH * TOKENS * TOKENS * WIDTH;
    for (precision, names) in [
        (
            Precision::F32,
            [
                "linear",
                "linear of GELU",
                "self-attention",
                "cross-attention",
            ],
        ),
        (
            Precision::Bf16,
            [
                "linear, bf16",
                "linear of GELU, bf16",
                "self-attention, bf16",
                "cross-attention, bf16",
            ],
        ),
    ] {
        let [linear, of_gelu, own, cross] = names;
        let (input, weight, bias) = (x.clone(), up.clone(), up_bias.clone());
        let run = Box::new(move || ops::linear(&input, &weight, &bias));
        add(linear, precision, rows * WIDTH * HIDDEN, run);
        let (input, weight, bias) = (hidden.clone(), down.clone(), narrow_bias.clone());
        let run = Box::new(move || ops::gelu_linear(&input, None, &weight, &bias));
        add(of_gelu, precision, rows * WIDTH * HIDDEN, run);
        let input = qkv.clone();
        add(
            own,
            precision,
            attention,
            Box::new(move || ops::self_attention(&input, HEADS, None)),
        );
        let (q, kv) = (x.clone(), kv.clone());
        add(
            cross,
            precision,
            attention,
            Box::new(move || ops::cross_attention(&q, &kv, HEADS, None)),
        );
    }
    let (input, bias) = (x.clone(), narrow_bias.clone());
    let scale = var(&[WIDTH])?;
    let run = Box::new(move || ops::layer_norm(&input, &scale, &bias, 1e-6));
    add("layer norm", Precision::F32, 0, run);
    let input = hidden.clone();
    add(
        "GELU",
        Precision::F32,
        0,
        Box::new(move || ops::gelu(&input)),
    );
    let (input, branch) = (x.clone(), var(&[BATCH, TOKENS, WIDTH])?);
    add(
        "residual sum with dropout",
        Precision::F32,
        0,
        Box::new(move || ops::add(&input, &branch, Some(&mask))),
    );
    let run = Box::new(move || ops::patch_mse(&pred, &patches, &targets, true));
    add("error of normalised patches", Precision::F32, 0, run);
    Ok(cases)
}
