//! Dense products, on the `gemm` crate and, of a matrix with itself in `f64`, on OpenBLAS, which is linked for its factorisations anyway and there twice as fast.
//!
//! The terms of a value are summed in an order that depends on the shapes alone, not on the number of threads.

use std::ffi::{c_char, c_int};

use ndarray::{Array2, ArrayView2, ArrayViewMut2, NdFloat};

/// `out = a b`, or `out += a b`; any strides.
#[allow(unsafe_code)]
pub(crate) fn product_into<T: NdFloat>(
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    accumulate: bool,
    mut out: ArrayViewMut2<'_, T>,
) {
    let ((m, k), (b_rows, n)) = (a.dim(), b.dim());
    assert_eq!(k, b_rows, "a product of [{m}, {k}] with [{b_rows}, {n}]");
    assert_eq!(out.dim(), (m, n), "a product [{m}, {n}] written into {:?}", out.dim());
    let [out_row, out_col]: [isize; 2] = [out.strides()[0], out.strides()[1]];
    // SAFETY: the three pointers are of live views, passed with their own shapes and strides; `out` is a unique borrow, so it aliases
    // neither input. `NdFloat` is implemented by f32 and f64 alone, which `gemm` both knows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out_col,
            out_row,
            accumulate,
            a.as_ptr(),
            a.strides()[1],
            a.strides()[0],
            b.as_ptr(),
            b.strides()[1],
            b.strides()[0],
            T::one(),
            T::one(),
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

/// Adds `rowsᵀ rows` to the entries of `lower` `[d, d]` on and below the diagonal; `rows` are `d` wide.
#[allow(unsafe_code)]
pub(crate) fn add_gram(rows: &[f64], lower: &mut Array2<f64>) {
    let d = lower.ncols();
    assert_eq!(lower.dim(), (d, d), "a square matrix");
    if d == 0 {
        return;
    }
    let n = rows.len() / d;
    assert_eq!(rows.len(), n * d, "whole rows of {d}");
    let (d, n) = (c_int::try_from(d).expect("fewer than 2^31 columns"), c_int::try_from(n).expect("a tile of rows"));
    let lower = lower.as_slice_mut().expect("a new matrix is contiguous");
    // BLAS stores matrices by column: our rows are its columns, and what is below our diagonal is above its own.
    let (upper, as_it_is) = (b'U' as c_char, b'N' as c_char);
    let one = 1.0;
    // SAFETY: `rows` are n columns of d values, `lower` d columns of d, and nothing else refers to it.
    unsafe {
        blas_sys::dsyrk_(
            &raw const upper,
            &raw const as_it_is,
            &raw const d,
            &raw const n,
            &raw const one,
            rows.as_ptr(),
            &raw const d,
            &raw const one,
            lower.as_mut_ptr(),
            &raw const d,
        );
    }
}

/// `a b` as a new array.
pub(crate) fn product<T: NdFloat>(a: ArrayView2<'_, T>, b: ArrayView2<'_, T>) -> Array2<T> {
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    product_into(a, b, false, out.view_mut());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::s;

    #[test]
    fn a_gram_matrix_is_added_below_the_diagonal() {
        for (n, d) in [(1, 1), (7, 3), (300, 70), (0, 4)] {
            let rows = Array2::from_shape_fn((n, d), |(i, j)| ((i * 31 + j * 17) % 23) as f64 - 11.0);
            let mut lower = Array2::from_elem((d, d), 2.0);
            add_gram(rows.as_slice().unwrap(), &mut lower);
            let expected = rows.t().dot(&rows);
            for ((i, j), value) in lower.indexed_iter() {
                assert_eq!(*value, if j <= i { 2.0 + expected[[i, j]] } else { 2.0 });
            }
        }
    }

    #[test]
    fn it_is_the_product_for_any_strides() {
        let a = Array2::from_shape_fn((7, 10), |(i, j)| (i * 10 + j) as f64 * 0.01 - 0.3);
        let b = Array2::from_shape_fn((4, 5), |(i, j)| (i as f64 - j as f64) * 0.5);
        let view = a.slice(s![..;2, ..5]);
        let expected = view.dot(&b.t());
        let close = |got: &Array2<f64>, want: Array2<f64>| got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-12);
        assert!(close(&product(view, b.t()), expected.clone()));
        let mut twice = expected.t().to_owned();
        product_into(view, b.t(), true, twice.view_mut().reversed_axes());
        assert!(close(&twice.reversed_axes(), &expected + &expected));
    }
}
