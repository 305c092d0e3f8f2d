use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::DecomposeError;
use crate::product::add_gram;

/// Rows summed by one product. Rows wait until a tile is full, so that the sums do not depend on how the rows were cut into chunks.
const TILE_ROWS: usize = 512;

/// Count, mean and covariance of rows that come in chunks.
///
/// Everything is summed in `f64`, around the mean of the first rows, so that a column with a large mean loses no digits. The result
/// is bitwise the same however the rows are cut into [`add`](Self::add) calls and however many threads there are.
#[derive(Debug, Clone)]
pub struct Moments {
    d: usize,
    /// Rows in the sums below; those of `waiting` are not counted yet.
    summed: usize,
    /// What is subtracted from every row before it is summed.
    shift: Array1<f64>,
    sum: Array1<f64>,
    /// Sum of the outer products, on and below the diagonal.
    second: Array2<f64>,
    /// Rows of a tile that is not full yet, one after another; see [`Self::append`].
    waiting: Vec<f64>,
    non_finite: Option<(usize, usize, f32)>,
}

impl Moments {
    /// No rows yet, of width `d`.
    #[must_use]
    pub fn new(d: usize) -> Self {
        Self {
            d,
            summed: 0,
            shift: Array1::zeros(d),
            sum: Array1::zeros(d),
            second: Array2::zeros((d, d)),
            waiting: Vec::new(),
            non_finite: None,
        }
    }

    /// Adds the rows of `x` `[n, d]`. The place of the first value that is not finite is kept, and reported by [`check`](Self::check).
    ///
    /// # Panics
    /// If `x` is not `d` wide.
    pub fn add(&mut self, x: ArrayView2<'_, f32>) {
        assert_eq!(x.ncols(), self.d, "rows {} wide for moments of rows {} wide", x.ncols(), self.d);
        let mut rest = x;
        while rest.nrows() > 0 {
            let before = self.count();
            let room = TILE_ROWS - self.waiting_rows();
            let (now, later) = rest.split_at(Axis(0), room.min(rest.nrows()));
            let finite = self.append(now);
            if !finite && self.non_finite.is_none() {
                let found = now.indexed_iter().find(|(_, value)| !value.is_finite());
                self.non_finite = found.map(|((row, column), value)| (before + row, column, *value));
            }
            if self.waiting_rows() == TILE_ROWS {
                self.sum_waiting();
            }
            rest = later;
        }
    }

