//! The options of `train` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use monosem_hooks::HookPoint;
use monosem_lm::Precision;
use monosem_sae::AdamMode;

use super::Device;
use crate::commands;

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// Folder of a store, as `monosem capture` writes it.
    #[arg(long)]
    pub(crate) activations: PathBuf,
    /// Hook point; may be left out where the store has only one.
    #[arg(long)]
    pub(crate) hook: Option<HookPoint>,
    /// Train a transcoder: reconstruct this hook point of the same store from --hook.
    #[arg(long, value_name = "HOOK")]
    pub(crate) target_hook: Option<HookPoint>,
    /// Leave out rows whose norm is over this multiple of the median norm (attention sinks); inf keeps all.
    #[arg(long, default_value_t = 20.0)]
    pub(crate) max_norm: f64,
    /// Which autoencoder.
    #[arg(long, value_enum, default_value_t = FamilyName::Tied)]
    pub(crate) family: FamilyName,
    /// Number of latents; instead of --ratio.
    #[arg(long, conflicts_with = "ratio")]
    pub(crate) latents: Option<usize>,
    /// Number of latents as a multiple of the width of the activations.
    #[arg(long, default_value_t = 4.0)]
    pub(crate) ratio: f64,
    /// Sparsity coefficient, for activations scaled to unit mean square and squared errors averaged over dimensions [default: 8.577e-4, as in the paper; 0
    /// for top-k, batch-top-k and matryoshka].
    #[arg(long)]
    pub(crate) alpha: Option<f32>,
    /// Active codes of a row, for top-k, batch-top-k and matryoshka.
    #[arg(long, default_value_t = 32)]
    pub(crate) k: usize,
    /// Numbers of latents that reconstruct by themselves, for matryoshka [default: an eighth, a quarter, half and all of them].
    #[arg(long, value_delimiter = ',')]
    pub(crate) prefixes: Vec<usize>,
    /// Width of the window around a threshold, for jump-relu, in units of the scaled activations.
    #[arg(long, default_value_t = 0.1)]
    pub(crate) bandwidth: f32,
    /// Where thresholds start, for jump-relu.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) initial_threshold: f32,
    /// For relu: whether the encoder reads activations less the decoder bias.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) subtract_decoder_bias: bool,
    /// Adam's learning rate.
    #[arg(long, default_value_t = 1e-3)]
    pub(crate) lr: f32,
    /// Rows in a step.
    #[arg(long, default_value_t = 2048, value_parser = commands::count::<1_000_000>)]
    pub(crate) batch: usize,
    /// Steps.
    #[arg(long, default_value_t = 1000)]
    pub(crate) steps: u64,
    /// standard: Adam as published; paper: as the paper's code ran it.
    #[arg(long, default_value = "standard", value_parser = commands::adam_mode)]
    pub(crate) adam: AdamMode,
    /// What the encoder is computed in: f32, or bf16 to find the active latents in half the time (codes are f32 either way) [default: bf16 where the
    /// processor has AVX512-BF16, else f32].
    #[arg(long)]
    pub(crate) precision: Option<Precision>,
    /// Steps over which the learning rate rises from 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) lr_warmup_steps: u64,
    /// Steps at the end over which the learning rate falls to 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) lr_decay_steps: u64,
    /// Steps over which the sparsity coefficient rises from 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) sparsity_warmup_steps: u64,
    /// Scale gradients down to this norm where theirs is larger.
    #[arg(long)]
    pub(crate) clip_norm: Option<f32>,
    /// Steps without an active code after which a latent is dead.
    #[arg(long, default_value_t = 1000)]
    pub(crate) dead_after_steps: u64,
    /// Let this many dead latents of a row reconstruct what is left over, for top-k, batch-top-k and matryoshka.
    #[arg(long)]
    pub(crate) aux_k: Option<usize>,
    /// Coefficient of that.
    #[arg(long, default_value_t = 1.0 / 32.0)]
    pub(crate) aux_coefficient: f32,
    /// Begin dead latents anew every so many steps, for the other families; 0 for never.
    #[arg(long, default_value_t = 0)]
    pub(crate) resample_every: u64,
    /// Store of held-out activations to measure the FVU on; training stops when it no longer falls.
    #[arg(long)]
    pub(crate) held_out: Option<PathBuf>,
    /// Steps between two such measurements.
    #[arg(long, default_value_t = 100)]
    pub(crate) early_every: u64,
    /// Measurements without an improvement after which training stops.
    #[arg(long, default_value_t = 5)]
    pub(crate) early_patience: u32,
    /// What counts as an improvement, as a share of the FVU.
    #[arg(long, default_value_t = 0.001)]
    pub(crate) early_min_improvement: f32,
    /// Draws the initial weights and the order of the rows.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Train several at once, in one pass over the activations: a .toml file with a [[member]] for each, which has a `name` and whatever differs from the
    /// settings given here (alpha, n_latents, seed, family = { kind = "top-k", k = 16 }, ...).
    #[arg(long, value_name = "FILE")]
    pub(crate) members: Option<PathBuf>,
    /// Steps between lines of OUT/metrics.jsonl.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) metrics_every: u64,
    /// Where to train.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub(crate) device: Device,
    /// Folder for the dictionary, or for one folder for each member; a checkpoint in it is gone on from.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

/// The families of autoencoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FamilyName {
    /// ReLU and L1, one matrix for both sides: the paper's.
    Tied,
    /// ReLU and L1, unit decoder rows and a decoder bias.
    Relu,
    /// The k largest codes of every row.
    TopK,
    /// The k largest codes a row on the mean over the batch.
    BatchTopK,
    /// Learned thresholds and an L0 penalty.
    JumpRelu,
    /// Gates and magnitudes.
    Gated,
    /// Nested prefixes over batch-top-k.
    Matryoshka,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A dictionary of whatever format.
    #[arg(long)]
    pub(crate) dictionary: PathBuf,
    /// Which format to write.
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// Write it as a transcoder although both sides are equally wide.
    #[arg(long, conflicts_with = "gated")]
    pub(crate) transcoder: bool,
    /// For saelens: write a ReLU or JumpReLU dictionary as its gated architecture.
    #[arg(long)]
    pub(crate) gated: bool,
    /// Folder to write into.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

/// What others read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// SAELens 6 and later.
    Saelens,
    /// sparsify (top-k only).
    Sparsify,
    /// This program's own.
    Monosem,
}
