use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// Half the error probability of the intervals: 95 %.
const TAIL: f64 = 0.025;

/// A figure over several features, and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// The figure.
    pub value: f64,
    /// Lower and upper end; `None` where there are too few values for one.
    pub interval: Option<(f64, f64)>,
    /// Number of values.
    pub n: usize,
}

/// The mean of values, with the interval of Student's t at `n - 1` degrees of freedom, which needs two values; the paper's 1.96
/// standard errors are its limit for many. `None` without values.
pub fn mean(values: &[f64]) -> Option<Summary> {
    let n = values.len();
    let value = average(values)?;
    let interval = (n > 1).then(|| {
        let variance = values.iter().map(|v| (v - value).powi(2)).sum::<f64>() / (n - 1) as f64;
        let student = StudentsT::new(0.0, 1.0, (n - 1) as f64).expect("at least one degree of freedom");
        let half = student.inverse_cdf(1.0 - TAIL) * (variance / n as f64).sqrt();
        (value - half, value + half)
    });
    Some(Summary { value, interval, n })
}

/// Pearson's correlation of paired values, with Fisher's interval `tanh(atanh(r) -+ 1.96 / sqrt(n - 3))`, which needs four pairs.
/// `None` if either side is constant or there are fewer than two pairs.
///
/// # Panics
/// If there are not as many of the one as of the other.
pub fn correlation(x: &[f64], y: &[f64]) -> Option<Summary> {
    let (r, n) = (pearson(x, y)?, x.len());
    let interval = (n > 3).then(|| {
        let normal = Normal::new(0.0, 1.0).expect("a standard deviation of 1");
        let half = normal.inverse_cdf(1.0 - TAIL) / ((n - 3) as f64).sqrt();
        ((r.atanh() - half).tanh(), (r.atanh() + half).tanh())
    });
    Some(Summary { value: r, interval, n })
}

/// The 95 % interval of a statistic by the percentile bootstrap (Efron 1979): `statistic` gets the numbers of `n` items drawn with replacement, from the
/// seed. Draws for which it is not defined are left out; `None` without items or if it never is.
pub fn bootstrap(
    n: usize,
    resamples: usize,
    seed: u64,
    mut statistic: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<(f64, f64)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; n];
    let mut values: Vec<f64> = (0..if n == 0 { 0 } else { resamples })
        .filter_map(|_| {
            drawn.iter_mut().for_each(|item| *item = rng.random_range(0..n));
            statistic(&drawn)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    percentiles(&values)
}

/// Where the middle 95 % of sorted values begin and end; `None` without values.
pub(crate) fn percentiles(sorted: &[f64]) -> Option<(f64, f64)> {
    let last = sorted.len().checked_sub(1)?;
    let at = |share: f64| sorted[(share * last as f64).round() as usize];
    Some((at(TAIL), at(1.0 - TAIL)))
}

/// The mean of values with a bootstrap interval, which unlike that of [`mean`] assumes no distribution; `None` without values.
pub fn bootstrap_mean(values: &[f64], resamples: usize, seed: u64) -> Option<Summary> {
    let of = |drawn: &[usize]| average(&drawn.iter().map(|i| values[*i]).collect::<Vec<_>>());
    Some(Summary { value: average(values)?, interval: bootstrap(values.len(), resamples, seed, of), n: values.len() })
}

/// Spearman's rank correlation of paired values, ties sharing their mean rank, with the interval of [`correlation`]; `None` as there.
///
/// # Panics
/// As [`correlation`].
pub fn rank_correlation(x: &[f64], y: &[f64]) -> Option<Summary> {
    correlation(&ranks(x), &ranks(y))
}

/// The area under the ROC curve: how often a value of the first kind is above one of the second, ties counting half. `None` if there are none of one kind.
pub fn auc(above: &[f64], below: &[f64]) -> Option<f64> {
    let points = |a: f64, b: f64| if a > b { 1.0 } else { 0.5 * f64::from(a == b) };
    let sum: f64 = above.iter().flat_map(|a| below.iter().map(move |b| points(*a, *b))).sum();
    (!above.is_empty() && !below.is_empty()).then(|| sum / (above.len() * below.len()) as f64)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let below = values.iter().filter(|value| **value < values[tied[0]]).count();
        tied.iter().for_each(|i| ranks[*i] = below as f64 + (tied.len() - 1) as f64 / 2.0);
    }
    ranks
}

