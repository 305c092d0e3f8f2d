//! The gated autoencoder of "Improving Dictionary Learning with Gated Sparse Autoencoders" (Rajamanoharan et al. 2024, arXiv 2404.16014, section 3.2).
//! With `z = W_enc (x - b_dec)`, a gate `pi = z + b_gate` and a magnitude `exp(r_mag) z + b_mag`:
//!
//! ```text
//! code   = ReLU(exp(r_mag) z + b_mag) where pi > 0, else 0
//! loss   = mse(x, W_decᵀ code + b_dec) + alpha * mean over rows of sum(ReLU(pi)) + mse(x, frozen(W_dec)ᵀ ReLU(pi) + frozen(b_dec))
//! ```
//!
//! Decoder rows have length 1. The encoder bias of the engine is `b_gate`, its pre-activation is `pi`. After training this is a JumpReLU with encoder
//! `exp(r_mag) W_enc`, bias `b_mag` and threshold `b_mag - exp(r_mag) b_gate` (the paper's appendix E).

use monosem_dictionary::Activation;
use serde::{Deserialize, Serialize};

use super::{Dots, Entries, Formula, Inference, Layout, MAX_EXTRAS, PerLatent, reconstructing_length};
use crate::{ConfigError, TrainConfig};

/// The gated autoencoder has no settings of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gated {}

/// `z` and the magnitude before ReLU, from the gate.
fn magnitude(of: PerLatent<'_>, j: usize, pi: f32) -> (f32, f32) {
    let z = pi - of.bias[j];
    (z, of.derived[j] * z + of.extras[1][j])
}

impl Formula for Gated {
    fn layout(&self) -> Layout {
        Layout { second_reconstruction: true, extras: &["r_mag", "b_mag"], ..Layout::UNTIED }
    }

    fn validate(&self, _config: &TrainConfig) -> Result<(), ConfigError> {
        Ok(())
    }

    fn derived(&self, [r_mag, _]: [f32; MAX_EXTRAS]) -> f32 {
        r_mag.exp()
    }

    fn initial_length(&self, n_latents: usize, d_in: usize) -> f32 {
        reconstructing_length(n_latents, d_in)
    }

    fn codes(&self, entries: Entries<'_>, codes: &mut [f32], second: &mut [f32]) -> f64 {
        let mut penalty = 0.0_f64;
        for ((code, second), (j, pi)) in codes.iter_mut().zip(second).zip(entries.iter()) {
            let (_, magnitude) = magnitude(entries.of, j, pi);
            let open = pi > 0.0;
            *code = if open { magnitude.max(0.0) } else { 0.0 };
            *second = if open { pi } else { 0.0 };
            penalty += f64::from(*second);
        }
        penalty
    }

    fn gradients(&self, entries: Entries<'_>, dots: Dots<'_>, deltas: &mut [f32], extras: [&mut [f32]; MAX_EXTRAS]) {
        let [by_r_mag, by_b_mag] = extras;
        let outputs = deltas.iter_mut().zip(by_r_mag.iter_mut().zip(by_b_mag));
        let inputs = entries.iter().zip(dots.first.iter().zip(dots.second));
        for ((delta, (by_r_mag, by_b_mag)), ((j, pi), (first, second))) in outputs.zip(inputs) {
            let (z, magnitude) = magnitude(entries.of, j, pi);
            let open = pi > 0.0;
            let by_magnitude = if open && magnitude > 0.0 { *first } else { 0.0 };
            let by_gate = if open { second + dots.penalty } else { 0.0 };
            let gain = entries.of.derived[j];
            *delta = by_magnitude * gain + by_gate;
            *by_r_mag = by_magnitude * gain * z;
            *by_b_mag = by_magnitude;
        }
    }

    fn of_latent(&self, of: PerLatent<'_>, j: usize, sums: [f32; 1 + MAX_EXTRAS]) -> [f32; 1 + MAX_EXTRAS] {
        // `delta` is by z; of the gate's bias only the gate's part is.
        let [by_z, by_r_mag, by_b_mag] = sums;
        [by_z - of.derived[j] * by_b_mag, by_r_mag, by_b_mag]
    }

    fn inference(&self, of: PerLatent<'_>, j: usize, _threshold: f32) -> Inference {
        let (gain, b_mag) = (of.derived[j], of.extras[1][j]);
        Inference { gain, bias: b_mag, threshold: (b_mag - gain * of.bias[j]).max(0.0) }
    }

    fn activation(&self) -> Activation {
        Activation::JumpRelu
    }
}
