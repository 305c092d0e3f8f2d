//! Non-negative least squares of one row, exactly, in `f64`: for rows where sweeps in `f32` crawl, or round more than the tolerance.

use ndarray::{Array1, ArrayView1, ArrayView2, aview1};

/// Coordinates that are let in at most, for each that there is, as in Lawson and Hanson's program: without rounding there is an end, with it there might be none.
const ENTRIES: usize = 3;

/// Moves `codes` `[n]` to the minimum of `½ cᵀ G c - bᵀ c` over `c ≥ 0`, with `gram` G `[n, n]` and `targets` b `[n]`, which are those of directions `width` long. By
/// the active sets of Lawson and Hanson 1974, "Solving least squares problems", chapter 23, beginning with the set of those that are positive. Ends where the projected
/// gradient sums to no more than `enough`, or where what is left of it cannot be told from rounding. Coordinates without curvature are left out.
pub(crate) fn solve(
    gram: ArrayView2<'_, f64>,
    targets: ArrayView1<'_, f64>,
    width: usize,
    mut codes: Array1<f64>,
    enough: f64,
) -> Array1<f64> {
    let mut free = Free::new(gram, width);
    // Small ones last: they are the likeliest to leave, and to leave is cheap at the end.
    let mut set: Vec<usize> = (0..codes.len()).filter(|i| codes[*i] > 0.0).collect();
    set.sort_by(|a, b| codes[*b].total_cmp(&codes[*a]));
    // To begin with, all that would be negative leave at once: codes from unfinished sweeps are positive in many places where the optimum is zero.
    loop {
        free.become_these(&set);
        let minimum = free.minimum(targets);
        set = free.set.iter().zip(&minimum).filter(|(_, code)| **code > 0.0).map(|(i, _)| *i).collect();
        if set.len() == minimum.len() {
            codes.fill(0.0);
            set.iter().zip(&minimum).for_each(|(i, code)| codes[*i] = *code);
            break;
        }
    }
    // Coordinates whose slope is downwards by rounding alone: let in, they would become negative or are dependent on those that are in. Until others move.
    let mut refused = vec![false; codes.len()];
    for _ in 0..ENTRIES * codes.len() {
        let slopes = gradient(gram, targets, &codes);
        if violation(gram, slopes.view(), codes.view()) <= enough {
            break;
        }
        // The steepest for a direction of unit length.
        let steepness = |i: &usize| slopes[*i] / gram[[*i, *i]].sqrt();
        let downwards = (0..codes.len())
            .filter(|i| codes[*i] == 0.0 && slopes[*i] < 0.0 && has_direction(gram[[*i, *i]]) && !refused[*i]);
        let Some(enters) = downwards.min_by(|a, b| steepness(a).total_cmp(&steepness(b))) else { break };
        if !free.push(enters) {
            refused[enters] = true;
        } else if free.minimum(targets).last().is_none_or(|code| *code <= 0.0) {
            free.truncate(free.set.len() - 1);
            refused[enters] = true;
        } else {
            settle(&mut free, targets, &mut codes);
            refused.fill(false);
        }
    }
    codes
}

/// The gradient `G c - b` `[n]`.
fn gradient(gram: ArrayView2<'_, f64>, targets: ArrayView1<'_, f64>, codes: &Array1<f64>) -> Array1<f64> {
    let mut slopes = targets.mapv(|target| -target);
    for (row, code) in gram.rows().into_iter().zip(codes).filter(|(_, code)| **code > 0.0) {
        slopes.scaled_add(*code, &row);
    }
    slopes
}

/// Sum of the magnitudes of the projected gradient: zero where, and only where, Karush, Kuhn and Tucker's conditions hold.
pub(crate) fn violation(gram: ArrayView2<'_, f64>, slopes: ArrayView1<'_, f64>, codes: ArrayView1<'_, f64>) -> f64 {
    let of = |((curvature, slope), code): ((&f64, &f64), &f64)| match (has_direction(*curvature), *code > 0.0) {
        (false, _) => 0.0,
        (true, true) => slope.abs(),
        (true, false) => (-slope).max(0.0),
    };
    gram.diag().iter().zip(slopes).zip(codes).map(of).sum()
}

/// As in the sweeps: a latent without a direction explains nothing.
fn has_direction(curvature: f64) -> bool {
    curvature >= f64::from(f32::MIN_POSITIVE)
}

/// Moves to the minimum over the free coordinates alone, and whenever one would become negative on the way, stops there and holds it at zero.
fn settle(free: &mut Free<'_>, targets: ArrayView1<'_, f64>, codes: &mut Array1<f64>) {
    loop {
        let minimum = free.minimum(targets);
        let ahead = || free.set.iter().zip(&minimum);
        // Those that become negative were positive: one that has just been let in grows.
        let part_to_zero = |code: f64, to: f64| code / (code - to);
        let part = ahead().filter(|(_, to)| **to <= 0.0).map(|(i, to)| part_to_zero(codes[*i], *to)).reduce(f64::min);
        let Some(part) = part else {
            ahead().for_each(|(i, to)| codes[*i] = *to);
            return;
        };
        let mut stay = Vec::new();
        for (i, to) in ahead() {
            let leaves = *to <= 0.0 && part_to_zero(codes[*i], *to) <= part;
            codes[*i] = if leaves { 0.0 } else { codes[*i] + part * (to - codes[*i]) };
            if codes[*i] > 0.0 {
                stay.push(*i);
            }
        }
        free.become_these(&stay);
        // Rounding may make one of them dependent.
        stay.iter().filter(|i| !free.set.contains(i)).for_each(|i| codes[*i] = 0.0);
    }
}

