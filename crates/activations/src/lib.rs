//! Activations of a hooked model in a sharded, checksummed, memory-mapped store.
//!
//! [`capture`] runs tokens through a [`HookedModel`](monosem_hooks::HookedModel) and keeps what it computes at some hook points;
//! [`import`] takes activations that something else computed. [`Store`] reads them back, row by row in any order, and [`Batches`] says
//! which rows a training step gets.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use monosem_activations::{ActivationError, Batches, CaptureConfig, SourceInfo, Store, capture};
//! use monosem_hooks::HookedModel;
//! use ndarray::{Array2, ArrayView2};
//!
//! fn first_batch(
//!     model: &dyn HookedModel,
//!     tokens: ArrayView2<u32>,
//!     documents: ArrayView2<u32>,
//! ) -> Result<Array2<f32>, ActivationError> {
//!     let hook = "blocks.3.hook_resid_post".parse().expect("a hook point");
//!     let config = CaptureConfig { hooks: vec![hook], ..CaptureConfig::default() };
//!     let source = SourceInfo { model: "smollm2-135m".into(), ..SourceInfo::default() };
//!     let out = Path::new("activations");
//!     capture(model, tokens, documents, &config, &source, out, &mut |done, total| {
//!         eprintln!("{done} of {total} tokens");
//!         ControlFlow::Continue(())
//!     })?;
//!
//!     let acts = Store::open(out)?.hook(hook)?;
//!     let batches = Batches::new(acts.len(), 2048, 0);
//!     let mut batch = Array2::zeros((2048, acts.width()));
//!     acts.gather(&batches.batch(0), batch.view_mut())?;
//!     Ok(batch)
//! }
//! # let _ = first_batch;
//! ```
//!
//! # On disk
//!
//! ```text
//! activations/
//!   manifest.json
//!   blocks.3.hook_resid_post/activations-00000.safetensors
//!   blocks.3.hook_resid_post/activations-00001.safetensors
//! ```
//!
//! A shard is plain safetensors: `activations` f32, f16 or bf16 `[rows, width]`, and u32 `[rows]` each `token_ids`, `document` and
//! `position` (inside the context). Rows keep the order of the tokens; positions that are dropped leave nothing behind. So in Python:
//!
//! ```text
//! safetensors.numpy.load_file("activations/blocks.3.hook_resid_post/activations-00000.safetensors")["activations"]
//! ```
//!
//! [`Manifest`] says what all of it is, with a BLAKE3 per shard. Files appear whole or not at all, the manifest last; before that, a
//! `manifest.partial.json` lists the shards from which an interrupted capture goes on. A store must not be changed while it is open:
//! parts of it are mapped into memory.
//!
//! # Memory
//!
//! Capture streams to the disk; shuffling computes indices and keeps none; reading maps at most [`DEFAULT_MAPPED`] bytes. Capturing and
//! shuffling a million rows of 576 values (2.3 GB as f32) takes less than half a GiB: `examples/bounded_memory.rs` measures it.

mod batches;
mod capture;
mod dtype;
mod error;
mod files;
mod import;
mod manifest;
mod rows;
mod shard;
mod store;

pub use batches::{Batches, Locality};
pub use capture::{CaptureConfig, DEFAULT_ROWS_PER_SHARD, capture};
pub use dtype::{Dtype, ParseDtypeError};
pub use error::ActivationError;
pub use import::import;
pub use manifest::{HookEntry, Manifest, ShardEntry, SourceInfo};
pub use store::{DEFAULT_MAPPED, HookStore, Store};
