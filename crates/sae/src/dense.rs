//! The dense path, for codes of which many are active (the first steps of a training run): products of blocks instead of lists.
//!
//! Two passes, neither of which holds an array of batch x n_latents or a gradient of the size of the weights. The first goes by tiles of rows
//! and sums the reconstruction over blocks of latents; the second goes by blocks of latents, encodes each tile once more, and sums the
//! gradient of the block over the tiles. Six products of the encoder's size, and no work that depends on how many codes are active.

use std::cell::RefCell;

use crate::encode::TILE_ROWS;
use crate::family::{Dots, Entries, Formula, MAX_EXTRAS};
use crate::kernels::{Matrix, add_row, affine_row, product, residual_row, scale_row, sum_row};
use crate::parameters::Weights;
use crate::tile::{Factors, Reconstruction, TileSums};
use crate::update::Gradients;

/// Latents in a block.
pub(crate) const DENSE_BLOCK: usize = 128;

#[derive(Default)]
struct Scratch {
    ids: Vec<u32>,
    pre: Vec<f32>,
    codes: Vec<f32>,
    second: Vec<f32>,
    dots: Vec<f32>,
    second_dots: Vec<f32>,
    extras: [Vec<f32>; MAX_EXTRAS],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Pre-activations of a tile for the latents of `of`.
fn encode(x: &[f32], of: Weights<'_>, pre: &mut Vec<f32>, ids: &mut Vec<u32>) {
    let width = of.scale.len();
    ids.clear();
    ids.extend(0..width as u32);
    pre.resize(x.len() / of.d_in * width, 0.0);
    product(pre, Matrix::new(x, of.d_in), Matrix::new(of.enc, of.d_in).t(), false);
    pre.chunks_exact_mut(width).for_each(|row| affine_row(row, of.scale, of.of.bias));
}

/// First pass, a tile: `r`, and `second_r` where the family has a second reconstruction, become residuals times `factors.residual`.
pub(crate) fn forward(
    (x, target): (&[f32], &[f32]),
    (r, second_r): (&mut [f32], &mut [f32]),
    by: Reconstruction<'_>,
    floor: &[f32],
    sums: &mut TileSums,
) {
    let Reconstruction { weights: of, formula, factors, .. } = by;
    r.fill(0.0);
    second_r.fill(0.0);
    let (d, rows) = (of.d_out, x.len() / of.d_in);
    SCRATCH.with_borrow_mut(|Scratch { ids, pre, codes, second, .. }| {
        for first in (0..of.scale.len()).step_by(DENSE_BLOCK) {
            let block = first..(first + DENSE_BLOCK).min(of.scale.len());
            let (of, floor) = (of.part(block.clone()), &floor[block]);
            let width = of.scale.len();
            encode(x, of, pre, ids);
            codes.resize(rows * width, 0.0);
            second.resize(rows * width, 0.0);
            let rows = pre.chunks_exact(width).zip(codes.chunks_exact_mut(width).zip(second.chunks_exact_mut(width)));
            for (pre, (codes, second)) in rows {
                sums.penalty += formula.codes(Entries { latents: ids, pre, of: of.of }, codes, second);
                let counts = pre.iter().zip(floor).filter(|(pre, floor)| pre > floor);
                sums.entries += counts.count() as u64;
                let (sum, active) = sum_row(codes);
                sums.codes += f64::from(sum);
                sums.active += u64::from(active);
                scale_row(codes, of.scale);
            }
            product(r, Matrix::new(codes, width), Matrix::new(of.dec, d), true);
            if !second_r.is_empty() {
                product(second_r, Matrix::new(second, width), Matrix::new(of.dec, d), true);
            }
        }
    });
    for (target, r) in target.chunks_exact(d).zip(r.chunks_exact_mut(d)) {
        sums.squared_error += f64::from(residual_row(r, of.offset, target, factors.residual));
    }
    sums.objective += sums.squared_error;
    for (target, r) in target.chunks_exact(d).zip(second_r.chunks_exact_mut(d)) {
        sums.objective += f64::from(residual_row(r, of.offset, target, factors.residual));
    }
}

/// The batch after the first pass.
#[derive(Clone, Copy)]
pub(crate) struct Passed<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) r: &'a [f32],
    /// Empty without a second reconstruction.
    pub(crate) second_r: &'a [f32],
    pub(crate) factors: Factors,
}

/// Second pass, a block of latents: the gradients of their parameters, summed over the batch.
pub(crate) fn backward(batch: Passed<'_>, of: Weights<'_>, formula: &dyn Formula, tied: bool, out: &mut Gradients) {
    let (width, d_in, d) = (of.scale.len(), of.d_in, of.d_out);
    out.start(width, d_in, if tied { 0 } else { d });
    let second = formula.layout().second_reconstruction;
    SCRATCH.with_borrow_mut(|Scratch { ids, pre, codes, second: second_codes, dots, second_dots, extras }| {
        let tiles = batch.x.chunks(TILE_ROWS * d_in).zip(batch.r.chunks(TILE_ROWS * d));
        for (t, (x, r)) in tiles.enumerate() {
            let n = x.len() / d_in * width;
            encode(x, of, pre, ids);
            for values in [&mut *codes, second_codes, dots].into_iter().chain(extras.iter_mut()) {
                values.resize(n, 0.0);
            }
            product(dots, Matrix::new(r, d), Matrix::new(of.dec, d).t(), false);
            second_dots.resize(if second { n } else { 0 }, 0.0);
            if second {
                let second_r = &batch.second_r[t * TILE_ROWS * d..][..r.len()];
                product(second_dots, Matrix::new(second_r, d), Matrix::new(of.dec, d).t(), false);
            }
            for (row, pre) in pre.chunks_exact(width).enumerate() {
                let range = row * width..(row + 1) * width;
                let entries = Entries { latents: ids, pre, of: of.of };
                let codes = &mut codes[range.clone()];
                formula.codes(entries, codes, &mut second_codes[range.clone()]);
                for (fired, code) in out.fired.iter_mut().zip(&*codes) {
                    *fired |= *code > 0.0;
                }
                let dots = &mut dots[range.clone()];
                scale_row(dots, of.scale);
                // What was the second codes' room takes the deltas.
                let deltas = &mut second_codes[range.clone()];
                let second = second_dots.get(range.clone()).unwrap_or_default();
                let [a, b] = extras.each_mut().map(|extra| &mut extra[range.clone()]);
                let first = Dots { first: dots, second, penalty: batch.factors.penalty };
                formula.gradients(entries, first, deltas, [&mut *a, &mut *b]);
                for (sum, values) in out.sums.iter_mut().zip([&*deltas, a, b]) {
                    add_row(sum, values);
                }
            }
            let deltas = &*second_codes;
            product(&mut out.enc, Matrix::new(deltas, width).t(), Matrix::new(x, d_in), true);
            let by_codes = if tied { &mut out.enc } else { &mut out.dec };
            product(by_codes, Matrix::new(codes, width).t(), Matrix::new(r, d), true);
        }
    });
}
