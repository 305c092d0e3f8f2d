use monosem_dictionary::{Codes, Dictionary, LinearDictionary};
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use crate::descent::Descent;
use crate::face::descend_on_face;
use crate::product::product;
use crate::{exact, to_f32};

/// Rows encoded at once: their codes are the only dense `rows x n_latents` arrays there ever are.
const TILE_ROWS: usize = 512;

/// Sweeps over a row's codes at most, with conjugate gradients in between. Rows that need more are finished exactly. Of 2,000 rows 576 wide, all were done in fewer with 288 or 1,152 random non-negative
/// directions; with 288 that differ from one of 96 by a hundredth or a thousandth, at most 24 were done after 200, and to finish a row took as long as two to eight sweeps (with 1,152, as one).
const MAX_SWEEPS: usize = 30;

/// What [`NonNegative::tolerance`] begins as.
const TOLERANCE: f32 = 1e-6;

/// A dictionary whose codes are the non-negative least squares of what its decoder makes of them: `argmin ‖x - b_dec - w_decᵀ c‖²` over `c ≥ 0`. Its encoder
/// is not used. Rows may lie below `b_dec`. Every row is solved to the [`tolerance`](Self::tolerance): by sweeps of
/// coordinate descent in `f32`, and where these crawl or round more than that, by active sets in `f64`.
///
/// With `k`, the k largest codes choose the latents, and the codes are those of non-negative least squares on these alone: where directions overlap, as those of an
/// [`Nmf`](crate::Nmf) do, the ones that are left have to take over what those left out had explained.
#[derive(Debug, Clone)]
pub struct NonNegative {
    /// A row is done when the magnitudes of its projected gradient sum to no more than this part of those of its gradient at zero codes; a millionth,
    /// unless it is set. Codes are `f32`: rounding a row's codes `c` moves the gradient of latent i by up to `2^-24 Σ_j |G_ij| c_j`, with
    /// `G = w_dec w_decᵀ`, beyond that.
    pub tolerance: f32,
    linear: LinearDictionary,
    k: Option<usize>,
    /// `w_dec` `[n, d]`.
    directions: Array2<f64>,
    /// `w_dec w_decᵀ` `[n, n]`.
    gram: Array2<f64>,
    /// The same, rounded, for the sweeps.
    gram_f32: Array2<f32>,
}

impl NonNegative {
    /// Codes for the decoder of `linear`, the `k` largest of each row if that is given.
    ///
    /// # Panics
    /// If `linear` does not decode to what it reads, as wide as its `b_dec` (a transcoder's inputs are nothing its decoder could be fitted to).
    #[must_use]
    pub fn new(linear: LinearDictionary, k: Option<usize>) -> Self {
        let (reads, decodes) = (linear.w_enc.dim(), linear.w_dec.dim());
        assert_eq!(reads, decodes, "an encoder {reads:?} and a decoder {decodes:?}");
        assert_eq!(linear.b_dec.len(), decodes.1, "a decoder {decodes:?} with a bias of {}", linear.b_dec.len());
        let directions = linear.w_dec.mapv(f64::from);
        let gram = product(directions.view(), directions.t());
        Self { tolerance: TOLERANCE, linear, k, directions, gram_f32: to_f32(&gram), gram }
    }

    /// The non-negative codes `[rows, n]` for `targets` `[rows, n]`, the products of rows with every direction.
    fn solve(&self, targets: &Array2<f64>, descent: &mut Descent) -> Array2<f64> {
        let mut codes = self.sweep(to_f32(targets), descent).mapv(f64::from);
        let slopes = product(codes.view(), self.gram.view()) - targets;
        (codes.axis_iter_mut(Axis(0)).into_par_iter())
            .zip(slopes.axis_iter(Axis(0)))
            .zip(targets.axis_iter(Axis(0)))
            .for_each(|((mut codes, slopes), targets)| {
                let enough = self.enough(targets);
                if exact::violation(self.gram.view(), slopes, codes.view()) > enough {
                    let solved = exact::solve(self.gram.view(), targets, self.d_in(), codes.to_owned(), enough);
                    codes.assign(&solved);
                }
            });
        codes
    }

    /// [`solve`](Self::solve) in `f32`, as far as it goes: from zero, sweeps of coordinate descent by turns with conjugate gradients over the positive codes.
    fn sweep(&self, mut targets: Array2<f32>, descent: &mut Descent) -> Array2<f32> {
        let gram = self.gram_f32.view();
        let enough = |targets: ArrayView1<'_, f32>| self.enough(targets.mapv(f64::from).view());
        let mut swept = Array2::zeros(targets.raw_dim());
        // Rows still at work, and their codes: hard ones take many times the sweeps of easy ones.
        let mut at_work: Vec<usize> = (0..targets.nrows()).collect();
        let mut codes = swept.clone();
        for sweep in 1..=MAX_SWEEPS {
            let violation = descent.sweep(gram, targets.view(), codes.view_mut());
            let is_done = |row: &usize| sweep == MAX_SWEEPS || f64::from(violation[*row]) <= enough(targets.row(*row));
            let (done, going_on): (Vec<usize>, Vec<usize>) = (0..at_work.len()).partition(is_done);
            for row in &done {
                swept.row_mut(at_work[*row]).assign(&codes.row(*row));
            }
            if going_on.is_empty() {
                break;
            }
            if !done.is_empty() {
                at_work = going_on.iter().map(|row| at_work[*row]).collect();
                targets = targets.select(Axis(0), &going_on);
                codes = codes.select(Axis(0), &going_on);
            }
            descend_on_face(gram, targets.view(), &mut codes);
        }
        swept
    }

