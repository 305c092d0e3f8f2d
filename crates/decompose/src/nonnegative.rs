use monosem_dictionary::{Codes, Dictionary, LinearDictionary};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use crate::descent::{Descent, descend};
use crate::face::descend_on_face;
use crate::product::{product, product_into};

/// Rows encoded at once: their codes are the only dense `rows x n_latents` arrays there ever are.
const TILE_ROWS: usize = 512;

/// Sweeps over a row's codes at most, with conjugate gradients in between.
const MAX_SWEEPS: usize = 1000;

/// Sweeps at most over the codes that are kept, which are few.
const MAX_SWEEPS_OF_KEPT: usize = 1000;

/// What [`NonNegative::tolerance`] begins as.
const TOLERANCE: f32 = 1e-6;

/// A dictionary whose codes are the non-negative least squares of what its decoder makes of them: `argmin ‖x - b_dec - w_decᵀ c‖²` over `c ≥ 0`. Its encoder
/// is not used. Rows may lie below `b_dec`. A row is solved to the [`tolerance`](Self::tolerance), or for 1,000 sweeps.
///
/// With `k`, the k largest codes choose the latents, and the codes are those of non-negative least squares on these alone: where directions overlap, as those of an
/// [`Nmf`](crate::Nmf) do, the ones that are left have to take over what those left out had explained.
#[derive(Debug, Clone)]
pub struct NonNegative {
    /// A row is done when the magnitudes of its projected gradient sum to less than this part of those of its gradient at zero codes; a millionth,
    /// unless it is set.
    pub tolerance: f32,
    linear: LinearDictionary,
    k: Option<usize>,
    /// `w_dec w_decᵀ` `[n, n]`.
    gram: Array2<f32>,
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
        Self { tolerance: TOLERANCE, gram: product(linear.w_dec.view(), linear.w_dec.t()), linear, k }
    }

    /// The non-negative codes `[rows, n]` for `targets` `[rows, n]`, the products of rows with every direction: from zero, sweeps of coordinate
    /// descent by turns with conjugate gradients over the positive codes.
    fn solve(&self, targets: &Array2<f32>, descent: &mut Descent) -> Array2<f32> {
        let mut solved = Array2::zeros(targets.raw_dim());
        // Rows still at work, and their targets and codes: hard ones take many times the sweeps of easy ones.
        let mut at_work: Vec<usize> = (0..targets.nrows()).collect();
        let (mut targets, mut codes) = (targets.clone(), solved.clone());
        for sweep in 1..=MAX_SWEEPS {
            let violation = descent.sweep(self.gram.view(), targets.view(), codes.view_mut());
            let is_done = |row: &usize| {
                let target = targets.row(*row);
                sweep == MAX_SWEEPS || violation[*row] <= self.enough(target.as_slice().expect("a standard array"))
            };
            let (done, going_on): (Vec<usize>, Vec<usize>) = (0..at_work.len()).partition(is_done);
            for row in &done {
                solved.row_mut(at_work[*row]).assign(&codes.row(*row));
            }
            if going_on.is_empty() {
                break;
            }
            if !done.is_empty() {
                at_work = going_on.iter().map(|row| at_work[*row]).collect();
                targets = targets.select(Axis(0), &going_on);
                codes = codes.select(Axis(0), &going_on);
            }
            descend_on_face(self.gram.view(), targets.view(), &mut codes);
        }
        solved
    }

    /// The nonzero `codes` of a row, or the k largest fitted again to the `targets` without the others.
    fn kept(&self, targets: &[f32], codes: &[f32]) -> Vec<(u32, f32)> {
        let mut kept: Vec<(u32, f32)> = (0..).zip(codes.iter().copied()).filter(|(_, code)| *code > 0.0).collect();
        let Some(k) = self.k.filter(|k| *k < kept.len()) else { return kept };
        if k > 0 {
            kept.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        }
        kept.truncate(k);
        kept.sort_unstable_by_key(|(latent, _)| *latent);
        let (latents, mut codes): (Vec<usize>, Vec<f32>) = kept.into_iter().map(|(i, code)| (i as usize, code)).unzip();
        let targets: Vec<f32> = latents.iter().map(|latent| targets[*latent]).collect();
        let gram = self.gram.select(Axis(0), &latents).select(Axis(1), &latents).as_standard_layout().into_owned();
        let mut gradient = gram.dot(&ndarray::aview1(&codes)) - ndarray::aview1(&targets);
        let (gram, gradient) =
            (gram.as_slice().expect("standard"), gradient.as_slice_mut().expect("one after another"));
        for _ in 0..MAX_SWEEPS_OF_KEPT {
            if descend(gram, gradient, &mut codes) <= self.enough(&targets) {
                break;
            }
        }
        (0..).zip(&codes).map(|(i, code): (usize, &f32)| (latents[i] as u32, *code)).collect()
    }

    /// The violation of the optimum below which a row is done.
    fn enough(&self, targets: &[f32]) -> f32 {
        self.tolerance * targets.iter().map(|target| target.abs()).sum::<f32>()
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
        let (mut descent, mut targets) = (Descent::default(), Array2::zeros((0, 0)));
        for tile in x.axis_chunks_iter(Axis(0), TILE_ROWS) {
            if targets.nrows() != tile.nrows() {
                targets = Array2::zeros((tile.nrows(), self.n_latents()));
            }
            product_into((&tile - &self.linear.b_dec).view(), self.linear.w_dec.t(), false, targets.view_mut());
            let solved = self.solve(&targets, &mut descent);
            let rows: Vec<Vec<(u32, f32)>> = (0..tile.nrows())
                .into_par_iter()
                .map(|i| {
                    let [targets, codes] = [&targets, &solved].map(|of| of.slice(s![i, ..]));
                    self.kept(targets.to_slice().expect("standard"), codes.to_slice().expect("standard"))
                })
                .collect();
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
            let residual = (dictionary.decode(&codes) - &x).mapv(f64::from);
            let gradient = residual.dot(&directions.t().mapv(f64::from));
            let at_zero = (&x - &b_dec).dot(&directions.t());
            let gram = directions.dot(&directions.t());
            let sizes = (&x - &b_dec).mapv(f32::abs).dot(&directions.t().mapv(f32::abs));
            for (i, (active, values)) in codes.rows().enumerate() {
                prop_assert!(values.iter().all(|v| *v > 0.0));
                prop_assert!(k.is_none_or(|k| active.len() <= k));
                // Karush, Kuhn and Tucker: no slope where a code is positive, and none downwards where it is zero and may be used.
                let limit = 5e-5 * at_zero.row(i).iter().map(|v| f64::from(v.abs())).sum::<f64>();
                for latent in 0..latents {
                    let slope = gradient[[i, latent]];
                    // What f32 rounds: products of large codes of directions that nearly cancel, and those of rows almost at right angles to the direction.
                    let terms = active.iter().zip(values).map(|(j, v)| f64::from((gram[[latent, *j as usize]] * v).abs()));
                    let terms = terms.sum::<f64>() + f64::from(sizes[[i, latent]]);
                    let limit = limit + 8.0 * f64::from(f32::EPSILON) * terms;
                    if active.contains(&(latent as u32)) {
                        prop_assert!(slope.abs() < limit, "row {i}, active latent {latent}: {slope}, limit {limit}");
                    } else if k.is_none_or(|k| active.len() < k && k >= latents) {
                        prop_assert!(slope > -limit, "row {i}, latent {latent}: {slope}, limit {limit}");
                    }
                }
            }
        }
    }
}
