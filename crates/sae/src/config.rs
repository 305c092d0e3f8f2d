use monosem_bf16::Precision;
use serde::{Deserialize, Serialize};

use crate::family::Selection;
use crate::{Family, StepParams};

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

/// The auxiliary loss that brings dead latents back (arXiv 2406.04093, section 2.3 and appendix A.2): the k largest codes of *dead* latents reconstruct what the
/// others left over, `coefficient * mse(x - x_hat, W_decᵀ c_dead)`; the residual itself has no gradient through it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuxK {
    /// Dead latents that take part in a row (the paper: a power of two near `d_in / 2`).
    pub k: usize,
    /// Factor of the auxiliary loss (the paper: 1/32).
    pub coefficient: f32,
}

/// How weights begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Rows of the encoder in random directions; those of a decoder of its own in the same ones.
    #[default]
    Aligned,
    /// As the planted experiments of the code of arXiv 2309.08600 begin: the decoder's rows are those of a random matrix whose rows or columns, whichever are fewer,
    /// are orthogonal; encoder and encoder's bias are uniform within `1 / sqrt(d_in)`. For families with a decoder of their own.
    Orthogonal,
}

/// When to stop before the last step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Steps between measurements of the FVU on held-out rows.
    pub every: u64,
    /// Measurements in a row without an improvement after which training stops.
    pub patience: u32,
    /// What counts as an improvement: a fall of the FVU below the best by more than this share of it.
    pub min_improvement: f32,
}

/// How a sparse autoencoder is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Which autoencoder.
    #[serde(default)]
    pub family: Family,
    /// Number of latents.
    pub n_latents: usize,
    /// Sparsity coefficient: the loss is the mean over rows **and dimensions** of `(x_hat - x)^2`, plus `alpha` times the mean over rows of the family's
    /// penalty (the sum of codes for L1, their number for L0). That is the scale of the paper's **code**; equation 4 of arXiv 2309.08600 taken literally has
    /// `alpha * d_in` in its place. 0 for the families without a penalty.
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
    /// Steps over which `alpha` rises linearly from 0 to its value; 0 for none.
    #[serde(default)]
    pub sparsity_warmup_steps: u64,
    /// Gradients whose Euclidean norm, over all parameters together, is above this are scaled down to it; none for no clipping.
    #[serde(default)]
    pub clip_norm: Option<f32>,
    /// Take from the gradient of a unit decoder row its part along the row, which the normalisation after the step would undo (Bricken et al. 2023); Adam then
    /// does not see it either.
    #[serde(default = "yes")]
    pub project_decoder_gradient: bool,
    /// A latent without an active code for this many steps is dead.
    #[serde(default = "default_dead_after")]
    pub dead_after_steps: u64,
    /// The auxiliary loss for dead latents; for families that choose the largest codes.
    #[serde(default)]
    pub aux_k: Option<AuxK>,
    /// Every so many steps dead latents begin anew in the direction of rows that are reconstructed badly (Bricken et al. 2023), up to half of all steps; 0
    /// for never.
    #[serde(default)]
    pub resample_every: u64,
    /// Stop when the FVU on held-out rows no longer falls; none to take all steps.
    #[serde(default)]
    pub early_stopping: Option<EarlyStopping>,
    /// How the weights begin.
    #[serde(default)]
    pub init: Init,
    /// Draws the initial weights.
    pub seed: u64,
}

pub(crate) fn yes() -> bool {
    true
}

fn default_dead_after() -> u64 {
    1000
}