    /// The nonzero `codes` of a row, or the k largest fitted again to the `targets` without the others.
    fn kept(&self, targets: ArrayView1<'_, f64>, codes: ArrayView1<'_, f64>) -> Vec<(u32, f32)> {
        let mut latents: Vec<usize> = (0..codes.len()).filter(|i| codes[*i] > 0.0).collect();
        let mut kept = codes.select(Axis(0), &latents);
        if let Some(k) = self.k.filter(|k| *k < latents.len()) {
            if k > 0 {
                latents.select_nth_unstable_by(k - 1, |a, b| codes[*b].total_cmp(&codes[*a]).then(a.cmp(b)));
            }
            latents.truncate(k);
            latents.sort_unstable();
            let gram = self.gram.select(Axis(0), &latents).select(Axis(1), &latents);
            let (targets, codes) = (targets.select(Axis(0), &latents), codes.select(Axis(0), &latents));
            kept = exact::solve(gram.view(), targets.view(), self.d_in(), codes, self.enough(targets.view()));
        }
        let nonzero = latents.iter().zip(&kept).map(|(latent, code)| (*latent as u32, *code as f32));
        nonzero.filter(|(_, code)| *code > 0.0).collect()
    }

    /// The violation of the optimum below which a row is done.
    fn enough(&self, targets: ArrayView1<'_, f64>) -> f64 {
        f64::from(self.tolerance) * targets.fold(0.0, |sum, target| sum + target.abs())
    }
}

impl Dictionary for NonNegative {
    fn d_in(&self) -> usize {
        self.linear.d_in()
    }

    fn n_latents(&self) -> usize {
        self.linear.n_latents()
    }

    fn encode(&self, x: ArrayView2<'_, f32>) -> Codes {
        assert_eq!(x.ncols(), self.d_in(), "rows {} wide for a dictionary that reads {}", x.ncols(), self.d_in());
        let mut codes = Codes::new(self.n_latents());
        let (mut descent, b_dec) = (Descent::default(), self.linear.b_dec.mapv(f64::from));
        for tile in x.axis_chunks_iter(Axis(0), TILE_ROWS) {
            let above = tile.mapv(f64::from) - &b_dec;
            let targets = product(above.view(), self.directions.t());
            let solved = self.solve(&targets, &mut descent);
            let rows: Vec<Vec<(u32, f32)>> =
                (0..tile.nrows()).into_par_iter().map(|i| self.kept(targets.row(i), solved.row(i))).collect();
            rows.into_iter().for_each(|row| codes.push_row(row));
        }
        codes
    }

    fn decode(&self, codes: &Codes) -> Array2<f32> {
        self.linear.decode(codes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{golden_nmf, golden_nmf_rows, rows};
    use monosem_dictionary::Activation;
    use proptest::prelude::*;

    /// Directions and a bias; the encoder is one that nothing should come from.
    fn of(directions: Array2<f32>, b_dec: ndarray::Array1<f32>, k: Option<usize>) -> NonNegative {
        let useless = Array2::from_elem(directions.dim(), f32::NAN);
        NonNegative::new(
            LinearDictionary {
                w_enc: useless,
                w_dec: directions.clone(),
                b_dec,
                ..LinearDictionary::tied(directions, Activation::Relu)
            },
            k,
        )
    }

    fn squared_error(dictionary: &NonNegative, x: &Array2<f32>) -> f64 {
        let x_hat = dictionary.decode(&dictionary.encode(x.view()));
        (x_hat - x).iter().map(|v| f64::from(*v).powi(2)).sum()
    }

    #[test]
    fn codes_agree_with_scipy() {
        let (golden, [_, held_out]) = (golden_nmf(), golden_nmf_rows());
        for (directions, b_dec, codes) in
            [("components", "shift", "held_out_codes"), ("directions", "mean", "codes_around_mean")]
        {
            let [directions, b_dec] =
                [golden.matrix(directions), golden.vector(b_dec).insert_axis(Axis(0))].map(|m| m.mapv(|v| v as f32));
            let got = of(directions, b_dec.row(0).to_owned(), None).encode(held_out.view()).to_dense();
            let worst = (got.mapv(f64::from) - golden.matrix(codes)).fold(0.0_f64, |worst, off| worst.max(off.abs()));
            assert!(worst < 1e-4, "{codes} off by {worst}");
        }
    }

    #[test]
    fn no_more_than_k_codes_that_fit_better_than_a_cut() {
        let directions = rows(30, 12, 1).mapv(f32::abs);
        let x = rows(700, 12, 2).mapv(f32::abs);
        let all = of(directions.clone(), ndarray::Array1::zeros(12), None);
        let three = of(directions.clone(), ndarray::Array1::zeros(12), Some(3));
        let codes = three.encode(x.view());
        let mut cut = Codes::new(30);
        for ((latents, _), (all, values)) in codes.rows().zip(all.encode(x.view()).rows()) {
            assert!(latents.len() <= 3);
            let mut order: Vec<usize> = (0..all.len()).collect();
            order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
            let mut largest: Vec<(u32, f32)> = order.iter().take(3).map(|i| (all[*i], values[*i])).collect();
            largest.sort_by_key(|(latent, _)| *latent);
            assert!(latents.iter().all(|latent| largest.iter().any(|(kept, _)| kept == latent)));
            cut.push_row(largest);
        }
        let of_cut: f64 = (three.decode(&cut) - &x).iter().map(|v| f64::from(*v).powi(2)).sum();
        let (of_three, of_all) = (squared_error(&three, &x), squared_error(&all, &x));
        assert!(of_all < of_three && of_three < 0.8 * of_cut, "{of_all} with all, {of_three} with three, {of_cut} cut");
        // With no limit that binds, nothing changes.
        assert_eq!(of(directions.clone(), ndarray::Array1::zeros(12), Some(30)).encode(x.view()), all.encode(x.view()));
        assert_eq!(of(directions, ndarray::Array1::zeros(12), Some(0)).encode(x.view()).nnz(), 0);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let dictionary = of(rows(60, 40, 1).mapv(f32::abs), rows(1, 40, 2).row(0).to_owned(), Some(20));
        let x = rows(TILE_ROWS + 90, 40, 3).mapv(f32::abs);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| dictionary.encode(x.view()))
        };
        let one = on(1);
        assert_eq!(on(2), one);
        assert_eq!(on(3), one);
    }

