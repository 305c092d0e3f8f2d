use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::statistics::{average, percentiles};

/// With fewer values than this, resamples are too much alike: their variance falls short by `(n - 1) / n`, and their tails by more.
const FEWEST: usize = 8;

/// Statistics of resamples that are equal but for rounding count as equal.
const ROUNDING: f64 = 1e-12;

/// A difference of two means, with what a bootstrap says of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// The difference, in the unit of the values.
    pub value: f64,
    /// Lower and upper end of the 95 % percentile interval; `None` where there are too few values for one (fewer than eight of a kind).
    pub interval: Option<(f64, f64)>,
    /// Two-sided p-value of no difference; `None` with the interval.
    pub p_value: Option<f64>,
    /// Values it rests on: those of both samples, or the number of pairs.
    pub n: usize,
}

/// `mean(a) - mean(b)` of two samples that are not paired, such as the scores of the features of two dictionaries: each is drawn from with
/// replacement by itself (Efron and Tibshirani, An Introduction to the Bootstrap, section 16.2), and the p-value is [`centred_p_value`].
///
/// `None` if either has no value. The interval is about other features on the same documents: what these do to all features alike is in
/// both means and cancels, and what other documents would do to one dictionary and not to the other is not covered.
pub fn difference(a: &[f64], b: &[f64], resamples: usize, seed: u64) -> Option<Comparison> {
    let value = average(a)? - average(b)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let draw = || drawn_mean(a, &mut rng) - drawn_mean(b, &mut rng);
    Some(Comparison::new(value, a.len().min(b.len()), a.len() + b.len(), resamples, draw))
}

/// `mean(a - b)` of paired values, such as one feature's scores under two conditions or the losses of one context under two
/// edits: the pairs are drawn with replacement, so that what both members of a pair have in common does not count as noise. The p-value is
/// [`centred_p_value`]. `None` without pairs.
///
/// # Panics
/// If there are not as many of the one as of the other.
pub fn paired_difference(a: &[f64], b: &[f64], resamples: usize, seed: u64) -> Option<Comparison> {
    assert_eq!(a.len(), b.len(), "{} values paired with {}", a.len(), b.len());
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = differences.len();
    Some(Comparison::new(average(&differences)?, n, n, resamples, || drawn_mean(&differences, &mut rng)))
}

impl Comparison {
    fn new(value: f64, smallest: usize, n: usize, resamples: usize, mut draw: impl FnMut() -> f64) -> Self {
        if smallest < FEWEST {
            return Self { value, interval: None, p_value: None, n };
        }
        let mut draws: Vec<f64> = (0..resamples).map(|_| draw()).collect();
        draws.sort_by(f64::total_cmp);
        let p_value = Some(centred_p_value(value, 0.0, &draws));
        Self { value, interval: percentiles(&draws), p_value, n }
    }
}

/// Mean of as many values as there are, drawn with replacement; 0 of none.
fn drawn_mean(values: &[f64], rng: &mut impl Rng) -> f64 {
    let n = values.len();
    (0..n).map(|_| values[rng.random_range(0..n)]).sum::<f64>() / n.max(1) as f64
}

/// The two-sided p-value of the hypothesis that a statistic, which is `value` on the sample and `draws` on resamples of it, is `null`: how often
/// draws deviate from `value` at least as far as `value` from `null` (Hall and Wilson, Biometrics 47, 1991), as `(1 + count) / (1 + draws)`
/// (Davison and Hinkley, Bootstrap Methods and their Application, section 4.2.1). It is never 0: what so many draws cannot show is not claimed.
pub fn centred_p_value(value: f64, null: f64, draws: &[f64]) -> f64 {
    let deviation = (value - null).abs() * (1.0 - ROUNDING);
    let count = draws.iter().filter(|draw| (*draw - value).abs() >= deviation).count();
    (1 + count) as f64 / (1 + draws.len()) as f64
}

/// The two-sided p-value that belongs to the percentile interval: twice the share of draws on the rarer side of `null`, with `1 + count` over
/// `1 + draws` and at most 1. Draws at `null` count on both sides. Unlike [`centred_p_value`] it is the same for a ratio and for its
/// logarithm, and defined where a ratio is 0 or infinite.
pub fn percentile_p_value(null: f64, draws: &[f64]) -> f64 {
    let side = |on: fn(&f64, &f64) -> bool| draws.iter().filter(|draw| on(draw, &null)).count();
    let rarer = side(f64::le).min(side(f64::ge));
    (2.0 * (1 + rarer) as f64 / (1 + draws.len()) as f64).min(1.0)
}

