//! The iteration of FastICA on whitened rows.

use std::ops::ControlFlow;

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::DecomposeError;
use crate::eigen::nearest_orthogonal;
use crate::product::product_into;
use crate::tanh::tanh;

/// Rows whose scores exist at once: few enough that they are still in the cache for the second product. Fixed, so that sums are taken in
/// one order whatever the number of threads.
const TILE_ROWS: usize = 512;

/// Tiles summed in `f32` before the sum is added to that in `f64`.
const TILES_PER_SUM: usize = 4;

/// Rows that one task takes through the nonlinearity.
const TASK_ROWS: usize = 64;

/// Where the iteration ended.
pub(crate) struct Outcome {
    /// Orthogonal unmixing of the whitened rows `[n, n]`.
    pub(crate) w: Array2<f64>,
    pub(crate) converged: bool,
    pub(crate) iterations: usize,
}

/// Parallel FastICA with symmetric decorrelation (Hyvärinen 1999, "Fast and robust fixed-point algorithms for independent component
/// analysis", eq. 20 and sec. III-C): `W <- decorrelate(E[g(W z) zᵀ] - diag(E[g'(W z)]) W)` with `g = tanh`, until no component
/// turns by more than `1 - |cos| < tol`. `None` if `progress` said so.
///
/// The two products over the rows are in `f32`, a tile at a time; what they give is summed in `f64` every few tiles.
pub(crate) fn fastica(
    white: ArrayView2<'_, f32>,
    start: &Array2<f64>,
    max_iter: usize,
    tol: f64,
    progress: &mut dyn FnMut(usize, f64) -> ControlFlow<()>,
) -> Result<Option<Outcome>, DecomposeError> {
    let mut w = nearest_orthogonal(start)?;
    let mut scratch = Scratch::new(white.nrows(), white.ncols());
    for iteration in 1..=max_iter {
        let next = nearest_orthogonal(&scratch.fixed_point(white, &w))?;
        let turned = next.rows().into_iter().zip(w.rows()).map(|(a, b)| (a.dot(&b).abs() - 1.0).abs());
        let lim = turned.fold(0.0, f64::max);
        w = next;
        if progress(iteration, lim).is_break() {
            return Ok(None);
        }
        if lim < tol {
            return Ok(Some(Outcome { w, converged: true, iterations: iteration }));
        }
    }
    Ok(Some(Outcome { w, converged: false, iterations: max_iter }))
}

/// What an iteration needs beside its inputs, kept between iterations.
struct Scratch {
    /// `g(W z)` of one tile of rows.
    g: Array2<f32>,
    /// Sum of `g²` over the rows of each task.
    squares: Array2<f32>,
    /// Sum of `g(W z) zᵀ` over [`TILES_PER_SUM`] tiles.
    short_sum: Array2<f32>,
}

impl Scratch {
    fn new(rows: usize, n: usize) -> Self {
        let tile = TILE_ROWS.min(rows);
        Self {
            g: Array2::zeros((tile, n)),
            squares: Array2::zeros((tile.div_ceil(TASK_ROWS), n)),
            short_sum: Array2::zeros((n, n)),
        }
    }

    /// `E[g(W z) zᵀ] - diag(E[g'(W z)]) W` over the rows `z` of `white`.
    fn fixed_point(&mut self, white: ArrayView2<'_, f32>, w: &Array2<f64>) -> Array2<f64> {
        let n = w.nrows();
        let w_f32 = w.mapv(|v| v as f32);
        let mut sum = Array2::<f64>::zeros((n, n));
        let mut squares = Array1::<f64>::zeros(n);
        let tiles = white.axis_chunks_iter(Axis(0), TILE_ROWS);
        let last = tiles.len().saturating_sub(1);
        for (i, tile) in tiles.enumerate() {
            let tasks = tile.nrows().div_ceil(TASK_ROWS);
            let mut g = self.g.slice_mut(s![..tile.nrows(), ..]);
            product_into(tile, w_f32.t(), false, g.view_mut());
            let mut task_squares = self.squares.slice_mut(s![..tasks, ..]);
            g.axis_chunks_iter_mut(Axis(0), TASK_ROWS)
                .into_par_iter()
                .zip(task_squares.axis_iter_mut(Axis(0)))
                .for_each(|(mut g, mut squares)| {
                    let squares = squares.as_slice_mut().expect("a row of a standard array");
                    squares.fill(0.0);
                    for mut row in g.rows_mut() {
                        let row = row.as_slice_mut().expect("a row of a standard array");
                        for (g, square) in row.iter_mut().zip(&mut *squares) {
                            *g = tanh(*g);
                            *square += *g * *g;
                        }
                    }
                });
            for task in task_squares.rows() {
                squares.zip_mut_with(&task, |sum, v| *sum += f64::from(*v));
            }
            product_into(g.t(), tile, i % TILES_PER_SUM != 0, self.short_sum.view_mut());
            if i == last || (i + 1) % TILES_PER_SUM == 0 {
                ndarray::Zip::from(&mut sum).and(&self.short_sum).par_for_each(|sum, v| *sum += f64::from(*v));
            }
        }
        let rows = white.nrows() as f64;
        for ((mut row, w), squares) in sum.rows_mut().into_iter().zip(w.rows()).zip(&squares) {
            let slope = 1.0 - squares / rows;
            row.zip_mut_with(&w, |v, w| *v = *v / rows - slope * w);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rows;

    #[test]
    fn the_fixed_point_step_is_its_formula_whatever_the_number_of_threads() {
        let (n, d) = (TILES_PER_SUM * TILE_ROWS + TILE_ROWS + 100, 70);
        let white = rows(n, d, 1);
        let w = nearest_orthogonal(&rows(d, d, 2).mapv(f64::from)).unwrap();
        let g = white.mapv(f64::from).dot(&w.t()).mapv(f64::tanh);
        let slope = g.mapv(|g| 1.0 - g * g).mean_axis(Axis(0)).unwrap();
        let want = g.t().dot(&white.mapv(f64::from)) / n as f64 - &w * &slope.insert_axis(Axis(1));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Scratch::new(n, d).fixed_point(white.view(), &w))
        };
        let got = on(1);
        assert!((&got - &want).iter().all(|v| v.abs() < 1e-6));
        assert_eq!(on(2), got);
        assert_eq!(on(3), got);
    }
}