    /// Adds everything that `other` was given, as if its rows came after those of `self`; equal to that up to rounding.
    ///
    /// # Panics
    /// If `other` is of rows of another width.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.d, other.d, "moments of rows {} wide and of rows {} wide", self.d, other.d);
        let offset = self.count();
        let mut other = other.clone();
        other.sum_waiting();
        self.sum_waiting();
        self.non_finite =
            self.non_finite.or(other.non_finite.map(|(row, column, value)| (offset + row, column, value)));
        if self.summed == 0 {
            self.shift.assign(&other.shift);
        }
        // With y' = y + delta: sum' = sum + n delta, second' = second + sum deltaᵀ + delta sumᵀ + n delta deltaᵀ.
        let n = other.summed as f64;
        let delta = &other.shift - &self.shift;
        for (i, mut row) in other.second.rows_mut().into_iter().enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                *value += other.sum[i] * delta[j] + delta[i] * other.sum[j] + n * delta[i] * delta[j];
            }
        }
        self.second += &other.second;
        self.sum += &other.sum;
        self.sum.scaled_add(n, &delta);
        self.summed += other.summed;
    }

    /// Width of the rows.
    #[must_use]
    pub fn d(&self) -> usize {
        self.d
    }

    /// Number of rows added.
    #[must_use]
    pub fn count(&self) -> usize {
        self.summed + self.waiting_rows()
    }

    /// Whether there is something to compute with.
    ///
    /// # Errors
    /// If a value was not finite ([`DecomposeError::NonFinite`] says where), or if there are fewer than two rows.
    pub fn check(&self) -> Result<(), DecomposeError> {
        if let Some((row, column, value)) = self.non_finite {
            return Err(DecomposeError::NonFinite { row, column, value });
        }
        if self.count() < 2 {
            return Err(DecomposeError::TooFewRows { rows: self.count(), needed: 2 });
        }
        Ok(())
    }

    /// Mean `[d]` and covariance `[d, d]` of the rows. The covariance divides by `count - correction`: 1 for the unbiased estimate, 0 for
    /// that of the rows as the whole population.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    ///
    /// # Panics
    /// If `correction` is above 1.
    pub fn mean_and_covariance(&self, correction: usize) -> Result<(Array1<f64>, Array2<f64>), DecomposeError> {
        assert!(correction <= 1, "a correction of {correction} degrees of freedom, expected 0 or 1");
        self.check()?;
        let mut all = self.clone();
        all.sum_waiting();
        let n = all.summed as f64;
        let offset = &all.sum / n;
        let mut covariance = all.second;
        for i in 0..self.d {
            for j in 0..=i {
                let value = (covariance[[i, j]] - n * offset[i] * offset[j]) / (n - correction as f64);
                covariance[[i, j]] = value;
                covariance[[j, i]] = value;
            }
        }
        Ok((all.shift + offset, covariance))
    }

    fn waiting_rows(&self) -> usize {
        // Rows without columns are not counted: there is nothing to say about them.
        self.waiting.len().checked_div(self.d).unwrap_or(0)
    }

    /// Lets rows wait; whether all their values are finite. Those of the first tile wait as they are, later ones shifted and with their sum taken.
    fn append(&mut self, rows: ArrayView2<'_, f32>) -> bool {
        let mut finite = true;
        let start = self.waiting.len();
        self.waiting.resize(start + rows.len(), 0.0);
        let is_first = self.summed == 0;
        for (to, from) in self.waiting[start..].chunks_exact_mut(self.d.max(1)).zip(rows.rows()) {
            if is_first {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = f64::from(*from);
                    finite &= from.is_finite();
                }
                continue;
            }
            for (((to, from), shift), sum) in to.iter_mut().zip(from).zip(&self.shift).zip(&mut self.sum) {
                *to = f64::from(*from) - shift;
                *sum += *to;
                finite &= from.is_finite();
            }
        }
        finite
    }

    fn sum_waiting(&mut self) {
        let rows = self.waiting_rows();
        if rows == 0 {
            return;
        }
        let mut tile = std::mem::take(&mut self.waiting);
        if self.summed == 0 {
            for row in tile.chunks_exact(self.d) {
                self.shift.iter_mut().zip(row).for_each(|(shift, value)| *shift += value);
            }
            self.shift /= rows as f64;
            for row in tile.chunks_exact_mut(self.d) {
                for ((value, shift), sum) in row.iter_mut().zip(&self.shift).zip(&mut self.sum) {
                    *value -= shift;
                    *sum += *value;
                }
            }
        }
        add_gram(&tile, &mut self.second);
        self.summed += rows;
        tile.clear();
        self.waiting = tile;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rows;
    use ndarray::s;
    use proptest::prelude::*;

    /// The definition, in two passes.
    fn direct(x: &Array2<f32>) -> (Array1<f64>, Array2<f64>) {
        let x = x.mapv(f64::from);
        let mean = x.mean_axis(Axis(0)).unwrap();
        let y = &x - &mean;
        (mean, y.t().dot(&y) / (x.nrows() as f64 - 1.0))
    }

    fn assert_close(got: &Moments, want: &Moments, tolerance: f64) {
        let ((mean, covariance), (want_mean, want_covariance)) =
            (got.mean_and_covariance(1).unwrap(), want.mean_and_covariance(1).unwrap());
        let scale = want_covariance.diag().fold(1.0_f64, |a, b| a.max(*b));
        assert!((mean - want_mean).iter().all(|d| d.abs() <= tolerance * scale.sqrt()));
        assert!((covariance - want_covariance).iter().all(|d| d.abs() <= tolerance * scale));
    }

    fn of(x: &Array2<f32>) -> Moments {
        let mut moments = Moments::new(x.ncols());
        moments.add(x.view());
        moments
    }

    #[test]
    fn it_is_the_definition_with_large_means_and_more_columns_than_a_block() {
        let mut x = rows(2500, 5, 1);
        x.column_mut(2).mapv_inplace(|v| v + 3000.0);
        let wide = Array2::from_shape_fn((2500, 400), |(i, j)| x[[i, j % 5]] * (1.0 + j as f32 * 0.01));
        let (mean, covariance) = of(&wide).mean_and_covariance(1).unwrap();
        let (want_mean, want) = direct(&wide);
        for ((got, want), scale) in covariance.iter().zip(&want).zip(want.diag().iter().cycle()) {
            assert!((got - want).abs() < 1e-9 * scale.max(1.0), "{got} {want}");
        }
        assert!(mean.iter().zip(&want_mean).all(|(a, b)| (a - b).abs() < 1e-9));
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_named() {
        let mut x = rows(1500, 3, 2);
        x[[1200, 1]] = f32::NAN;
        x[[1400, 0]] = f32::INFINITY;
        let mut moments = of(&rows(7, 3, 3));
        moments.add(x.view());
        assert!(matches!(moments.check(), Err(DecomposeError::NonFinite { row: 1207, column: 1, .. })));
        let mut merged = of(&rows(10, 3, 3));
        merged.merge(&moments);
        assert!(matches!(merged.check(), Err(DecomposeError::NonFinite { row: 1217, column: 1, .. })));
        assert_eq!(Moments::new(3).check(), Err(DecomposeError::TooFewRows { rows: 0, needed: 2 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn how_rows_are_cut_into_chunks_changes_nothing(n in 2usize..2600, seed in any::<u64>(), cuts in prop::collection::vec(0.0_f64..1.0, 0..5)) {
            let x = rows(n, 6, seed);
            let whole = of(&x);
            let mut cuts: Vec<usize> = cuts.iter().map(|c| (c * n as f64) as usize).chain([0, n]).collect();
            cuts.sort_unstable();
            let mut chunked = Moments::new(6);
            let mut merged = Moments::new(6);
            for pair in cuts.windows(2) {
                let chunk = x.slice(s![pair[0]..pair[1], ..]);
                chunked.add(chunk);
                merged.merge(&of(&chunk.to_owned()));
            }
            prop_assert_eq!(chunked.mean_and_covariance(1).unwrap(), whole.mean_and_covariance(1).unwrap());
            prop_assert_eq!(merged.count(), n);
            assert_close(&merged, &whole, 1e-10);
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let x = rows(3000, 250, 4);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| of(&x).mean_and_covariance(0).unwrap())
        };
        let one = on(1);
        assert_eq!(on(2), one);
        assert_eq!(on(3), one);
    }
}
