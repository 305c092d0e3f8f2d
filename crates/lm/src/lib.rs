//! GPT-NeoX, GPT-2 and Llama forward passes whose activations can be read and edited.
//!
//! A [`LanguageModel`] is loaded from a folder in Hugging Face layout (safetensors, whole or in shards, f32, f16 or bf16) or from a GGUF file
//! (quantised or not), runs in `f32` on the CPU, and implements [`HookedModel`](monosem_hooks::HookedModel): one closure sees every
//! hook point of a pass. A [`Tokenizer`] comes from the same path.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use monosem_hooks::{HookPoint, HookedModel, Site};
//! use monosem_lm::{LanguageModel, LmError, LoadOptions, Tokenizer};
//! use ndarray::Array2;
//!
//! # fn main() -> Result<(), LmError> {
//! let path = Path::new("SmolLM2-135M-Instruct.Q4_1.gguf");
//! let tokenizer = Tokenizer::load(path)?;
//! let model = LanguageModel::load(path, &LoadOptions::default())?;
//!
//! let ids = tokenizer.encode("When Mary and John went to the store, John gave a drink to")?;
//! let tokens = Array2::from_shape_fn((1, ids.len()), |(_, i)| ids[i]);
//! let at = HookPoint::new(12, Site::ResidPost);
//! let logits = model.forward(tokens.view(), &mut |point, mut activations| {
//!     if point == at {
//!         activations *= 0.5; // what comes after sees the edit
//!     }
//!     ControlFlow::Continue(())
//! });
//! # let _ = logits;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Session`] reads a text piece by piece and computes nothing twice: for continuations, and for many texts with one beginning.
//!
//! A backward pass gives gradients with respect to activations at every hook point
//! ([`DifferentiableModel`](monosem_hooks::DifferentiableModel)), for attribution patching and circuits. Weights are constants of it.
//!
//! # What the numbers are
//!
//! - Hidden states and logits agree with transformers to 1e-4 on the checkpoints in `data/golden`.
//! - Gradients agree with those of PyTorch to 1e-4 of the largest at a hook point, on the same checkpoints.
//! - A pass gives the same bits whatever the number of threads. The shape of the batch may change the last bits, since the order of the sums in a
//!   matrix product may depend on it.
//! - Nothing at a position reaches an earlier one, so what a batch is padded with on the right does not matter, not even to the last bit.

mod attention;
mod backward;
mod config;
mod error;
mod gpt2;
mod linear;
mod llama;
mod math;
mod model;
mod neox;
mod norm;
mod parts;
mod pass;
mod product;
mod random;
mod resume;
mod rope;
mod session;
mod tokenizer;
mod weights;

pub use config::{Activation, Config, Family, Rope, RopeScaling};
pub use error::LmError;
pub use model::{LanguageModel, LoadOptions};
pub use monosem_bf16::Precision;
pub use session::Session;
pub use tokenizer::Tokenizer;
