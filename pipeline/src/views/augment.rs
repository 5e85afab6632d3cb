//! Changes of a finished view in place: the flip, and the optional colour jitter, grayscale and blur.
//!
//! They act on 8-bit pixels `[H, W, 3]`, after the resize and before normalisation.

use crate::config::AugmentConfig;
use crate::rng::SampleRng;

/// Mirrors a view left to right; `width` in px.
pub fn flip_horizontal(view: &mut [u8], width: u32) {
    for row in view.chunks_exact_mut(width as usize * 3) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

/// Draws and applies what `config` asks for to a square view: jitter, then grayscale, then blur, as SimCLR orders them.
///
/// The draws do not depend on which changes are on, so switching one off leaves the others as they were.
/// Source: torchvision 0.17.1, `ColorJitter`, `RandomGrayscale`, `GaussianBlur`, rounding to the nearest level.
pub fn augment(
    config: &AugmentConfig,
    rng: &mut SampleRng,
    view: &mut [u8],
    scratch: &mut Vec<f32>,
) {
    let draw = Draw::new(config, rng);
    if draw.jitter {
        for change in draw.order {
            match change {
                Change::Brightness => brightness(view, draw.brightness),
                Change::Contrast => contrast(view, draw.contrast),
                Change::Saturation => saturation(view, draw.saturation),
                Change::Hue => shift_hue(view, draw.hue),
            }
        }
    }
    if draw.grayscale {
        saturation(view, 0.0);
    }
    if draw.blur && !view.is_empty() {
        let size = ((view.len() / 3) as f64).sqrt().round() as usize;
        gaussian_blur(view, size, draw.blur_sigma, scratch);
    }
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Brightness,
    Contrast,
    Saturation,
    Hue,
}

struct Draw {
    jitter: bool,
    order: [Change; 4],
    brightness: f32,
    contrast: f32,
    saturation: f32,
    hue: f32,
    grayscale: bool,
    blur: bool,
    blur_sigma: f64,
}

impl Draw {
    fn new(config: &AugmentConfig, rng: &mut SampleRng) -> Self {
        let mut order = [
            Change::Brightness,
            Change::Contrast,
            Change::Saturation,
            Change::Hue,
        ];
        let jitter = rng.bool(config.jitter_p);
        for last in (1..order.len()).rev() {
            order.swap(last, rng.below(last as u64 + 1) as usize);
        }
        let mut factor =
            |strength: f64| rng.uniform((1.0 - strength).max(0.0), 1.0 + strength) as f32;
        let (brightness, contrast, saturation) = (
            factor(config.brightness),
            factor(config.contrast),
            factor(config.saturation),
        );
        let hue = rng.uniform(-config.hue, config.hue) as f32;
        let grayscale = rng.bool(config.grayscale_p);
        let blur = rng.bool(config.blur_p);
        let blur_sigma = rng.uniform(config.blur_sigma[0], config.blur_sigma[1]);
        Self {
            jitter,
            order,
            brightness,
            contrast,
            saturation,
            hue,
            grayscale,
            blur,
            blur_sigma,
        }
    }
}

/// Pillow's luma: ITU-R 601 weights in 16-bit fixed point.
pub(super) fn luma(pixel: [u8; 3]) -> u8 {
    let [r, g, b] = pixel.map(u32::from);
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

/// `factor` of the pixel and `1 - factor` of the other, rounded and clamped.
fn blend(value: u8, other: f32, factor: f32) -> u8 {
    (other + factor * (f32::from(value) - other)).round() as u8
}

fn brightness(view: &mut [u8], factor: f32) {
    for value in view {
        *value = blend(*value, 0.0, factor);
    }
}

fn contrast(view: &mut [u8], factor: f32) {
    let (pixels, _) = view.as_chunks::<3>();
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / pixels.len().max(1) as f64).round() as f32;
    for value in view {
        *value = blend(*value, mean, factor);
    }
}

fn saturation(view: &mut [u8], factor: f32) {
    let (pixels, _) = view.as_chunks_mut::<3>();
    for pixel in pixels {
        let grey = f32::from(luma(*pixel));
        *pixel = pixel.map(|value| blend(value, grey, factor));
    }
}

/// Turns the hue by `shift` turns in HSV, keeping saturation and value.
fn shift_hue(view: &mut [u8], shift: f32) {
    let (pixels, _) = view.as_chunks_mut::<3>();
    for pixel in pixels {
        let [r, g, b] = pixel.map(f32::from);
        let value = r.max(g).max(b);
        let chroma = value - r.min(g).min(b);
        if chroma == 0.0 {
            continue;
        }
        let sixth = if value == r {
            (g - b) / chroma
        } else if value == g {
            (b - r) / chroma + 2.0
        } else {
            (r - g) / chroma + 4.0
        };
        let sixth = (sixth + 6.0 * shift).rem_euclid(6.0);
        // Each channel is a trapezoid of the hue: Wikipedia, "HSL and HSV", HSV to RGB alternative.
        let channel = |offset: f32| {
            let k = (offset + sixth) % 6.0;
            (value - chroma * k.min(4.0 - k).clamp(0.0, 1.0)).round() as u8
        };
        *pixel = [channel(5.0), channel(3.0), channel(1.0)];
    }
}

/// Separable Gaussian of standard deviation `sigma` px, cut at three of them, mirrored at the border without
/// repeating the edge; `size` is the side of the square view.
fn gaussian_blur(view: &mut [u8], size: usize, sigma: f64, scratch: &mut Vec<f32>) {
    let radius = (3.0 * sigma).ceil().max(1.0) as isize;
    let weight = |at: isize| (-0.5 * (at as f64 / sigma).powi(2)).exp();
    let total: f64 = (-radius..=radius).map(weight).sum();
    let kernel: Vec<f32> = (-radius..=radius)
        .map(|at| (weight(at) / total) as f32)
        .collect();

    let radius = radius as usize;
    let row_len = size * 3;
    scratch.clear();
    scratch.resize(view.len(), 0.0);
    // Rows first: each is copied out with its mirrored margins, so that a tap is a plain sum of two slices.
    let mut padded = vec![0.0f32; (size + 2 * radius) * 3];
    for (row, sums) in view
        .chunks_exact(row_len)
        .zip(scratch.chunks_exact_mut(row_len))
    {
        for (at, pixel) in padded.chunks_exact_mut(3).enumerate() {
            let from = mirror(at as isize - radius as isize, size) * 3;
            for (value, &level) in pixel.iter_mut().zip(&row[from..from + 3]) {
                *value = f32::from(level);
            }
        }
        for (tap, &weight) in kernel.iter().enumerate() {
            add_scaled(sums, &padded[tap * 3..tap * 3 + row_len], weight);
        }
    }
    let mut sums = vec![0.0f32; row_len];
    for (y, row) in view.chunks_exact_mut(row_len).enumerate() {
        sums.fill(0.0);
        for (tap, &weight) in kernel.iter().enumerate() {
            let from = mirror((y + tap) as isize - radius as isize, size) * row_len;
            add_scaled(&mut sums, &scratch[from..from + row_len], weight);
        }
        for (value, sum) in row.iter_mut().zip(&sums) {
            *value = sum.round() as u8;
        }
    }
}

fn add_scaled(sums: &mut [f32], values: &[f32], weight: f32) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += weight * value;
    }
}

