//! Affine maps and the weights they are made of.

use std::cell::RefCell;

use monosem_bf16::{Columns, Kernel, Rows, Store};
use rayon::prelude::*;

use crate::LmError;
use crate::product::{Into, Matrix, product};
use crate::weights::{Source, transpose};

/// `y = W x + b` for every row `x`. `W` is `[d_out, d_in]`, one row per output.
#[derive(Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Vec<f32>,
    /// The weight in bf16, where products are to be computed in that.
    rounded: Option<Columns>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    /// How many outputs each of the tensors has that were stacked to make this map.
    parts: Vec<usize>,
}

impl Linear {
    /// Reads `name.weight` `[d_out, d_in]` and, if there is to be one, `name.bias`.
    pub(crate) fn read(
        source: &dyn Source,
        name: &str,
        d_in: usize,
        d_out: usize,
        bias: bool,
    ) -> Result<Self, LmError> {
        let weight = source.read(&format!("{name}.weight"), &[d_out, d_in])?;
        let bias = if bias { Some(source.read(&format!("{name}.bias"), &[d_out])?) } else { None };
        Ok(Self { weight, rounded: None, bias, d_in, d_out, parts: vec![d_out] })
    }

    /// Reads a map whose weight the file keeps as `[d_in, d_out]` (GPT-2's `Conv1D`).
    pub(crate) fn read_transposed(source: &dyn Source, name: &str, d_in: usize, d_out: usize) -> Result<Self, LmError> {
        let weight = transpose(&source.read(&format!("{name}.weight"), &[d_in, d_out])?, d_in, d_out);
        let bias = Some(source.read(&format!("{name}.bias"), &[d_out])?);
        Ok(Self { weight, rounded: None, bias, d_in, d_out, parts: vec![d_out] })
    }

    /// One map whose outputs are those of several maps of the same input, one after the other.
    pub(crate) fn stack(maps: impl IntoIterator<Item = Self>) -> Self {
        let mut maps = maps.into_iter();
        let mut whole = maps.next().expect("at least one map is stacked");
        for map in maps {
            assert_eq!(
                (map.d_in, map.bias.is_some()),
                (whole.d_in, whole.bias.is_some()),
                "stacked maps differ in kind"
            );
            whole.weight.extend(map.weight);
            if let (Some(bias), Some(more)) = (&mut whole.bias, map.bias) {
                bias.extend(more);
            }
            whole.d_out += map.d_out;
            whole.parts.extend(map.parts);
        }
        whole
    }

    /// Reorders the outputs: output `i` of the result is output `order(i)` of this map.
    pub(crate) fn permute_outputs(mut self, order: impl Fn(usize) -> usize) -> Self {
        self.weight =
            (0..self.d_out).flat_map(|i| &self.weight[order(i) * self.d_in..][..self.d_in]).copied().collect();
        self.bias = self.bias.map(|bias| (0..self.d_out).map(|i| bias[order(i)]).collect());
        self
    }

    /// From now on products are computed in bf16, from the weight as it is now.
    pub(crate) fn round(&mut self) {
        self.rounded.get_or_insert_default().par_set(&self.weight, self.d_in);
    }

    /// Applies the map to rows `x` `[rows, d_in]`, into `y` `[rows, d_out]`, on at most `threads` threads.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32], threads: usize) {
        let into = match &self.bias {
            Some(bias) => {
                y.chunks_exact_mut(self.d_out).for_each(|row| row.copy_from_slice(bias));
                Into::Add
            }
            None => Into::Replace,
        };
        match &self.rounded {
            None => {
                let weight = Matrix::new(&self.weight, self.d_out, self.d_in).transposed();
                product(y, Matrix::new(x, x.len() / self.d_in, self.d_in), weight, into, threads);
            }
            Some(weight) => self.apply_rounded(weight, x, y, into, threads),
        }
    }

    /// The gradient with respect to `x` where `dy` is the one with respect to `y`: `dx = dy W`, `[rows, d_in]`. Always from the weight in `f32`.
    pub(crate) fn backward(&self, dy: &[f32], dx: &mut [f32], threads: usize) {
        let weight = Matrix::new(&self.weight, self.d_out, self.d_in);
        product(dx, Matrix::new(dy, dy.len() / self.d_out, self.d_out), weight, Into::Replace, threads);
    }

    fn apply_rounded(&self, weight: &Columns, x: &[f32], y: &mut [f32], into: Into, threads: usize) {
        thread_local! {
            static ROUNDED: RefCell<Rows> = RefCell::default();
        }
        let (kernel, store) = (Kernel::detect(), if into == Into::Add { Store::Add } else { Store::Replace });
        let apply = |x: &[f32], y: &mut [f32]| {
            ROUNDED.with_borrow_mut(|rounded| {
                rounded.set(x, self.d_in);
                monosem_bf16::product(kernel, rounded, weight, y, self.d_out, store);
            });
        };
        if threads <= 1 {
            return apply(x, y);
        }
        // A value is the sum over one row and one column, whichever rows it is computed with.
        let rows = (x.len() / self.d_in).div_ceil(threads).max(1);
        let pieces = x.par_chunks(rows * self.d_in).zip(y.par_chunks_mut(rows * self.d_out));
        pieces.for_each(|(x, y)| apply(x, y));
    }

    /// Subtracts the mean over the outputs, so that what the map adds to a residual stream has mean zero.
    pub(crate) fn centre_outputs(&mut self) {
        let mut means = vec![0.0f64; self.d_in];
        for row in self.weight.chunks_exact(self.d_in) {
            means.iter_mut().zip(row).for_each(|(mean, &w)| *mean += f64::from(w));
        }
        for row in self.weight.chunks_exact_mut(self.d_in) {
            row.iter_mut().zip(&means).for_each(|(w, mean)| *w -= (mean / self.d_out as f64) as f32);
        }
        if let Some(bias) = &mut self.bias {
            centre_rows(bias, self.d_out);
        }
    }

    /// Every tensor of the map, as the file had them.
    pub(crate) fn tensors_mut(&mut self) -> Vec<&mut [f32]> {
        let mut tensors = Vec::new();
        let (mut weight, mut bias) = (&mut self.weight[..], self.bias.as_deref_mut());
        for &part in &self.parts {
            let (first, rest) = weight.split_at_mut(part * self.d_in);
            tensors.push(first);
            weight = rest;
            if let Some(values) = bias {
                let (first, rest) = values.split_at_mut(part);
                tensors.push(first);
                bias = Some(rest);
            }
        }
        tensors
    }
}

/// Subtracts from every row of `width` values its mean.
pub(crate) fn centre_rows(rows: &mut [f32], width: usize) {
    for row in rows.chunks_exact_mut(width) {
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
        row.iter_mut().for_each(|x| *x -= mean as f32);
    }
}
