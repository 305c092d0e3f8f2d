//! The trained parameters, a latent a row, with their optimiser's moments; and the two ways to give every latent its gradient.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::adam::AdamStep;
use crate::dense::{self, DENSE_BLOCK};
use crate::kernels::{gather_gradient, norm, project};
use crate::tile::{Directions, Factors, TILE_ROWS, Tile};

/// Lengths below this count as this: the authors' `clamp(min=1e-8)`.
const SHORTEST: f32 = 1e-8;

/// Latents that one task of the sparse path updates.
const SPARSE_BLOCK: usize = 32;

thread_local! {
    static GRADIENT: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Rows `w` whose directions `w / |w|` encode and decode, biases, and the moments of both.
#[derive(Debug, Clone)]
pub(crate) struct Latents {
    pub(crate) d: usize,
    pub(crate) w: Vec<f32>,
    pub(crate) w_m: Vec<f32>,
    pub(crate) w_v: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) b_m: Vec<f32>,
    pub(crate) b_v: Vec<f32>,
    /// One over the length of each row of `w`, kept up to date with it.
    pub(crate) scale: Vec<f32>,
}

/// A run of latents that one task owns.
struct Block<'a> {
    d: usize,
    w: &'a mut [f32],
    w_m: &'a mut [f32],
    w_v: &'a mut [f32],
    b: &'a mut [f32],
    b_m: &'a mut [f32],
    b_v: &'a mut [f32],
    scale: &'a mut [f32],
}

impl Latents {
    /// From rows and their moments; the lengths are computed.
    pub(crate) fn new(d: usize, [w, w_m, w_v]: [Vec<f32>; 3], [b, b_m, b_v]: [Vec<f32>; 3]) -> Self {
        let scale = w.chunks_exact(d).map(inverse_length).collect();
        Self { d, w, w_m, w_v, b, b_m, b_v, scale }
    }

    pub(crate) fn directions(&self) -> Directions<'_> {
        Directions { w: &self.w, scale: &self.scale, bias: &self.b, d: self.d }
    }

    /// Gathers each latent's gradient from the tiles' entries and steps. False if a weight is no longer finite.
    pub(crate) fn update_sparse(&mut self, tiles: &[Tile], x: &[f32], r: &[f32], adam: AdamStep) -> bool {
        let d = self.d;
        let tile = TILE_ROWS * d;
        self.blocks(SPARSE_BLOCK)
            .enumerate()
            .map(|(k, mut block)| {
                GRADIENT.with_borrow_mut(|(gradient, _)| {
                    gradient.resize(d, 0.0);
                    let mut finite = true;
                    for j in 0..block.b.len() {
                        gradient.fill(0.0);
                        let mut bias_gradient = 0.0;
                        for (tile, (x, r)) in tiles.iter().zip(x.chunks(tile).zip(r.chunks(tile))) {
                            let (rows, codes, deltas) = tile.entries(k * SPARSE_BLOCK + j);
                            gather_gradient(gradient, rows, codes, deltas, x, r);
                            bias_gradient += deltas.iter().sum::<f32>();
                        }
                        finite &= block.step(j, gradient, bias_gradient, adam);
                    }
                    finite
                })
            })
            .reduce(|| true, |a, b| a & b)
    }

    /// Computes the gradients of blocks of latents as products and steps. False if a weight is no longer finite.
    pub(crate) fn update_dense(&mut self, x: &[f32], r: &[f32], factors: Factors, adam: AdamStep) -> bool {
        let d = self.d;
        self.blocks(DENSE_BLOCK)
            .map(|mut block| {
                GRADIENT.with_borrow_mut(|(gradient, bias_gradient)| {
                    gradient.resize(block.w.len(), 0.0);
                    bias_gradient.resize(block.b.len(), 0.0);
                    let of = Directions { w: block.w, scale: block.scale, bias: block.b, d };
                    dense::backward(x, r, of, factors, gradient, bias_gradient);
                    let mut finite = true;
                    for (j, gradient) in gradient.chunks_exact_mut(d).enumerate() {
                        finite &= block.step(j, gradient, bias_gradient[j], adam);
                    }
                    finite
                })
            })
            .reduce(|| true, |a, b| a & b)
    }

    fn blocks(&mut self, size: usize) -> impl IndexedParallelIterator<Item = Block<'_>> {
        let d = self.d;
        let rows = self
            .w
            .par_chunks_mut(size * d)
            .zip(self.w_m.par_chunks_mut(size * d))
            .zip(self.w_v.par_chunks_mut(size * d));
        let biases = self.b.par_chunks_mut(size).zip(self.b_m.par_chunks_mut(size)).zip(self.b_v.par_chunks_mut(size));
        rows.zip(biases)
            .zip(self.scale.par_chunks_mut(size))
            .map(move |((((w, w_m), w_v), ((b, b_m), b_v)), scale)| Block { d, w, w_m, w_v, b, b_m, b_v, scale })
    }
}

impl Block<'_> {
    /// Steps latent `j` of the block, given the gradient of its direction and of its bias.
    fn step(&mut self, j: usize, gradient: &mut [f32], bias_gradient: f32, adam: AdamStep) -> bool {
        let row = j * self.d..(j + 1) * self.d;
        let w = &mut self.w[row.clone()];
        if self.scale[j] < 1.0 / SHORTEST {
            project(gradient, w, self.scale[j]);
        } else {
            // The length is clamped, so it has no gradient of its own.
            gradient.iter_mut().for_each(|g| *g *= 1.0 / SHORTEST);
        }
        adam.apply(w, &mut self.w_m[row.clone()], &mut self.w_v[row], gradient);
        self.scale[j] = inverse_length(w);
        adam.apply(&mut self.b[j..=j], &mut self.b_m[j..=j], &mut self.b_v[j..=j], &[bias_gradient]);
        // An infinite length has the inverse 0, one that is not a number has none.
        self.scale[j] > 0.0 && self.b[j].is_finite()
    }
}

fn inverse_length(w: &[f32]) -> f32 {
    // Not `max`, which would turn a length that is not a number into the shortest.
    let length = norm(w);
    if length < SHORTEST { 1.0 / SHORTEST } else { 1.0 / length }
}
