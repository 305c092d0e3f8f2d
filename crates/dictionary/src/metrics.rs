use std::collections::BTreeMap;

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use crate::Codes;
use crate::product::rows_times_rows;

/// A latent counts as alive when it is active on more rows of the held-out set than this (figure 16 of arXiv 2309.08600).
pub const ALIVE_MORE_THAN: u64 = 10;

/// Half the error probability of the intervals: 95 %.
const TAIL: f64 = 0.025;

/// A number and the 95 % interval around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The value on all the rows.
    pub value: f64,
    /// Lower and upper end; `None` where fewer than two groups were seen.
    pub interval: Option<(f64, f64)>,
}

/// How well a dictionary describes a set of activations.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Fraction of variance unexplained: `sum (x - x_hat)^2 / sum (x - mean)^2`, the mean taken per dimension. The mean itself as
    /// reconstruction gives 1, a perfect one 0.
    pub fvu: Estimate,
    /// Mean number of nonzero codes in a row.
    pub l0: Estimate,
    /// On how many rows each latent is nonzero.
    pub active_rows: Vec<u64>,
    /// Number of rows.
    pub n: u64,
}

impl Evaluation {
    /// Latents that are active on more than [`ALIVE_MORE_THAN`] rows.
    #[must_use]
    pub fn alive_latents(&self) -> usize {
        self.active_rows.iter().filter(|rows| **rows > ALIVE_MORE_THAN).count()
    }

    /// The latents that are not alive.
    #[must_use]
    pub fn dead_latents(&self) -> usize {
        self.active_rows.len() - self.alive_latents()
    }

