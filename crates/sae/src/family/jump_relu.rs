//! The JumpReLU autoencoder of "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders" (Rajamanoharan et al. 2024,
//! arXiv 2407.14435): `c = pre` where `pre > theta`, else 0, with `pre = W_enc x + b_enc` and a threshold `theta = exp(log_threshold)` for every latent;
//! `mse + alpha * mean over rows of the number of active codes`.
//!
//! Neither the jump nor the count has a derivative by theta; the paper's equations 11 and 12 put in their place, with the rectangle
//! `K(u) = 1 for |u| < 1/2` and the bandwidth `e`:
//!
//! ```text
//! d code  / d theta = -(theta / e) K((pre - theta) / e)
//! d count / d theta = -(1 / e)     K((pre - theta) / e)
//! ```

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use super::{Dots, Entries, Formula, Inference, Layout, MAX_EXTRAS, PerLatent};
use crate::{ConfigError, TrainConfig};

/// Settings of the JumpReLU autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JumpRelu {
    /// Width `e` of the window around a threshold in which pre-activations move it, in units of the scaled activations (root mean square 1). Too narrow
    /// a window holds no pre-activations, and the sparsity coefficient then changes nothing.
    pub bandwidth: f32,
    /// Where all thresholds start, in the same units; above 0.
    pub initial_threshold: f32,
}

impl Formula for JumpRelu {
    fn layout(&self) -> Layout {
        Layout { subtract_decoder_bias: false, extras: &["log_threshold"], ..Layout::UNTIED }
    }

    fn validate(&self, _config: &TrainConfig) -> Result<(), ConfigError> {
        for (key, value) in [("bandwidth", self.bandwidth), ("initial_threshold", self.initial_threshold)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(ConfigError { key, problem: format!("is {value}, expected a number above 0") });
            }
        }
        Ok(())
    }

    fn initial_extras(&self) -> [f32; MAX_EXTRAS] {
        [self.initial_threshold.ln(), 0.0]
    }

    fn resampled_length(&self) -> f32 {
        // Shorter ones would stay below the threshold.
        1.0
    }

    fn derived(&self, [log_threshold, _]: [f32; MAX_EXTRAS]) -> f32 {
        log_threshold.exp()
    }

    fn floor(&self, of: PerLatent<'_>, j: usize) -> f32 {
        of.derived[j] - self.bandwidth / 2.0
    }

    fn codes(&self, entries: Entries<'_>, codes: &mut [f32], _second: &mut [f32]) -> f64 {
        let mut active = 0_u32;
        for (code, (j, pre)) in codes.iter_mut().zip(entries.iter()) {
            let above = pre > entries.of.derived[j];
            *code = if above { pre } else { 0.0 };
            active += u32::from(above);
        }
        f64::from(active)
    }

    fn gradients(&self, entries: Entries<'_>, dots: Dots<'_>, deltas: &mut [f32], extras: [&mut [f32]; MAX_EXTRAS]) {
        let [by_log_threshold, _] = extras;
        let outputs = deltas.iter_mut().zip(by_log_threshold);
        for ((delta, by_log_threshold), ((j, pre), dot)) in outputs.zip(entries.iter().zip(dots.first)) {
            let theta = entries.of.derived[j];
            *delta = if pre > theta { *dot } else { 0.0 };
            let in_window = (pre - theta).abs() < self.bandwidth / 2.0;
            // By theta, times theta: by its logarithm.
            let by_theta = -(theta * dot + dots.penalty) / self.bandwidth;
            *by_log_threshold = if in_window { by_theta * theta } else { 0.0 };
        }
    }

    fn inference(&self, of: PerLatent<'_>, j: usize, _threshold: f32) -> Inference {
        Inference { gain: 1.0, bias: of.bias[j], threshold: of.derived[j] }
    }

    fn activation(&self) -> Activation {
        Activation::JumpRelu
    }
}
