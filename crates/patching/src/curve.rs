use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Evaluation;
use crate::evaluation::mean;

/// The axis along which an area is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountAxis {
    /// `ln(1 + |F|)`: doubling a set counts the same wherever it is.
    Log,
    /// `|F|`.
    Linear,
}

impl CountAxis {
    fn of(self, n_features: usize) -> f64 {
        match self {
            Self::Log => (n_features as f64).ln_1p(),
            Self::Linear => n_features as f64,
        }
    }
}

/// A statistic with a percentile bootstrap interval over prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval<T> {
    /// On the prompts as they are.
    pub value: T,
    /// The lower end.
    pub low: T,
    /// The upper end.
    pub high: T,
}

/// How intervals are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Times the prompts are drawn with replacement.
    pub resamples: usize,
    /// Share of them inside the interval, 0.95 for instance.
    pub level: f64,
    /// Seed of the draws. Curves over the same prompts with the same seed are drawn alike.
    pub seed: u64,
}

/// The KL of a growing set of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// The sets by size, each size once, beginning with the unpatched prompts.
    points: Vec<Evaluation>,
}

impl Curve {
    /// A curve from the unpatched prompts and sets in any order. Of sets of one size the first is kept.
    ///
    /// # Panics
    /// If the evaluations are of different numbers of prompts.
    #[must_use]
    pub fn new(unpatched: Evaluation, sets: impl IntoIterator<Item = Evaluation>) -> Self {
        let n = unpatched.kl.len();
        let mut points = vec![unpatched];
        for set in sets.into_iter().filter(|set| set.n_features > 0) {
            assert_eq!(set.kl.len(), n, "a set evaluated on {} prompts, the unpatched on {n}", set.kl.len());
            points.push(set);
        }
        points.sort_by_key(|point| point.n_features);
        points.dedup_by_key(|point| point.n_features);
        Self { points }
    }

    /// The points by size, the unpatched prompts first.
    #[must_use]
    pub fn points(&self) -> &[Evaluation] {
        &self.points
    }

    /// Area under `KL / KL of the unpatched` along `axis(|F|) / axis(up_to)`, which runs from 0 to 1: the mean share of the KL that is left.
    /// Lower is better; 1 is no effect at any size. Straight lines between the points; beyond the largest set the KL stays as it is
    /// there, so that curves of different lengths compare. 0 where the unpatched KL is 0.
    ///
    /// # Panics
    /// If `up_to` is 0.
    #[must_use]
    pub fn area(&self, axis: CountAxis, up_to: usize) -> f64 {
        self.area_of(&self.means(None), axis, up_to)
    }

    /// [`Self::area`] with its interval.
    ///
    /// # Panics
    /// If `up_to` or the number of resamples is 0.
    #[must_use]
    pub fn area_interval(&self, axis: CountAxis, up_to: usize, bootstrap: &Bootstrap) -> Interval<f64> {
        self.interval(bootstrap, f64::total_cmp, &|means| self.area_of(means, axis, up_to))
    }

    /// The least number of features with `KL <= (1 - fraction) * KL of the unpatched`; `None` where no set reaches that.
    #[must_use]
    pub fn features_for(&self, fraction: f64) -> Option<usize> {
        self.features_of(&self.means(None), fraction)
    }

    /// [`Self::features_for`] with its interval, in which `None` is above every number.
    ///
    /// # Panics
    /// If the number of resamples is 0.
    #[must_use]
    pub fn features_for_interval(&self, fraction: f64, bootstrap: &Bootstrap) -> Interval<Option<usize>> {
        let or_most = |n: &Option<usize>| n.unwrap_or(usize::MAX);
        self.interval(bootstrap, |a, b| or_most(a).cmp(&or_most(b)), &|means| self.features_of(means, fraction))
    }

    /// Mean KL of each point, over all prompts or the ones drawn.
    fn means(&self, drawn: Option<&[usize]>) -> Vec<f64> {
        let of = |point: &Evaluation| {
            drawn.map_or_else(|| point.mean_kl(), |drawn| mean(drawn.iter().map(|&i| point.kl[i])))
        };
        self.points.iter().map(of).collect()
    }

