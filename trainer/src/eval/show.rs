//! What an encoder sees, as pictures: features as colours, attention of the class token, masks laid over frames.
//!
//! Letters: N patches, D width, H heads.

use pipeline::codec::Rgb8Image;

/// Rounds of the iteration that finds the principal components; colours do not change any more well before.
const ROUNDS: usize = 60;

/// Share of the values at either end that become the darkest and the brightest: one odd patch must not take all contrast.
const TAIL: f64 = 0.01;

/// The first three principal components of features, each spread over the 256 levels of a colour channel.
///
/// * `features`: `[N, D]`, of one picture, or of all frames of a video for colours that keep their meaning.
///
/// Returns N colours. The sign of a component is chosen so that its largest weight is positive.
///
/// Source: Oquab et al., "DINOv2", figure 1, without its threshold for the ground.
pub fn principal_colours(features: &[f32], width: usize) -> Vec<[u8; 3]> {
    let n = features.len() / width.max(1);
    if n == 0 {
        return Vec::new();
    }
    let mut mean = vec![0f64; width];
    for row in features.chunks_exact(width) {
        for (mean, &value) in mean.iter_mut().zip(row) {
            *mean += f64::from(value) / n as f64;
        }
    }
    let centred: Vec<f64> = features
        .chunks_exact(width)
        .flat_map(|row| {
            row.iter()
                .zip(&mean)
                .map(|(&value, mean)| f64::from(value) - mean)
        })
        .collect();
    let components = principal_components(&centred, width);
    let mut colours = vec![[0u8; 3]; n];
    for (channel, component) in components.iter().enumerate() {
        let projected: Vec<f64> = centred
            .chunks_exact(width)
            .map(|row| dot(row, component))
            .collect();
        for (colour, level) in colours.iter_mut().zip(levels(&projected)) {
            colour[channel] = level;
        }
    }
    colours
}

/// Three orthonormal directions of greatest variance of `[N, D]`, by simultaneous iteration.
fn principal_components(centred: &[f64], width: usize) -> Vec<Vec<f64>> {
    let mut covariance = vec![0f64; width * width];
    for row in centred.chunks_exact(width) {
        for (out, &a) in covariance.chunks_exact_mut(width).zip(row) {
            for (out, &b) in out.iter_mut().zip(row) {
                *out += a * b;
            }
        }
    }
    let n_components = width.min(3);
    // Any start will do that is not orthogonal to an answer; this one has all directions in it.
    let mut components: Vec<Vec<f64>> = (0..n_components)
        .map(|i| {
            (0..width)
                .map(|j| 1.0 + ((i + 1) * (j + 1) * 7 % 11) as f64)
                .collect()
        })
        .collect();
    for _ in 0..ROUNDS {
        for i in 0..n_components {
            let mut next: Vec<f64> = covariance
                .chunks_exact(width)
                .map(|row| dot(row, &components[i]))
                .collect();
            for before in &components[..i] {
                let along = dot(&next, before);
                next.iter_mut()
                    .zip(before)
                    .for_each(|(next, &before)| *next -= along * before);
            }
            let length = dot(&next, &next).sqrt();
            if length > 0.0 {
                next.iter_mut().for_each(|value| *value /= length);
            }
            components[i] = next;
        }
    }
    for component in &mut components {
        let largest = component.iter().copied().fold(0.0, |largest: f64, value| {
            if value.abs() > largest.abs() {
                value
            } else {
                largest
            }
        });
        if largest < 0.0 {
            component.iter_mut().for_each(|value| *value = -*value);
        }
    }
    components
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Values as 0 to 255, the tails cut off.
fn levels(values: &[f64]) -> Vec<u8> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let cut = (TAIL * sorted.len() as f64) as usize;
    let (low, high) = (sorted[cut], sorted[sorted.len() - 1 - cut]);
    let scale = if high > low {
        255.0 / (high - low)
    } else {
        0.0
    };
    values
        .iter()
        .map(|value| ((value - low) * scale).round().clamp(0.0, 255.0) as u8)
        .collect()
}

/// Weights of one query over N patches as brightness, the largest white.
pub fn heat(weights: &[f32]) -> Vec<[u8; 3]> {
    let largest = weights.iter().copied().fold(0.0, f32::max);
    let scale = if largest > 0.0 { 255.0 / largest } else { 0.0 };
    // Dark blue, through red, to pale yellow: brightness rises throughout, so that it survives grey printing.
    let colour = |level: f32| {
        let ramp =
            |from: f32, to: f32| (((level - from) / (to - from)).clamp(0.0, 1.0) * 255.0) as u8;
        [
            ramp(0.0, 140.0),
            ramp(90.0, 230.0),
            ramp(170.0, 300.0).max(ramp(0.0, 900.0)),
        ]
    };
    weights
        .iter()
        .map(|&weight| colour(weight * scale))
        .collect()
}

