//! The fixed two-dimensional sine and cosine position table.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The table of a `grid` x `grid` picture, `[1, 1 + grid * grid, width]` f32: a row of zeros for the class token, then
/// the patches in raster order. The first half of the width encodes the column, the second half the row; each half is
/// sines, then cosines. Computed in double precision and rounded once, as the reference does.
///
/// # Errors
/// [`Error::Config`] if the width is not a multiple of 4.
///
/// Source: MAE, `util/pos_embed.py`, `get_2d_sincos_pos_embed`.
pub fn sincos_pos_embed(width: usize, grid: usize) -> Result<Tensor> {
    if width == 0 || !width.is_multiple_of(4) {
        return Err(Error::Config(format!(
            "width of the position table is {width}, expected a multiple of 4"
        )));
    }
    let mut table = vec![0f32; width];
    for row in 0..grid {
        for column in 0..grid {
            for position in [column, row] {
                table.extend(sincos(width / 2, position as f64).map(|value| value as f32));
            }
        }
    }
    Ok(Tensor::from_vec(
        table,
        (1, 1 + grid * grid, width),
        &Device::Cpu,
    )?)
}

/// `width / 2` sines of `position * 10000^(-i / (width / 2))`, then as many cosines.
fn sincos(width: usize, position: f64) -> impl Iterator<Item = f64> {
    let half = width / 2;
    let angle = move |i: usize| position / 10000f64.powf(i as f64 / half as f64);
    (0..half)
        .map(move |i| angle(i).sin())
        .chain((0..half).map(move |i| angle(i).cos()))
}

/// Cubic convolution's free parameter in torch's bicubic interpolation.
const CUBIC_A: f64 = -0.75;

/// Added to the size that a table is resampled to before the ratio of the sizes is taken, as DINO and the reference do.
const SIZE_OFFSET: f64 = 0.1;

/// The table `[1, 1 + g * g, D]` of a square grid resampled for `rows` x `columns` patches, class row first: bicubic,
/// without antialiasing, sampling by the ratios `(rows + 0.1) / g` and `(columns + 0.1) / g`. A table of the same grid
/// comes back as it is.
///
/// # Errors
/// [`Error::Shape`] if the table is not that of a square grid.
///
/// Source: CropMAE (after DINO), `interpolate_pos_encoding`.
pub fn resample_pos_embed(table: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    resample_pos_embed_by(table, rows, columns, PositionScale::Offset)
}

/// Which ratio of the sizes a position table is resampled by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionScale {
    /// `(rows + 0.1) / g`: the reference's.
    #[default]
    Offset,
    /// `rows / g`, which puts the corners of the grids on each other.
    Exact,
}

/// As [`resample_pos_embed`], by a ratio of choice.
///
/// # Errors
/// As [`resample_pos_embed`].
pub fn resample_pos_embed_by(
    table: &Tensor,
    rows: usize,
    columns: usize,
    scale: PositionScale,
) -> Result<Tensor> {
    let (_, n_tokens, width) = table.dims3()?;
    let grid = n_tokens.saturating_sub(1).isqrt();
    if table.dims() != [1, 1 + grid * grid, width] || grid == 0 {
        return Err(Error::Shape {
            what: "position table".to_owned(),
            got: table.dims().to_vec(),
            expected: "[1, 1 + g * g, D]".to_owned(),
        });
    }
    if (rows, columns) == (grid, grid) {
        return Ok(table.clone());
    }
    let values = table
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1::<f64>()?;
    let (class, patches) = values.split_at(width);
    let offset = match scale {
        PositionScale::Offset => SIZE_OFFSET,
        PositionScale::Exact => 0.0,
    };
    let (row_taps, column_taps) = (taps(rows, grid, offset), taps(columns, grid, offset));
    let mut resampled = class.to_vec();
    for row in &row_taps {
        for column in &column_taps {
            let start = resampled.len();
            resampled.resize(start + width, 0.0);
            for &(y, y_weight) in row {
                for &(x, x_weight) in column {
                    let source = &patches[(y * grid + x) * width..][..width];
                    for (sum, value) in resampled[start..].iter_mut().zip(source) {
                        *sum += y_weight * x_weight * value;
                    }
                }
            }
        }
    }
    let resampled = Tensor::from_vec(resampled, (1, 1 + rows * columns, width), table.device())?;
    Ok(resampled.to_dtype(table.dtype())?)
}

