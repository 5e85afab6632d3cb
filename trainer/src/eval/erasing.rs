//! Random erasing: a rectangle of some pictures becomes noise.
//!
//! Source: Zhong et al., "Random erasing data augmentation"; timm 0.4.5, `data/random_erasing.py`, mode `pixel`, one rectangle.
//!
//! Letters: B batch, S side of a view.

use candle_core::Tensor;
use pipeline::rng::{Purpose, SampleRng};

use crate::error::Result;
use crate::masking::StepRandomness;

/// Smallest and largest area, as a share of the picture.
const AREA: [f64; 2] = [0.02, 1.0 / 3.0];
/// Smallest height over width; the largest is its inverse.
const MIN_ASPECT: f64 = 0.3;
/// Rectangles tried before the picture is left as it is.
const TRIES: u32 = 10;

/// Erases a rectangle of each picture of `pixels` `[B, 3, S, S]` with probability `p`: every value becomes a standard normal
/// one, which is why this comes after normalisation. A sample's draw is a function of (seed, epoch, sample).
///
/// # Errors
/// If the device is out of memory.
pub fn erase(pixels: &Tensor, step: &StepRandomness, p: f64) -> Result<Tensor> {
    let (batch, channels, size, _) = pixels.dims4()?;
    let plane = size * size;
    let mut mask = vec![0u8; batch * channels * plane];
    let mut noise = vec![0f32; mask.len()];
    let mut is_any = false;
    let samples = mask
        .chunks_mut((channels * plane).max(1))
        .zip(noise.chunks_mut((channels * plane).max(1)));
    for ((mask, noise), &sample) in samples.zip(&step.samples) {
        let mut rng = SampleRng::new(step.seed, step.epoch, sample, Purpose::Erase);
        let Some(erased) = draw(&mut rng, size, p) else {
            continue;
        };
        is_any = true;
        for channel in 0..channels {
            for row in erased.top..erased.top + erased.height {
                let first = channel * plane + row * size + erased.left;
                mask[first..first + erased.width].fill(1);
                noise[first..first + erased.width].fill_with(|| rng.standard_normal() as f32);
            }
        }
    }
    if !is_any {
        return Ok(pixels.clone());
    }
    let mask = Tensor::from_vec(mask, pixels.shape(), pixels.device())?;
    let noise = Tensor::from_vec(noise, pixels.shape(), pixels.device())?;
    Ok(mask.where_cond(&noise, pixels)?)
}

/// A rectangle in px.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rectangle {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
}

fn draw(rng: &mut SampleRng, size: usize, p: f64) -> Option<Rectangle> {
    if !rng.bool(p) {
        return None;
    }
    let max_log_aspect = -MIN_ASPECT.ln();
    for _ in 0..TRIES {
        let area = rng.uniform(AREA[0], AREA[1]) * (size * size) as f64;
        let aspect = rng.uniform(-max_log_aspect, max_log_aspect).exp();
        let height = (area * aspect).sqrt().round_ties_even() as usize;
        let width = (area / aspect).sqrt().round_ties_even() as usize;
        if width < size && height < size {
            return Some(Rectangle {
                top: rng.below((size - height + 1) as u64) as usize,
                left: rng.below((size - width + 1) as u64) as usize,
                height,
                width,
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rectangles_lie_inside_and_areas_in_bounds(sample in 0u64..10_000, size in 16usize..300) {
            let mut rng = SampleRng::new(3, 4, sample, Purpose::Erase);
            if let Some(Rectangle { top, left, height, width }) = draw(&mut rng, size, 1.0) {
                prop_assert!(top + height <= size && left + width <= size);
                // Sides are rounded to whole px.
                let (high, wide, all) = (height as f64, width as f64, (size * size) as f64);
                prop_assert!((high + 0.5) * (wide + 0.5) >= AREA[0] * all);
                prop_assert!((high - 0.5) * (wide - 0.5) <= AREA[1] * all);
                prop_assert!((high + 0.5) / (wide - 0.5).max(0.1) >= MIN_ASPECT);
                prop_assert!((high - 0.5) / (wide + 0.5) <= 1.0 / MIN_ASPECT);
            }
        }
    }

    fn step(samples: &[u64]) -> StepRandomness {
        StepRandomness {
            seed: 5,
            epoch: 1,
            samples: samples.to_vec(),
        }
    }

    fn erased(samples: &[u64], p: f64) -> Vec<Vec<f32>> {
        let shape = (samples.len(), 3, 32, 32);
        let pixels = Tensor::full(9f32, shape, &Device::Cpu).unwrap();
        let erased = erase(&pixels, &step(samples), p).unwrap();
        erased.flatten_from(1).unwrap().to_vec2::<f32>().unwrap()
    }

    #[test]
    fn a_quarter_is_erased_by_noise_that_is_the_samples_own() {
        let samples: Vec<u64> = (0..400).collect();
        let all = erased(&samples, 0.25);
        let touched: Vec<&Vec<f32>> = all
            .iter()
            .filter(|it| it.iter().any(|&v| v != 9.0))
            .collect();
        assert!((70..130).contains(&touched.len()), "{}", touched.len());
        let noise: Vec<f64> = touched
            .iter()
            .flat_map(|it| it.iter().filter(|&&v| v != 9.0))
            .map(|&v| f64::from(v))
            .collect();
        let mean = noise.iter().sum::<f64>() / noise.len() as f64;
        let var = noise.iter().map(|v| v * v).sum::<f64>() / noise.len() as f64;
        assert!(
            mean.abs() < 0.03 && (var - 1.0).abs() < 0.05,
            "{mean} {var}"
        );
        assert!(erased(&[17, 3], 0.25) == [all[17].clone(), all[3].clone()]);
        assert!(erased(&samples, 0.0).iter().flatten().all(|&v| v == 9.0));
    }

    #[test]
    fn pictures_too_small_to_erase_stay() {
        let pixels = Tensor::zeros((1, 3, 1, 1), DType::F32, &Device::Cpu).unwrap();
        erase(&pixels, &step(&[1]), 1.0).unwrap();
    }
}
