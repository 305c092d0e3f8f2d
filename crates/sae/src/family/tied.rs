//! The tied ReLU-L1 autoencoder of "Sparse Autoencoders Find Highly Interpretable Features in Language Models"
//! (arXiv 2309.08600, section 2): unit directions `D = E / max(|E_row|, 1e-8)`, differentiated through; codes `c = ReLU(D x + b)`;
//! reconstruction `x_hat = Dᵀ c`, without a decoder bias; `mse + alpha * mean over rows of sum(c)`.

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use super::{Formula, Layout};
use crate::{ConfigError, TrainConfig};

/// The tied autoencoder has no settings of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tied {}

impl Formula for Tied {
    fn layout(&self) -> Layout {
        Layout { tied: true, decoder_bias: false, subtract_decoder_bias: false, ..Layout::UNTIED }
    }

    fn validate(&self, _config: &TrainConfig) -> Result<(), ConfigError> {
        Ok(())
    }

    fn activation(&self) -> Activation {
        Activation::Relu
    }
}