/// A picture of `columns` by N / `columns` squares of `cell` pixels.
pub fn mosaic(colours: &[[u8; 3]], columns: usize, cell: usize) -> Rgb8Image {
    let rows = colours.len() / columns.max(1);
    let mut picture = Rgb8Image::new((columns * cell) as u32, (rows * cell) as u32);
    let width = columns * cell;
    for (y, line) in picture
        .data
        .chunks_exact_mut((width * 3).max(1))
        .enumerate()
    {
        for (x, pixel) in line.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            *pixel = colours[y / cell * columns + x / cell];
        }
    }
    picture
}

/// A frame with labels laid over it half transparent; label 0 leaves it as it is.
///
/// * `labels`: one a pixel of the frame.
pub fn overlay(frame: &Rgb8Image, labels: &[u8], palette: &[[u8; 3]; 256]) -> Rgb8Image {
    let mut picture = frame.clone();
    for (pixel, &label) in picture.data.as_chunks_mut::<3>().0.iter_mut().zip(labels) {
        if label != 0 {
            for (value, colour) in pixel.iter_mut().zip(palette[usize::from(label)]) {
                *value = value.midpoint(colour);
            }
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    /// N rows on a plane in D dimensions: 3 along `u`, 1 along `v`.
    fn plane(n: usize) -> Vec<f32> {
        let (u, v) = ([0.6, 0.8, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]);
        (0..n)
            .flat_map(|i| {
                let (a, b) = (((i * 37) % 17) as f32 - 8.0, ((i * 11) % 13) as f32 - 6.0);
                (0..5).map(move |j| 3.0 * a * u[j] + b * v[j] + 5.0)
            })
            .collect()
    }

    #[test]
    fn components_are_the_directions_of_greatest_variance() {
        let features: Vec<f64> = plane(200).iter().map(|&v| f64::from(v) - 5.0).collect();
        let mean: Vec<f64> = (0..5)
            .map(|j| features.iter().skip(j).step_by(5).sum::<f64>() / 200.0)
            .collect();
        let centred: Vec<f64> = features
            .iter()
            .enumerate()
            .map(|(i, v)| v - mean[i % 5])
            .collect();
        let found = principal_components(&centred, 5);
        let along_u = dot(&found[0], &[0.6, 0.8, 0.0, 0.0, 0.0]);
        let along_v = dot(&found[1], &[0.0, 0.0, 1.0, 0.0, 0.0]);
        assert!(along_u > 0.999 && along_v > 0.999, "{found:?}");
        assert!(dot(&found[0], &found[1]).abs() < 1e-9);
    }

    #[test]
    fn colours_follow_the_features() {
        let mut features = plane(100);
        let colours = principal_colours(&features, 5);
        assert_eq!(colours.len(), 100);
        assert!(colours.iter().any(|c| c[0] == 0) && colours.iter().any(|c| c[0] == 255));
        // A shift and a scale change nothing that is seen.
        features
            .iter_mut()
            .for_each(|value| *value = *value * 2.0 + 1.0);
        let near =
            |(a, b): (&[u8; 3], &[u8; 3])| a.iter().zip(b).take(2).all(|(a, b)| a.abs_diff(*b) < 2);
        assert!(
            principal_colours(&features, 5)
                .iter()
                .zip(&colours)
                .all(near)
        );
        assert!(
            principal_colours(&[1.0; 50], 5)
                .iter()
                .all(|&c| c == [0; 3])
        );
        assert!(principal_colours(&[], 5).is_empty());
        assert_eq!(principal_colours(&[1.0, 2.0], 1).len(), 2);
    }

    #[test]
    fn more_weight_is_brighter() {
        let brightness = |c: [u8; 3]| c.iter().map(|&v| u32::from(v)).sum::<u32>();
        let shown = heat(&[0.0, 0.1, 0.2, 0.4, 0.8]);
        assert!(
            shown
                .windows(2)
                .all(|pair| brightness(pair[0]) < brightness(pair[1]))
        );
        assert_eq!(heat(&[0.0, 0.0]), [[0; 3]; 2]);
    }

    #[test]
    fn squares_and_labels_land_where_they_belong() {
        let picture = mosaic(&[[1; 3], [2; 3], [3; 3], [4; 3], [5; 3], [6; 3]], 3, 4);
        assert_eq!((picture.width, picture.height), (12, 8));
        assert_eq!(picture.pixel(4, 3), [2; 3]);
        assert_eq!(picture.pixel(11, 4), [6; 3]);
        let mut palette = [[0; 3]; 256];
        palette[2] = [200, 0, 100];
        let shown = overlay(&picture, &[vec![0; 95], vec![2]].concat(), &palette);
        assert_eq!(shown.pixel(0, 0), [1; 3]);
        assert_eq!(shown.pixel(11, 7), [103, 3, 53]);
    }
}
