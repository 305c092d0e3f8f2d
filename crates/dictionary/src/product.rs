//! The one dense product of this crate.

use ndarray::{Array2, ArrayView2};

/// `x wᵀ` for `x` `[n, d]` and `w` `[m, d]`, written into `out[..n * m]` row by row.
#[allow(unsafe_code)]
pub(crate) fn rows_times_rows(x: ArrayView2<'_, f32>, w: &Array2<f32>, out: &mut [f32]) {
    let ((n, d), (m, w_width)) = (x.dim(), w.dim());
    assert_eq!(d, w_width, "a product of rows {d} wide with rows {w_width} wide");
    assert!(out.len() >= n * m, "room for {} of {n} x {m} values", out.len());
    let (x_strides, w_strides) = (x.strides(), w.strides());
    // SAFETY: `x` and `w` are live views whose shapes and strides are passed as they are; `out` holds at least n * m values, is written
    // in full (no read of the destination: `read_dst` is false) and aliases neither, being a unique borrow.
    unsafe {
        gemm::gemm(
            n,
            m,
            d,
            out.as_mut_ptr(),
            1,
            m.cast_signed(),
            false,
            x.as_ptr(),
            x_strides[1],
            x_strides[0],
            w.as_ptr(),
            w_strides[0],
            w_strides[1],
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::s;

    #[test]
    fn it_is_the_product_for_any_strides() {
        let x = Array2::from_shape_fn((7, 10), |(i, j)| (i * 10 + j) as f32 * 0.01 - 0.3);
        let w = Array2::from_shape_fn((4, 5), |(i, j)| (i as f32 - j as f32) * 0.5);
        let view = x.slice(s![..;2, ..5]);
        let mut out = vec![f32::NAN; 16];
        rows_times_rows(view, &w, &mut out);
        let expected = view.dot(&w.t());
        for (got, want) in out.iter().zip(expected.iter()) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }
}
