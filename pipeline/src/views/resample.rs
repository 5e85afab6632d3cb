//! One-dimensional resampling of 8-bit RGB rows and columns with 16-bit weights: what a resize is made of.
//!
//! The arithmetic is fixed-point as in Pillow-SIMD and `fast_image_resize`, to the bit, so either can check the other.
//! What that library does not offer decides for code of our own: a view costs no memory (it allocates a table for each
//! column and row of the result), a mirrored view costs nothing (the table is laid out backwards), and all columns take
//! the same number of taps, so that the inner loop has no branch to guess: a fifth less time in all.
//!
//! One path is written with AVX2; the plain one gives the same bytes and serves every other processor.
#![allow(unsafe_code)]

use crate::config::Interpolation;

/// Bytes that must be readable behind the pixels of each row given to [`Taps::across`]; what they are plays no part.
pub(super) const READ_PAST: usize = 32;

/// Which pixels make each pixel of the result along one axis, and with what weights; memory is reused.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// First source pixel of each pixel of the result.
    starts: Vec<u32>,
    /// `[n_out, n_pairs]`, weights of two neighbours each; what is added to fill up has weight 0.
    weights: Vec<[i16; 2]>,
    n_pairs: usize,
    /// Source pixels there are.
    n_in: usize,
    /// Bits behind the point of the weights.
    precision: u32,
    /// Weights before rounding, `[n_out]` runs of any length.
    exact: Vec<f64>,
    runs: Vec<Run>,
}

/// The part of `Taps::exact` for one pixel of the result.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u32,
    len: u32,
}

/// Most bits behind the point: 8 bits of value and 2 of overflow fit beside them into 32.
const MAX_PRECISION: u32 = 32 - 8 - 2;

impl Taps {
    /// For `n_in` pixels that become `n_out`. With `mirror_in` the source is stored backwards, with `mirror_out` the
    /// result is wanted so.
    pub(super) fn prepare(
        &mut self,
        n_in: u32,
        n_out: u32,
        interpolation: Interpolation,
        mirror_in: bool,
        mirror_out: bool,
    ) {
        self.n_in = n_in as usize;
        self.weigh(n_in, n_out, interpolation);
        let largest = self.exact.iter().copied().fold(0.0, f64::max);
        // As many bits as the largest weight leaves in 16.
        self.precision = (0..MAX_PRECISION)
            .find(|bits| (largest * f64::from(1u32 << (bits + 1))).round() >= 32768.0)
            .unwrap_or(MAX_PRECISION - 1);
        let longest = self.runs.iter().map(|run| run.len).max().unwrap_or(0);
        self.n_pairs = longest.div_ceil(2) as usize;
        let n_taps = 2 * self.n_pairs as u32;
        let scale = f64::from(1u32 << self.precision);
        self.starts.clear();
        self.starts.resize(self.runs.len(), 0);
        self.weights.clear();
        self.weights.resize(self.runs.len() * self.n_pairs, [0; 2]);
        let mut rest = self.exact.as_slice();
        for (n, run) in self.runs.iter().enumerate() {
            let (weights, behind) = rest.split_at(run.len as usize);
            rest = behind;
            let start = if mirror_in {
                n_in - run.start - run.len
            } else {
                run.start
            };
            // Taps that fill up must lie within the source too.
            let first = start.min(n_in.saturating_sub(n_taps));
            let place = if mirror_out {
                self.runs.len() - 1 - n
            } else {
                n
            };
            self.starts[place] = first;
            let pairs = &mut self.weights[place * self.n_pairs..][..self.n_pairs];
            for (tap, weight) in weights.iter().enumerate() {
                let tap = if mirror_in {
                    weights.len() - 1 - tap
                } else {
                    tap
                };
                let at = tap + (start - first) as usize;
                pairs[at / 2][at % 2] = (weight * scale).round() as i16;
            }
        }
    }

