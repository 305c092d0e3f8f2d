//! Cyclic coordinate descent for non-negative least squares, many rows at a time.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::product::product_into;

/// Coordinates whose gradients are taken by one product.
const PANEL: usize = 48;

/// Rows that one task takes through a panel.
const TASK_ROWS: usize = 32;

/// What a sweep needs beside its inputs, kept between sweeps.
#[derive(Default)]
pub(crate) struct Descent {
    /// Gradients `[rows, PANEL]` of one panel.
    gradient: Array2<f32>,
    /// By how much each row misses the optimum; see [`Descent::sweep`].
    violation: Vec<f32>,
}

impl Descent {
    /// Sets every coordinate of every row c of `codes` `[rows, n]` once, in order, to the best non-negative value beside the others, for
    /// `min ½ cᵀ G c - bᵀ c`, where G is `gram` `[n, n]` and b the row of `targets` `[rows, n]`: with `G = H Hᵀ` and `b = H y` that is
    /// `min ½ ‖y - Hᵀ c‖²`, as in Cichocki and Phan 2009, "Fast local algorithms for large scale nonnegative matrix and tensor factorizations".
    ///
    /// Returns, for each row, the sum of the magnitudes of the projected gradient that each coordinate had when its turn came: 0 at the optimum.
    ///
    /// A coordinate's gradient has to be that beside the coordinates already set. Those of a panel are taken by one product before its first
    /// coordinate moves, and corrected whenever one moves.
    pub(crate) fn sweep(
        &mut self,
        gram: ArrayView2<'_, f32>,
        targets: ArrayView2<'_, f32>,
        mut codes: ArrayViewMut2<'_, f32>,
    ) -> &[f32] {
        let (rows, n) = codes.dim();
        if self.gradient.nrows() < rows {
            self.gradient = Array2::zeros((rows, PANEL));
        }
        self.violation.clear();
        self.violation.resize(rows, 0.0);
        for start in (0..n).step_by(PANEL) {
            let panel = s![.., start..(start + PANEL).min(n)];
            let (within, targets) = (gram.slice(panel), targets.slice(panel));
            let mut gradient = self.gradient.slice_mut(s![..rows, ..within.ncols()]);
            gradient.zip_mut_with(&targets, |gradient, target| *gradient = -target);
            product_into(codes.view(), within, true, gradient.view_mut());
            let gram = within.slice(s![start..start + within.ncols(), ..]);
            let gram = gram.as_standard_layout();
            let gram = gram.as_slice().expect("a new matrix is contiguous");
            (codes.slice_mut(panel).axis_chunks_iter_mut(Axis(0), TASK_ROWS).into_par_iter())
                .zip(gradient.axis_chunks_iter_mut(Axis(0), TASK_ROWS))
                .zip(self.violation.par_chunks_mut(TASK_ROWS))
                .for_each(|((mut codes, mut gradient), violation)| {
                    let rows = codes.rows_mut().into_iter().zip(gradient.rows_mut());
                    for ((mut codes, mut gradient), violation) in rows.zip(violation) {
                        let codes = codes.as_slice_mut().expect("codes of a row lie together");
                        let gradient = gradient.as_slice_mut().expect("a row of a standard array");
                        *violation += descend(gram, gradient, codes);
                    }
                });
        }
        &self.violation
    }
}

/// One pass over all coordinates of one row, with `gram` `[n, n]` and the `gradient` `[n]` at `codes` `[n]`, which stays that. Returns the sum of the
/// magnitudes of the projected gradient, as [`Descent::sweep`].
pub(crate) fn descend(gram: &[f32], gradient: &mut [f32], codes: &mut [f32]) -> f32 {
    let n = codes.len();
    let mut violation = 0.0;
    for (i, with_others) in gram.chunks_exact(n.max(1)).enumerate() {
        let (slope, curvature, code) = (gradient[i], with_others[i], codes[i]);
        // At the bound a code can only grow.
        let projected = if code > 0.0 { slope } else { slope.min(0.0) };
        // A latent without a direction explains nothing.
        if projected == 0.0 || curvature < f32::MIN_POSITIVE {
            continue;
        }
        violation += projected.abs();
        codes[i] = (code - slope / curvature).max(0.0);
        let change = codes[i] - code;
        for (gradient, with_other) in gradient.iter_mut().zip(with_others) {
            *gradient += change * with_other;
        }
    }
    violation
}
