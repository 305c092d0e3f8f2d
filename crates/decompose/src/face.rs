//! Conjugate gradients for non-negative least squares, many rows at a time, where coordinate descent crawls.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut1, Axis, Zip};

use crate::product::product;

/// Steps of conjugate gradients before the bounds are looked at again.
const STEPS: usize = 8;

/// How often a step that goes too far is halved.
const HALVINGS: usize = 5;

/// Moves every row c of `codes` `[rows, n]` towards the minimum of `½ cᵀ G c - bᵀ c` over its positive coordinates alone, with `gram` G and the
/// rows b of `targets` as in [`Descent::sweep`](crate::descent::Descent::sweep): a few steps of conjugate gradients as if there were no bounds, then as far in the direction
/// found, bent at the bounds, as makes the objective smaller. By turns with sweeps, which let other coordinates in, this is the gradient projection of Moré and
/// Toraldo 1991, "On the solution of large quadratic programming problems with bound constraints".
pub(crate) fn descend_on_face(gram: ArrayView2<'_, f32>, targets: ArrayView2<'_, f32>, codes: &mut Array2<f32>) {
    let ahead = conjugate_gradients(gram, targets, codes);
    let mut open: Vec<usize> = (0..codes.nrows()).collect();
    let mut part = 1.0;
    for _ in 0..HALVINGS {
        let here = codes.select(Axis(0), &open);
        let mut there = ahead.select(Axis(0), &open);
        Zip::from(&mut there).and(&here).par_for_each(|there, here| *there = (here + part * (*there - here)).max(0.0));
        // The objective's change is half the change of codes times the sum of the gradients at both ends, which loses no digits.
        let gradients = product((&here + &there).view(), gram);
        let falls = |i: usize| {
            let terms =
                here.row(i).into_iter().zip(there.row(i)).zip(gradients.row(i).into_iter().zip(targets.row(open[i])));
            terms.fold(0.0, |sum, ((here, there), (both, target))| sum + (there - here) * (both - 2.0 * target)) < 0.0
        };
        let (accepted, too_far): (Vec<usize>, Vec<usize>) = (0..open.len()).partition(|i| falls(*i));
        for i in accepted {
            codes.row_mut(open[i]).assign(&there.row(i));
        }
        if too_far.is_empty() {
            break;
        }
        open = too_far.into_iter().map(|i| open[i]).collect();
        part /= 2.0;
    }
}

/// Where each row would be if its positive coordinates had no bounds, or on the way there.
fn conjugate_gradients(gram: ArrayView2<'_, f32>, targets: ArrayView2<'_, f32>, codes: &Array2<f32>) -> Array2<f32> {
    let mut ahead = codes.clone();
    let mut residual = &targets - &product(codes.view(), gram);
    Zip::from(&mut residual).and(codes).for_each(keep_on_face);
    let mut direction = residual.clone();
    for _ in 0..STEPS {
        let mut bent = product(direction.view(), gram);
        (Zip::from(ahead.rows_mut()).and(residual.rows_mut()).and(direction.rows_mut()))
            .and(bent.rows_mut())
            .and(codes.rows())
            .par_for_each(step);
    }
    ahead
}

/// One step of one row; `bent` is G times its direction.
fn step(
    mut ahead: ArrayViewMut1<'_, f32>,
    mut residual: ArrayViewMut1<'_, f32>,
    mut direction: ArrayViewMut1<'_, f32>,
    mut bent: ArrayViewMut1<'_, f32>,
    codes: ArrayView1<'_, f32>,
) {
    Zip::from(&mut bent).and(&codes).for_each(keep_on_face);
    let (size, curvature) = (residual.dot(&residual), direction.dot(&bent));
    // Nothing is left to gain, or nothing that could be told from rounding.
    if curvature < f32::MIN_POSITIVE {
        return;
    }
    ahead.scaled_add(size / curvature, &direction);
    residual.scaled_add(-size / curvature, &bent);
    let turn = residual.dot(&residual) / size;
    direction.zip_mut_with(&residual, |direction, residual| *direction = residual + turn * *direction);
}

fn keep_on_face(value: &mut f32, code: &f32) {
    if *code <= 0.0 {
        *value = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rows;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_objective_never_rises_and_no_code_falls_below_zero(
            n in 1usize..40, d in 1usize..30, latents in 1usize..60, seed in any::<u64>()
        ) {
            let directions = rows(latents, d, seed);
            let (gram, targets) = (directions.dot(&directions.t()), rows(n, d, seed ^ 1).dot(&directions.t()));
            let start = rows(n, latents, seed ^ 2).mapv(|v| v.max(0.0));
            let mut codes = start.clone();
            descend_on_face(gram.view(), targets.view(), &mut codes);
            prop_assert!(codes.iter().all(|v| *v >= 0.0));
            prop_assert!(codes.iter().zip(&start).all(|(code, start)| *start > 0.0 || *code == 0.0));
            let objective = |codes: &Array2<f32>| {
                let codes = codes.mapv(f64::from);
                let halves = codes.dot(&gram.mapv(f64::from)) / 2.0 - targets.mapv(f64::from);
                (halves * codes).sum_axis(Axis(1))
            };
            for (after, before) in objective(&codes).iter().zip(&objective(&start)) {
                prop_assert!(*after <= before + 1e-5 * before.abs().max(1.0), "{after} after {before}");
            }
        }
    }

    #[test]
    fn away_from_the_bounds_it_solves_the_equations() {
        let directions = rows(STEPS, 40, 1);
        let solution = rows(30, STEPS, 2).mapv(|v| v.abs() + 2.0);
        let gram = directions.dot(&directions.t());
        let mut codes = &solution * 1.1;
        descend_on_face(gram.view(), solution.dot(&gram).view(), &mut codes);
        assert!((codes - solution).iter().all(|off| off.abs() < 1e-4));
    }
}
