use monosem_bf16::Precision;
use serde::{Deserialize, Serialize};

use crate::StepParams;

/// How Adam counts its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdamMode {
    /// As published (arXiv 1412.6980).
    #[default]
    Standard,
    /// As the code of arXiv 2309.08600 ran it: the step count stays 0, so that the bias correction is that of the first step for ever. The
    /// moments persist. A step tends to 0.316 of what Adam would take, after a transient of about twice it around steps 10 to 30.
    Paper,
}

/// How a sparse autoencoder is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Number of latents.
    pub n_latents: usize,
    /// L1 coefficient on the scale of the paper's **code**: the loss is the mean over rows **and dimensions** of `(x_hat - x)^2`, plus
    /// `alpha` times the mean over rows of the sum of codes. Equation 4 of arXiv 2309.08600 taken literally has `alpha * d_in` in its place.
    pub alpha: f32,
    /// Adam's learning rate (the paper: 1e-3).
    pub lr: f32,
    /// Rows in a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
    /// Adam as published, or as the paper's code ran it.
    pub adam: AdamMode,
    /// What the encoder is computed in. In bf16 it only finds which codes may be active; those are computed again in `f32`, so that a code differs from
    /// that of `f32` only where it is too small to be told from 0 in bf16. Everything else is `f32`.
    #[serde(default)]
    pub precision: Precision,
    /// Steps over which the learning rate rises linearly to `lr`; 0 for none.
    pub lr_warmup_steps: u64,
    /// Last steps, over which the learning rate falls linearly towards 0; 0 for none.
    pub lr_decay_steps: u64,
    /// Draws the initial weights.
    pub seed: u64,
}

/// A setting that cannot be trained with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key} {problem}")]
pub struct ConfigError {
    /// Which setting.
    pub key: &'static str,
    /// What is wrong with it, and what was expected.
    pub problem: String,
}

impl TrainConfig {
    /// Checks the settings for activations `d_in` wide.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn validate(&self, d_in: usize) -> Result<(), ConfigError> {
        let fail = |key, problem: String| Err(ConfigError { key, problem });
        let positive = [("d_in", d_in), ("n_latents", self.n_latents), ("batch", self.batch)];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return fail(key, "is 0, expected at least 1".into());
        }
        let weights = self.n_latents.checked_mul(d_in).filter(|n| *n <= isize::MAX as usize / 4);
        if weights.is_none() || u32::try_from(self.n_latents).is_err() {
            return fail("n_latents", format!("is {}, too many for this machine", self.n_latents));
        }
        if !(self.alpha.is_finite() && self.alpha >= 0.0) {
            return fail("alpha", format!("is {}, expected a number not below 0", self.alpha));
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return fail("lr", format!("is {}, expected a number above 0", self.lr));
        }
        if self.lr_warmup_steps.saturating_add(self.lr_decay_steps) > self.steps {
            let problem = format!(
                "is {} and lr_decay_steps is {}: together more than steps ({})",
                self.lr_warmup_steps, self.lr_decay_steps, self.steps
            );
            return fail("lr_warmup_steps", problem);
        }
        Ok(())
    }

    /// Learning rate and sparsity of step `step` (the first is 0).
    #[must_use]
    pub fn schedule(&self, step: u64) -> StepParams {
        let share = |done: u64, of: u64| if of == 0 { 1.0 } else { (done as f64 / of as f64).min(1.0) };
        let rise = share(step + 1, self.lr_warmup_steps);
        let fall = share(self.steps.saturating_sub(step), self.lr_decay_steps);
        StepParams { lr: (f64::from(self.lr) * rise * fall) as f32, alpha: self.alpha }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> TrainConfig {
        TrainConfig {
            n_latents: 8,
            alpha: 1e-3,
            lr: 1e-2,
            batch: 4,
            steps: 100,
            adam: AdamMode::Standard,
            precision: Precision::F32,
            lr_warmup_steps: 10,
            lr_decay_steps: 20,
            seed: 0,
        }
    }

    #[test]
    fn the_learning_rate_rises_stays_and_falls() {
        let lr = |step| config().schedule(step).lr;
        assert!((lr(0) - 1e-3).abs() < 1e-8);
        assert!((lr(4) - 5e-3).abs() < 1e-8);
        assert_eq!((lr(9), lr(50), lr(80)), (1e-2, 1e-2, 1e-2));
        assert!((lr(90) - 5e-3).abs() < 1e-8);
        assert!((lr(99) - 5e-4).abs() < 1e-8);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert_eq!(config().validate(3), Ok(()));
        type Change = fn(&mut TrainConfig);
        let changes: [(&str, Change); 6] = [
            ("alpha", |c| c.alpha = -1e-3),
            ("alpha", |c| c.alpha = f32::NAN),
            ("lr", |c| c.lr = 0.0),
            ("n_latents", |c| c.n_latents = 0),
            ("n_latents", |c| c.n_latents = usize::MAX),
            ("lr_warmup_steps", |c| c.lr_warmup_steps = 81),
        ];
        for (key, change) in changes {
            let mut config = config();
            change(&mut config);
            assert_eq!(config.validate(3).unwrap_err().key, key);
        }
        assert_eq!(config().validate(0).unwrap_err().key, "d_in");
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let mut json = serde_json::to_value(config()).unwrap();
        assert_eq!(serde_json::from_value::<TrainConfig>(json.clone()).unwrap(), config());
        json["l1"] = 1.into();
        assert!(serde_json::from_value::<TrainConfig>(json).unwrap_err().to_string().contains("l1"));
    }
}