impl Default for TrainConfig {
    /// A tied autoencoder by the paper's settings; `n_latents`, `alpha` and `steps` are 0 and left to choose.
    fn default() -> Self {
        Self {
            family: Family::default(),
            n_latents: 0,
            alpha: 0.0,
            lr: 1e-3,
            batch: 2048,
            steps: 0,
            adam: AdamMode::Standard,
            precision: Precision::F32,
            lr_warmup_steps: 0,
            lr_decay_steps: 0,
            sparsity_warmup_steps: 0,
            clip_norm: None,
            project_decoder_gradient: yes(),
            dead_after_steps: default_dead_after(),
            aux_k: None,
            resample_every: 0,
            early_stopping: None,
            init: Init::Aligned,
            seed: 0,
        }
    }
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
        if self.clip_norm.is_some_and(|norm| !(norm.is_finite() && norm > 0.0)) {
            return fail("clip_norm", format!("is {:?}, expected a number above 0", self.clip_norm));
        }
        let formula = self.family.formula();
        formula.validate(self)?;
        self.validate_revival(formula.selection() == Selection::Threshold)?;
        match self.early_stopping {
            Some(EarlyStopping { every: 0, .. }) => fail("early_stopping.every", "is 0, expected at least 1".into()),
            Some(EarlyStopping { patience: 0, .. }) => {
                fail("early_stopping.patience", "is 0, expected at least 1".into())
            }
            Some(EarlyStopping { min_improvement, .. }) if !(0.0..1.0).contains(&min_improvement) => {
                fail("early_stopping.min_improvement", format!("is {min_improvement}, expected 0 up to 1"))
            }
            _ => Ok(()),
        }
    }

    fn validate_revival(&self, thresholds: bool) -> Result<(), ConfigError> {
        let fail = |key, problem: String| Err(ConfigError { key, problem });
        if self.dead_after_steps == 0 {
            return fail("dead_after_steps", "is 0, expected at least 1".into());
        }
        if self.init == Init::Orthogonal && self.family.formula().layout().tied {
            let problem = format!(
                "is \"orthogonal\", which is for families with a decoder of their own, not for {}",
                self.family.name()
            );
            return fail("init", problem);
        }
        if self.resample_every > 0 && !thresholds {
            let problem = format!("is for families with a penalty; {} has aux_k", self.family.name());
            return fail("resample_every", problem);
        }
        let Some(AuxK { k, coefficient }) = self.aux_k else { return Ok(()) };
        if thresholds {
            let problem = format!("is for families that choose the largest codes, not for {}", self.family.name());
            return fail("aux_k", problem);
        }
        if k == 0 || k > self.n_latents {
            return fail("aux_k.k", format!("is {k}, expected 1 to n_latents ({})", self.n_latents));
        }
        if !(coefficient.is_finite() && coefficient >= 0.0) {
            return fail("aux_k.coefficient", format!("is {coefficient}, expected a number not below 0"));
        }
        Ok(())
    }

    /// Learning rate and sparsity of step `step` (the first is 0).
    #[must_use]
    pub fn schedule(&self, step: u64) -> StepParams {
        let share = |done: u64, of: u64| if of == 0 { 1.0 } else { (done as f64 / of as f64).min(1.0) };
        let rise = share(step + 1, self.lr_warmup_steps);
        let fall = share(self.steps.saturating_sub(step), self.lr_decay_steps);
        let alpha = f64::from(self.alpha) * share(step + 1, self.sparsity_warmup_steps);
        StepParams { lr: (f64::from(self.lr) * rise * fall) as f32, alpha: alpha as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchTopK, JumpRelu, Matryoshka, Relu, TopK};

    fn config() -> TrainConfig {
        TrainConfig {
            n_latents: 8,
            alpha: 1e-3,
            lr: 1e-2,
            batch: 4,
            steps: 100,
            lr_warmup_steps: 10,
            lr_decay_steps: 20,
            sparsity_warmup_steps: 50,
            ..TrainConfig::default()
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
        let alpha = |step| config().schedule(step).alpha;
        assert!((alpha(0) - 2e-5).abs() < 1e-10 && (alpha(24) - 5e-4).abs() < 1e-9);
        assert_eq!((alpha(49), alpha(99)), (1e-3, 1e-3));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert_eq!(config().validate(3), Ok(()));
        type Change = fn(&mut TrainConfig);
        let changes: [(&str, Change); 17] = [
            ("alpha", |c| c.alpha = -1e-3),
            ("alpha", |c| c.alpha = f32::NAN),
            ("lr", |c| c.lr = 0.0),
            ("n_latents", |c| c.n_latents = 0),
            ("n_latents", |c| c.n_latents = usize::MAX),
            ("lr_warmup_steps", |c| c.lr_warmup_steps = 81),
            ("clip_norm", |c| c.clip_norm = Some(0.0)),
            ("init", |c| c.init = Init::Orthogonal),
            ("subtract_decoder_bias", |c| {
                c.family = Family::Relu(Relu { subtract_decoder_bias: true, decoder_bias: false });
            }),
            ("dead_after_steps", |c| c.dead_after_steps = 0),
            ("aux_k", |c| c.aux_k = Some(AuxK { k: 4, coefficient: 0.1 })),
            ("aux_k.k", |c| {
                (c.family, c.alpha, c.aux_k) =
                    (Family::TopK(TopK { k: 4 }), 0.0, Some(AuxK { k: 9, coefficient: 0.1 }));
            }),
            ("alpha", |c| c.family = Family::TopK(TopK { k: 4 })),
            ("k", |c| (c.family, c.alpha) = (Family::TopK(TopK { k: 9 }), 0.0)),
            ("k", |c| (c.family, c.alpha) = (Family::BatchTopK(BatchTopK { k: 0 }), 0.0)),
            ("prefixes", |c| {
                (c.family, c.alpha) = (Family::Matryoshka(Matryoshka { k: 2, prefixes: vec![4, 4, 8] }), 0.0);
            }),
            ("bandwidth", |c| c.family = Family::JumpRelu(JumpRelu { bandwidth: 0.0, initial_threshold: 0.1 })),
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
        json["family"] = serde_json::json!({ "kind": "top-k", "k": 3, "kk": 4 });
        assert!(serde_json::from_value::<TrainConfig>(json.clone()).unwrap_err().to_string().contains("kk"));
        json["family"] = serde_json::json!({ "kind": "matryoshka", "k": 3, "prefixes": [2, 8] });
        let family = serde_json::from_value::<TrainConfig>(json.clone()).unwrap().family;
        assert_eq!(family, Family::Matryoshka(Matryoshka { k: 3, prefixes: vec![2, 8] }));
        json["l1"] = 1.into();
        assert!(serde_json::from_value::<TrainConfig>(json).unwrap_err().to_string().contains("l1"));
    }
}
