use ndarray::ArrayView1;
use serde::{Deserialize, Serialize};

/// What patching a set of features does, prompt by prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Features in the set.
    pub n_features: usize,
    /// `KL(patched || target)` of the next-token distributions at the last position, in nats.
    pub kl: Vec<f64>,
    /// `logit(third) - logit(IO)` at the last position: above zero where the counterfactual's answer has overtaken the prompt's.
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

/// Logarithms of the probabilities, in `f64`.
pub(crate) fn log_softmax(logits: ArrayView1<'_, f32>) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    let shift = largest + total.ln();
    logits.iter().map(|logit| f64::from(*logit) - shift).collect()
}

/// `KL(p || q) = sum p (ln p - ln q)` of log-probabilities, in nats. Exactly zero where `p` is `q`.
pub(crate) fn kl(p: &[f64], q: &[f64]) -> f64 {
    let sum: f64 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
    // Below zero only by rounding. What is not a number stays so: `max` would make the best KL of it.
    if sum < 0.0 { 0.0 } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, array};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn kl_is_zero_of_itself_and_never_negative(p in prop::collection::vec(-30f32..30.0, 5), q in prop::collection::vec(-30f32..30.0, 5)) {
            let [p, q] = [p, q].map(|logits| log_softmax(Array1::from(logits).view()));
            prop_assert!((p.iter().map(|l| l.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert_eq!(kl(&p, &p), 0.0);
            prop_assert!(kl(&p, &q) >= 0.0);
        }
    }

    #[test]
    fn kl_of_what_is_no_number_is_none() {
        assert!(kl(&[f64::NAN, 0.0], &[0.5, 0.5]).is_nan());
    }

    #[test]
    fn kl_of_two_coins() {
        let p = log_softmax(array![0.0_f32, 0.0].view());
        let q = log_softmax(array![3.0_f32.ln(), 0.0].view());
        let expected = 0.5 * (0.5_f64 / 0.75).ln() + 0.5 * (0.5_f64 / 0.25).ln();
        assert!((kl(&p, &q) - expected).abs() < 1e-7);
    }
}