/// For each of `n` places the four places of the old grid that it is made of, with their weights.
fn taps(n: usize, grid: usize, offset: f64) -> Vec<[(usize, f64); 4]> {
    let ratio = grid as f64 / (n as f64 + offset);
    let place = |i: usize| {
        let source = (i as f64 + 0.5) * ratio - 0.5;
        let first = source.floor();
        let t = source - first;
        let weights = [
            cubic_outer(t + 1.0),
            cubic_inner(t),
            cubic_inner(1.0 - t),
            cubic_outer(2.0 - t),
        ];
        let clamped = |offset: f64| (first + offset).clamp(0.0, grid as f64 - 1.0) as usize;
        [-1.0, 0.0, 1.0, 2.0].map(clamped).into_iter().zip(weights)
    };
    (0..n)
        .map(|i| {
            let mut taps = [(0, 0.0); 4];
            taps.iter_mut()
                .zip(place(i))
                .for_each(|(tap, value)| *tap = value);
            taps
        })
        .collect()
}

/// The kernel at distances up to 1.
fn cubic_inner(x: f64) -> f64 {
    ((CUBIC_A + 2.0) * x - (CUBIC_A + 3.0)) * x * x + 1.0
}

/// The kernel at distances from 1 to 2.
fn cubic_outer(x: f64) -> f64 {
    ((CUBIC_A * x - 5.0 * CUBIC_A) * x + 8.0 * CUBIC_A) * x - 4.0 * CUBIC_A
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_row_is_zero_and_columns_come_first() {
        let table = sincos_pos_embed(8, 3)
            .unwrap()
            .squeeze(0)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        assert_eq!(table.len(), 10);
        assert_eq!(table[0], [0.0; 8]);
        assert_eq!(table[1], [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
        // Row 0, column 2, then row 2, column 0: the halves swap.
        assert_eq!(table[3][..4], table[7][4..]);
        assert_eq!(table[3][4..], table[7][..4]);
        assert_eq!(table[3][0], 2f64.sin() as f32);
        assert_eq!(table[3][1], 0.02f64.sin() as f32);
    }

    #[test]
    fn resampling_keeps_constants_and_the_same_grid() {
        let ones = Tensor::ones((1, 17, 4), DType::F32, &Device::Cpu).unwrap();
        let resampled = resample_pos_embed(&ones, 7, 3).unwrap();
        assert_eq!(resampled.dims(), [1, 22, 4]);
        let values = resampled.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|v| (v - 1.0).abs() < 1e-6));
        // A table that is linear along the rows, twice the rows by exact ratios: a cubic with a = -0.75 puts 4.25 at
        // 4.296875 and 3.75 at 3.703125, by hand.
        let line: Vec<f32> = (0..=8 * 8).map(|i| ((i + 7) / 8) as f32).collect();
        let line = Tensor::from_vec(line, (1, 65, 1), &Device::Cpu).unwrap();
        let by = |scale| {
            let table = resample_pos_embed_by(&line, 16, 8, scale).unwrap();
            let values = table.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values[1 + 9 * 8] - values[1 + 8 * 8]
        };
        assert!((by(PositionScale::Exact) - 0.59375).abs() < 1e-5);
        assert!((by(PositionScale::Offset) - by(PositionScale::Exact)).abs() > 1e-4);
        let table = sincos_pos_embed(8, 4).unwrap();
        let same = resample_pos_embed(&table, 4, 4).unwrap();
        assert_eq!(
            same.to_vec3::<f32>().unwrap(),
            table.to_vec3::<f32>().unwrap()
        );
        assert!(resample_pos_embed(&ones.narrow(1, 0, 16).unwrap(), 4, 4).is_err());
    }

    #[test]
    fn width_must_be_a_multiple_of_four() {
        assert!(matches!(sincos_pos_embed(6, 3), Err(Error::Config(_))));
    }
}
