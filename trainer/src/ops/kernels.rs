//! Loops over rows of f32, compiled for the widest vectors the processor has.
//!
//! Every sum runs over 16 lanes that are added up in a fixed order, and products are contracted with sums only where it
//! is written so, so that all processors give the same bits.
#![allow(unsafe_code)] // Calling a function compiled for a processor feature needs it; see `widest`.

use crate::optim::adamw::Coefficients;

/// Lanes of every sum.
const LANES: usize = 16;

/// Defines functions that run as AVX-512, AVX2 or plain code, whichever the processor can.
macro_rules! widest {
    ($($(#[$doc:meta])* $visible:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$doc])*
        $visible fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    body($($arg),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    if is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                    {
                        // SAFETY: all features that the function is compiled for were found.
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: both features that the function is compiled for were found.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

widest! {
    /// `y = (x - mean) / sqrt(variance + eps) * weight + bias` for each row of `x`.
    pub(super) fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32], eps: f32) {
        let width = weight.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let (mean, inverse_std) = statistics(x, eps);
            for ((y, &x), (&w, &b)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                *y = (x - mean) * inverse_std * w + b;
            }
        }
    }

    /// Gradients of [`layer_norm_rows`]: `dx` is set, `dweight` and `dbias` are added to.
    pub(super) fn layer_norm_backward_rows(
        x: &[f32], weight: &[f32], dy: &[f32], dx: &mut [f32], dweight: &mut [f32], dbias: &mut [f32], eps: f32,
    ) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for ((x, dy), dx) in rows {
            let (mean, inverse_std) = statistics(x, eps);
            // With x^ the normalised row and g = dy * weight: dx = (g - mean(g) - x^ mean(g x^)) / std.
            for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(weight) {
                *dx = dy * w;
            }
            let mean_g = sum(dx, |g| g) / width as f32;
            let mean_gx = sum_of_pairs(dx, x, |g, x| g * ((x - mean) * inverse_std)) / width as f32;
            for ((dx, &x), (&dy, (dw, db))) in
                dx.iter_mut().zip(x).zip(dy.iter().zip(dweight.iter_mut().zip(dbias.iter_mut())))
            {
                let normed = (x - mean) * inverse_std;
                *dx = (*dx - mean_g - normed * mean_gx) * inverse_std;
                *dw += dy * normed;
                *db += dy;
            }
        }
    }

    /// `y = x Φ(x)`.
    pub(super) fn gelu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * normal_cdf(x);
        }
    }

    /// `dx = dy (Φ(x) + x φ(x))`.
    pub(super) fn gelu_backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = dy * (normal_cdf(x) + x * normal_density(x));
        }
    }

    /// Softmax of each row of `width` in place.
    pub(super) fn softmax_rows(rows: &mut [f32], width: usize) {
        for row in rows.chunks_exact_mut(width) {
            let largest = largest(row);
            for value in row.iter_mut() {
                *value = exp(*value - largest);
            }
            let inverse_sum = 1.0 / sum(row, |value| value);
            for value in row.iter_mut() {
                *value *= inverse_sum;
            }
        }
    }

    /// Gradient of a softmax with respect to its arguments, times `scale`, in place of the one with respect to its
    /// results `p`.
    pub(super) fn softmax_backward_rows(p: &[f32], dp: &mut [f32], width: usize, scale: f32) {
        for (p, dp) in p.chunks_exact(width).zip(dp.chunks_exact_mut(width)) {
            let dot = sum_of_pairs(p, dp, |p, dp| p * dp);
            for (&p, dp) in p.iter().zip(dp) {
                *dp = p * (*dp - dot) * scale;
            }
        }
    }

    /// `y = x * scale` where `keep` is 1, else 0.
    pub(super) fn drop_into(x: &[f32], keep: &[u8], scale: f32, y: &mut [f32]) {
        for ((y, &x), &keep) in y.iter_mut().zip(x).zip(keep) {
            *y = x * (f32::from(keep) * scale);
        }
    }

    /// The same in place.
    pub(super) fn drop_in_place(x: &mut [f32], keep: &[u8], scale: f32) {
        for (x, &keep) in x.iter_mut().zip(keep) {
            *x *= f32::from(keep) * scale;
        }
    }

    /// `y = gelu(x)` and `dx = dy gelu'(x)`, with `dy` in `dx`.
    pub(super) fn gelu_both(x: &[f32], y: &mut [f32], dx: &mut [f32]) {
        for ((dx, &x), y) in dx.iter_mut().zip(x).zip(y) {
            let cdf = normal_cdf(x);
            *y = x * cdf;
            *dx *= cdf + x * normal_density(x);
        }
    }

    /// `y = a + b`.
    pub(super) fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
        for (y, (&a, &b)) in y.iter_mut().zip(a.iter().zip(b)) {
            *y = a + b;
        }
    }

    /// `y += x`.
    pub(super) fn add_in_place(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    /// `y = a + b * scale` where `keep` is 1, else `a`.
    pub(super) fn add_dropped(a: &[f32], b: &[f32], keep: &[u8], scale: f32, y: &mut [f32]) {
        for ((y, &keep), (&a, &b)) in y.iter_mut().zip(keep).zip(a.iter().zip(b)) {
            *y = a + b * (f32::from(keep) * scale);
        }
    }

    /// `y = a + b * factor`.
    pub(super) fn add_scaled(a: &[f32], b: &[f32], factor: f32, y: &mut [f32]) {
        for (y, (&a, &b)) in y.iter_mut().zip(a.iter().zip(b)) {
            *y = a + b * factor;
        }
    }

    /// `y = x * factor`.
    pub(super) fn scale(x: &[f32], factor: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * factor;
        }
    }

    /// One over the root of a row's unbiased variance plus `eps`, and the row's mean.
    pub(super) fn unbiased_statistics(row: &[f32], eps: f32) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = sum(row, |x| x) / n;
        let var = sum(row, |x| (x - mean) * (x - mean)) / (n - 1.0);
        (1.0 / (var + eps).sqrt(), mean)
    }

    /// Sum of the squares of `pred - (target - mean) * inverse_std`.
    pub(super) fn squared_error(pred: &[f32], target: &[f32], inverse_std: f32, mean: f32) -> f32 {
        sum_of_pairs(pred, target, |pred, target| {
            let error = pred - (target - mean) * inverse_std;
            error * error
        })
    }

    /// `factor * (pred - (target - mean) * inverse_std)`.
    pub(super) fn scaled_error(
        pred: &[f32], target: &[f32], inverse_std: f32, mean: f32, factor: f32, y: &mut [f32],
    ) {
        for (y, (&pred, &target)) in y.iter_mut().zip(pred.iter().zip(target)) {
            *y = factor * (pred - (target - mean) * inverse_std);
        }
    }

    /// One AdamW update of a stretch of parameters with their moments; gradients are multiplied with `c.grad_scale` first.
    pub(crate) fn adamw(
        params: &mut [f32], grads: &[f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32], c: &Coefficients,
    ) {
        let elements = params.iter_mut().zip(grads).zip(exp_avg.iter_mut().zip(exp_avg_sq));
        for ((param, &grad), (m, v)) in elements {
            let grad = grad * c.grad_scale;
            *m += c.one_minus_beta1 * (grad - *m);
            *v = *v * c.beta2 + c.one_minus_beta2 * grad * grad;
            let denominator = v.sqrt() / c.bias_correction2_sqrt + c.eps;
            *param = *param * c.keep - c.step_size * (*m / denominator);
        }
    }

    /// `mean = keep * mean + (1 - keep) * values`.
    pub(crate) fn running_mean(mean: &mut [f32], values: &[f32], keep: f32, take: f32) {
        for (mean, &value) in mean.iter_mut().zip(values) {
            *mean = *mean * keep + value * take;
        }
    }

    /// Sum of squares in f64, in 16 lanes.
    pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
        let mut lanes = [0f64; LANES];
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(value) * f64::from(value);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(value) * f64::from(value);
        }
        lanes.iter().sum()
    }

    /// Adds each row of `rows` to `total`.
    pub(super) fn add_rows(rows: &[f32], total: &mut [f32]) {
        for row in rows.chunks_exact(total.len()) {
            for (total, &value) in total.iter_mut().zip(row) {
                *total += value;
            }
        }
    }
}