    /// Weights of the filter, stretched where pixels become fewer, and normalised.
    fn weigh(&mut self, n_in: u32, n_out: u32, interpolation: Interpolation) {
        let (filter, support): (fn(f64) -> f64, f64) = match interpolation {
            Interpolation::Bilinear => (triangle, 1.0),
            Interpolation::Bicubic => (cubic, 2.0),
        };
        let scale = f64::from(n_in) / f64::from(n_out);
        let stretch = scale.max(1.0);
        let (radius, shrink) = (support * stretch, 1.0 / stretch);
        self.exact.clear();
        self.runs.clear();
        for n in 0..n_out {
            let centre = (f64::from(n) + 0.5) * scale;
            let first = (centre - radius).floor().max(0.0) as u32;
            let end = (centre + radius).ceil().min(f64::from(n_in)) as u32;
            let centre = centre - 0.5;
            let (begin, mut sum) = (self.exact.len(), 0.0);
            let mut start = first;
            for x in first..end {
                let weight = filter((f64::from(x) - centre) * shrink);
                if x == start && weight == 0.0 {
                    start += 1;
                } else {
                    self.exact.push(weight);
                    sum += weight;
                }
            }
            while self.exact.len() > begin && self.exact.last() == Some(&0.0) {
                self.exact.pop();
            }
            for weight in &mut self.exact[begin..] {
                *weight /= sum;
            }
            let len = (self.exact.len() - begin) as u32;
            self.runs.push(Run { start, len });
        }
    }

    /// Pixels of the result.
    fn n_out(&self) -> usize {
        self.starts.len()
    }

    fn rounding(&self) -> i32 {
        (1 << self.precision) >> 1
    }

    /// Resamples rows: each of `rows` becomes one row of `out`.
    ///
    /// * `rows`: slices of `n_in` RGB pixels and [`READ_PAST`] bytes behind them.
    /// * `out`: `[n_rows, n_out, 3]`.
    pub(super) fn across<'a>(
        &self,
        n_rows: usize,
        row: impl Fn(usize) -> &'a [u8],
        out: &mut [u8],
    ) {
        let out_bytes = self.n_out() * 3;
        #[cfg(target_arch = "x86_64")]
        if n_rows >= 4 && std::arch::is_x86_feature_detected!("avx2") {
            for first in (0..n_rows).step_by(4) {
                // The last four overlap those before rather than being fewer.
                let first = first.min(n_rows - 4);
                let rows = [first, first + 1, first + 2, first + 3].map(&row);
                let four = &mut out[first * out_bytes..(first + 4) * out_bytes];
                // SAFETY: AVX2 was just found.
                unsafe { avx2::four_rows(self, rows, four) };
            }
            return;
        }
        for (n, out) in out.chunks_exact_mut(out_bytes).take(n_rows).enumerate() {
            self.row(row(n), out);
        }
    }

    fn row(&self, row: &[u8], out: &mut [u8]) {
        let (pixels, _) = row[..self.n_in * 3].as_chunks::<3>();
        let taps = self
            .starts
            .iter()
            .zip(self.weights.chunks_exact(self.n_pairs));
        for ((&start, pairs), out) in taps.zip(out.chunks_exact_mut(3)) {
            let mut sums = [self.rounding(); 3];
            for (pixel, &weight) in pixels[start as usize..].iter().zip(pairs.as_flattened()) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(level) * i32::from(weight);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum >> self.precision).clamp(0, 255) as u8;
            }
        }
    }

    /// Resamples columns: each row of `out` becomes the weighted sum of its source rows.
    ///
    /// * `source`: `n_in` rows as long as those of `out`, each beginning `stride` bytes after the one before.
    /// * `out`: `[n_out, row_bytes]`.
    pub(super) fn down(&self, source: &[u8], stride: usize, row_bytes: usize, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        let has_avx2 = std::arch::is_x86_feature_detected!("avx2");
        let taps = self
            .starts
            .iter()
            .zip(self.weights.chunks_exact(self.n_pairs));
        for ((&start, pairs), out) in taps.zip(out.chunks_exact_mut(row_bytes)) {
            let column = Column {
                source,
                stride,
                start: start as usize,
                last: self.n_in - 1,
                pairs,
            };
            #[cfg(target_arch = "x86_64")]
            if has_avx2 {
                // SAFETY: AVX2 was found above.
                unsafe { avx2::blend(self, &column, out) };
                continue;
            }
            self.blend(&column, 0, out);
        }
    }

    /// The bytes from `first` on of one row of the result.
    fn blend(&self, column: &Column<'_>, first: usize, out: &mut [u8]) {
        for (at, out) in out.iter_mut().enumerate().skip(first) {
            let mut sum = self.rounding();
            for (n, &pair) in column.pairs.iter().enumerate() {
                for (row, weight) in column.rows(n).into_iter().zip(pair) {
                    sum += i32::from(column.source[row + at]) * i32::from(weight);
                }
            }
            *out = (sum >> self.precision).clamp(0, 255) as u8;
        }
    }
}

