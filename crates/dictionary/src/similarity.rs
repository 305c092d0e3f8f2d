//! How alike two sets of directions are, and how far the directions of one set share their space.

use ndarray::{Array2, ArrayView2, Axis, s};

use crate::Estimate;
use crate::product::rows_times_rows;

/// Directions multiplied with all others at once.
const TILE_ROWS: usize = 256;

/// For each row of `a` `[n, d]` the largest cosine with a row of `b` `[m, d]`, signed. A row of zeros has cosine 0 with everything.
///
/// # Panics
/// If the widths differ or one of the two has no rows.
#[must_use]
pub fn max_cosines(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Vec<f64> {
    assert_comparable(a, b);
    let mut largest = Vec::with_capacity(a.nrows());
    each_cosines(a, b, |row| largest.push(f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max))));
    largest
}

/// Mean max cosine similarity from `a` to `b`: the mean of [`max_cosines`]. Not symmetric. The interval takes the rows of `a` for draws.
///
/// # Panics
/// As [`max_cosines`].
#[must_use]
pub fn mmcs(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Estimate {
    mean(&max_cosines(a, b))
}

/// Directions of two sets paired off.
#[derive(Debug, Clone, PartialEq)]
pub struct Matching {
    /// A row of the one set, the row of the other that it is paired with, and their cosine; in the order of the first.
    pub pairs: Vec<(usize, usize, f64)>,
}

impl Matching {
    /// Mean cosine of the pairs.
    #[must_use]
    pub fn mean_cosine(&self) -> Estimate {
        mean(&self.pairs.iter().map(|pair| pair.2).collect::<Vec<_>>())
    }

    /// Share of the pairs whose cosine is above `threshold`, with Wilson's interval.
    #[must_use]
    pub fn share_above(&self, threshold: f64) -> Estimate {
        let above = self.pairs.iter().filter(|pair| pair.2 > threshold).count();
        Estimate::of_share(above as u64, self.pairs.len() as u64)
    }
}

/// Pairs each row of the smaller of `a` `[n, d]` and `b` `[m, d]` with a row of its own of the larger, so that the sum of the cosines is the largest
/// possible (the linear assignment problem; Kuhn's Hungarian method, by shortest augmenting paths). Unlike with [`mmcs`], two rows cannot claim the same
/// partner.
///
/// Takes `n m` numbers of memory, and time that grows with the cube of the size: seconds for two sets of 2,000.
///
/// # Panics
/// As [`max_cosines`], or if a value is not finite.
#[must_use]
pub fn matching(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Matching {
    assert_comparable(a, b);
    let mut cosines = Vec::with_capacity(a.nrows() * b.nrows());
    each_cosines(a, b, |row| cosines.extend(row.iter().map(|cosine| -f64::from(*cosine))));
    let (rows, columns) = lsap::solve(a.nrows(), b.nrows(), &cosines, false).expect("finite cosines can be paired");
    let mut pairs: Vec<(usize, usize, f64)> =
        rows.into_iter().zip(columns).map(|(i, j)| (i, j, -cosines[i * b.nrows() + j])).collect();
    pairs.sort_unstable_by_key(|pair| pair.0);
    Matching { pairs }
}

/// The capacity of each direction: how much of a dimension it has for itself, `(f_i . f_i)^2 / sum_j (f_i . f_j)^2` (Scherlis et al., arXiv 2210.01892, equation 1).
/// 1 for a direction at right angles to all others, 1/n for one of n that are the same; a row of zeros has none.
///
/// # Panics
/// If there are no rows.
#[must_use]
pub fn capacity(directions: ArrayView2<'_, f32>) -> Vec<f64> {
    assert!(directions.nrows() > 0, "capacity of no directions");
    // The length of the other directions counts: the products are of the rows as they are.
    let all = directions.to_owned();
    let mut capacity = Vec::with_capacity(directions.nrows());
    each_products(directions, &all, |i, row| {
        let shared: f64 = row.iter().map(|product| f64::from(*product).powi(2)).sum();
        capacity.push(if shared > 0.0 { f64::from(row[i]).powi(2) / shared } else { 0.0 });
    });
    capacity
}

/// The mean with its interval, cut to where cosines are.
fn mean(values: &[f64]) -> Estimate {
    let Estimate { value, interval } =
        Estimate::of_ratio(&values.iter().map(|value| (*value, 1.0)).collect::<Vec<_>>());
    Estimate { value, interval: interval.map(|(low, high)| (low.max(-1.0), high.min(1.0))) }
}

fn assert_comparable(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) {
    assert_eq!(a.ncols(), b.ncols(), "directions {} and {} wide", a.ncols(), b.ncols());
    assert!(a.nrows() > 0 && b.nrows() > 0, "{} directions compared with {}", a.nrows(), b.nrows());
}

/// Hands over the cosines of each row of `a` with all rows of `b`.
fn each_cosines(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut each: impl FnMut(&[f32])) {
    each_products(unit_rows(a).view(), &unit_rows(b), |_, row| each(row));
}

/// Hands over the products of each row of `a` with all rows of `b`, tile by tile.
fn each_products(a: ArrayView2<'_, f32>, b: &Array2<f32>, mut each: impl FnMut(usize, &[f32])) {
    let mut products = vec![0.0; a.nrows().min(TILE_ROWS) * b.nrows()];
    for (tile, rows) in a.axis_chunks_iter(Axis(0), TILE_ROWS).enumerate() {
        rows_times_rows(rows, b, &mut products);
        for (i, row) in products.chunks_exact(b.nrows()).take(rows.nrows()).enumerate() {
            each(tile * TILE_ROWS + i, row);
        }
    }
}

fn unit_rows(rows: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut unit = rows.to_owned();
    for i in 0..unit.nrows() {
        let mut row = unit.slice_mut(s![i, ..]);
        let norm = row.dot(&row).sqrt();
        if norm > 0.0 {
            row /= norm;
        }
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, LinearDictionary};
    use ndarray::{array, concatenate};
    use proptest::prelude::*;

    fn directions(n: usize, seed: u64) -> Array2<f32> {
        LinearDictionary::random(n, 5, Activation::Linear, seed).w_dec
    }

    /// The largest sum of cosines over all ways to pair off, by trying them.
    fn best_sum(cosines: &Array2<f64>, row: usize, taken: &mut Vec<usize>) -> f64 {
        if row == cosines.nrows() {
            return 0.0;
        }
        let mut best = f64::NEG_INFINITY;
        for column in 0..cosines.ncols() {
            if !taken.contains(&column) {
                taken.push(column);
                best = best.max(cosines[[row, column]] + best_sum(cosines, row + 1, taken));
                taken.pop();
            }
        }
        best
    }

    proptest! {
        #[test]
        fn a_set_is_its_own_match_whatever_the_lengths_and_the_order(n in 1usize..40, scale in 0.1_f32..10.0, seed: u64) {
            let a = directions(n, seed);
            let mut b = &a * scale;
            b.invert_axis(Axis(0));
            prop_assert!((mmcs(a.view(), b.view()).value - 1.0).abs() < 1e-5);
            let matching = matching(a.view(), b.view());
            prop_assert!((matching.mean_cosine().value - 1.0).abs() < 1e-5);
            prop_assert_eq!(matching.share_above(0.9).value, 1.0);
            prop_assert!(matching.pairs.iter().all(|(i, j, _)| i + j == n - 1));
        }

        #[test]
        fn no_other_way_to_pair_off_is_better(n in 1usize..6, m in 1usize..7, seed: u64) {
            let (a, b) = (directions(n, seed), directions(m, seed ^ 1));
            let found = matching(a.view(), b.view());
            prop_assert_eq!(found.pairs.len(), n.min(m));
            let cosines = a.dot(&b.t()).mapv(f64::from);
            let cosines = if n <= m { cosines } else { cosines.reversed_axes() };
            let sum: f64 = found.pairs.iter().map(|pair| pair.2).sum();
            prop_assert!((sum - best_sum(&cosines, 0, &mut Vec::new())).abs() < 1e-5);
            // The smaller set's nearest ones, claimed twice or not, are a bound.
            let (small, large) = if n <= m { (&a, &b) } else { (&b, &a) };
            prop_assert!(found.mean_cosine().value <= mmcs(small.view(), large.view()).value + 1e-6);
        }

        #[test]
        fn capacities_are_shares_that_fill_at_most_the_space(n in 1usize..300, scale in 0.1_f32..10.0, seed: u64) {
            let a = directions(n, seed);
            let shares = capacity(a.view());
            prop_assert!(shares.iter().all(|share| (0.0..=1.0 + 1e-6).contains(share)));
            prop_assert!(shares.iter().sum::<f64>() <= 5.0 + 1e-4);
            for (share, scaled) in shares.iter().zip(capacity((&a * scale).view())) {
                prop_assert!((share - scaled).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn the_interval_of_an_mmcs_is_over_the_features() {
        // Four features, two of which are found and two of which are at 60 degrees: 0.75 -+ 3.182446 * sqrt(1 / 12 / 4).
        let half = 0.75_f32.sqrt();
        let a = ndarray::array![[1.0_f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, half], [0.0, 0.5, half]];
        let b = ndarray::array![[2.0_f32, 0.0, 0.0], [0.0, 3.0, 0.0]];
        let Estimate { value, interval: Some((low, high)) } = mmcs(a.view(), b.view()) else {
            panic!("no interval of four features");
        };
        assert!((value - 0.75).abs() < 1e-6 && (low - 0.290_654).abs() < 1e-5, "{value} from {low}");
        assert_eq!(high, 1.0);
    }

    #[test]
    fn capacity_of_known_sets() {
        let axes: Array2<f32> = Array2::eye(4);
        assert_eq!(capacity(axes.view()), [1.0; 4]);
        let doubled = concatenate![Axis(0), axes, axes];
        assert_eq!(capacity(doubled.view()), [0.5; 8]);
        // (f.f)^2 = 1 and 1/2 of a neighbour at 45 degrees; a row of zeros has none.
        let half = 0.5_f32.sqrt();
        let found = capacity(array![[1.0, 0.0], [half, half], [0.0, 0.0]].view());
        assert!((found[0] - 1.0 / 1.5).abs() < 1e-6 && found[2] == 0.0, "{found:?}");
    }
}