/// Mean and inverse standard deviation (biased) of a row, in two passes.
#[inline(always)]
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x, |x| x) / n;
    let var = sum(x, |x| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in chunks.by_ref() {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += of(value);
        }
    }
    lanes.iter().sum::<f32>()
        + chunks
            .remainder()
            .iter()
            .map(|&value| of(value))
            .sum::<f32>()
}

#[inline(always)]
fn sum_of_pairs(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in a.by_ref().zip(b.by_ref()) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += of(a, b);
        }
    }
    let rest = a.remainder().iter().zip(b.remainder());
    lanes.iter().sum::<f32>() + rest.map(|(&a, &b)| of(a, b)).sum::<f32>()
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in chunks.by_ref() {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(chunks.remainder())
        .fold(f32::NEG_INFINITY, |largest, &value| largest.max(value))
}

/// `e^x` within 2 units in the last place, 0 far below and infinity far above.
///
/// Source: Cephes, `expf.c`: `2^n e^r` with a polynomial of degree 7 for `|r| <= ln(2) / 2`.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it pushes the fraction out of the significand, whose low bits then are the whole number.
    const ROUND: f32 = 12_582_912.0;
    // ln(2) in two parts, the first with few enough bits for its multiples to be exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5.000_000_3e-1,
    ] {
        p = p * r + coefficient;
    }
    let power_of_two = f32::from_bits(
        rounded
            .to_bits()
            .wrapping_sub(ROUND.to_bits())
            .wrapping_add(127)
            << 23,
    );
    (p * r * r + r + 1.0) * power_of_two
}

