//! Each latent gathers its gradient from the entries of all tiles and takes its step of Adam in place: no array of gradients.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::adam::AdamStep;
use crate::dense::{self, DENSE_BLOCK, Passed};
use crate::encode::TILE_ROWS;
use crate::family::{Formula, Layout, MAX_EXTRAS, PerLatent};
use crate::kernels::{add_row, gather_gradient, gather_rows, norm, project, remove_along, squares, subtract_row};
use crate::lists::OfLatent;
use crate::parameters::{Parameters, SHORTEST, Trained, Weights, scale_and_length};
use crate::tile::Tile;

/// Latents that one task of the sparse path updates.
const SPARSE_BLOCK: usize = 32;

/// The gradients of a run of latents.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    pub(crate) enc: Vec<f32>,
    pub(crate) dec: Vec<f32>,
    /// Of the encoder's biases and the extra parameters.
    pub(crate) sums: [Vec<f32>; 1 + MAX_EXTRAS],
    /// Whether a latent was active.
    pub(crate) fired: Vec<bool>,
    entries: Entries,
}

thread_local! {
    static GRADIENTS: RefCell<Gradients> = RefCell::default();
}

impl Gradients {
    /// Zeros for `n` latents.
    pub(crate) fn start(&mut self, n: usize, d_in: usize, d_out: usize) {
        for (values, length) in [(&mut self.enc, n * d_in), (&mut self.dec, n * d_out)] {
            values.clear();
            values.resize(length, 0.0);
        }
        for values in &mut self.sums {
            values.clear();
            values.resize(n, 0.0);
        }
        self.fired.clear();
        self.fired.resize(n, false);
    }
}

/// Where gradients come from.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The entries of the tiles.
    Sparse(Sparse<'a>),
    /// Products.
    Dense(Passed<'a>),
}

/// The batch after its tiles were run.
#[derive(Clone, Copy)]
pub(crate) struct Sparse<'a> {
    pub(crate) tiles: &'a [Tile],
    pub(crate) x: &'a [f32],
    /// `[rows, groups, d_out]`
    pub(crate) r: &'a [f32],
    /// Numbers of latents at which groups end; empty for one group.
    pub(crate) prefixes: &'a [usize],
    /// Dead latents with entries of their own, ascending, and the gradients of their reconstruction.
    pub(crate) dead: &'a [u32],
    pub(crate) aux_r: &'a [f32],
}

/// How parameters move.
#[derive(Clone, Copy)]
pub(crate) struct Move<'a> {
    pub(crate) formula: &'a dyn Formula,
    pub(crate) adam: AdamStep,
    /// Largest norm of all gradients together.
    pub(crate) clip_norm: Option<f32>,
    pub(crate) project_decoder: bool,
}

/// A run of latents that one task owns.
struct Block<'a> {
    first: usize,
    layout: Layout,
    d_in: usize,
    d_out: usize,
    w_enc: Part<'a>,
    b_enc: Part<'a>,
    w_dec: Part<'a>,
    extras: [Part<'a>; MAX_EXTRAS],
    scale: &'a mut [f32],
    length: &'a mut [f32],
    derived: &'a [f32],
    silent: &'a mut [u32],
}

struct Part<'a> {
    value: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

/// Splits the first `n` values off, or what there is.
fn take<'a, T>(rest: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let n = n.min(rest.len());
    let (first, others) = std::mem::take(rest).split_at_mut(n);
    *rest = others;
    first
}

impl<'a> Part<'a> {
    fn of(trained: &'a mut Trained) -> Self {
        Self { value: &mut trained.value, m: &mut trained.m, v: &mut trained.v }
    }

    fn take(&mut self, n: usize) -> Self {
        Self { value: take(&mut self.value, n), m: take(&mut self.m, n), v: take(&mut self.v, n) }
    }

    fn step(&mut self, range: std::ops::Range<usize>, gradient: &[f32], adam: AdamStep) {
        let Self { value, m, v } = self;
        adam.apply(&mut value[range.clone()], &mut m[range.clone()], &mut v[range], gradient);
    }
}

impl Parameters {
    /// Takes one step. `bias_gradient` is what the reconstructions give the decoder's bias. False if a parameter is no longer finite.
    pub(crate) fn update(&mut self, source: Source<'_>, by: Move<'_>, mut bias_gradient: Vec<f32>) -> bool {
        let mut factor = 1.0;
        if let Some(most) = by.clip_norm {
            let passed = self.pass(source, by, None);
            let mut total: f64 = passed.iter().map(|part| part.squares).sum();
            if self.layout.decoder_bias {
                let mut gradient = bias_gradient.clone();
                passed.iter().for_each(|part| subtract_row(&mut gradient, &part.through_center));
                total += f64::from(squares(&gradient));
            }
            factor = (f64::from(most) / total.sqrt()).min(1.0) as f32;
        }
        let passed = self.pass(source, by, Some(factor));
        if self.layout.decoder_bias {
            passed.iter().for_each(|part| subtract_row(&mut bias_gradient, &part.through_center));
            bias_gradient.iter_mut().for_each(|g| *g *= factor);
            Part::of(&mut self.b_dec).step(0..bias_gradient.len(), &bias_gradient, by.adam);
        }
        passed.iter().all(|part| part.finite) && self.b_dec.value.iter().all(|b| b.is_finite())
    }

