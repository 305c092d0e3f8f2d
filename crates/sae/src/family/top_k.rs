//! The TopK autoencoder of "Scaling and Evaluating Sparse Autoencoders" (Gao et al. 2024, arXiv 2406.04093):
//! `c = TopK(ReLU(W_enc (x - b_dec) + b_enc))`, `x_hat = W_decᵀ c + b_dec`, decoder rows of length 1; the loss is `mse`, and k takes the place of a penalty.
//! Dead latents come back by [`AuxK`](crate::AuxK), which the same paper introduced.

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use super::{Formula, Layout, Selection, k_within, no_alpha};
use crate::{ConfigError, TrainConfig};

/// Settings of the TopK autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// How many codes of a row are active at most (fewer where fewer pre-activations are positive).
    pub k: usize,
}

impl Formula for TopK {
    fn layout(&self) -> Layout {
        Layout::UNTIED
    }

    fn validate(&self, config: &TrainConfig) -> Result<(), ConfigError> {
        no_alpha("top-k", config)?;
        k_within(self.k, config)
    }

    fn selection(&self) -> Selection {
        Selection::TopK(self.k)
    }

    fn activation(&self) -> Activation {
        Activation::TopK { k: self.k }
    }
}
