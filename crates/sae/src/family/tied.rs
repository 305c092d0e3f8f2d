//! The tied ReLU-L1 autoencoder of "Sparse Autoencoders Find Highly Interpretable Features in Language Models"
//! (arXiv 2309.08600, section 2): unit directions `D = E / max(|E_row|, 1e-8)`, differentiated through; codes `c = ReLU(D x + b)`;
//! reconstruction `x_hat = Dᵀ c`, without a decoder bias; `mse + alpha * mean over rows of sum(c)`.

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use super::{Dots, Entries, Formula, Layout, MAX_EXTRAS, relu_codes, relu_gradients};
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

    fn codes(&self, entries: Entries<'_>, codes: &mut [f32], _second: &mut [f32]) -> f64 {
        relu_codes(entries, codes)
    }

    fn gradients(&self, entries: Entries<'_>, dots: Dots<'_>, deltas: &mut [f32], _extras: [&mut [f32]; MAX_EXTRAS]) {
        relu_gradients(entries, dots.first, dots.penalty, deltas);
    }

    fn activation(&self) -> Activation {
        Activation::Relu
    }
}
