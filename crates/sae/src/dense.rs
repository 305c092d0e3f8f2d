//! The dense path, for codes of which many are active (the first steps of a training run): products of blocks instead of lists.
//!
//! Two passes, neither of which holds an array of batch x n_latents or a gradient of the size of the weights. The first goes by tiles of rows
//! and sums the reconstruction over blocks of latents; the second goes by blocks of latents, encodes each tile once more, and sums the
//! gradient of the block over the tiles. Six products of the encoder's size, and no work that depends on how many codes are active.

use std::cell::RefCell;

use crate::kernels::{Matrix, mask_row, product, relu_row, residual_row, scale_row};
use crate::tile::{Directions, Factors, TILE_ROWS, TileSums};

/// Latents in a block.
pub(crate) const DENSE_BLOCK: usize = 128;

#[derive(Default)]
struct Scratch {
    codes: Vec<f32>,
    deltas: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The part of `of` that belongs to the latents `block`.
fn part(of: Directions<'_>, block: std::ops::Range<usize>) -> Directions<'_> {
    Directions {
        w: &of.w[block.start * of.d..block.end * of.d],
        scale: &of.scale[block.clone()],
        bias: &of.bias[block],
        d: of.d,
    }
}

/// First pass, a tile: `r` becomes the residuals times `factors.residual`.
pub(crate) fn forward(x: &[f32], r: &mut [f32], of: Directions<'_>, factors: Factors, sums: &mut TileSums) {
    r.fill(0.0);
    SCRATCH.with_borrow_mut(|Scratch { codes, .. }| {
        for first in (0..of.bias.len()).step_by(DENSE_BLOCK) {
            let of = part(of, first..(first + DENSE_BLOCK).min(of.bias.len()));
            let width = of.bias.len();
            codes.resize(x.len() / of.d * width, 0.0);
            product(codes, Matrix::new(x, of.d), Matrix::new(of.w, of.d).t(), false);
            for row in codes.chunks_exact_mut(width) {
                let (sum, active) = relu_row(row, of.scale, of.bias);
                sums.codes += f64::from(sum);
                sums.active += u64::from(active);
                scale_row(row, of.scale);
            }
            product(r, Matrix::new(codes, width), Matrix::new(of.w, of.d), true);
        }
    });
    for (x, r) in x.chunks_exact(of.d).zip(r.chunks_exact_mut(of.d)) {
        sums.squared_error += f64::from(residual_row(r, x, factors.residual));
    }
}

/// Second pass, a block of latents: the gradients of its directions `[block, d]` and biases `[block]`.
pub(crate) fn backward(
    x: &[f32],
    r: &[f32],
    of: Directions<'_>,
    factors: Factors,
    gradient: &mut [f32],
    bias_gradient: &mut [f32],
) {
    let (width, d) = (of.bias.len(), of.d);
    gradient.fill(0.0);
    bias_gradient.fill(0.0);
    SCRATCH.with_borrow_mut(|Scratch { codes, deltas }| {
        for (x, r) in x.chunks(TILE_ROWS * d).zip(r.chunks(TILE_ROWS * d)) {
            let rows = x.len() / d;
            codes.resize(rows * width, 0.0);
            deltas.resize(rows * width, 0.0);
            let (x, r, w) = (Matrix::new(x, d), Matrix::new(r, d), Matrix::new(of.w, d));
            product(codes, x, w.t(), false);
            product(deltas, r, w.t(), false);
            for (codes, deltas) in codes.chunks_exact_mut(width).zip(deltas.chunks_exact_mut(width)) {
                relu_row(codes, of.scale, of.bias);
                mask_row(deltas, codes, of.scale, factors.code, bias_gradient);
            }
            product(gradient, Matrix::new(codes, width).t(), r, true);
            product(gradient, Matrix::new(deltas, width).t(), x, true);
        }
    });
}
