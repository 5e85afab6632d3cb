//! Mixup and CutMix: a batch mixed with itself in reverse, pictures and labels alike.
//!
//! Source: Zhang et al., "mixup"; Yun et al., "CutMix"; timm 0.4.5, `data/mixup.py`, mode `batch`.
//!
//! Letters: B batch, C classes, S side of a view.

use candle_core::{Device, Tensor};
use pipeline::rng::{Purpose, SampleRng};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// How batches are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MixingSettings {
    /// Both parameters of the Beta distribution of mixup's weight (MAE: 0.8); 0: no mixup.
    pub mixup: f64,
    /// Of CutMix's area (MAE: 1); 0: no CutMix.
    pub cutmix: f64,
    /// Probability of CutMix where both are on (0.5).
    pub cutmix_p: f64,
    /// Probability that the label is spread over all classes evenly (0.1).
    pub label_smoothing: f64,
}

/// What was drawn for a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// The share of the label that stays each sample's own.
    own: f64,
    /// The rows and columns that come from the other sample, for CutMix.
    pasted: Option<[usize; 4]>,
}

impl MixingSettings {
    /// The draw of a batch of pictures of `size` px; the same for all of its samples.
    ///
    /// * `batch`: its number in the epoch.
    pub fn draw(&self, seed: u64, epoch: u64, batch: u64, size: usize) -> Mix {
        let mut rng = SampleRng::new(seed, epoch, batch, Purpose::Mix);
        let cuts = rng.bool(self.cutmix_p);
        let is_cut = self.cutmix > 0.0 && (cuts || self.mixup <= 0.0);
        if is_cut {
            let own = beta(&mut rng, self.cutmix);
            let [top, bottom, left, right] = cut_box(&mut rng, own, size);
            let area = ((bottom - top) * (right - left)) as f64;
            Mix {
                own: 1.0 - area / (size * size) as f64,
                pasted: Some([top, bottom, left, right]),
            }
        } else if self.mixup > 0.0 {
            Mix {
                own: beta(&mut rng, self.mixup),
                pasted: None,
            }
        } else {
            Mix {
                own: 1.0,
                pasted: None,
            }
        }
    }

    /// Targets `[B, C]`, row by row; each row sums to 1.
    pub fn targets(&self, mix: &Mix, labels: &[usize], n_classes: usize) -> Vec<f32> {
        let off = self.label_smoothing / n_classes as f64;
        let mut targets = vec![off as f32; labels.len() * n_classes];
        let rows = targets.chunks_exact_mut(n_classes.max(1));
        for ((row, &own), &other) in rows.zip(labels).zip(labels.iter().rev()) {
            let on = 1.0 - self.label_smoothing;
            row[own] += (on * mix.own) as f32;
            row[other] += (on * (1.0 - mix.own)) as f32;
        }
        targets
    }
}

impl Mix {
    /// Mixes `pixels` `[B, 3, S, S]` with the same in reverse order of the samples.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        if self.own == 1.0 {
            return Ok(pixels.clone());
        }
        let (batch, _, size, _) = pixels.dims4()?;
        let reverse = Tensor::from_iter((0..batch as u32).rev(), pixels.device())?;
        let others = pixels.index_select(&reverse, 0)?;
        let Some([top, bottom, left, right]) = self.pasted else {
            return Ok((pixels.affine(self.own, 0.0)? + others.affine(1.0 - self.own, 0.0)?)?);
        };
        let inside = |at: usize| {
            let (row, column) = (at / size, at % size);
            u8::from((top..bottom).contains(&row) && (left..right).contains(&column))
        };
        let mask = Tensor::from_iter((0..size * size).map(inside), pixels.device())?;
        let mask = mask
            .reshape((1, 1, size, size))?
            .broadcast_as(pixels.shape())?;
        Ok(mask.where_cond(&others, pixels)?)
    }
}

/// Targets `[B, C]` that are 1 at the label and 0 elsewhere.
///
/// # Errors
/// If the device is out of memory.
pub(super) fn soft_targets(labels: &[usize], n_classes: usize, device: &Device) -> Result<Tensor> {
    let mut targets = vec![0f32; labels.len() * n_classes];
    for (row, &label) in targets.chunks_exact_mut(n_classes.max(1)).zip(labels) {
        row[label] = 1.0;
    }
    Ok(Tensor::from_vec(
        targets,
        (labels.len(), n_classes),
        device,
    )?)
}

/// Rows and columns of a square of area `1 - own` around a random place, clipped at the border.
fn cut_box(rng: &mut SampleRng, own: f64, size: usize) -> [usize; 4] {
    let half = (size as f64 * (1.0 - own).sqrt()) as usize / 2;
    let mut span = || {
        let centre = rng.below(size as u64) as usize;
        (centre.saturating_sub(half), (centre + half).min(size))
    };
    let (top, bottom) = span();
    let (left, right) = span();
    [top, bottom, left, right]
}

