//! What a dictionary of features is, and how good one is.
//!
//! A [`Dictionary`] turns activations `[n, d_in]` into sparse [`Codes`] over its latents and back. [`LinearDictionary`] is the one concrete
//! form that covers most of the field: an affine encoder, an [`Activation`], an affine decoder, two files on disk. Sparse
//! autoencoders after training, PCA, ICA, random directions and the neuron basis are all of this form, so that one [`Evaluator`]
//! measures them all by the same definitions. [`formats`] reads those that other packages wrote, and writes theirs.
//!
//! ```
//! use monosem_dictionary::{Dictionary, Evaluator, LinearDictionary, column_mean};
//! use ndarray::array;
//!
//! let x = array![[1.0_f32, -2.0], [3.0, 0.5], [-1.0, 1.5]];
//! let dictionary = LinearDictionary::identity_positive(2);
//! let codes = dictionary.encode(x.view());
//! let mut evaluator = Evaluator::new(column_mean(x.view()), dictionary.n_latents());
//! evaluator.add(x.view(), &codes, dictionary.decode(&codes).view(), &[0, 1, 2]);
//! let evaluation = evaluator.finish();
//! assert!(evaluation.fvu.value < 1e-12);
//! assert_eq!(evaluation.l0.value, 2.0);
//! ```
//!
//! Conventions: a latent is a **row** of `w_enc` and of `w_dec`; activations are rows; sums are accumulated in `f64`.

mod auroc;
mod codes;
pub mod formats;
mod linear;
mod metrics;
mod orient;
mod product;
mod storage;

pub use auroc::{Ranking, auroc};
pub use codes::Codes;
pub use linear::{Activation, LinearDictionary};
pub use metrics::{ALIVE_MORE_THAN, Estimate, Evaluation, Evaluator, column_mean, mmcs, mmcs_estimate};
pub use storage::{DictionaryError, metadata};

use ndarray::{Array2, ArrayView2};

/// A set of latents with a way to encode activations into sparse codes and to decode codes into activations.
pub trait Dictionary: Send + Sync {
    /// Width of the activations it reads.
    fn d_in(&self) -> usize;

    /// Number of latents.
    fn n_latents(&self) -> usize;

    /// Width of the activations it decodes to: [`Self::d_in`], but for a transcoder.
    fn d_out(&self) -> usize {
        self.d_in()
    }

    /// Codes of the rows of `x` `[n, d_in]`. Only nonzero codes are stored: no dense `n x n_latents` array leaves the call.
    ///
    /// # Panics
    /// If `x` is not `d_in` wide.
    fn encode(&self, x: ArrayView2<'_, f32>) -> Codes;

    /// The reconstruction `[n, d_out]` of codes over this dictionary's latents.
    ///
    /// # Panics
    /// If `codes` are over another number of latents.
    fn decode(&self, codes: &Codes) -> Array2<f32>;
}
