//! The ReLU-L1 autoencoder with a decoder of its own, as in "Towards Monosemanticity" (Bricken et al. 2023,
//! transformer-circuits.pub/2023/monosemantic-features): `c = ReLU(W_enc (x - b_dec) + b_enc)`, `x_hat = W_decᵀ c + b_dec`, decoder rows of length 1;
//! `mse + alpha * mean over rows of sum(c)`. Without the subtraction of `b_dec` it is the form of the later updates of those authors.

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use super::{Formula, Layout, reconstructing_length};
use crate::config::yes;
use crate::{ConfigError, TrainConfig};

/// Settings of the untied ReLU-L1 autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relu {
    /// Whether the encoder reads `x - b_dec`. A transcoder does not: its decoder bias is of another place.
    pub subtract_decoder_bias: bool,
    /// Whether there is a `b_dec`. The untied autoencoders of arXiv 2309.08600 have none.
    #[serde(default = "yes")]
    pub decoder_bias: bool,
}

impl Default for Relu {
    /// As Bricken et al.
    fn default() -> Self {
        Self { subtract_decoder_bias: true, decoder_bias: true }
    }
}

impl Formula for Relu {
    fn layout(&self) -> Layout {
        let Self { subtract_decoder_bias, decoder_bias } = *self;
        Layout { subtract_decoder_bias, decoder_bias, ..Layout::UNTIED }
    }

    fn validate(&self, _config: &TrainConfig) -> Result<(), ConfigError> {
        if self.subtract_decoder_bias && !self.decoder_bias {
            let problem = "is true, and decoder_bias false: there is none to subtract".into();
            return Err(ConfigError { key: "subtract_decoder_bias", problem });
        }
        Ok(())
    }

    fn initial_length(&self, n_latents: usize, d_in: usize) -> f32 {
        reconstructing_length(n_latents, d_in)
    }

    fn activation(&self) -> Activation {
        Activation::Relu
    }
}
