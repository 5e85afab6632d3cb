//! Sampling of grids as OpenCV's `resize` does it, without antialiasing, and nearest neighbours as OpenCV and as Pillow.
//!
//! Letters: C channels of a grid `[H, W, C]`, row-major.

use rayon::prelude::*;

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    /// Cells.
    pub fn area(self) -> usize {
        self.height * self.width
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

/// A place between two cells: the first, the second, and the weight of the second.
type Tap = (usize, usize, f32);

/// Where `to` cells lie among `from` cells: centres on centres, clamped to the border.
///
/// Source: OpenCV, `resize` with `INTER_LINEAR`. Its own code rounds places to float before it takes their fraction; builds
/// with Intel's IPP, which is what people install, do not, and neither does this. On frames it is a difference of 2e-5.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|i| {
            let place = (i as f64 + 0.5) * scale - 0.5;
            let first = place.floor();
            if first < 0.0 {
                (0, 0, 0.0)
            } else if first as usize + 1 >= from {
                (from - 1, from - 1, 0.0)
            } else {
                (first as usize, first as usize + 1, (place - first) as f32)
            }
        })
        .collect()
}

/// Bilinear sampling of a grid `[from.height, from.width, C]` at `to`; nothing is averaged when it shrinks.
pub fn bilinear(grid: &[f32], from: Size, channels: usize, to: Size) -> Vec<f32> {
    if from == to {
        return grid.to_vec();
    }
    let (rows, columns) = (taps(from.height, to.height), taps(from.width, to.width));
    let mut out = vec![0f32; to.area() * channels];
    out.par_chunks_mut((to.width * channels).max(1))
        .zip(&rows)
        .for_each(|(out, &(top, bottom, down))| {
            let row = |y: usize| &grid[y * from.width * channels..][..from.width * channels];
            let (top, bottom) = (row(top), row(bottom));
            for (out, &(left, right, across)) in out.chunks_exact_mut(channels).zip(&columns) {
                for (c, out) in out.iter_mut().enumerate() {
                    let along = |row: &[f32]| {
                        row[left * channels + c] * (1.0 - across)
                            + row[right * channels + c] * across
                    };
                    *out = along(top) * (1.0 - down) + along(bottom) * down;
                }
            }
        });
    out
}

/// For each of `to` cells the one of `from` that OpenCV's `INTER_NEAREST` takes: the one under its first edge.
pub fn nearest_opencv(from: usize, to: usize) -> Vec<usize> {
    let scale = 1.0 / (to as f64 / from as f64);
    (0..to)
        .map(|i| ((i as f64 * scale).floor() as usize).min(from - 1))
        .collect()
}

/// For each of `to` cells the one of `from` that Pillow's `NEAREST` takes: the one under its centre, which is reached by
/// adding up steps in double.
pub fn nearest_pillow(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut place = step * 0.5;
    (0..to)
        .map(|_| {
            let cell = (place as usize).min(from - 1);
            place += step;
            cell
        })
        .collect()
}

/// Picks rows and columns of a map `[from.height, from.width]`.
pub fn pick(map: &[u8], from: Size, rows: &[usize], columns: &[usize]) -> Vec<u8> {
    rows.iter()
        .flat_map(|&y| columns.iter().map(move |&x| map[y * from.width + x]))
        .collect()
}

/// A map resized as OpenCV's `INTER_NEAREST`.
pub fn resize_nearest(map: &[u8], from: Size, to: Size) -> Vec<u8> {
    if from == to {
        return map.to_vec();
    }
    pick(
        map,
        from,
        &nearest_opencv(from.height, to.height),
        &nearest_opencv(from.width, to.width),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(height: usize, width: usize) -> Size {
        Size { height, width }
    }

    #[test]
    fn shrinking_by_a_patch_takes_the_middle_pixels() {
        let grid: Vec<f32> = (0..16 * 32).map(|i| ((i * 7) % 13) as f32).collect();
        let got = bilinear(&grid, size(16, 32), 1, size(1, 2));
        for (cell, got) in got.iter().enumerate() {
            let at = |y: usize, x: usize| grid[y * 32 + cell * 16 + x];
            let middle = (at(7, 7) + at(7, 8) + at(8, 7) + at(8, 8)) / 4.0;
            assert!((got - middle).abs() < 1e-6, "{got} {middle}");
        }
    }

    #[test]
    fn growing_clamps_at_the_border_and_keeps_channels_apart() {
        let grid = [0.0, 100.0, 4.0, 200.0];
        // places -0.25, 0.25, 0.75, 1.25
        let got = bilinear(&grid, size(1, 2), 2, size(2, 4));
        let row = [0.0, 100.0, 1.0, 125.0, 3.0, 175.0, 4.0, 200.0];
        assert_eq!(got, [row, row].concat());
        assert_eq!(bilinear(&grid, size(1, 2), 2, size(1, 2)), grid);
    }

    #[test]
    fn nearest_neighbours_differ_between_libraries() {
        assert_eq!(nearest_opencv(3, 2), [0, 1]);
        assert_eq!(nearest_pillow(3, 2), [0, 2]);
        assert_eq!(nearest_opencv(2, 3), [0, 0, 1]);
        assert_eq!(nearest_pillow(2, 3), [0, 1, 1]);
        assert_eq!(nearest_opencv(4, 4), [0, 1, 2, 3]);
        let map = [1, 2, 3, 4, 5, 6];
        assert_eq!(resize_nearest(&map, size(2, 3), size(1, 3)), [1, 2, 3]);
    }
}
