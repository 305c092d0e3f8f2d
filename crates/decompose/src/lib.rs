//! PCA, FastICA and NMF of activations, as dictionaries, and the erasure of concepts from them.
//!
//! [`Moments`] takes rows in chunks of any size and gives [`Pca`]; [`Ica`] and [`Nmf`] are fitted to rows in memory. All turn into
//! [`LinearDictionary`](monosem_dictionary::LinearDictionary)s, so that they are measured like any other dictionary; the codes of an NMF are
//! solved for, by [`NonNegative`]. [`Eraser`] removes what a label can be read from linearly.
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use monosem_decompose::{Ica, IcaConfig, Moments, Pca};
//! use ndarray::Array2;
//!
//! # fn main() -> Result<(), monosem_decompose::DecomposeError> {
//! let x = Array2::from_shape_fn((200, 3), |(i, j)| ((i * (j + 3)) as f32 * 0.7).sin().powi(3));
//! let mut moments = Moments::new(3);
//! for chunk in x.axis_chunks_iter(ndarray::Axis(0), 64) {
//!     moments.add(chunk);
//! }
//! let pca = Pca::from_moments(&moments)?;
//! let two_largest = pca.top_k(2);
//!
//! let ica = Ica::fit(x.view(), &IcaConfig::default(), &mut |_iteration, _turned| ControlFlow::Continue(()))?;
//! if let Some(ica) = ica {
//!     println!("converged: {} after {} iterations", ica.converged, ica.iterations);
//!     let sources = ica.components();
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Conventions: activations are rows; a component is a row; matrices are kept in `f64` (an NMF's in `f32`) and go into dictionaries in `f32`.
//! Factorisations are LAPACK's, by way of `ndarray-linalg` and the system's OpenBLAS; sums over rows are taken in an order that
//! does not depend on the number of threads. OpenBLAS may round differently with another number of its own threads
//! (`OPENBLAS_NUM_THREADS`).

mod descent;
mod eigen;
mod erasure;
mod error;
mod exact;
mod face;
mod fastica;
mod ica;
mod moments;
mod nmf;
mod nonnegative;
mod pca;
mod product;
mod tanh;

pub use erasure::Eraser;
pub use error::DecomposeError;
pub use ica::{Ica, IcaConfig};
pub use moments::Moments;
pub use nmf::{Nmf, NmfConfig};
pub use nonnegative::NonNegative;
pub use pca::Pca;

use ndarray::{Array, Dimension};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

fn to_f32<D: Dimension>(values: &Array<f64, D>) -> Array<f32, D> {
    values.mapv(|v| v as f32)
}

/// A standard normal number, by Box and Muller.
fn gaussian(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// The examples of the README, so that they are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests;