/// The standard normal distribution function Φ.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2)
}

/// The standard normal density φ.
#[inline(always)]
fn normal_density(x: f32) -> f32 {
    const INVERSE_ROOT_TAU: f32 = 0.398_942_3;
    INVERSE_ROOT_TAU * exp(-0.5 * x * x)
}

/// The error function within 3 units in the last place.
///
/// Source: Eigen, `generic_fast_erf_float`: a ratio of two polynomials on [-4, 4], outside which it is ±1 in f32.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = if x < -4.0 { -4.0 } else { x };
    let x = if x > 4.0 { 4.0 } else { x };
    let square = x * x;
    let mut numerator = -2.726_142_3e-10;
    for coefficient in [
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_4e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        numerator = numerator * square + coefficient;
    }
    let mut denominator = -1.456_607_2e-5;
    for coefficient in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_474e-2] {
        denominator = denominator * square + coefficient;
    }
    x * numerator / denominator
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (got / want - 1.0).abs() < 2.5e-7,
                "exp({x}) = {got}, expected {want}"
            );
        }
        assert!(exp(-1000.0) < 2e-38 && exp(1000.0) > 1e38);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn the_error_function_is_right() {
        // Abramowitz and Stegun, table 7.1, and the limits.
        for (x, want) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916),
            (0.5, 0.520_499_878),
            (1.0, 0.842_700_793),
            (1.5, 0.966_105_146),
            (2.0, 0.995_322_265),
            (3.0, 0.999_977_91),
            (9.0, 1.0),
        ] {
            assert!(
                (f64::from(erf(x)) - want).abs() < 2e-7,
                "erf({x}) = {}",
                erf(x)
            );
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn softmax_of_extreme_rows_is_finite() {
        let mut rows = vec![-1e30, 0.0, 1e30, 5.0, 5.0, 5.0];
        softmax_rows(&mut rows, 3);
        assert_eq!(
            rows[..3],
            [0.0, 0.0, 1.0].map(|v: f32| if v == 0.0 { rows[0] } else { v })
        );
        assert!(rows[0] < 1e-37);
        assert!(rows[3..].iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-6));
    }
}
