//! Where the time of a step goes: each operation alone, at the sizes that it has in a step.

use candle_core::{DType, Device, Tensor, Var};
use pipeline::rng::Purpose;
use trainer::masking::StepRandomness;
use trainer::nn::dropout::KeepMask;
use trainer::{ops, tape};

use super::{Arguments, Result, numbers, seconds_each};

const FEED_FORWARD: usize = 2048;
const REPEATS: usize = 20;

type Op<'a> = &'a dyn Fn(&[Tensor]) -> trainer::error::Result<Tensor>;

struct Profile<'a> {
    gpu: &'a Device,
    rows: Vec<(f64, serde_json::Value)>,
}

/// Prints one line for each operation, those that take most of a step first.
pub fn profile(gpu: &Device, arguments: &Arguments) -> Result<()> {
    let sizes = arguments.model().sizes();
    let (batch, n) = (arguments.batch, 1 + sizes.n_patches());
    let (d, heads, depth) = (sizes.embed_dim, sizes.num_heads, sizes.depth);
    let (dd, decoder_heads) = (sizes.decoder_embed_dim, sizes.decoder_num_heads);
    let decoder_depth = sizes.decoder_depth;
    let mut profile = Profile {
        gpu,
        rows: Vec::new(),
    };
    let x = |width: usize| vec![batch, n, width];
    let map = |n_in: usize, n_out: usize| vec![x(n_in), vec![n_out, n_in], vec![n_out]];
    let weights = KeepMask::draw(
        &StepRandomness {
            seed: 0,
            epoch: 0,
            samples: (0..batch as u64).collect(),
        },
        Purpose::Dropout,
        "profile",
        decoder_heads * n * n,
        0.1,
    )?;
    // The masked view's few tokens are left out of the encoder, which they hardly add to.
    for (name, times, n_in, n_out) in [
        ("encoder qkv", depth, d, 3 * d),
        ("encoder attention's projection", depth, d, d),
        ("encoder fc1", depth, d, 4 * d),
        ("encoder fc2", depth, 4 * d, d),
        ("decoder attention's projections", 6 * decoder_depth, dd, dd),
        ("decoder linear1", decoder_depth, dd, FEED_FORWARD),
        ("decoder linear2", decoder_depth, FEED_FORWARD, dd),
        ("decoder's prediction", 1, dd, sizes.patch_values()),
    ] {
        let op: Op = &|t| ops::linear(&t[0], &t[1], &t[2]);
        profile.time(name, times, &map(n_in, n_out), 1, op)?;
    }
    profile.time("encoder GELU", depth, &[x(4 * d)], 1, &|t| ops::gelu(&t[0]))?;
    profile.time("encoder attention", depth, &[x(3 * d)], 1, &|t| {
        ops::self_attention(&t[0], heads, None)
    })?;
    profile.time(
        "decoder self-attention, dropout",
        decoder_depth,
        &[x(3 * dd)],
        1,
        &|t| ops::self_attention(&t[0], decoder_heads, Some(&weights)),
    )?;
    profile.time(
        "decoder cross-attention, dropout",
        decoder_depth,
        &[x(dd), x(2 * dd)],
        2,
        &|t| ops::cross_attention(&t[0], &t[1], decoder_heads, Some(&weights)),
    )?;
    profile.time(
        "encoder layer norm",
        2 * depth + 1,
        &[x(d), vec![d], vec![d]],
        1,
        &|t| ops::layer_norm(&t[0], &t[1], &t[2], 1e-6),
    )?;
    profile.time("encoder residual sum", 2 * depth, &[x(d), x(d)], 2, &|t| {
        ops::add(&t[0], &t[1], None)
    })?;
    profile.time(
        "decoder layer norm",
        3 * decoder_depth + 1,
        &[x(dd), vec![dd], vec![dd]],
        1,
        &|t| ops::layer_norm(&t[0], &t[1], &t[2], 1e-6),
    )?;
    profile.print();
    Ok(())
}

impl Profile<'_> {
    /// * `times`: how often a step has it. `n_activations`: arguments before the parameters.
    fn time(
        &mut self,
        name: &str,
        times: usize,
        arguments: &[Vec<usize>],
        n_activations: usize,
        op: Op,
    ) -> Result<()> {
        let mut vars = Vec::new();
        for (i, shape) in arguments.iter().enumerate() {
            let values = numbers(shape.iter().product(), i);
            let tensor = Tensor::from_vec(values, shape.as_slice(), self.gpu)?;
            vars.push(Var::from_tensor(&match i < n_activations {
                true => tensor.to_dtype(DType::BF16)?,
                false => tensor,
            })?);
        }
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let forward = seconds_each(self.gpu, REPEATS, || {
            tape::record(|| op(&tensors))?;
            Ok(())
        })?;
        let both = seconds_each(self.gpu, REPEATS, || {
            // The result itself stands for a loss: what matters is that a gradient of its size flows back.
            let (y, tape) = tape::record(|| op(&tensors))?;
            tape.backward(&y, 1.0, &mut |_, _| Ok(()))?;
            Ok(())
        })?;
        let total_ms = both * times as f64 * 1e3;
        let row = serde_json::json!({
            "profile": name,
            "times": times,
            "forward_us": forward * 1e6,
            "backward_us": (both - forward) * 1e6,
            "ms_of_a_step": total_ms,
        });
        self.rows.push((total_ms, row));
        Ok(())
    }

    fn print(mut self) {
        self.rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, row) in &self.rows {
            println!("{row}");
        }
    }
}
