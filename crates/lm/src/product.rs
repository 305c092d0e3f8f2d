//! Matrix products on slices: one of the two places in this crate with `unsafe`.
#![allow(unsafe_code)]

use gemm::Parallelism;

/// A matrix inside a slice: element `(r, c)` is at `r * row_stride + c * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows follow each other without a gap.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// A matrix whose rows begin `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn check(&self) {
        assert!(
            self.rows > 0 && self.columns > 0,
            "a product needs rows and columns, not [{}, {}]",
            self.rows,
            self.columns
        );
        let last = (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride;
        assert!(
            last < self.data.len(),
            "a [{}, {}] matrix with strides {} and {} does not fit in {} values",
            self.rows,
            self.columns,
            self.row_stride,
            self.column_stride,
            self.data.len()
        );
    }
}

/// Whether a product replaces what its destination holds or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    Replace,
    Add,
}

/// `out = a b` or `out += a b`, with `out` `[a.rows, b.columns]` in rows without gaps, split over `threads` threads.
///
/// The values do not depend on the number of threads: it splits `out`, never the sums.
///
/// # Panics
/// If the shapes do not fit each other or their slices.
pub(crate) fn product(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, into: Into, threads: usize) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(a.columns, b.rows, "a [{m}, {k}] matrix cannot be multiplied by a [{}, {n}] matrix", b.rows);
    a.check();
    b.check();
    assert_eq!(out.len(), m * n, "the product [{m}, {n}] does not fit in {} values", out.len());
    let parallelism = if threads <= 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    let stride = |s: usize| isize::try_from(s).unwrap_or(isize::MAX);
    // SAFETY: `check` has shown that every element of `a` and `b` lies in its slice, and `out` is as long as the product; `out` is borrowed
    // mutably, so it overlaps neither. `gemm` reads and writes nothing else.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(n),
            into == Into::Add,
            a.data.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            1.0,
            1.0,
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
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_product_is_the_sum_of_products(m in 1usize..40, n in 1usize..40, k in 1usize..80, pad in 0usize..5, flip: bool) {
            let value = |i: usize| ((i * 7919) % 101) as f32 / 50.0 - 1.0;
            let a: Vec<f32> = (0..m * (k + pad)).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(|i| value(i + 13)).collect();
            let left = Matrix::strided(&a, m, k, k + pad);
            let right = if flip { Matrix::new(&b, n, k).transposed() } else { Matrix::new(&b, k, n) };
            let mut out = vec![0.5; m * n];
            product(&mut out, left, right, Into::Add, 1);
            for r in 0..m {
                for c in 0..n {
                    let at = |j: usize| if flip { b[c * k + j] } else { b[j * n + c] };
                    let want: f32 = 0.5 + (0..k).map(|j| a[r * (k + pad) + j] * at(j)).sum::<f32>();
                    prop_assert!((out[r * n + c] - want).abs() < 1e-4, "{} {want}", out[r * n + c]);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "cannot be multiplied")]
    fn shapes_that_do_not_fit_are_named() {
        product(&mut [0.0; 4], Matrix::new(&[0.0; 6], 2, 3), Matrix::new(&[0.0; 4], 2, 2), Into::Replace, 1);
    }
}