    /// Goes over all latents: steps with gradients times `factor`, or only measures them.
    fn pass(&mut self, source: Source<'_>, by: Move<'_>, factor: Option<f32>) -> Vec<Passage> {
        let size = if matches!(source, Source::Sparse(_)) { SPARSE_BLOCK } else { DENSE_BLOCK };
        let mut blocks = self.blocks(size);
        blocks
            .par_iter_mut()
            .map(|block| GRADIENTS.with_borrow_mut(|gradients| block.pass(source, by, factor, gradients)))
            .collect()
    }

    fn blocks(&mut self, size: usize) -> Vec<Block<'_>> {
        let (layout, d_in, d_out, n) = (self.layout, self.d_in, self.d_out, self.n_latents());
        let (mut w_enc, mut b_enc) = (Part::of(&mut self.w_enc), Part::of(&mut self.b_enc));
        let mut w_dec = Part::of(&mut self.w_dec);
        let mut extras = self.extras.each_mut().map(Part::of);
        let (mut scale, mut length) = (self.scale.as_mut_slice(), self.length.as_mut_slice());
        let mut silent = self.silent.as_mut_slice();
        let derived = &self.derived;
        let block = |first: usize| {
            let size = size.min(n - first);
            Block {
                first,
                layout,
                d_in,
                d_out,
                w_enc: w_enc.take(size * d_in),
                b_enc: b_enc.take(size),
                w_dec: w_dec.take(size * d_out),
                extras: extras.each_mut().map(|extra| extra.take(size)),
                scale: take(&mut scale, size),
                length: take(&mut length, size),
                derived: derived.get(first..first + size).unwrap_or_default(),
                silent: take(&mut silent, size),
            }
        };
        (0..n).step_by(size).map(block).collect()
    }
}

/// What going over a block of latents gave.
struct Passage {
    finite: bool,
    /// Of the gradients, before clipping.
    squares: f64,
    /// `sum_j (sum of deltas of j) w_enc_j`: what the bias subtracted from the input takes from its gradient; empty where none is subtracted.
    through_center: Vec<f32>,
}

impl Block<'_> {
    fn pass(&mut self, source: Source<'_>, by: Move<'_>, factor: Option<f32>, gradients: &mut Gradients) -> Passage {
        let center = if self.layout.subtract_decoder_bias { self.d_in } else { 0 };
        let mut passage = Passage { finite: true, squares: 0.0, through_center: vec![0.0; center] };
        match source {
            // One by one, so that a gradient stays in the first cache.
            Source::Sparse(sparse) => {
                for j in 0..self.b_enc.value.len() {
                    gather(sparse, self.first + j, self.layout.tied, [self.d_in, self.d_out], gradients);
                    self.latent(j, 0, gradients, by, factor, &mut passage);
                }
            }
            Source::Dense(batch) => {
                dense::backward(batch, self.weights(), by.formula, self.layout.tied, gradients);
                for j in 0..self.b_enc.value.len() {
                    self.latent(j, j, gradients, by, factor, &mut passage);
                }
            }
        }
        passage
    }

    fn per_latent(&self) -> PerLatent<'_> {
        PerLatent {
            bias: self.b_enc.value,
            extras: self.extras.each_ref().map(|extra| &*extra.value),
            derived: self.derived,
        }
    }

    fn weights(&self) -> Weights<'_> {
        let dec = if self.layout.tied { &*self.w_enc.value } else { &*self.w_dec.value };
        let (enc, d_in, d_out) = (&*self.w_enc.value, self.d_in, self.d_out);
        // Going back, nothing is reconstructed.
        Weights { enc, dec, scale: self.scale, of: self.per_latent(), offset: &[], d_in, d_out }
    }

    /// Turns what was gathered for latent `j` of the block (the `at`-th of `gradients`) into the gradients of its parameters, and steps.
    fn latent(
        &mut self,
        j: usize,
        at: usize,
        gradients: &mut Gradients,
        by: Move<'_>,
        factor: Option<f32>,
        passage: &mut Passage,
    ) {
        let (enc_row, dec_row) = (j * self.d_in..(j + 1) * self.d_in, j * self.d_out..(j + 1) * self.d_out);
        let enc = &mut gradients.enc[at * self.d_in..][..self.d_in];
        let sums = gradients.sums.each_ref().map(|sums| sums[at]);
        let w = &mut self.w_enc.value[enc_row.clone()];
        if self.layout.subtract_decoder_bias && sums[0] != 0.0 {
            passage.through_center.iter_mut().zip(&*w).for_each(|(total, w)| *total += sums[0] * w);
        }
        if self.layout.tied {
            if self.scale[j] < 1.0 / SHORTEST {
                project(enc, w, self.scale[j]);
            } else {
                // The length is clamped, so it has no gradient of its own.
                enc.iter_mut().for_each(|g| *g *= 1.0 / SHORTEST);
            }
        }
        let dec: &mut [f32] =
            if self.layout.tied { &mut [] } else { &mut gradients.dec[at * self.d_out..][..self.d_out] };
        if by.project_decoder && !self.layout.tied {
            remove_along(dec, &self.w_dec.value[dec_row.clone()]);
        }
        let mut small = by.formula.of_latent(self.per_latent(), j, sums);
        let Some(factor) = factor else {
            passage.squares += f64::from(squares(enc)) + f64::from(squares(dec));
            passage.squares += small[..=self.layout.extras.len()].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
            return;
        };
        if factor < 1.0 {
            small.iter_mut().chain(enc.iter_mut()).chain(dec.iter_mut()).for_each(|g| *g *= factor);
        }
        self.w_enc.step(enc_row.clone(), enc, by.adam);
        self.b_enc.step(j..j + 1, &small[..1], by.adam);
        let mut finite = self.b_enc.value[j].is_finite();
        for (extra, gradient) in self.extras[..self.layout.extras.len()].iter_mut().zip(&small[1..]) {
            extra.step(j..j + 1, &[*gradient], by.adam);
            finite &= extra.value[j].is_finite();
        }
        if !self.layout.tied {
            self.w_dec.step(dec_row.clone(), dec, by.adam);
            let row = &mut self.w_dec.value[dec_row];
            let length = norm(row);
            finite &= length.is_finite();
            row.iter_mut().for_each(|w| *w /= length.max(SHORTEST));
        }
        (self.scale[j], self.length[j]) = scale_and_length(&self.w_enc.value[enc_row], self.layout.tied);
        // An infinite length has the inverse 0, one that is not a number has none.
        finite &= self.scale[j] > 0.0 && self.length[j].is_finite();
        passage.finite &= finite;
        self.silent[j] = if gradients.fired[at] { 0 } else { self.silent[j].saturating_add(1) };
    }
}