/// A draw from the symmetric Beta distribution, by Jöhnk's method: accepted once in `4^a` or so, so `a` should be small.
///
/// Source: Jöhnk, "Erzeugung von betaverteilten und gammaverteilten Zufallszahlen", 1964.
fn beta(rng: &mut SampleRng, a: f64) -> f64 {
    loop {
        let x = (1.0 - rng.unit_f64()).powf(1.0 / a);
        let y = (1.0 - rng.unit_f64()).powf(1.0 / a);
        if x + y <= 1.0 && x + y > 0.0 {
            return x / (x + y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAE: MixingSettings = MixingSettings {
        mixup: 0.8,
        cutmix: 1.0,
        cutmix_p: 0.5,
        label_smoothing: 0.1,
    };

    proptest! {
        #[test]
        fn targets_sum_to_one_and_boxes_lie_inside(
            batch in 0u64..1000, size in 1usize..64, mixup in 0.0f64..2.0, cutmix in 0.0f64..2.0, smoothing in 0.0f64..0.9,
            labels in proptest::collection::vec(0usize..7, 1..9),
        ) {
            let settings = MixingSettings { mixup, cutmix, label_smoothing: smoothing, ..MAE };
            let mix = settings.draw(1, 2, batch, size);
            prop_assert!((0.0..=1.0).contains(&mix.own));
            if let Some([top, bottom, left, right]) = mix.pasted {
                prop_assert!(top <= bottom && bottom <= size && left <= right && right <= size);
                let area = ((bottom - top) * (right - left)) as f64;
                prop_assert!((mix.own - (1.0 - area / (size * size) as f64)).abs() < 1e-12);
            }
            for row in settings.targets(&mix, &labels, 7).chunks(7) {
                let sum: f32 = row.iter().sum();
                prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
                prop_assert!(row.iter().all(|&weight| weight >= 0.0));
            }
        }
    }

    #[test]
    fn draws_have_their_distributions() {
        let n = 20_000u64;
        let mut rng = SampleRng::new(0, 0, 0, Purpose::Mix);
        for a in [0.8, 1.0, 2.0] {
            let draws: Vec<f64> = (0..n).map(|_| beta(&mut rng, a)).collect();
            let mean = draws.iter().sum::<f64>() / n as f64;
            let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            // Mean 1/2, variance 1 / (4 (2 a + 1)).
            assert!((mean - 0.5).abs() < 0.01, "{a}: {mean}");
            assert!((var - 0.25 / (2.0 * a + 1.0)).abs() < 0.003, "{a}: {var}");
        }
        let cut = (0..n).filter(|&batch| MAE.draw(0, 0, batch, 32).pasted.is_some());
        assert!((cut.count() as f64 / n as f64 - 0.5).abs() < 0.02);
        let alone = MixingSettings { mixup: 0.0, ..MAE };
        assert!((0..50).all(|batch| alone.draw(0, 0, batch, 32).pasted.is_some()));
        let off = MixingSettings {
            cutmix: 0.0,
            ..alone
        };
        assert_eq!(off.draw(0, 0, 1, 32).own, 1.0);
    }

    #[test]
    fn pictures_and_labels_are_mixed_alike() {
        // Three pictures of one value each.
        let pixels = Tensor::new(&[0f32, 1.0, 2.0], &Device::Cpu).unwrap();
        let pixels = pixels
            .reshape((3, 1, 1, 1))
            .unwrap()
            .broadcast_as((3, 3, 4, 4))
            .unwrap()
            .contiguous()
            .unwrap();
        let values = |mix: &Mix| {
            let mixed = mix.apply(&pixels).unwrap();
            mixed
                .narrow(1, 0, 1)
                .unwrap()
                .flatten(1, 3)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
        };
        let blend = Mix {
            own: 0.75,
            pasted: None,
        };
        assert_eq!(values(&blend)[0], [0.5; 16]);
        assert_eq!(values(&blend)[1], [1.0; 16]);
        let cut = Mix {
            own: 0.875,
            pasted: Some([1, 2, 2, 4]),
        };
        let mut expected = [0.0; 16];
        expected[6..8].fill(2.0);
        assert_eq!(values(&cut)[0], expected);
        assert_eq!(
            values(&Mix {
                own: 1.0,
                pasted: None
            })[2],
            [2.0; 16]
        );

        let targets = MAE.targets(&cut, &[3, 0, 1], 4);
        let expected = [0.025, 0.9 * 0.125 + 0.025, 0.025, 0.9 * 0.875 + 0.025];
        for (got, expected) in targets[..4].iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-6, "{targets:?}");
        }
    }
}
