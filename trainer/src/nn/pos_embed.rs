//! The fixed two-dimensional sine and cosine position table.

use candle_core::{Device, Tensor};

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
        return Err(Error::Config(format!("width of the position table is {width}, expected a multiple of 4")));
    }
    let mut table = vec![0f32; width];
    for row in 0..grid {
        for column in 0..grid {
            for position in [column, row] {
                table.extend(sincos(width / 2, position as f64).map(|value| value as f32));
            }
        }
    }
    Ok(Tensor::from_vec(table, (1, 1 + grid * grid, width), &Device::Cpu)?)
}

/// `width / 2` sines of `position * 10000^(-i / (width / 2))`, then as many cosines.
fn sincos(width: usize, position: f64) -> impl Iterator<Item = f64> {
    let half = width / 2;
    let angle = move |i: usize| position / 10000f64.powf(i as f64 / half as f64);
    (0..half).map(move |i| angle(i).sin()).chain((0..half).map(move |i| angle(i).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_row_is_zero_and_columns_come_first() {
        let table = sincos_pos_embed(8, 3).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
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
    fn width_must_be_a_multiple_of_four() {
        assert!(matches!(sincos_pos_embed(6, 3), Err(Error::Config(_))));
    }
}
