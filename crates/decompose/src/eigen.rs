//! What LAPACK does for this crate.

use std::ffi::{c_char, c_int};

use ndarray::{Array1, Array2};
use ndarray_linalg::{JobSvd, SVDDC};

use crate::DecomposeError;
use crate::product::product;

/// Eigenvalues of a symmetric matrix, descending, and their eigenvectors as rows. Rounding below zero is cut off: the matrices
/// here are covariances.
pub(crate) fn eigh_descending(
    matrix: &Array2<f64>,
    name: &'static str,
) -> Result<(Array1<f64>, Array2<f64>), DecomposeError> {
    let (values, mut rows) = eigh(matrix).map_err(|problem| DecomposeError::Factorisation { matrix: name, problem })?;
    let values = values.iter().rev().map(|v| v.max(0.0)).collect();
    rows.invert_axis(ndarray::Axis(0));
    Ok((values, rows.as_standard_layout().into_owned()))
}

/// Eigenvalues of a symmetric matrix, ascending, and their eigenvectors as rows, by LAPACK's divide and conquer: several times as fast as the QR iterations of
/// `ndarray-linalg`'s `eigh`.
#[allow(unsafe_code)]
fn eigh(matrix: &Array2<f64>) -> Result<(Vec<f64>, Array2<f64>), String> {
    let size = matrix.nrows();
    assert_eq!(matrix.dim(), (size, size), "a square matrix");
    if size == 0 {
        return Ok((Vec::new(), Array2::zeros((0, 0))));
    }
    let n = c_int::try_from(size).map_err(|_| format!("{size} columns are more than LAPACK counts"))?;
    // Symmetric, so that it does not matter that LAPACK stores matrices by column; its eigenvectors are columns, which are our rows.
    let mut vectors = matrix.as_standard_layout().into_owned();
    let at = vectors.as_mut_ptr();
    let mut values = vec![0.0; size];
    let (with_vectors, lower) = (b'V' as c_char, b'L' as c_char);
    let mut call = |work: &mut [f64], work_len: c_int, whole: &mut [c_int], whole_len: c_int| {
        let mut info = 0;
        // SAFETY: `vectors` is n x n and contiguous, `values` has n places, both work areas are as long as said, or asked for with a length of -1.
        unsafe {
            lapack_sys::dsyevd_(
                &raw const with_vectors,
                &raw const lower,
                &raw const n,
                at,
                &raw const n,
                values.as_mut_ptr(),
                work.as_mut_ptr(),
                &raw const work_len,
                whole.as_mut_ptr(),
                &raw const whole_len,
                &raw mut info,
            );
        }
        if info == 0 { Ok(()) } else { Err(format!("LAPACK's dsyevd ends with {info}")) }
    };
    let (mut work, mut whole) = ([0.0], [0]);
    call(&mut work, -1, &mut whole, -1)?;
    let (work_len, whole_len) = (work[0] as c_int, whole[0]);
    let (mut work, mut whole) = (vec![0.0; work_len.max(1) as usize], vec![0; whole_len.max(1) as usize]);
    call(&mut work, work_len, &mut whole, whole_len)?;
    Ok((values, vectors))
}

/// The orthogonal matrix nearest to `w`, `(W Wᵀ)^(-1/2) W`, as `U Vᵀ` of its singular value decomposition: that does not square the
/// condition number as forming `W Wᵀ` does.
pub(crate) fn nearest_orthogonal(w: &Array2<f64>) -> Result<Array2<f64>, DecomposeError> {
    let failed = |problem: String| DecomposeError::Factorisation { matrix: "the unmixing matrix", problem };
    let (u, _, vt) = w.svddc(JobSvd::All).map_err(|e| failed(e.to_string()))?;
    match (u, vt) {
        (Some(u), Some(vt)) => Ok(product(u.view(), vt.view())),
        _ => Err(failed("no singular vectors".into())),
    }
}

/// Turns every row so that `sign_of(row)` is not negative; which of two opposite vectors LAPACK returns is an accident.
pub(crate) fn orient(rows: &mut Array2<f64>, sign_of: impl Fn(&[f64]) -> f64) {
    for mut row in rows.rows_mut() {
        if row.as_slice().is_some_and(|row| sign_of(row) < 0.0) {
            row.mapv_inplace(|v| -v);
        }
    }
}

/// The entry of largest magnitude; of equal ones the first.
pub(crate) fn largest_entry(row: &[f64]) -> f64 {
    row.iter().fold(0.0, |best: f64, v| if v.abs() > best.abs() { *v } else { best })
}
