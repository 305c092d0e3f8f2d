//! The Matryoshka autoencoder of "Learning Multi-Level Features with Matryoshka Sparse Autoencoders" (Bussmann et al. 2025, arXiv 2503.17547):
//! codes are chosen as by BatchTopK; the loss is the mean over the prefixes `m` of `mse(x, W_dec[..m]ᵀ c[..m] + b_dec)`, so that the first latents learn to
//! reconstruct by themselves and stay general. (The paper takes the sum over the prefixes; with their mean, losses compare with those of other families.)

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use super::{Formula, Inference, Layout, PerLatent, Selection, k_within, no_alpha};
use crate::{ConfigError, TrainConfig};

/// Settings of the Matryoshka autoencoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matryoshka {
    /// Active codes of a row, on the mean over the batch.
    pub k: usize,
    /// Numbers of latents that reconstruct by themselves, ascending; the last is `n_latents`.
    pub prefixes: Vec<usize>,
}

/// Each prefix needs a residual of the batch.
const MAX_PREFIXES: usize = 16;

impl Formula for Matryoshka {
    fn layout(&self) -> Layout {
        Layout::UNTIED
    }

    fn validate(&self, config: &TrainConfig) -> Result<(), ConfigError> {
        no_alpha("matryoshka", config)?;
        k_within(self.k, config)?;
        let ascending = self.prefixes.first().is_some_and(|m| *m > 0) && self.prefixes.is_sorted_by(|a, b| a < b);
        if !ascending || self.prefixes.last() != Some(&config.n_latents) || self.prefixes.len() > MAX_PREFIXES {
            let problem = format!(
                "is {:?}, expected at most {MAX_PREFIXES} ascending numbers of latents, the last being n_latents ({})",
                self.prefixes, config.n_latents
            );
            return Err(ConfigError { key: "prefixes", problem });
        }
        Ok(())
    }

    fn selection(&self) -> Selection {
        Selection::BatchTopK(self.k)
    }

    fn prefixes(&self) -> &[usize] {
        &self.prefixes
    }

    fn inference(&self, of: PerLatent<'_>, j: usize, threshold: f32) -> Inference {
        Inference { gain: 1.0, bias: of.bias[j], threshold }
    }

    fn activation(&self) -> Activation {
        Activation::JumpRelu
    }
}
