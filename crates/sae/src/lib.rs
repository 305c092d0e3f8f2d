//! Sparse autoencoders and transcoders of every family: the exact sparse training step, optimiser, ensembles and checkpoints.
//!
//! An autoencoder of this crate reads activations `[batch, d_in]` and learns directions whose sparse, non-negative combinations reconstruct
//! them; when trained it is a plain [`LinearDictionary`](monosem_dictionary::LinearDictionary).
//!
//! ```
//! use std::convert::Infallible;
//! use std::ops::ControlFlow;
//!
//! use monosem_sae::{Planted, PlantedConfig, RunOptions, Spaces, TrainConfig, TrainOutcome, train};
//! use ndarray::ArrayViewMut2;
//!
//! let data = Planted::new(PlantedConfig {
//!     d_in: 16, n_features: 24, mean_active: 2.0, decay: 1.0, correlated: false, second_strength: false, noise: 0.0, seed: 1,
//! });
//! let config = TrainConfig {
//!     n_latents: 32, alpha: 1e-2, lr: 1e-2, batch: 256, steps: 50, lr_decay_steps: 10, ..TrainConfig::default()
//! };
//! let mut batches = |step, mut input: ArrayViewMut2<'_, f32>, _: Option<ArrayViewMut2<'_, f32>>| {
//!     input.assign(&data.sample(step, 256));
//!     Ok::<(), Infallible>(())
//! };
//! let mut last = None;
//! let outcome = train(&config, Spaces::autoencoder(16, 1.0), &mut batches, RunOptions::default(), &mut |_, stats, _| {
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
//! After ReLU, or a choice of the largest, only the active latents of a row take part in its reconstruction, and only they receive a gradient from it. So a step encodes
//! tiles of rows ([`gemm`] on blocks that stay in cache), lists what is active at once, and decodes and goes back over those lists only; each latent
//! then gathers its own gradient, projects it, and takes its Adam step in place. There is no array of
//! batch x n_latents and no array of gradients. While many codes are active (the first steps of a run) a dense path takes over; both give the
//! same numbers up to the order of summation. No result depends on the number of threads.
//!
//! # Families
//!
//! A [`Family`] says which pre-activations count, what code each gives, and what the loss's gradient is: a file each, with its paper on top. The rest is one engine
//! for all. [`Spaces`] says what is read and what is reconstructed, so that each of them (but the tied one) is also a transcoder.

mod adam;
mod checkpoint;
mod config;
mod dense;
mod encode;
mod error;
mod family;
mod forward;
mod init;
mod kernels;
mod lists;
mod parameters;
mod planted;
mod progress;
mod resample;
mod sae;
mod spaces;
mod state;
mod tile;
mod train;
mod update;

pub use config::{AdamMode, AuxK, ConfigError, EarlyStopping, Init, TrainConfig};
pub use encode::BF16_MARGIN;
pub use error::{CheckpointError, SaeError, StepError};
pub use family::{BatchTopK, Family, Gated, JumpRelu, Layout, Matryoshka, Relu, Selection, Tied, TopK};
pub use monosem_bf16::Precision;
pub use planted::{Planted, PlantedConfig};
pub use progress::{BatchSums, Progress, first_decoder_bias};
pub use resample::LastBatch;
pub use sae::{Cpu, Sae, StepPath};
pub use spaces::{Space, Spaces};
pub use state::TrainState;
pub use train::{Batches, Device, OnStep, RunOptions, TrainOutcome, Trainer, train, train_ensemble, train_on};

use ndarray::ArrayView2;
use serde::Serialize;

/// What a schedule decides for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepParams {
    /// Adam's learning rate.
    pub lr: f32,
    /// Sparsity coefficient, on the scale of [`TrainConfig::alpha`].
    pub alpha: f32,
}

/// Figures of one step, of the weights before it, in units of the scaled activations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepStats {
    /// What is minimised: `mse`, other reconstructions that the family counts, `alpha` times its penalty, and `aux`.
    pub loss: f32,
    /// Mean over rows and dimensions of `(x_hat - x)^2`.
    pub mse: f32,
    /// Mean over rows of the sum of codes.
    pub l1: f32,
    /// Mean over rows of the number of active codes.
    pub l0: f32,
    /// `mse` over the variance of the batch about its own mean per dimension: the fraction of variance unexplained, on this batch.
    pub fvu_batch: f32,
    /// The auxiliary loss of dead latents, with its coefficient.
    pub aux: f32,
    /// Latents without an active code for [`TrainConfig::dead_after_steps`].
    pub dead: usize,
}

/// One training step at a time, on whatever device: the seam between a trainer and those that drive it.
pub trait TrainStep {
    /// Takes one step on the rows of `input` `[rows, d_in]`, activations as they come (the scale is applied inside), and for a transcoder of `target`
    /// `[rows, d_out]`.
    ///
    /// # Errors
    /// If the batch holds a value that is not finite, training diverged, or all latents are dead.
    ///
    /// # Panics
    /// If the batch is not `d_in` wide or has no rows; if there is no target for a transcoder, one for an autoencoder, or one of another shape.
    fn step(
        &mut self,
        input: ArrayView2<'_, f32>,
        target: Option<ArrayView2<'_, f32>>,
        schedule: StepParams,
    ) -> Result<StepStats, StepError>;

    /// Weights, moments and counters: everything a resume needs.
    ///
    /// # Errors
    /// If a device does not hand them over.
    fn state(&self) -> Result<TrainState, StepError>;
}
