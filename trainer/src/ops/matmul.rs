//! Products of f32 matrices that are views into slices, over the `gemm` crate.
#![allow(unsafe_code)] // `gemm` takes pointers; the one call is below, behind checks of both views and the result.

use gemm::Parallelism;

/// Threads of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The caller's alone.
    One,
    /// The whole rayon pool.
    All,
}

/// A matrix inside a slice: element (row, column) is at `offset + row * row_stride + column * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows are `row_stride` apart.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> View<'a> {
        View {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transpose.
    pub fn t(self) -> View<'a> {
        View {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn is_inside(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride
                < self.data.len()
    }
}

/// A row-major matrix to write: rows `row_stride` apart in `data`.
pub(crate) struct ViewMut<'a> {
    /// From the first element on.
    pub data: &'a mut [f32],
    /// At least the number of columns.
    pub row_stride: usize,
}

/// `out = factor * a b`, or `out += factor * a b` with `accumulate`.
pub(crate) fn multiply(
    a: View,
    b: View,
    out: ViewMut,
    factor: f32,
    accumulate: bool,
    threads: Threads,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "inner dimensions of a product");
    let written = View::new(out.data, m, n, out.row_stride);
    assert!(
        a.is_inside() && b.is_inside() && written.is_inside(),
        "a matrix reaches out of its slice"
    );
    assert!(out.row_stride >= n, "rows of the result overlap");
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: every element of the three matrices lies in its slice, as was just checked; the result is borrowed
    // mutably, so it overlaps neither factor, and its rows do not overlap each other.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data.as_mut_ptr(),
            1,
            out.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_multiply_as_matrices() {
        // a = [[1, 2], [3, 4]] with rows 3 apart, b = [[5, 6], [7, 8]].
        let (a, b) = ([1.0, 2.0, 9.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        let a = View::new(&a, 2, 2, 3);
        let b = View::new(&b, 2, 2, 2);
        let product = |a: View, b: View, factor, start: f32, accumulate| {
            let mut out = [start; 5];
            multiply(
                a,
                b,
                ViewMut {
                    data: &mut out,
                    row_stride: 3,
                },
                factor,
                accumulate,
                Threads::One,
            );
            assert_eq!(out[2], start, "between the rows");
            [out[0], out[1], out[3], out[4]]
        };
        assert_eq!(product(a, b, 1.0, 7.0, false), [19.0, 22.0, 43.0, 50.0]);
        assert_eq!(product(a, b, 2.0, 1.0, true), [39.0, 45.0, 87.0, 101.0]);
        assert_eq!(product(a.t(), b, 1.0, 0.0, false), [26.0, 30.0, 38.0, 44.0]);
        assert_eq!(product(a, b.t(), 1.0, 0.0, false), [17.0, 23.0, 39.0, 53.0]);
    }

    #[test]
    #[should_panic(expected = "out of its slice")]
    fn reaching_out_is_caught() {
        let data = [0.0; 5];
        let mut out = [0.0; 4];
        let a = View::new(&data, 2, 3, 3);
        let b = View::new(&data, 3, 1, 1);
        multiply(
            a,
            b,
            ViewMut {
                data: &mut out,
                row_stride: 1,
            },
            1.0,
            false,
            Threads::One,
        );
    }
}
