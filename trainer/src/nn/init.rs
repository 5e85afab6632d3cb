//! Initial values of parameters: the reference's distributions, each keyed by (seed, parameter name).

use pipeline::rng::{Purpose, SampleRng};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All 0: biases, LayerNorm biases.
    Zeros,
    /// All 1: LayerNorm weights.
    Ones,
    /// Uniform within ±sqrt(6 / (fan_in + fan_out)), fan_out being the first dimension and fan_in the product of the
    /// others. A torch `MultiheadAttention.in_proj_weight` is drawn over the whole `[3D, D]`.
    XavierUniform,
    /// Uniform within ±1/sqrt(fan_in), torch's default for a convolution's bias. The reference leaves
    /// `patch_embed.proj.bias` at this.
    UniformFanIn(usize),
    /// Normal with mean 0: class and mask tokens (standard deviation 0.02).
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

impl Init {
    /// The values of parameter `name` of `shape`, row-major: a function of the arguments alone.
    pub fn values(self, seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
        let n = shape.iter().product();
        let mut rng = SampleRng::new(seed, 0, fnv1a_64(name), Purpose::Init);
        match self {
            Init::Zeros => vec![0.0; n],
            Init::Ones => vec![1.0; n],
            Init::XavierUniform => {
                let fan_out = shape.first().copied().unwrap_or(1);
                let fan_in: usize = shape.iter().skip(1).product();
                let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
                (0..n).map(|_| rng.uniform(-bound, bound) as f32).collect()
            }
            Init::UniformFanIn(fan_in) => {
                let bound = 1.0 / (fan_in as f64).sqrt();
                (0..n).map(|_| rng.uniform(-bound, bound) as f32).collect()
            }
            Init::Normal { std } => (0..n)
                .map(|_| (std * rng.standard_normal()) as f32)
                .collect(),
        }
    }
}

/// 64-bit FNV-1a hash of the text's bytes: a stable number for a name.
pub(crate) fn fnv1a_64(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_matches_the_published_vectors() {
        assert_eq!(fnv1a_64(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a_64("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a_64("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let values = |seed, name| Init::XavierUniform.values(seed, name, &[8, 4]);
        assert_eq!(values(1, "a"), values(1, "a"));
        assert_ne!(values(1, "a"), values(2, "a"));
        assert_ne!(values(1, "a"), values(1, "b"));
    }

    #[test]
    fn distributions_have_their_moments() {
        let moments = |values: &[f32]| {
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let var = values
                .iter()
                .map(|&v| (f64::from(v) - mean).powi(2))
                .sum::<f64>()
                / n;
            (mean, var.sqrt())
        };
        // 384 x 1152: bound 1/16, standard deviation bound / sqrt(3).
        let xavier = Init::XavierUniform.values(0, "w", &[1152, 384]);
        let (mean, std) = moments(&xavier);
        assert!(
            mean.abs() < 2e-4 && (std - 0.0625 / 3f64.sqrt()).abs() < 2e-4,
            "{mean} {std}"
        );
        assert!(xavier.iter().all(|v| v.abs() <= 0.0625));
        let normal = Init::Normal { std: 0.02 }.values(0, "w", &[100_000]);
        let (mean, std) = moments(&normal);
        assert!(
            mean.abs() < 3e-4 && (std - 0.02).abs() < 2e-4,
            "{mean} {std}"
        );
        assert!(normal.iter().any(|v| v.abs() > 0.06), "tails are not cut");
        assert!(
            Init::UniformFanIn(768)
                .values(0, "b", &[384])
                .iter()
                .all(|v| v.abs() <= 0.03609)
        );
    }
}
