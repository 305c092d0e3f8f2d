use ndarray::Array2;

use crate::ExampleRef;

/// The texts that features are explained and scored on, one fragment to a row; examples name a fragment by its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragments {
    /// Token ids `[n, length]`.
    pub tokens: Array2<u32>,
    /// The document that each fragment is from `[n]`.
    pub documents: Vec<u32>,
}

impl Fragments {
    /// The examples together with their tokens.
    ///
    /// # Panics
    /// If an example is of a fragment that is not here, or `tokens` is not in standard layout.
    pub fn examples<'a>(&'a self, examples: &'a [Example]) -> Vec<ExampleRef<'a>> {
        let with_tokens = |example: &'a Example| {
            let (row, n) = (example.fragment as usize, self.tokens.nrows());
            assert!(row < n, "an example of fragment {row}, but there are {n}");
            let tokens = self.tokens.row(row).to_slice().expect("tokens in standard layout");
            ExampleRef { tokens, activations: &example.activations }
        };
        examples.iter().map(with_tokens).collect()
    }

    /// The tokens of a fragment.
    ///
    /// # Panics
    /// As [`Self::examples`].
    pub fn tokens_of(&self, fragment: u32) -> &[u32] {
        self.tokens.row(fragment as usize).to_slice().expect("tokens in standard layout")
    }
}

/// What one feature does on one fragment.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Row of the fragment in [`Fragments`].
    pub fragment: u32,
    /// Activations, negative ones set to 0, at the last positions of the fragment.
    pub activations: Vec<f32>,
}

/// A fragment on which a feature is as good as silent: its maximum was looked up, not assumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quiet {
    /// Row of the fragment in [`Fragments`].
    pub fragment: u32,
    /// The most that the feature reaches there; negative activations count as 0.
    pub max: f32,
}

/// All that is kept of one feature.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureExamples {
    /// The feature's number, as given to the gatherer.
    pub feature: usize,
    /// Explained from these: the strongest fragments by falling maximum, then random ones.
    pub explain: Vec<Example>,
    /// Scored on these: strong fragments, by falling maximum.
    pub score_top: Vec<Example>,
    /// Scored on these as well: random fragments on which the feature is active, none of them among the strong ones.
    pub score_random: Vec<Example>,
    /// Random fragments of the side to score on where the feature is quiet (see [`crate::GatherConfig::quiet_below`]).
    pub quiet: Vec<Quiet>,
    /// Moments over all tokens seen.
    pub moments: Moments,
    /// Whether there are as many examples as asked for to score on, and the least number to explain from. A feature without is
    /// unscored: its examples are there, but its score would be on other terms than the rest.
    pub enough: bool,
}

/// Moments of a feature's activations (negative ones set to 0) over all tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moments {
    /// Number of tokens.
    pub n: u64,
    /// Number of tokens on which the feature is active.
    pub nonzero: u64,
    /// The largest activation; 0 if there is none.
    pub max: f32,
    /// Sums of the first four powers.
    power_sums: [f64; 4],
}

impl Moments {
    /// Adds activations; those below 0 count as 0.
    pub fn add(&mut self, activations: &[f32]) {
        self.n += activations.len() as u64;
        for activation in activations.iter().filter(|activation| **activation > 0.0) {
            self.nonzero += 1;
            self.max = self.max.max(*activation);
            let c = f64::from(*activation);
            for (sum, power) in self.power_sums.iter_mut().zip([c, c * c, c * c * c, (c * c) * (c * c)]) {
                *sum += power;
            }
        }
    }

    /// Adds tokens on which the feature is silent.
    pub fn add_silent(&mut self, tokens: u64) {
        self.n += tokens;
    }

    /// `E c^k`; 0 without tokens.
    fn raw(&self, k: usize) -> f64 {
        if self.n == 0 { 0.0 } else { self.power_sums[k - 1] / self.n as f64 }
    }

    /// `E c`.
    pub fn mean(&self) -> f64 {
        self.raw(1)
    }

    /// `E c^2 - (E c)^2`.
    pub fn variance(&self) -> f64 {
        (self.raw(2) - self.raw(1).powi(2)).max(0.0)
    }

    /// `E c^3 / var^1.5`, not centred (table 2 of arXiv 2309.08600); `None` if the feature never varies.
    pub fn skew(&self) -> Option<f64> {
        let variance = self.variance();
        (variance > 0.0).then(|| self.raw(3) / variance.powf(1.5))
    }

    /// `E (c - E c)^3 / var^1.5`; `None` if the feature never varies. Unlike [`Self::skew`], small for a feature that is active everywhere about as much.
    pub fn centred_skew(&self) -> Option<f64> {
        let (mean, variance) = (self.mean(), self.variance());
        let third = self.raw(3) - 3.0 * mean * self.raw(2) + 2.0 * mean.powi(3);
        (variance > 0.0).then(|| third / variance.powf(1.5))
    }

    /// `E c^4 / var^2`, not centred (table 2 of arXiv 2309.08600); `None` if the feature never varies.
    pub fn kurtosis(&self) -> Option<f64> {
        let variance = self.variance();
        (variance > 0.0).then(|| self.raw(4) / variance.powi(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_four_values() {
        let mut moments = Moments::default();
        assert_eq!((moments.mean(), moments.skew(), moments.kurtosis()), (0.0, None, None));
        moments.add(&[0.0, 2.0]);
        moments.add(&[0.0, 2.0]);
        assert_eq!((moments.n, moments.nonzero, moments.max), (4, 2, 2.0));
        assert_eq!((moments.mean(), moments.variance()), (1.0, 1.0));
        assert_eq!((moments.skew(), moments.kurtosis()), (Some(4.0), Some(8.0)));
        assert_eq!(moments.centred_skew(), Some(0.0));
        // Deviations -1, -1, -1 and 3 from a mean of 1.
        let mut uneven = Moments::default();
        assert_eq!(uneven.centred_skew(), None);
        uneven.add(&[4.0]);
        uneven.add_silent(3);
        let expected = (27.0 - 3.0) / 4.0 / 3.0_f64.powf(1.5);
        assert!((uneven.centred_skew().unwrap() - expected).abs() < 1e-12);
    }
}