/// The entries of a latent in all tiles, one after the other: longer lists keep the loops over them short of ends.
#[derive(Debug, Default)]
struct Entries {
    rows: Vec<u32>,
    codes: Vec<f32>,
    deltas: Vec<f32>,
}

impl Entries {
    fn clear(&mut self) {
        self.rows.clear();
        self.codes.clear();
        self.deltas.clear();
    }

    fn extend(&mut self, tile: usize, of: OfLatent<'_>) {
        self.rows.extend(of.rows.iter().map(|row| row + (tile * TILE_ROWS) as u32));
        self.codes.extend_from_slice(of.codes);
        self.deltas.extend_from_slice(of.deltas);
    }
}

/// Gathers the gradient of latent `j` from the tiles' entries.
fn gather(from: Sparse<'_>, j: usize, tied: bool, [d_in, d_out]: [usize; 2], out: &mut Gradients) {
    out.start(1, d_in, if tied { 0 } else { d_out });
    let stride = d_out * from.prefixes.len().max(1);
    let group = from.prefixes.iter().position(|end| j < *end).unwrap_or(0);
    let Gradients { enc, dec, sums, fired, entries } = out;
    entries.clear();
    for (t, tile) in from.tiles.iter().enumerate() {
        let of = tile.lists.of(j);
        entries.extend(t, of);
        for (sum, values) in sums[1..].iter_mut().zip(of.extras) {
            sum[0] += values.iter().sum::<f32>();
        }
    }
    fired[0] = entries.codes.iter().any(|c| *c > 0.0);
    sums[0][0] = entries.deltas.iter().sum();
    let Entries { rows, codes, deltas } = entries;
    if tied {
        gather_gradient(enc, rows, codes, deltas, from.x, from.r);
    } else {
        gather_rows(enc, rows, deltas, from.x, d_in);
        gather_rows(dec, rows, codes, &from.r[group * d_out..], stride);
    }
    if let Ok(dead) = from.dead.binary_search(&(j as u32)) {
        let entries = &mut out.entries;
        entries.clear();
        from.tiles.iter().enumerate().for_each(|(t, tile)| entries.extend(t, tile.aux.of(dead)));
        gather_rows(&mut out.enc, &entries.rows, &entries.deltas, from.x, d_in);
        gather_rows(&mut out.dec, &entries.rows, &entries.codes, from.aux_r, d_out);
        out.sums[0][0] += entries.deltas.iter().sum::<f32>();
    }
}

/// What the reconstructions give the decoder's bias: the sum of `r` over rows of `stride` values, of the first `d` of each.
pub(crate) fn bias_gradient(r: &[f32], stride: usize, d: usize) -> Vec<f32> {
    let of_tile = |tile: &[f32]| {
        let mut sum = vec![0.0; d];
        tile.chunks_exact(stride).for_each(|row| add_row(&mut sum, &row[..d]));
        sum
    };
    let of_tiles: Vec<_> = r.par_chunks(TILE_ROWS * stride).map(of_tile).collect();
    let mut total = vec![0.0; d];
    of_tiles.iter().for_each(|sum| add_row(&mut total, sum));
    total
}