/// The source rows of one row of a result.
struct Column<'a> {
    source: &'a [u8],
    stride: usize,
    start: usize,
    /// Index of the last row.
    last: usize,
    pairs: &'a [[i16; 2]],
}

impl Column<'_> {
    /// Where in the source the rows of the `n`th pair begin; a row that fills up has weight 0, so any will do.
    fn rows(&self, n: usize) -> [usize; 2] {
        let above = self.start + 2 * n;
        [
            above * self.stride,
            (above + 1).min(self.last) * self.stride,
        ]
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' cubic with a = -0.5, as Pillow's.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Column, READ_PAST, Taps};

    /// A pair of weights in each 32-bit lane.
    #[target_feature(enable = "avx2")]
    fn spread(pair: [i16; 2]) -> __m256i {
        let [low, high] = pair.map(i32::from);
        _mm256_set1_epi32((low & 0xffff) | (high << 16))
    }

    #[target_feature(enable = "avx2")]
    fn precision(taps: &Taps) -> __m128i {
        _mm_cvtsi32_si128(taps.precision as i32)
    }

    /// Resamples four rows at once, two in each accumulator.
    #[target_feature(enable = "avx2")]
    pub(super) fn four_rows(taps: &Taps, rows: [&[u8]; 4], out: &mut [u8]) {
        let n_out = taps.n_out();
        let furthest = taps.starts.iter().max().map_or(0, |&start| start as usize);
        // The loads below end at most 4 bytes behind the last tap, which lies at most one pixel behind the row.
        let reach = (furthest + 2 * taps.n_pairs) * 3 + 4;
        assert!(reach <= taps.n_in * 3 + READ_PAST && rows.iter().all(|row| row.len() >= reach));
        assert!(out.len() == 4 * n_out * 3 && taps.weights.len() == n_out * taps.n_pairs);
        let load_16 = |row: &[u8], at: usize| {
            // SAFETY: every load ends before `reach`, and every row is at least that long.
            unsafe { _mm_loadu_si128(row.as_ptr().add(at).cast()) }
        };
        let load_8 = |row: &[u8], at: usize| {
            // SAFETY: as of `load_16`.
            unsafe { _mm_loadl_epi64(row.as_ptr().add(at).cast()) }
        };
        // The first two of four pixels as 16-bit pairs of red, green and blue, and the other two.
        let first = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
        ));
        let second = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
        ));
        let (initial, precision) = (_mm256_set1_epi32(taps.rounding()), precision(taps));
        let (quads, last_pair) = (taps.n_pairs / 2, taps.n_pairs % 2 == 1);
        let mut weights = taps.weights.iter();
        for (n, &start) in taps.starts.iter().enumerate() {
            let mut at = start as usize * 3;
            let mut sums = [initial; 2];
            for _ in 0..quads {
                let (Some(&one), Some(&two)) = (weights.next(), weights.next()) else {
                    break;
                };
                let (one, two) = (spread(one), spread(two));
                for (half, sum) in sums.iter_mut().enumerate() {
                    let pixels = _mm256_inserti128_si256::<1>(
                        _mm256_castsi128_si256(load_16(rows[2 * half], at)),
                        load_16(rows[2 * half + 1], at),
                    );
                    let products = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first), one);
                    *sum = _mm256_add_epi32(*sum, products);
                    let products = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, second), two);
                    *sum = _mm256_add_epi32(*sum, products);
                }
                at += 12;
            }
            if last_pair && let Some(&pair) = weights.next() {
                let pair = spread(pair);
                for (half, sum) in sums.iter_mut().enumerate() {
                    let pixels = _mm256_inserti128_si256::<1>(
                        _mm256_castsi128_si256(load_8(rows[2 * half], at)),
                        load_8(rows[2 * half + 1], at),
                    );
                    let products = _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first), pair);
                    *sum = _mm256_add_epi32(*sum, products);
                }
            }
            let [low, high] = sums;
            let words = _mm256_packs_epi32(
                _mm256_sra_epi32(low, precision),
                _mm256_sra_epi32(high, precision),
            ); // rows 0 and 2, then 1 and 3
            let bytes = _mm256_packus_epi16(words, words);
            let even = _mm_cvtsi128_si64(_mm256_castsi256_si128(bytes)).to_le_bytes();
            let odd = _mm_cvtsi128_si64(_mm256_extracti128_si256::<1>(bytes)).to_le_bytes();
            for (row, pixel) in [&even[..3], &odd[..3], &even[4..7], &odd[4..7]]
                .into_iter()
                .enumerate()
            {
                out[(row * n_out + n) * 3..][..3].copy_from_slice(pixel);
            }
        }
    }

    /// One row of the result.
    #[target_feature(enable = "avx2")]
    pub(super) fn blend(taps: &Taps, column: &Column<'_>, out: &mut [u8]) {
        const LANE: usize = 32;
        let (initial, precision) = (_mm256_set1_epi32(taps.rounding()), precision(taps));
        let zero = _mm256_setzero_si256();
        let n_whole = out.len() / LANE * LANE;
        assert!(column.start + 2 * column.pairs.len() <= column.last + 2);
        assert!(column.last * column.stride + out.len() <= column.source.len());
        for at in (0..n_whole).step_by(LANE) {
            let [mut a, mut b, mut c, mut d] = [initial; 4];
            for (n, &pair) in column.pairs.iter().enumerate() {
                let pair = spread(pair);
                let [above, below] = column.rows(n);
                // SAFETY: both rows are among those of the source, as asserted, and `at` leaves 32 bytes of them.
                let (above, below) = unsafe {
                    let source = column.source.as_ptr().add(at);
                    (
                        _mm256_loadu_si256(source.add(above).cast()),
                        _mm256_loadu_si256(source.add(below).cast()),
                    )
                };
                let low = _mm256_unpacklo_epi8(above, below);
                let high = _mm256_unpackhi_epi8(above, below);
                a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), pair));
                b = _mm256_add_epi32(b, _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), pair));
                c = _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), pair));
                d = _mm256_add_epi32(d, _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), pair));
            }
            let low = _mm256_packs_epi32(
                _mm256_sra_epi32(a, precision),
                _mm256_sra_epi32(b, precision),
            );
            let high = _mm256_packs_epi32(
                _mm256_sra_epi32(c, precision),
                _mm256_sra_epi32(d, precision),
            );
            let chunk = &mut out[at..at + LANE];
            // SAFETY: the chunk has the 32 bytes that are stored.
            unsafe {
                _mm256_storeu_si256(chunk.as_mut_ptr().cast(), _mm256_packus_epi16(low, high));
            }
        }
        taps.blend(column, n_whole, out);
    }
}

