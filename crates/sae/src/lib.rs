//! Sparse autoencoders: the exact sparse training step, optimiser and checkpoints.
//!
//! An autoencoder of this crate reads activations `[batch, d_in]` and learns directions whose sparse, non-negative combinations reconstruct
//! them; when trained it is a plain [`LinearDictionary`](monosem_dictionary::LinearDictionary).
//!
//! ```
//! use std::convert::Infallible;
//! use std::ops::ControlFlow;
//!
//! use monosem_sae::{AdamMode, Planted, PlantedConfig, Precision, TrainConfig, TrainOutcome, train};
//! use ndarray::ArrayViewMut2;
//!
//! let data = Planted::new(PlantedConfig {
//!     d_in: 16, n_features: 24, mean_active: 2.0, decay: 1.0, correlated: false, second_strength: false, noise: 0.0, seed: 1,
//! });
//! let config = TrainConfig {
//!     n_latents: 32, alpha: 1e-2, lr: 1e-2, batch: 256, steps: 50, adam: AdamMode::Standard, precision: Precision::F32,
//!     lr_warmup_steps: 0, lr_decay_steps: 10, seed: 1,
//! };
//! let mut batches = |step, mut out: ArrayViewMut2<'_, f32>| {
//!     out.assign(&data.sample(step, 256));
//!     Ok::<(), Infallible>(())
//! };
//! let mut last = None;
//! let outcome = train(&config, 16, 1.0, &mut batches, None, 0, &mut |_, stats, _| {
//!     last = Some(*stats);
//!     ControlFlow::Continue(())
//! })?;
//! let TrainOutcome::Finished(sae) = outcome else { unreachable!("nothing interrupts it") };
//! assert!(last.unwrap().fvu_batch < 0.5);
//! assert_eq!(sae.dictionary().w_dec.dim(), (32, 16));
//! # Ok::<(), monosem_sae::SaeError<Infallible>>(())
//! ```
//!
//! # The exact sparse step
//!
//! After ReLU only the active latents of a row take part in its reconstruction, and only they receive a gradient from it. So a step encodes tiles of
//! rows ([`gemm`] on blocks that stay in cache), lists what is active at once, and decodes and goes back over those lists only; each latent
//! then gathers its own gradient, projects it through the normalisation and takes its Adam step in place. There is no array of
//! batch x n_latents and no array of gradients. While many codes are active (the first steps of a run) a dense path takes over; both give the
//! same numbers up to the order of summation. No result depends on the number of threads.

mod adam;
mod config;
mod dense;
mod error;
mod kernels;
mod latents;
mod planted;
mod state;
mod tied;
mod tile;
mod train;

pub use config::{AdamMode, ConfigError, TrainConfig};
pub use error::{CheckpointError, SaeError, StepError};
pub use monosem_bf16::Precision;
pub use planted::{Planted, PlantedConfig};
pub use state::TrainState;
pub use tied::{StepPath, TiedSae};
pub use train::{TrainOutcome, train};

use ndarray::ArrayView2;

/// What a schedule decides for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepParams {
    /// Adam's learning rate.
    pub lr: f32,
    /// L1 coefficient, on the scale of [`TrainConfig::alpha`].
    pub alpha: f32,
}

/// Figures of one step, of the weights before it, in units of the scaled activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// `mse + alpha * l1`.
    pub loss: f32,
    /// Mean over rows and dimensions of `(x_hat - x)^2`.
    pub mse: f32,
    /// Mean over rows of the sum of codes.
    pub l1: f32,
    /// Mean over rows of the number of active codes.
    pub l0: f32,
    /// `mse` over the variance of the batch about its own mean per dimension: the fraction of variance unexplained, on this batch.
    pub fvu_batch: f32,
}

/// One training step at a time, on whatever device: the seam between a trainer and those that drive it.
pub trait TrainStep {
    /// Takes one step on the rows of `batch` `[rows, d_in]`, activations as they come (the input scale is applied inside).
    ///
    /// # Errors
    /// If the batch holds a value that is not finite, or training diverged.
    ///
    /// # Panics
    /// If the batch is not `d_in` wide or has no rows.
    fn step(&mut self, batch: ArrayView2<'_, f32>, schedule: StepParams) -> Result<StepStats, StepError>;

    /// Weights, moments and counters: everything a resume needs.
    ///
    /// # Errors
    /// If a device does not hand them over.
    fn state(&self) -> Result<TrainState, StepError>;
}
