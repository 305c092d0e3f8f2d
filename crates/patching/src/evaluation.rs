use ndarray::{Array1, ArrayView1};
use serde::{Deserialize, Serialize};

/// What patching a set of features does, prompt by prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Features in the set.
    pub n_features: usize,
    /// `KL(patched || target)` of the next-token distributions at the last position, in nats.
    pub kl: Vec<f64>,
    /// `ln P(target answers) - ln P(answers)` at the last position, a difference of logits where each is one token: above zero where the
    /// counterfactual's answer has overtaken the prompt's.
    pub logit_diff: Vec<f64>,
    /// `||x' - x||`, mean over the patched positions, in units of the activations.
    pub edit_norm: Vec<f64>,
}

impl Evaluation {
    pub(crate) fn new(n_features: usize, outcomes: &[Outcome]) -> Self {
        Self {
            n_features,
            kl: outcomes.iter().map(|o| o.kl).collect(),
            logit_diff: outcomes.iter().map(|o| o.logit_diff).collect(),
            edit_norm: outcomes.iter().map(|o| o.edit_norm).collect(),
        }
    }

    /// Mean over prompts of [`Self::kl`].
    #[must_use]
    pub fn mean_kl(&self) -> f64 {
        mean(self.kl.iter().copied())
    }

    /// Mean over prompts of [`Self::logit_diff`].
    #[must_use]
    pub fn mean_logit_diff(&self) -> f64 {
        mean(self.logit_diff.iter().copied())
    }

    /// Mean over prompts of [`Self::edit_norm`].
    #[must_use]
    pub fn mean_edit_norm(&self) -> f64 {
        mean(self.edit_norm.iter().copied())
    }
}

/// Zero of nothing.
pub(crate) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

/// What a patch does to one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Outcome {
    pub(crate) kl: f64,
    pub(crate) logit_diff: f64,
    pub(crate) edit_norm: f64,
}

/// A next-token distribution.
pub(crate) struct Distribution {
    /// Probabilities.
    p: Vec<f64>,
    /// Their logarithms.
    log_p: Vec<f64>,
}

impl Distribution {
    pub(crate) fn of(logits: ArrayView1<'_, f32>) -> Self {
        let (largest, mut p) = exponentials(logits);
        let total: f64 = p.iter().sum();
        let shift = largest + total.ln();
        p.iter_mut().for_each(|p| *p /= total);
        Self { p, log_p: logits.iter().map(|logit| f64::from(*logit) - shift).collect() }
    }

    /// The probabilities.
    pub(crate) fn p(&self) -> &[f64] {
        &self.p
    }

    /// Logarithms of the probabilities.
    pub(crate) fn log_p(&self) -> &[f64] {
        &self.log_p
    }

    /// `KL(self || other) = sum p (ln p - ln q)`, in nats. Exactly zero where the two are the same.
    pub(crate) fn kl(&self, other: &Self) -> f64 {
        let terms = self.p.iter().zip(&self.log_p).zip(&other.log_p);
        let sum: f64 = terms.map(|((p, log_p), log_q)| p * (log_p - log_q)).sum();
        // Below zero only by rounding. What is not a number stays so: `max` would make the best KL of it.
        if sum < 0.0 { 0.0 } else { sum }
    }

    /// The derivative of [`Self::kl`] with respect to the logits behind `self`: `p (ln p - ln q - KL)`.
    pub(crate) fn d_kl(&self, other: &Self) -> Array1<f32> {
        let kl = self.kl(other);
        let terms = self.p.iter().zip(&self.log_p).zip(&other.log_p);
        terms.map(|((p, log_p), log_q)| (p * (log_p - log_q - kl)) as f32).collect()
    }
}

/// The largest logit, and `exp(logit - largest)`.
fn exponentials(logits: ArrayView1<'_, f32>) -> (f64, Vec<f64>) {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    (largest, logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).collect())
}

/// `ln P(a) - ln P(b)` of two sets of tokens: the difference of the logits where each is one token.
pub(crate) fn log_odds(logits: ArrayView1<'_, f32>, a: &[u32], b: &[u32]) -> f64 {
    let log_sum = |tokens: &[u32]| {
        let of = |token: &u32| f64::from(logits[*token as usize]);
        if let [token] = tokens {
            return of(token);
        }
        let largest = tokens.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        largest + tokens.iter().map(|token| (of(token) - largest).exp()).sum::<f64>().ln()
    };
    log_sum(a) - log_sum(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of<const N: usize>(logits: [f32; N]) -> Distribution {
        Distribution::of(Array1::from(logits.to_vec()).view())
    }

    proptest! {
        #[test]
        fn kl_is_zero_of_itself_and_never_negative(p in prop::array::uniform5(-30f32..30.0), q in prop::array::uniform5(-30f32..30.0)) {
            let [p, q] = [of(p), of(q)];
            prop_assert!((p.p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert!(p.p.iter().zip(p.log_p()).all(|(p, log_p)| (p - log_p.exp()).abs() < 1e-12));
            prop_assert_eq!(p.kl(&p), 0.0);
            prop_assert!(p.kl(&q) >= 0.0);
        }

        #[test]
        fn log_odds_are_those_of_the_probabilities(logits in prop::array::uniform5(-9f32..9.0)) {
            let p = of(logits).p;
            let got = log_odds(Array1::from(logits.to_vec()).view(), &[0, 3], &[4, 1, 2]);
            prop_assert!((got - ((p[0] + p[3]) / (p[4] + p[1] + p[2])).ln()).abs() < 1e-9);
        }
    }

    #[test]
    fn kl_of_what_is_no_number_is_none() {
        assert!(of([f32::NAN, 0.0]).kl(&of([0.5, 0.5])).is_nan());
    }

    #[test]
    fn kl_of_two_coins() {
        let [p, q] = [of([0.0, 0.0]), of([3.0_f32.ln(), 0.0])];
        let expected = 0.5 * (0.5_f64 / 0.75).ln() + 0.5 * (0.5_f64 / 0.25).ln();
        assert!((p.kl(&q) - expected).abs() < 1e-7);
    }
}