#[cfg(test)]
mod tests {
    use fast_image_resize::images::{TypedImage, TypedImageRef};
    use fast_image_resize::pixels::U8x3;
    use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
    use proptest::prelude::*;

    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<u8> {
        let level = |at: usize| (at as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13;
        // Extremes are frequent, so that overshoots are clipped.
        (0..n)
            .map(|at| match level(at) % 5 {
                0 => 0,
                1 => 255,
                _ => level(at + 1) as u8,
            })
            .collect()
    }

    /// What the library makes of one axis.
    fn expected(pixels: &[u8], from: (u32, u32), to: (u32, u32), kind: Interpolation) -> Vec<u8> {
        let filter = match kind {
            Interpolation::Bilinear => FilterType::Bilinear,
            Interpolation::Bicubic => FilterType::CatmullRom,
        };
        let source = TypedImageRef::<U8x3>::from_buffer(from.0, from.1, pixels).unwrap();
        let mut out = vec![0; (to.0 * to.1 * 3) as usize];
        let mut target = TypedImage::<U8x3>::from_buffer(to.0, to.1, &mut out).unwrap();
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
        Resizer::new()
            .resize_typed(&source, &mut target, &options)
            .unwrap();
        out
    }

    fn mirrored(pixels: &[u8], width: u32) -> Vec<u8> {
        let rows = pixels.chunks_exact(width as usize * 3);
        rows.flat_map(|row| row.chunks_exact(3).rev().flatten().copied())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn both_axes_are_the_library_to_the_bit(
            n_in in prop_oneof![1u32..12, 1u32..700], n_out in 1u32..260, other in 1u32..14,
            seed: u32, bicubic: bool, mirror_in: bool, mirror_out: bool,
        ) {
            let kind = if bicubic { Interpolation::Bicubic } else { Interpolation::Bilinear };
            let mut taps = Taps::default();
            taps.prepare(n_in, n_out, kind, mirror_in, mirror_out);

            let source = noise((n_in * other * 3) as usize, seed);
            let mut wanted = expected(&source, (n_in, other), (n_out, other), kind);
            if mirror_out {
                wanted = mirrored(&wanted, n_out);
            }
            let mut stored = if mirror_in { mirrored(&source, n_in) } else { source.clone() };
            stored.extend([7; READ_PAST]);
            let row_bytes = n_in as usize * 3;
            let row = |y: usize| &stored[y * row_bytes..][..row_bytes + READ_PAST];
            let mut found = vec![1; wanted.len()];
            taps.across(other as usize, row, &mut found);
            prop_assert!(found == wanted);
            for (y, out) in found.chunks_exact_mut(n_out as usize * 3).enumerate() {
                out.fill(2);
                taps.row(row(y), out);
            }
            prop_assert!(found == wanted, "the plain way");

            taps.prepare(n_in, n_out, kind, false, false);
            let wanted = expected(&source, (other, n_in), (other, n_out), kind);
            let row_bytes = other as usize * 3;
            let mut found = vec![1; wanted.len()];
            taps.down(&source, row_bytes, row_bytes, &mut found);
            prop_assert!(found == wanted);
        }
    }

    #[test]
    fn wide_rows_are_blended_alike_in_both_ways() {
        let (n_in, n_out, row_bytes) = (9, 5, 101 * 3);
        let mut taps = Taps::default();
        taps.prepare(n_in, n_out, Interpolation::Bicubic, false, false);
        let source = noise(n_in as usize * row_bytes, 3);
        let mut found = vec![1; n_out as usize * row_bytes];
        taps.down(&source, row_bytes, row_bytes, &mut found);
        let wanted = expected(&source, (101, n_in), (101, n_out), Interpolation::Bicubic);
        assert!(found == wanted);
        for (start, (pairs, out)) in taps.starts.iter().zip(
            taps.weights
                .chunks(taps.n_pairs)
                .zip(found.chunks_mut(row_bytes)),
        ) {
            let (source, start) = (source.as_slice(), *start as usize);
            let column = Column {
                source,
                stride: row_bytes,
                start,
                last: n_in as usize - 1,
                pairs,
            };
            out.fill(2);
            taps.blend(&column, 0, out);
        }
        assert!(found == wanted, "the plain way");
    }

    #[test]
    fn equal_sizes_change_nothing() {
        for kind in [Interpolation::Bilinear, Interpolation::Bicubic] {
            let mut source = noise(50 * 3, 1);
            source.extend([0; READ_PAST]);
            let mut taps = Taps::default();
            taps.prepare(50, 50, kind, false, true);
            let mut out = vec![0; 150];
            taps.across(1, |_| &source, &mut out);
            assert_eq!(out, mirrored(&source[..150], 50));
        }
    }
}