/// Reflects an index into `0..size` without repeating the edges.
fn mirror(at: isize, size: usize) -> usize {
    let period = 2 * (size as isize - 1).max(1);
    let folded = at.rem_euclid(period);
    let reflected = if folded < size as isize {
        folded
    } else {
        period - folded
    };
    (reflected as usize).min(size - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Purpose;

    fn rng(sample: u64) -> SampleRng {
        SampleRng::new(5, 0, sample, Purpose::Augment)
    }

    fn noise(size: usize) -> Vec<u8> {
        let mut rng = rng(99);
        (0..size * size * 3).map(|_| rng.below(256) as u8).collect()
    }

    #[test]
    fn a_flip_mirrors_pixels_and_is_its_own_inverse() {
        let mut view = vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        flip_horizontal(&mut view, 2);
        assert_eq!(view, [4, 5, 6, 1, 2, 3, 10, 11, 12, 7, 8, 9]);
        flip_horizontal(&mut view, 2);
        assert_eq!(view, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    #[test]
    fn off_changes_nothing() {
        let mut view = noise(8);
        let before = view.clone();
        augment(
            &AugmentConfig::default(),
            &mut rng(0),
            &mut view,
            &mut Vec::new(),
        );
        assert_eq!(view, before);
    }

    #[test]
    fn neutral_factors_change_nothing() {
        let mut view = noise(8);
        let before = view.clone();
        brightness(&mut view, 1.0);
        contrast(&mut view, 1.0);
        saturation(&mut view, 1.0);
        shift_hue(&mut view, 0.0);
        assert_eq!(view, before);
    }

    #[test]
    fn known_colours() {
        let mut view = vec![255, 0, 0, 0, 255, 0, 0, 0, 255, 128, 128, 128];
        shift_hue(&mut view, 1.0 / 3.0);
        assert_eq!(view, [0, 255, 0, 0, 0, 255, 255, 0, 0, 128, 128, 128]);
        saturation(&mut view, 0.0);
        assert_eq!(view, [150, 150, 150, 29, 29, 29, 76, 76, 76, 128, 128, 128]);
        brightness(&mut view, 1.5);
        assert_eq!(view[9..], [192, 192, 192]);
        brightness(&mut view, 10.0);
        assert_eq!(view[..3], [255, 255, 255]);
        let mut view = vec![100, 100, 100, 200, 200, 200];
        contrast(&mut view, 0.5);
        assert_eq!(view, [125, 125, 125, 175, 175, 175]);
    }

    #[test]
    fn a_blur_keeps_flat_fields_and_spreads_a_point_as_a_gaussian() {
        let mut flat = vec![77; 16 * 16 * 3];
        gaussian_blur(&mut flat, 16, 1.7, &mut Vec::new());
        assert!(flat.iter().all(|&v| v == 77));

        let mut point = vec![0u8; 15 * 15 * 3];
        point[(7 * 15 + 7) * 3] = 255;
        gaussian_blur(&mut point, 15, 1.0, &mut Vec::new());
        let at = |x: usize, y: usize| point[(y * 15 + x) * 3];
        assert_eq!(at(7, 7), 41); // 255 / (2 pi)
        assert_eq!((at(6, 7), at(7, 8)), (25, 25));
        assert!(point.iter().skip(1).step_by(3).all(|&green| green == 0));
    }

    #[test]
    fn tiny_views_survive_wide_blurs() {
        for size in [1, 2, 3] {
            gaussian_blur(&mut noise(size), size, 20.0, &mut Vec::new());
        }
        assert_eq!(
            [-2, -1, 0, 1, 2, 3, 4].map(|at| mirror(at, 3)),
            [2, 1, 0, 1, 2, 1, 0]
        );
    }

    #[test]
    fn draws_keep_their_shares_and_ranges() {
        let config = AugmentConfig {
            jitter_p: 0.8,
            grayscale_p: 0.2,
            blur_p: 0.5,
            ..AugmentConfig::default()
        };
        let draws: Vec<_> = (0..4000).map(|s| Draw::new(&config, &mut rng(s))).collect();
        let share =
            |holds: fn(&Draw) -> bool| draws.iter().filter(|d| holds(d)).count() as f64 / 4000.0;
        assert!((share(|d| d.jitter) - 0.8).abs() < 0.03);
        assert!((share(|d| d.grayscale) - 0.2).abs() < 0.03);
        assert!((share(|d| d.blur) - 0.5).abs() < 0.03);
        assert!((share(|d| matches!(d.order[0], Change::Hue)) - 0.25).abs() < 0.03);
        assert!(
            draws
                .iter()
                .all(|d| (0.6..=1.4).contains(&d.brightness) && d.hue.abs() <= 0.1)
        );
    }

    #[test]
    fn grayscale_alone_makes_channels_equal() {
        let config = AugmentConfig {
            grayscale_p: 1.0,
            ..AugmentConfig::default()
        };
        let mut view = noise(8);
        augment(&config, &mut rng(1), &mut view, &mut Vec::new());
        assert!(view.chunks(3).all(|p| p[0] == p[1] && p[1] == p[2]));
    }
}