    #[test]
    fn a_latent_without_a_direction_has_no_code() {
        let mut directions = rows(5, 4, 1).mapv(f32::abs);
        directions.row_mut(2).fill(0.0);
        let codes = of(directions, ndarray::Array1::zeros(4), None).encode(rows(20, 4, 2).mapv(f32::abs).view());
        assert!(codes.nnz() > 0 && codes.rows().all(|(latents, _)| !latents.contains(&2)));
    }

    #[test]
    #[should_panic(expected = "rows 3 wide for a dictionary that reads 4")]
    fn rows_of_another_width_are_refused() {
        let _ = of(rows(5, 4, 1), ndarray::Array1::zeros(4), None).encode(rows(2, 3, 1).view());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn codes_are_optimal(n in 1usize..600, latents in 1usize..70, d in 1usize..40, k in prop::option::of(1usize..8), seed in any::<u64>()) {
            let directions = rows(latents, d, seed);
            let b_dec = rows(1, d, seed ^ 2).row(0).to_owned();
            let x = rows(n, d, seed ^ 1);
            let dictionary = of(directions.clone(), b_dec.clone(), k);
            let codes = dictionary.encode(x.view());
            let [directions, above] = [directions.mapv(f64::from), x.mapv(f64::from) - b_dec.mapv(f64::from)];
            let (gram, targets) = (directions.dot(&directions.t()), above.dot(&directions.t()));
            let sizes = above.mapv(f64::abs).dot(&directions.t().mapv(f64::abs));
            let gram_of_sizes = directions.mapv(f64::abs).dot(&directions.t().mapv(f64::abs));
            let slopes = codes.to_dense().mapv(f64::from).dot(&gram) - &targets;
            for (i, (active, values)) in codes.rows().enumerate() {
                prop_assert!(values.iter().all(|v| *v > 0.0));
                prop_assert!(k.is_none_or(|k| active.len() <= k));
                // Karush, Kuhn and Tucker: no slope where a code is positive, and none downwards where it is zero and may be used.
                let may_grow = k.is_none_or(|k| active.len() < k && k >= latents);
                let (mut violation, mut rounding) = (0.0, 0.0);
                for latent in 0..latents {
                    let slope = slopes[[i, latent]];
                    violation += if active.contains(&(latent as u32)) {
                        slope.abs()
                    } else if may_grow {
                        (-slope).max(0.0)
                    } else {
                        continue;
                    };
                    // The one rounding of each code to f32, and those of the slope in f64, of sums of products of sums: γ = m u / (1 - m u), with m the number of terms.
                    let terms = |gram: &Array2<f64>| -> f64 {
                        active.iter().zip(values).map(|(j, v)| (gram[[latent, *j as usize]] * f64::from(*v)).abs()).sum()
                    };
                    let gamma = (d + latents + 2) as f64 * f64::EPSILON;
                    rounding += f64::from(f32::EPSILON) / 2.0 * terms(&gram) + gamma * (terms(&gram_of_sizes) + sizes[[i, latent]]);
                }
                let limit = f64::from(TOLERANCE) * targets.row(i).fold(0.0, |sum, target| sum + target.abs()) + rounding;
                prop_assert!(violation <= limit, "row {i}: {violation}, limit {limit}");
            }
        }
    }
}