/// For each of `n` features another one, whose explanation it is scored with as a control: a permutation that moves all, drawn from the
/// seed among those of one cycle (Sattolo 1986). `None` for a single feature, which has no other.
pub fn derangement(n: usize, seed: u64) -> Option<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..i));
    }
    (n != 1).then_some(order)
}

/// Pearson's correlation; `None` if either side is constant.
pub(crate) fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "{} values paired with {}", x.len(), y.len());
    // Sums around a rounded mean would call equal values unequal.
    let constant = |values: &[f64]| values.windows(2).all(|pair| pair[0] == pair[1]);
    if constant(x) || constant(y) {
        return None;
    }
    let (x_mean, y_mean) = (average(x)?, average(y)?);
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x - x_mean, y - y_mean);
        xy += x * y;
        xx += x * x;
        yy += y * y;
    }
    let r = xy / (xx.sqrt() * yy.sqrt());
    r.is_finite().then(|| r.clamp(-1.0, 1.0))
}

pub(crate) fn average(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn intervals_of_known_samples() {
        // 2.5 -+ 3.182446 * sqrt(5 / 3 / 4), the quantile of a table of Student's t at 3 degrees of freedom.
        let Summary { value, interval: Some((low, high)), n: 4 } = mean(&[1.0, 2.0, 3.0, 4.0]).unwrap() else {
            panic!("no interval of four values");
        };
        assert_eq!(value, 2.5);
        assert!((low - 0.445_739_7).abs() < 1e-6 && (high - 4.554_260_3).abs() < 1e-6, "{low} {high}");
        assert_eq!(mean(&[3.0]), Some(Summary { value: 3.0, interval: None, n: 1 }));
        assert_eq!(mean(&[]), None);
        // tanh(1.0986123 -+ 1.959964 / sqrt(2)).
        let found = correlation(&[1.0, 2.0, 3.0, 4.0, 5.0], &[2.0, 1.0, 4.0, 3.0, 5.0]).unwrap();
        let (low, high) = found.interval.unwrap();
        assert!((found.value - 0.8).abs() < 1e-12);
        assert!((low + 0.279_640_0).abs() < 1e-6 && (high - 0.986_196_2).abs() < 1e-6, "{low} {high}");
        assert_eq!(correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(correlation(&[], &[]), None);
    }

    #[test]
    fn ranks_areas_and_resamples() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
        assert!((rank_correlation(&[1.0, 2.0, 3.0, 4.0], &[1.0, 8.0, 27.0, 64.0]).unwrap().value - 1.0).abs() < 1e-12);
        assert_eq!(auc(&[2.0, 3.0], &[1.0, 2.0]), Some(0.875));
        assert_eq!((auc(&[1.0], &[1.0]), auc(&[], &[1.0])), (Some(0.5), None));
        // The mean of 400 values of standard deviation 0.5: half-width 1.96 * 0.5 / 20.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let (low, high) = bootstrap_mean(&values, 4000, 1).unwrap().interval.unwrap();
        assert!((low - 0.451).abs() < 0.006 && (high - 0.549).abs() < 0.006, "{low} {high}");
        assert_eq!(bootstrap_mean(&[], 10, 1), None);
        assert_eq!(bootstrap(3, 10, 1, |_| None), None);
    }

    #[test]
    fn equal_values_are_constant_however_the_mean_is_rounded() {
        assert_eq!(pearson(&[0.1; 7], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), None);
    }

    proptest! {
        #[test]
        fn a_derangement_moves_all_and_loses_none(n in 2usize..50, seed: u64) {
            let order = derangement(n, seed).unwrap();
            prop_assert!(order.iter().enumerate().all(|(place, feature)| place != *feature));
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            prop_assert_eq!(Some(order), derangement(n, seed));
        }

        #[test]
        fn correlation_forgets_scale_and_offset(
            pairs in prop::collection::vec((-5.0f64..5.0, -5.0f64..5.0), 3..40), scale in 0.1f64..10.0, offset in -9.0f64..9.0
        ) {
            let (x, y): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let moved: Vec<f64> = y.iter().map(|y| y * scale + offset).collect();
            match (pearson(&x, &y), pearson(&x, &moved)) {
                (Some(r), Some(s)) => prop_assert!((r - s).abs() < 1e-9),
                (r, s) => prop_assert_eq!(r, s),
            }
        }
    }

    #[test]
    fn one_feature_has_no_other() {
        assert_eq!(derangement(1, 0), None);
        assert_eq!(derangement(0, 0), Some(Vec::new()));
    }
}