/// The coordinates that are not held at zero, and the Cholesky factor of their part of the Gram matrix, which grows by a row when one is let in.
struct Free<'a> {
    gram: ArrayView2<'a, f64>,
    /// In the order of the factor's rows.
    set: Vec<usize>,
    /// Rows of the lower triangle, each to its diagonal.
    factor: Vec<Vec<f64>>,
    /// The part of its diagonal below which a pivot cannot be told from zero.
    dependent: f64,
}

impl<'a> Free<'a> {
    fn new(gram: ArrayView2<'a, f64>, width: usize) -> Self {
        // A pivot is a sum of at most `width` products in the Gram matrix less one product for each row before it, of which at most `width` are independent. Relative
        // to the diagonal, which bounds the magnitudes of both sums, its rounding is at most γ = m u / (1 - m u) with m = 2 width + 2 (Higham 2002, theorem 10.3).
        let roundings = (2 * width + 2) as f64 * f64::EPSILON / 2.0;
        Self { gram, set: Vec::new(), factor: Vec::new(), dependent: roundings / (1.0 - roundings) }
    }

    /// Lets `i` in, unless its direction depends on those that are in.
    fn push(&mut self, i: usize) -> bool {
        let mut row = Vec::with_capacity(self.set.len() + 1);
        for (j, other) in self.set.iter().zip(&self.factor) {
            let (diagonal, before) = other.split_last().expect("a row reaches its diagonal");
            row.push((self.gram[[i, *j]] - aview1(&row).dot(&aview1(before))) / diagonal);
        }
        let curvature = self.gram[[i, i]];
        let pivot = curvature - aview1(&row).dot(&aview1(&row));
        if !has_direction(curvature) || pivot <= self.dependent * curvature {
            return false;
        }
        row.push(pivot.sqrt());
        self.set.push(i);
        self.factor.push(row);
        true
    }

    /// Has these in, in this order, but for those that depend on those before them.
    fn become_these(&mut self, which: &[usize]) {
        let unchanged = which.iter().zip(&self.set).take_while(|(a, b)| a == b).count();
        self.truncate(unchanged);
        for i in &which[unchanged..] {
            self.push(*i);
        }
    }

    fn truncate(&mut self, len: usize) {
        self.set.truncate(len);
        self.factor.truncate(len);
    }

    /// Where the objective is least if only these coordinates move, and have no bounds.
    fn minimum(&self, targets: ArrayView1<'_, f64>) -> Vec<f64> {
        let mut at: Vec<f64> = Vec::with_capacity(self.set.len());
        for (i, row) in self.set.iter().zip(&self.factor) {
            let (diagonal, before) = row.split_last().expect("a row reaches its diagonal");
            at.push((targets[*i] - aview1(&at).dot(&aview1(before))) / diagonal);
        }
        for (i, row) in self.factor.iter().enumerate().rev() {
            let (diagonal, before) = row.split_last().expect("a row reaches its diagonal");
            at[i] /= diagonal;
            let value = at[i];
            at[..i].iter_mut().zip(before).for_each(|(at, factor)| *at -= value * factor);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rows;
    use ndarray::{Array2, Axis, array, concatenate};
    use proptest::prelude::*;

    #[test]
    fn opposite_and_equal_directions_share_nothing() {
        let directions = array![[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]];
        let gram = directions.dot(&directions.t());
        let of = |row: Array1<f64>, start: f64| {
            let codes = solve(gram.view(), directions.dot(&row).view(), 2, Array1::from_elem(5, start), 0.0);
            assert!(codes.iter().filter(|code| **code > 0.0).count() <= 2);
            codes.dot(&directions)
        };
        for start in [0.0, 1.0] {
            assert_eq!(of(array![3.0, 4.0], start), array![3.0, 4.0]);
            assert_eq!(of(array![-3.0, -4.0], start), array![-3.0, 0.0]);
            assert_eq!(of(array![0.0, 0.0], start), array![0.0, 0.0]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// With directions that occur twice, and whatever the codes are that it begins with.
        #[test]
        fn it_ends_at_the_optimum(n in 1usize..30, d in 1usize..20, noise in prop::sample::select(vec![0.0, 1e-3, 1.0]), seed in any::<u64>()) {
            let once = rows(n, d, seed).mapv(f64::from);
            let again = &once + &(rows(n, d, seed ^ 3).mapv(f64::from) * noise);
            let directions: Array2<f64> = concatenate![Axis(0), once, again];
            let row = rows(1, d, seed ^ 1).row(0).mapv(f64::from);
            let (gram, targets) = (directions.dot(&directions.t()), directions.dot(&row));
            let start = rows(1, 2 * n, seed ^ 2).row(0).mapv(|v| f64::from(v.max(0.0)));
            let [codes, from_zero] = [start, Array1::zeros(2 * n)].map(|start| solve(gram.view(), targets.view(), d, start, 0.0));
            prop_assert!(codes.iter().all(|code| *code >= 0.0));
            // Karush, Kuhn and Tucker, but for the rounding of a solution by Cholesky's factor and of the slopes: Higham 2002, theorem 10.4, with 2 n for the size.
            let lengths = gram.diag().mapv(f64::sqrt);
            let terms = &lengths * (lengths.dot(&codes) + row.dot(&row).sqrt());
            let roundings = (3 * 2 * n + 1 + 2 * n + 2 * d + 2) as f64 * f64::EPSILON;
            let slopes = gradient(gram.view(), targets.view(), &codes);
            let missed = violation(gram.view(), slopes.view(), codes.view());
            prop_assert!(missed <= roundings * terms.sum(), "{missed:e}, limit {:e}", roundings * terms.sum());
            // The codes need not be the only best ones, but the point they describe is.
            let off = (codes.dot(&directions) - from_zero.dot(&directions)).mapv(f64::abs).sum();
            prop_assert!(off <= 1e-6, "off by {off:e}");
        }
    }
}