    fn area_of(&self, means: &[f64], axis: CountAxis, up_to: usize) -> f64 {
        assert!(up_to > 0, "an area up to no feature");
        let end = axis.of(up_to);
        let ends = self.points.iter().map(|point| axis.of(point.n_features)).chain([f64::INFINITY]).skip(1);
        let mut area = 0.0;
        for (i, right) in ends.enumerate() {
            let left = axis.of(self.points[i].n_features).min(end);
            let width = right.min(end) - left;
            // Flat beyond the last point; cut where a segment crosses `up_to`.
            let next =
                means.get(i + 1).map_or(means[i], |next| means[i] + (next - means[i]) * (width / (right - left)));
            if width > 0.0 {
                area += width * f64::midpoint(means[i], next);
            }
        }
        if means[0] > 0.0 { area / (end * means[0]) } else { 0.0 }
    }

    fn features_of(&self, means: &[f64], fraction: f64) -> Option<usize> {
        let enough = means.iter().position(|kl| *kl <= (1.0 - fraction) * means[0]);
        enough.map(|i| self.points[i].n_features)
    }

    fn interval<T: Copy>(
        &self,
        bootstrap: &Bootstrap,
        order: impl Fn(&T, &T) -> std::cmp::Ordering,
        statistic: &dyn Fn(&[f64]) -> T,
    ) -> Interval<T> {
        assert!(bootstrap.resamples > 0, "a bootstrap of no resamples");
        let n = self.points[0].kl.len();
        let mut rng = ChaCha8Rng::seed_from_u64(bootstrap.seed);
        let mut resample = || {
            let drawn: Vec<usize> = (0..n).map(|_| rng.random_range(0..n)).collect();
            statistic(&self.means(Some(&drawn)))
        };
        let mut values: Vec<T> = (0..bootstrap.resamples).map(|_| resample()).collect();
        values.sort_by(order);
        let outside = (1.0 - bootstrap.level) / 2.0 * (values.len() - 1) as f64;
        let low = outside.floor() as usize;
        Interval { value: statistic(&self.means(None)), low: values[low], high: values[values.len() - 1 - low] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 200, level: 0.95, seed: 0 };

    fn point(n_features: usize, kl: &[f64]) -> Evaluation {
        let zeros = vec![0.0; kl.len()];
        Evaluation { n_features, kl: kl.to_vec(), logit_diff: zeros.clone(), edit_norm: zeros }
    }

    #[test]
    fn areas_by_hand() {
        let curve = Curve::new(point(0, &[2.0]), [point(4, &[0.0]), point(2, &[1.0])]);
        // A straight line from 1 to 0 over half the axis, then nothing.
        assert!((curve.area(CountAxis::Linear, 8) - 0.25).abs() < 1e-12);
        // Cut in the middle of a segment.
        assert!((curve.area(CountAxis::Linear, 1) - 0.875).abs() < 1e-12);
        let flat = Curve::new(point(0, &[2.0]), [point(10, &[2.0])]);
        assert!((flat.area(CountAxis::Log, 100) - 1.0).abs() < 1e-12);
        assert!(curve.area(CountAxis::Log, 8) < 1.0);
        assert_eq!(Curve::new(point(0, &[0.0]), []).area(CountAxis::Log, 3), 0.0);
    }

    #[test]
    fn counts_for_a_fraction() {
        let curve =
            Curve::new(point(0, &[2.0, 4.0]), [point(3, &[1.0, 2.0]), point(1, &[2.0, 3.0]), point(9, &[0.5, 1.0])]);
        assert_eq!(curve.features_for(0.0), Some(0));
        assert_eq!(curve.features_for(0.5), Some(3));
        assert_eq!(curve.features_for(0.75), Some(9));
        assert_eq!(curve.features_for(0.9), None);
        let interval = curve.features_for_interval(0.2, &BOOTSTRAP);
        assert_eq!((interval.value, interval.low, interval.high), (Some(3), Some(1), Some(3)));
        let area = curve.area_interval(CountAxis::Log, 9, &BOOTSTRAP);
        assert!(area.low <= area.value && area.value <= area.high);
        assert_eq!(area, curve.area_interval(CountAxis::Log, 9, &BOOTSTRAP));
    }

    #[test]
    #[should_panic(expected = "evaluated on 2 prompts, the unpatched on 1")]
    fn curves_are_of_one_set_of_prompts() {
        let _ = Curve::new(point(0, &[1.0]), [point(1, &[1.0, 2.0])]);
    }
}