    /// Share of the rows on which each latent is active.
    #[must_use]
    pub fn density(&self) -> Vec<f64> {
        self.active_rows.iter().map(|rows| *rows as f64 / (self.n as f64).max(1.0)).collect()
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Group {
    rows: f64,
    squared_error: f64,
    squared_deviation: f64,
    active: f64,
}

/// Accumulates an [`Evaluation`] chunk by chunk; how the rows are cut into chunks changes nothing but rounding.
///
/// Neighbouring tokens are not independent draws, so intervals come from *groups* of rows (documents or contexts): both figures are
/// ratios of group sums, and the variance of a ratio is that of its linearised residuals (Cochran, Sampling Techniques, section 6.3),
/// with Student's t at one degree of freedom less than there are groups.
#[derive(Debug, Clone)]
pub struct Evaluator {
    mean: Array1<f64>,
    groups: BTreeMap<u32, Group>,
    active_rows: Vec<u64>,
    n: u64,
}

impl Evaluator {
    /// For activations whose mean per dimension over the evaluated rows is `mean` (see [`column_mean`]), over `n_latents` latents.
    #[must_use]
    pub fn new(mean: Array1<f64>, n_latents: usize) -> Self {
        Self { mean, groups: BTreeMap::new(), active_rows: vec![0; n_latents], n: 0 }
    }

    /// Adds rows `x` `[n, d_in]`, their codes, their reconstruction `[n, d_in]`, and the group of each row (document or context).
    ///
    /// # Panics
    /// If the shapes do not agree with each other or with those given to [`Self::new`].
    pub fn add(&mut self, x: ArrayView2<'_, f32>, codes: &Codes, x_hat: ArrayView2<'_, f32>, groups: &[u32]) {
        assert_eq!(x.dim(), x_hat.dim(), "activations {:?} and reconstruction {:?}", x.dim(), x_hat.dim());
        assert_eq!(x.ncols(), self.mean.len(), "activations {} wide, mean {} wide", x.ncols(), self.mean.len());
        assert_eq!(
            (x.nrows(), codes.n_latents()),
            (codes.n_rows(), self.active_rows.len()),
            "codes of other rows or latents"
        );
        assert_eq!(x.nrows(), groups.len(), "{} rows and {} groups", x.nrows(), groups.len());
        for (((x, x_hat), (latents, _)), group) in x.rows().into_iter().zip(x_hat.rows()).zip(codes.rows()).zip(groups)
        {
            let group = self.groups.entry(*group).or_default();
            for ((x, x_hat), mean) in x.iter().zip(x_hat).zip(&self.mean) {
                group.squared_error += (f64::from(*x) - f64::from(*x_hat)).powi(2);
                group.squared_deviation += (f64::from(*x) - mean).powi(2);
            }
            group.rows += 1.0;
            group.active += latents.len() as f64;
            for latent in latents {
                self.active_rows[*latent as usize] += 1;
            }
        }
        self.n += x.nrows() as u64;
    }

    /// The figures over all rows added.
    #[must_use]
    pub fn finish(self) -> Evaluation {
        let groups: Vec<Group> = self.groups.into_values().collect();
        Evaluation {
            fvu: ratio(groups.iter().map(|g| (g.squared_error, g.squared_deviation))),
            l0: ratio(groups.iter().map(|g| (g.active, g.rows))),
            active_rows: self.active_rows,
            n: self.n,
        }
    }
}

/// The ratio of two sums over groups, and its interval.
fn ratio(groups: impl Iterator<Item = (f64, f64)> + Clone) -> Estimate {
    let (above, below) = groups.clone().fold((0.0, 0.0), |(a, b), (above, below)| (a + above, b + below));
    let value = if below == 0.0 { 0.0 } else { above / below };
    let n = groups.clone().count() as f64;
    let interval = (n > 1.0 && below != 0.0).then(|| {
        let residuals: f64 = groups.map(|(above, below)| (above - value * below).powi(2)).sum();
        let half = t_quantile(n - 1.0) * (n / (n - 1.0) * residuals).sqrt() / below.abs();
        (value - half, value + half)
    });
    Estimate { value, interval }
}

impl Estimate {
    /// The mean of `sum / weight` over groups, each given as `(sum, weight)`: the ratio of the totals with the interval of
    /// [`Evaluator`]. A loss per token over documents is of this form.
    #[must_use]
    pub fn of_ratio(groups: &[(f64, f64)]) -> Self {
        ratio(groups.iter().copied())
    }

    /// The share of `hits` among `n` independent trials, with Wilson's score interval (JASA 22, 1927), which stays between 0 and 1. Without a
    /// trial the share is 0.
    #[must_use]
    pub fn of_share(hits: u64, n: u64) -> Self {
        if n == 0 {
            return Self { value: 0.0, interval: None };
        }
        let (share, n) = (hits as f64 / n as f64, n as f64);
        let z2 = Normal::standard().inverse_cdf(1.0 - TAIL).powi(2);
        let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
        let half = (z2 * share * (1.0 - share) / n + (z2 / (2.0 * n)).powi(2)).sqrt() / (1.0 + z2 / n);
        Self { value: share, interval: Some(((centre - half).max(0.0), (centre + half).min(1.0))) }
    }
}

fn t_quantile(degrees_of_freedom: f64) -> f64 {
    // The distribution exists for every positive number of degrees of freedom; the normal value is the limit.
    StudentsT::new(0.0, 1.0, degrees_of_freedom).map_or(1.96, |t| t.inverse_cdf(1.0 - TAIL))
}

/// Mean per dimension of rows `x` `[n, d]`, in `f64`; zeros for no rows.
#[must_use]
pub fn column_mean(x: ArrayView2<'_, f32>) -> Array1<f64> {
    let mut mean = Array1::<f64>::zeros(x.ncols());
    for row in x.rows() {
        mean.zip_mut_with(&row, |mean, x| *mean += f64::from(*x));
    }
    mean / (x.nrows() as f64).max(1.0)
}

/// Mean max cosine similarity from `a` to `b`: the mean over the rows of `a` `[n, d]` of the largest cosine with a row of `b` `[m, d]`.
/// Signed, and not symmetric. A row of zeros has cosine 0 with everything.
///
/// # Panics
/// If the widths differ or one of the two has no rows.
#[must_use]
pub fn mmcs(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> f64 {
    let largest = max_cosines(a, b);
    largest.iter().sum::<f64>() / largest.len() as f64
}

/// [`mmcs`] with its interval over the rows of `a`, cut to where cosines are.
///
/// # Panics
/// As [`mmcs`].
#[must_use]
pub fn mmcs_estimate(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Estimate {
    let rows: Vec<(f64, f64)> = max_cosines(a, b).into_iter().map(|cosine| (cosine, 1.0)).collect();
    let Estimate { value, interval } = Estimate::of_ratio(&rows);
    Estimate { value, interval: interval.map(|(low, high)| (low.max(-1.0), high.min(1.0))) }
}

/// For each row of `a` `[n, d]` the largest cosine with a row of `b` `[m, d]`.
fn max_cosines(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Vec<f64> {
    assert_eq!(a.ncols(), b.ncols(), "directions {} and {} wide", a.ncols(), b.ncols());
    assert!(a.nrows() > 0 && b.nrows() > 0, "mmcs of {} and {} directions", a.nrows(), b.nrows());
    let (a, b) = (unit_rows(a), unit_rows(b));
    let mut cosines = vec![0.0; a.nrows().min(256) * b.nrows()];
    let mut largest = Vec::with_capacity(a.nrows());
    for tile in a.axis_chunks_iter(Axis(0), 256) {
        rows_times_rows(tile, &b, &mut cosines);
        let rows = cosines.chunks_exact(b.nrows()).take(tile.nrows());
        largest.extend(rows.map(|row| f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max))));
    }
    largest
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
    use crate::{Dictionary, LinearDictionary};
    use ndarray::{Array2, Axis};
    use proptest::prelude::*;

    fn evaluate(x: &Array2<f32>, x_hat: &Array2<f32>, codes: &Codes, chunk: usize) -> Evaluation {
        let mut evaluator = Evaluator::new(column_mean(x.view()), codes.n_latents());
        for start in (0..x.nrows()).step_by(chunk) {
            let rows = start..(start + chunk).min(x.nrows());
            let mut part = Codes::new(codes.n_latents());
            for i in rows.clone() {
                let (latents, values) = codes.row(i);
                part.push_row(latents.iter().copied().zip(values.iter().copied()));
            }
            let groups: Vec<u32> = rows.clone().map(|i| i as u32 / 3).collect();
            evaluator.add(x.slice(s![rows.clone(), ..]), &part, x_hat.slice(s![rows, ..]), &groups);
        }
        evaluator.finish()
    }

    fn rows() -> impl Strategy<Value = Array2<f32>> {
        (4usize..40).prop_flat_map(|n| {
            prop::collection::vec(-5.0_f32..5.0, n * 6).prop_map(move |v| Array2::from_shape_vec((n, 6), v).unwrap())
        })
    }

    proptest! {
        #[test]
        fn fvu_laws(x in rows(), seed in 0u64..100) {
            let dictionary = LinearDictionary::random(10, 6, crate::Activation::Relu, seed);
            let codes = dictionary.encode(x.view());
            let x_hat = dictionary.decode(&codes);

            // Predicting the mean gives 1, the truth 0.
            let mean = column_mean(x.view()).mapv(|m| m as f32);
            let constant = Array2::from_shape_fn(x.dim(), |(_, j)| mean[j]);
            prop_assert!((evaluate(&x, &constant, &codes, 100).fvu.value - 1.0).abs() < 1e-6);
            prop_assert_eq!(evaluate(&x, &x, &codes, 100).fvu.value, 0.0);

            // The batch size changes nothing.
            let whole = evaluate(&x, &x_hat, &codes, 1000);
            let parts = evaluate(&x, &x_hat, &codes, 3);
            prop_assert!((whole.fvu.value - parts.fvu.value).abs() < 1e-9 * whole.fvu.value.max(1.0));
            prop_assert_eq!(&whole.active_rows, &parts.active_rows);

            // Scaling the activations and the dictionary with them changes nothing.
            let scaled = evaluate(&(&x * 8.0), &(&x_hat * 8.0), &codes, 1000);
            prop_assert!((whole.fvu.value - scaled.fvu.value).abs() < 1e-6 * whole.fvu.value.max(1.0));

            // A dead latent changes nothing but the count of latents.
            let mut wider = dictionary.clone();
            wider.w_enc.push_row(ndarray::ArrayView1::from(&[0.0; 6])).unwrap();
            wider.w_dec.push_row(ndarray::ArrayView1::from(&[1.0; 6])).unwrap();
            wider.b_enc = ndarray::concatenate![Axis(0), wider.b_enc, ndarray::array![-1.0]];
            let wide_codes = wider.encode(x.view());
            let wide = evaluate(&x, &wider.decode(&wide_codes), &wide_codes, 1000);
            // Not bitwise: another number of columns may take another path through the product.
            prop_assert!((wide.fvu.value - whole.fvu.value).abs() < 1e-5 * whole.fvu.value.max(1.0));
            prop_assert_eq!(wide.dead_latents(), whole.dead_latents() + 1);
        }

        #[test]
        fn mmcs_of_a_set_with_itself_is_one_and_ignores_length(x in rows(), scale in 0.1_f32..10.0) {
            prop_assume!(x.rows().into_iter().all(|r| r.dot(&r) > 1e-3));
            prop_assert!((mmcs(x.view(), (&x * scale).view()) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn the_interval_of_an_mmcs_is_over_the_features() {
        // Four features, two of which are found and two of which are at 60 degrees: 0.75 -+ 3.182446 * sqrt(1 / 12 / 4).
        let half = 0.75_f32.sqrt();
        let a = ndarray::array![[1.0_f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, half], [0.0, 0.5, half]];
        let b = ndarray::array![[2.0_f32, 0.0, 0.0], [0.0, 3.0, 0.0]];
        let Estimate { value, interval: Some((low, high)) } = mmcs_estimate(a.view(), b.view()) else {
            panic!("no interval of four features");
        };
        assert!((value - 0.75).abs() < 1e-6 && (low - 0.290_654).abs() < 1e-5, "{value} from {low}");
        assert_eq!(high, 1.0);
        assert_eq!(value, mmcs(a.view(), b.view()));
    }

    #[test]
    fn intervals_of_shares_are_wilson_s() {
        // statsmodels.stats.proportion.proportion_confint(22, 24, method="wilson")
        let (low, high) = Estimate::of_share(22, 24).interval.unwrap();
        assert!((low - 0.741_54).abs() < 1e-4 && (high - 0.976_84).abs() < 1e-4, "{low} {high}");
        let (low, high) = Estimate::of_share(5, 5).interval.unwrap();
        assert!(low > 0.5 && (high - 1.0).abs() < 1e-12, "{low} {high}");
        assert!((1..200).all(|n| Estimate::of_share(n, n).interval.is_some_and(|(_, high)| high <= 1.0)));
        assert_eq!(Estimate::of_share(0, 0).interval, None);
    }

    #[test]
    fn intervals_cover_as_often_as_they_say() {
        // Groups of three rows that share their error, as neighbouring tokens do: the true ratio is E[e] / E[v] = 1.
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let covered = (0..400)
            .filter(|_| {
                let groups: Vec<(f64, f64)> =
                    (0..40).map(|_| (3.0 * 2.0 * rng.random::<f64>(), 3.0 * 2.0 * rng.random::<f64>())).collect();
                let (low, high) = Estimate::of_ratio(&groups).interval.unwrap();
                low < 1.0 && 1.0 < high
            })
            .count();
        assert!((365..=395).contains(&covered), "{covered} of 400");
    }
}
