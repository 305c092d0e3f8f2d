//! The BatchTopK autoencoder of "BatchTopK Sparse Autoencoders" (Bussmann et al. 2024, arXiv 2412.06410): the TopK autoencoder, but that the
//! `k * rows` largest codes of a whole batch are kept, so that a row may have more or fewer than k. After training a code is kept where it exceeds a threshold:
//! the mean over batches of the smallest code that was kept (section 3.1), a running mean here that forgets over [`REMEMBERED`] steps.

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use super::{Formula, Inference, Layout, PerLatent, Selection, k_within, no_alpha};
use crate::{ConfigError, TrainConfig};

/// Steps over which the running mean of the smallest code kept forgets.
pub(crate) const REMEMBERED: f32 = 100.0;

/// Settings of the BatchTopK autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchTopK {
    /// Active codes of a row, on the mean over the batch.
    pub k: usize,
}

impl Formula for BatchTopK {
    fn layout(&self) -> Layout {
        Layout::UNTIED
    }

    fn validate(&self, config: &TrainConfig) -> Result<(), ConfigError> {
        no_alpha("batch-top-k", config)?;
        k_within(self.k, config)
    }

    fn selection(&self) -> Selection {
        Selection::BatchTopK(self.k)
    }

    fn inference(&self, of: PerLatent<'_>, j: usize, threshold: f32) -> Inference {
        Inference { gain: 1.0, bias: of.bias[j], threshold }
    }

    fn activation(&self) -> Activation {
        Activation::JumpRelu
    }
}
