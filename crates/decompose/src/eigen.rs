//! What LAPACK does for this crate.

use ndarray::{Array1, Array2};
use ndarray_linalg::{Eigh, JobSvd, SVDDC, UPLO};

use crate::DecomposeError;
use crate::product::product;

/// Eigenvalues of a symmetric matrix, descending, and their eigenvectors as rows. Rounding below zero is cut off: the matrices
/// here are covariances.
pub(crate) fn eigh_descending(
    matrix: &Array2<f64>,
    name: &'static str,
) -> Result<(Array1<f64>, Array2<f64>), DecomposeError> {
    let (values, vectors) =
        matrix.eigh(UPLO::Lower).map_err(|e| DecomposeError::Factorisation { matrix: name, problem: e.to_string() })?;
    let values = values.iter().rev().map(|v| v.max(0.0)).collect();
    let mut rows = vectors.reversed_axes();
    rows.invert_axis(ndarray::Axis(0));
    Ok((values, rows.as_standard_layout().into_owned()))
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
