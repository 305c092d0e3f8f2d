//! Synthetic activations made from known features: the toy data of the code behind arXiv 2309.08600, after Sharkey, Braun and Millidge,
//! "Taking features out of superposition with sparse autoencoders" (2022).

use ndarray::{Array2, ArrayView2};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::init::gaussian;

/// Which synthetic data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlantedConfig {
    /// Width of the data (the paper's code: 256).
    pub d_in: usize,
    /// Number of true features G (512).
    pub n_features: usize,
    /// Mean number of features active in a row (5); without correlation this is before the decay is applied, as in the paper's code: with G 512
    /// and decay 0.99 only 0.97 are active.
    pub mean_active: f64,
    /// The probability of feature i is proportional to this to the power i (0.99).
    pub decay: f64,
    /// Without: feature i is active with probability `decay^i mean_active / G`, each on its own. With: for each batch one draw z of a
    /// multivariate normal distribution gives `P_i ∝ Phi(z_i) decay^i`, scaled to a mean of `mean_active / G`, and a row without active features
    /// gets one, of value 1.
    pub correlated: bool,
    /// Multiplies each strength (uniform in 0..1) by a second draw of the same kind, as the later versions of the code do.
    pub second_strength: bool,
    /// Standard deviation of Gaussian noise added to every value.
    pub noise: f32,
    /// Draws the features, the covariance and every sample.
    pub seed: u64,
}

/// Data with planted features; samples are addressed by index, so that a run can start anywhere.
#[derive(Debug, Clone)]
pub struct Planted {
    /// The true features `[n_features, d_in]`, rows of unit length.
    pub features: Array2<f32>,
    config: PlantedConfig,
    /// Lower triangular factor of the covariance, where features are correlated.
    factor: Option<Array2<f64>>,
}

impl Planted {
    /// Draws the features and, if `correlated`, their covariance: `(A + Aᵀ) / 2` with A uniform in 0..1, its diagonal raised by 1.001 times the
    /// smallest eigenvalue if that is negative.
    #[must_use]
    pub fn new(config: PlantedConfig) -> Self {
        let factor = config.correlated.then(|| {
            let mut rng = stream(config.seed, 1);
            let a = Array2::from_shape_simple_fn([config.n_features; 2], || rng.random::<f64>());
            positive_definite_factor(&((&a + &a.t()) * 0.5))
        });
        Self::assemble(config, factor)
    }

    /// As [`Self::new`] with `correlated`, but with a covariance `[n_features, n_features]` of the caller's; the identity makes the features
    /// of a batch independent of each other, with probabilities that still change from batch to batch.
    ///
    /// # Panics
    /// If the covariance is of another size.
    #[must_use]
    pub fn with_covariance(config: PlantedConfig, covariance: ArrayView2<'_, f64>) -> Self {
        let n = config.n_features;
        assert_eq!(covariance.dim(), (n, n), "covariance {:?} of {n} features", covariance.dim());
        let factor = positive_definite_factor(&covariance.to_owned());
        Self::assemble(PlantedConfig { correlated: true, ..config }, Some(factor))
    }

    fn assemble(config: PlantedConfig, factor: Option<Array2<f64>>) -> Self {
        let mut rng = stream(config.seed, 0);
        let mut features = Array2::from_shape_simple_fn((config.n_features, config.d_in), || gaussian(&mut rng) as f32);
        for mut row in features.rows_mut() {
            let norm = row.dot(&row).sqrt().max(f32::MIN_POSITIVE);
            row /= norm;
        }
        Self { features, config, factor }
    }

    /// Rows `[n, d_in]` of batch `index`. The same index and n give the same rows; different indices are independent draws.
    #[must_use]
    pub fn sample(&self, index: u64, n: usize) -> Array2<f32> {
        let PlantedConfig { d_in, n_features, correlated, second_strength, noise, seed, .. } = self.config;
        let mut rng = stream(seed, index.wrapping_add(2));
        let probabilities = self.probabilities(&mut rng);
        let mut rows = Array2::zeros((n, d_in));
        for mut row in rows.rows_mut() {
            let mut empty = true;
            let mut add = |i: usize, value: f32, rng: &mut ChaCha8Rng| {
                let value = if second_strength { value * rng.random::<f32>() } else { value };
                row.scaled_add(value, &self.features.row(i));
            };
            for (i, probability) in probabilities.iter().enumerate() {
                if rng.random::<f32>() < *probability {
                    empty = false;
                    let value = rng.random();
                    add(i, value, &mut rng);
                }
            }
            if empty && correlated && n_features > 0 {
                let i = rng.random_range(0..n_features);
                add(i, 1.0, &mut rng);
            }
            if noise != 0.0 {
                row.iter_mut().for_each(|value| *value += noise * gaussian(&mut rng) as f32);
            }
        }
        rows
    }

    /// Of each feature, that it is active in a row of this batch.
    fn probabilities(&self, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let PlantedConfig { n_features, mean_active, decay, .. } = self.config;
        let mean = mean_active / n_features as f64;
        let decayed = (0..n_features).map(|i| decay.powf(i as f64));
        let Some(factor) = &self.factor else { return decayed.map(|p| (p * mean) as f32).collect() };
        let normal: Vec<f64> = (0..n_features).map(|_| gaussian(rng)).collect();
        let correlated = factor.rows().into_iter().map(|row| row.iter().zip(&normal).map(|(l, z)| l * z).sum::<f64>());
        let raw: Vec<f64> = correlated.zip(decayed).map(|(z, decay)| normal_cdf(z) * decay).collect();
        let scale = mean * n_features as f64 / raw.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        raw.iter().map(|p| (p * scale) as f32).collect()
    }
}

fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// The normal distribution function, within 1e-7 (Abramowitz and Stegun, 7.1.26).
fn normal_cdf(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let polynomial = [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let tail = 0.5 * polynomial.iter().fold(0.0, |sum, c| (sum + c) * t) * (-x * x).exp();
    if z < 0.0 { tail } else { 1.0 - tail }
}

/// The lower triangular factor of `symmetric`, its diagonal raised as far as needed.
fn positive_definite_factor(symmetric: &Array2<f64>) -> Array2<f64> {
    if let Some(factor) = cholesky(symmetric, 0.0) {
        return factor;
    }
    // Minus the smallest eigenvalue is the smallest raise that leaves a factor. No eigenvalue lies below minus the largest row sum.
    let (mut low, mut high) =
        (0.0, symmetric.rows().into_iter().map(|row| row.iter().map(|v| v.abs()).sum()).fold(1e-6, f64::max));
    while high - low > 1e-4 * high {
        let middle = 0.5 * (low + high);
        if cholesky(symmetric, middle).is_some() { high = middle } else { low = middle }
    }
    cholesky(symmetric, 1.001 * high).unwrap_or_else(|| Array2::eye(symmetric.nrows()))
}

fn cholesky(symmetric: &Array2<f64>, raise: f64) -> Option<Array2<f64>> {
    let n = symmetric.nrows();
    let mut factor = Array2::<f64>::zeros((n, n));
    for i in 0..n {
        for j in 0..=i {
            let done: f64 = (0..j).map(|k| factor[[i, k]] * factor[[j, k]]).sum();
            let rest = symmetric[[i, j]] - done;
            if i == j {
                let rest = rest + raise;
                if rest <= 0.0 {
                    return None;
                }
                factor[[i, i]] = rest.sqrt();
            } else {
                factor[[i, j]] = rest / factor[[j, j]];
            }
        }
    }
    Some(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(correlated: bool) -> PlantedConfig {
        PlantedConfig {
            d_in: 8,
            n_features: 40,
            mean_active: 5.0,
            decay: 0.95,
            correlated,
            second_strength: false,
            noise: 0.0,
            seed: 3,
        }
    }

    #[test]
    fn samples_are_addressed_by_index() {
        for correlated in [false, true] {
            let data = Planted::new(config(correlated));
            assert_eq!(data.sample(7, 20), Planted::new(config(correlated)).sample(7, 20));
            assert_ne!(data.sample(7, 20), data.sample(8, 20));
            assert!(data.features.rows().into_iter().all(|f| (f.dot(&f) - 1.0).abs() < 1e-5));
        }
    }

    /// Features that are the axes, so that a row shows which are active.
    fn active_per_row(correlated: bool) -> (f64, usize) {
        let mut data = Planted::new(PlantedConfig { d_in: 40, ..config(correlated) });
        data.features = Array2::eye(40);
        let batches: Vec<Array2<f32>> = (0..40).map(|i| data.sample(i, 200)).collect();
        let active = batches.iter().flatten().filter(|v| **v > 0.0).count() as f64 / 8000.0;
        let empty =
            batches.iter().flat_map(|b| b.rows().into_iter().collect::<Vec<_>>()).filter(|r| r.sum() == 0.0).count();
        (active, empty)
    }

    #[test]
    fn as_many_features_are_active_as_asked_for() {
        // Without correlation the decay is not made up for: the sum of 0.95^i over 40, times 5 / 40.
        let (active, empty) = active_per_row(false);
        assert!((active - (1.0 - 0.95_f64.powi(40)) / 0.05 * 5.0 / 40.0).abs() < 0.1, "{active}");
        assert!(empty > 0);
        // With it the mean is 5, but for probabilities above 1 and rows that would be empty.
        let (active, empty) = active_per_row(true);
        assert!((active - 5.0).abs() < 0.3, "{active}");
        assert_eq!(empty, 0);
    }

    #[test]
    fn the_factor_is_that_of_the_raised_matrix() {
        let a = Array2::from_shape_fn((12, 12), |(i, j)| f64::from(((i * j + i + j) * 37 % 11) as u8) / 11.0);
        let symmetric = (&a + &a.t()) * 0.5;
        let factor = positive_definite_factor(&symmetric);
        let raised = factor.dot(&factor.t()) - &symmetric;
        let raise = raised[[0, 0]];
        assert!(raise > 0.0);
        assert!(raised.indexed_iter().all(|((i, j), v)| (v - if i == j { raise } else { 0.0 }).abs() < 1e-9));
        // Barely more than needed: a little less has no factor.
        assert!(cholesky(&symmetric, raise / 1.001 * 0.999).is_none());
    }

    #[test]
    fn the_distribution_function_is_the_normal_one() {
        for (z, p) in [(0.0, 0.5), (1.0, 0.841_344_7), (-1.96, 0.024_997_9), (3.0, 0.998_650_1)] {
            assert!((normal_cdf(z) - p).abs() < 2e-7, "{z}");
        }
    }
}
