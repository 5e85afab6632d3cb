//! Dropout and stochastic depth, their draws keyed by (seed, epoch, sample, layer).

use std::sync::{Arc, OnceLock};

use candle_core::Tensor;
use pipeline::rng::{Purpose, SampleRng};
use rayon::prelude::*;

use super::init::fnv1a_64;
use crate::error::{Error, Result};
use crate::masking::StepRandomness;

/// Which elements survive, and what they are multiplied with.
///
/// The draws are made where they are used: on the host at the first [`KeepMask::keep`], on a GPU by a kernel that makes
/// the same ones.
#[derive(Debug, Clone)]
pub struct KeepMask {
    draws: Arc<Draws>,
}

/// What a mask is a function of.
#[derive(Debug)]
pub(crate) struct Draws {
    /// The run's seed and the layer in one: a sample's key has no field of its own for the layer.
    pub seed: u64,
    pub epoch: u64,
    pub samples: Vec<u64>,
    pub purpose: Purpose,
    pub per_sample: usize,
    /// An element is dropped if its 16 bits are below.
    pub threshold: u32,
    on_host: OnceLock<Vec<u8>>,
}

impl Draws {
    fn make(&self) -> Vec<u8> {
        let mut keep = vec![0u8; self.samples.len() * self.per_sample];
        keep.par_chunks_mut(self.per_sample.max(1))
            .zip(&self.samples)
            .for_each(|(keep, &sample)| {
                let mut rng = SampleRng::new(self.seed, self.epoch, sample, self.purpose);
                for four in keep.chunks_mut(4) {
                    let draw = rng.next_u64();
                    for (i, keep) in four.iter_mut().enumerate() {
                        *keep = u8::from((draw >> (16 * i)) & 0xffff >= u64::from(self.threshold));
                    }
                }
            });
        keep
    }
}

impl KeepMask {
    /// Draws for a layer: each element of each sample is dropped with probability `p`, rounded to a multiple of
    /// 2^-16 (four elements share one 64-bit draw; 0.1 becomes 0.100006). The survivors' scale is exact for the
    /// rounded probability, so that the expectation is kept.
    ///
    /// `layer` must name the place in the model, with the view where a layer serves several.
    ///
    /// # Errors
    /// [`Error::Config`] if `p` is not in `[0, 1)`.
    pub fn draw(
        step: &StepRandomness,
        purpose: Purpose,
        layer: &str,
        per_sample: usize,
        p: f64,
    ) -> Result<KeepMask> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::Config(format!(
                "dropout probability is {p}, expected 0 <= p < 1"
            )));
        }
        Ok(KeepMask {
            draws: Arc::new(Draws {
                seed: step.seed ^ fnv1a_64(layer),
                epoch: step.epoch,
                samples: step.samples.clone(),
                purpose,
                per_sample,
                threshold: ((p * 65536.0).round() as u32).min(65535),
                on_host: OnceLock::new(),
            }),
        })
    }

    /// What the mask is a function of.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn draws(&self) -> &Draws {
        &self.draws
    }

    /// Number of elements of all samples.
    pub fn len(&self) -> usize {
        self.draws.samples.len() * self.draws.per_sample
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// 1 for each element that survives, `[B, per_sample]` row-major.
    pub fn keep(&self) -> &[u8] {
        self.draws.on_host.get_or_init(|| self.draws.make())
    }

    /// What survivors are multiplied with.
    pub fn scale(&self) -> f32 {
        (65536.0 / (65536 - self.draws.threshold) as f64) as f32
    }

    /// The factors (0 or the scale) as a constant of `like`'s type, device and first dimension, reshaped to `shape`.
    ///
    /// # Errors
    /// If `shape` does not have the mask's number of elements.
    pub fn factors(&self, shape: &[usize], like: &Tensor) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        if n != self.len() {
            return Err(Error::Shape {
                what: "dropout mask".to_owned(),
                got: vec![self.draws.samples.len(), self.draws.per_sample],
                expected: format!("as many elements as {shape:?}"),
            });
        }
        let factors: Vec<f32> = self
            .keep()
            .iter()
            .map(|&keep| f32::from(keep) * self.scale())
            .collect();
        Ok(Tensor::from_vec(factors, shape, like.device())?.to_dtype(like.dtype())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(samples: &[u64], layer: &str, p: f64) -> KeepMask {
        let step = StepRandomness {
            seed: 1,
            epoch: 0,
            samples: samples.to_vec(),
        };
        KeepMask::draw(&step, Purpose::Dropout, layer, 4001, p).unwrap()
    }

    #[test]
    fn the_share_dropped_is_p_and_the_mean_is_kept() {
        let mask = draw(&[1, 2, 3, 4, 5, 6, 7, 8], "decoder_blocks.0.dropout", 0.1);
        let kept =
            mask.keep().iter().map(|&k| f64::from(k)).sum::<f64>() / mask.keep().len() as f64;
        assert!((kept - 0.9).abs() < 0.01, "{kept}");
        assert!((f64::from(mask.scale()) * 0.9 - 1.0).abs() < 1e-4);
        assert!(draw(&[1], "x", 0.0).keep().iter().all(|&k| k == 1));
    }

    #[test]
    fn draws_belong_to_sample_and_layer() {
        let both = draw(&[1, 2], "a", 0.1);
        assert_eq!(both.keep()[4001..], *draw(&[2], "a", 0.1).keep());
        assert_ne!(both.keep()[..4001], both.keep()[4001..]);
        assert_ne!(both.keep(), draw(&[1, 2], "b", 0.1).keep());
    }

    #[test]
    fn impossible_probabilities_are_errors() {
        let step = StepRandomness {
            seed: 1,
            epoch: 0,
            samples: vec![1],
        };
        for p in [1.0, -0.5, f64::NAN] {
            assert!(KeepMask::draw(&step, Purpose::Dropout, "x", 8, p).is_err());
        }
    }
}
