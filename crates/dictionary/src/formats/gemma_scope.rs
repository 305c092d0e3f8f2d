//! Gemma Scope (arXiv 2408.05147): `params.npz`, as in `google/gemma-scope-2b-pt-res` on Hugging Face.
//!
//! `W_enc` `[d_in, n_latents]`, `W_dec` `[n_latents, d_out]`, `b_enc`, `b_dec`, `threshold`: JumpReLU of `W_encᵀ x + b_enc`, from which nothing is
//! subtracted.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use super::arrays::{Arrays, Result, checked, invalid};
use super::npz::Npz;
use crate::storage::open;
use crate::{Activation, LinearDictionary};

pub(super) const WEIGHTS: &str = "params.npz";

/// Reads the autoencoder or transcoder in the file `path`.
///
/// # Errors
/// If the file is missing or damaged, or an array is missing or not of the shape of the others.
pub fn load(path: &Path) -> Result<LinearDictionary> {
    let file: File = open(path)?;
    parse(BufReader::new(file)).map_err(|e| e.on(path))
}

/// The autoencoder or transcoder of a `params.npz`, perhaps in memory.
///
/// # Errors
/// As [`load`]; the file is called `params.npz`.
pub fn parse(npz: impl Read + Seek) -> Result<LinearDictionary> {
    let mut arrays = Npz::new(WEIGHTS, npz)?;
    let [d_in, n] = arrays.matrix_shape("W_enc")?;
    let [rows, d_out] = arrays.matrix_shape("W_dec")?;
    if rows != n {
        return Err(invalid(WEIGHTS, format!("W_dec has {rows} rows, expected {n} as W_enc has columns")));
    }
    let dictionary = LinearDictionary {
        w_enc: arrays.transposed("W_enc", [n, d_in])?,
        b_enc: arrays.vector("b_enc", n)?,
        w_dec: arrays.matrix("W_dec", [n, d_out])?,
        b_dec: arrays.vector("b_dec", d_out)?,
        activation: Activation::JumpRelu,
        threshold: Some(arrays.vector("threshold", n)?),
    };
    checked(WEIGHTS, dictionary)
}