/// p-values corrected for their number, in the order given (Holm, Scandinavian Journal of Statistics 6, 1979): the smallest of `m` is multiplied by
/// `m`, the next by `m - 1`, and so on; each is at least the one before, and at most 1. Rejecting those below a level keeps the
/// probability of any false rejection at that level, however the tests depend on each other.
///
/// # Panics
/// If a p-value is not between 0 and 1.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let wrong = p_values.iter().find(|p| !(0.0..=1.0).contains(*p));
    assert!(wrong.is_none(), "a p-value of {}", wrong.unwrap_or(&f64::NAN));
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut before: f64 = 0.0;
    for (rank, i) in order.into_iter().enumerate() {
        before = before.max(((p_values.len() - rank) as f64 * p_values[i]).min(1.0));
        corrected[i] = before;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

    use super::*;

    /// Values of a normal distribution.
    fn normal(n: usize, mean: f64, deviation: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let normal = Normal::new(mean, deviation).unwrap();
        (0..n).map(|_| normal.inverse_cdf(rng.random_range(1e-9..1.0))).collect()
    }

    fn variance_of_mean(values: &[f64]) -> f64 {
        let mean = average(values).unwrap();
        let n = values.len() as f64;
        values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n
    }

    /// Two-sided p-value and 95 % interval of Welch's t test (Biometrika 34, 1947).
    fn welch(a: &[f64], b: &[f64]) -> (f64, (f64, f64)) {
        let (va, vb) = (variance_of_mean(a), variance_of_mean(b));
        let freedom = (va + vb).powi(2) / (va.powi(2) / (a.len() - 1) as f64 + vb.powi(2) / (b.len() - 1) as f64);
        student(average(a).unwrap() - average(b).unwrap(), (va + vb).sqrt(), freedom)
    }

    fn student(value: f64, error: f64, freedom: f64) -> (f64, (f64, f64)) {
        let t = StudentsT::new(0.0, 1.0, freedom).unwrap();
        let half = t.inverse_cdf(0.975) * error;
        (2.0 * t.cdf(-(value / error).abs()), (value - half, value + half))
    }

    fn agree(found: &Comparison, (p, (low, high)): (f64, (f64, f64))) {
        let (found_p, (found_low, found_high)) = (found.p_value.unwrap(), found.interval.unwrap());
        assert!((found_p - p).abs() < 0.02, "p {found_p}, by the t test {p}");
        let tolerance = 0.05 * (high - low);
        let ends = [(found_low, low), (found_high, high)];
        assert!(ends.iter().all(|(a, b)| (a - b).abs() < tolerance), "{found:?}, by the t test {low} to {high}");
    }

    #[test]
    fn welch_as_in_scipy() {
        // scipy.stats.ttest_ind(a, b, equal_var=False).pvalue
        let a = [0.61, 0.55, 0.72, 0.48, 0.66, 0.59, 0.70, 0.52];
        let b = [0.41, 0.62, 0.38, 0.50, 0.47, 0.33];
        let (p, _) = welch(&a, &b);
        assert!((p - 0.015_223_202_297).abs() < 1e-8, "{p}");
    }

    #[test]
    fn differences_of_normal_samples_agree_with_t_tests() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for shift in [0.0, 0.05, 0.1, 0.3] {
            let (a, b) = (normal(150, 0.5 + shift, 0.3, &mut rng), normal(90, 0.5, 0.5, &mut rng));
            let found = difference(&a, &b, 9999, 3).unwrap();
            assert_eq!((found.n, found.value), (240, average(&a).unwrap() - average(&b).unwrap()));
            agree(&found, welch(&a, &b));
            let pairs: Vec<f64> = b.iter().zip(normal(90, shift, 0.2, &mut rng)).map(|(b, d)| b + d).collect();
            let differences: Vec<f64> = pairs.iter().zip(&b).map(|(a, b)| a - b).collect();
            let value = average(&differences).unwrap();
            let paired = paired_difference(&pairs, &b, 9999, 3).unwrap();
            agree(&paired, student(value, variance_of_mean(&differences).sqrt(), 89.0));
        }
    }

    #[test]
    fn pairs_take_out_what_they_have_in_common() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let b = normal(40, 3.0, 1.0, &mut rng);
        let a: Vec<f64> = b.iter().zip(normal(40, 0.1, 0.1, &mut rng)).map(|(b, d)| b + d).collect();
        let p = |comparison: Option<Comparison>| comparison.unwrap().p_value.unwrap();
        assert!(p(paired_difference(&a, &b, 999, 0)) < 0.01);
        assert!(p(difference(&a, &b, 999, 0)) > 0.3);
    }

    #[test]
    fn without_a_difference_small_p_values_are_as_rare_as_they_say() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut below = |least: f64, paired: bool| {
            let p = (0..1000).map(|i| {
                let (a, b) = (normal(60, 0.0, 1.0, &mut rng), normal(60, 0.0, 1.0, &mut rng));
                let compare = if paired { paired_difference } else { difference };
                compare(&a, &b, 499, i).unwrap().p_value.unwrap()
            });
            p.filter(|p| *p <= least).count()
        };
        // 50 and 200 of 1000 are expected, with standard deviations of 7 and 13.
        for paired in [false, true] {
            let (rare, common) = (below(0.05, paired), below(0.2, paired));
            assert!((29..=78).contains(&rare) && (160..=240).contains(&common), "{rare} and {common} of 1000");
        }
    }

    #[test]
    fn small_and_constant_samples() {
        assert_eq!(difference(&[], &[1.0; 9], 99, 0), None);
        assert_eq!(paired_difference(&[], &[], 99, 0), None);
        let few = difference(&[1.0; 7], &[0.0; 50], 99, 0).unwrap();
        assert_eq!(few, Comparison { value: 1.0, interval: None, p_value: None, n: 57 });
        let same = paired_difference(&[0.1; 9], &[0.1; 9], 99, 0).unwrap();
        assert_eq!((same.interval, same.p_value), (Some((0.0, 0.0)), Some(1.0)));
        // No draw deviates, and 99 draws cannot show less than this.
        assert_eq!(difference(&[1.0; 9], &[0.0; 9], 99, 0).unwrap().p_value, Some(0.01));
    }

    #[test]
    fn p_values_of_draws_by_hand() {
        // Deviations of 1, 0, 2 and 2 from 2, which is 2 from 0: a tie counts.
        assert_eq!(centred_p_value(2.0, 0.0, &[1.0, 2.0, 4.0, 0.0]), 3.0 / 5.0);
        assert_eq!(centred_p_value(2.0, 2.0, &[1.0, 2.0, 4.0, 0.0]), 1.0);
        // Of 9 draws one is at 1 and one above.
        let ratios = [0.0, 0.1, 0.2, 0.2, 0.3, 0.5, 0.5, 1.0, f64::MAX];
        assert_eq!(percentile_p_value(1.0, &ratios), 2.0 * 3.0 / 10.0);
        assert_eq!(percentile_p_value(0.3, &ratios), 1.0);
        assert_eq!(percentile_p_value(-1.0, &[0.5; 199]), 0.01);
    }

    #[test]
    fn holm_as_in_statsmodels() {
        // statsmodels 0.15: multipletests(p, method="holm")[1]
        let known: [(&[f64], &[f64]); 4] = [
            (&[0.01, 0.04, 0.03, 0.005], &[0.03, 0.06, 0.06, 0.02]),
            (&[0.02, 0.0005, 0.5, 0.04, 0.02, 1.0, 0.03], &[0.12, 0.0035, 1.0, 0.12, 0.12, 1.0, 0.12]),
            (&[0.012, 0.011, 0.013], &[0.033, 0.033, 0.033]),
            (&[0.3], &[0.3]),
        ];
        for (p, expected) in known {
            let found = holm(p);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{p:?}: {found:?}");
        }
        assert!(holm(&[]).is_empty());
    }

    #[test]
    #[should_panic(expected = "a p-value of 1.5")]
    fn holm_refuses_what_is_no_p_value() {
        let _ = holm(&[0.5, 1.5]);
    }

    proptest! {
        #[test]
        fn laws_of_holm(p in prop::collection::vec(0.0f64..=1.0, 1..30), turn in 0usize..30) {
            let corrected = holm(&p);
            let least = p.iter().copied().fold(1.0, f64::min);
            for (i, (raw, corrected_i)) in p.iter().zip(&corrected).enumerate() {
                prop_assert!(*raw <= *corrected_i && *corrected_i <= 1.0);
                for j in 0..p.len() {
                    prop_assert!(p[i] > p[j] || corrected[i] <= corrected[j]);
                }
            }
            // The smallest is Bonferroni's.
            let smallest = corrected.iter().copied().fold(1.0, f64::min);
            prop_assert_eq!(smallest, (p.len() as f64 * least).min(1.0));
            let turned = |values: &[f64]| { let mut v = values.to_vec(); v.rotate_left(turn % p.len()); v };
            prop_assert_eq!(holm(&turned(&p)), turned(&corrected));
        }

        #[test]
        fn a_difference_turned_round_is_its_opposite(
            a in prop::collection::vec(-5.0f64..5.0, 8..20), shift in -3.0f64..3.0
        ) {
            let b: Vec<f64> = a.iter().rev().map(|value| value + shift).collect();
            let (there, back) = (paired_difference(&a, &b, 199, 5).unwrap(), paired_difference(&b, &a, 199, 5).unwrap());
            prop_assert!((there.value + back.value).abs() < 1e-9);
            prop_assert_eq!(there.p_value, back.p_value);
            prop_assert_eq!(there, paired_difference(&a, &b, 199, 5).unwrap());
        }
    }
}
