//! One tile of rows: loaded, and taken from its entries to the reconstruction and back.

use std::cell::RefCell;

use ndarray::ArrayView2;

use crate::encode::Candidates;
use crate::family::{Dots, Entries, Formula, PerLatent};
use crate::kernels::{add_row, add_rows, decode_row, dot_rows, load_row, squares, subtract_row, sum_row};
use crate::lists::{ByLatent, Lists};
use crate::parameters::Weights;

/// Factors of the loss's gradient.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// `2 / (rows d)`, of a residual; divided by the number of prefixes if there are several.
    pub(crate) residual: f32,
    /// `alpha / rows`, of a penalty.
    pub(crate) penalty: f32,
}

/// What one tile adds to the figures of a step.
#[derive(Debug, Default, Clone)]
pub(crate) struct TileSums {
    /// Of the reconstruction.
    pub(crate) squared_error: f64,
    /// Of all reconstructions that the loss counts.
    pub(crate) objective: f64,
    pub(crate) penalty: f64,
    pub(crate) codes: f64,
    pub(crate) active: u64,
    /// Pre-activations that count, of which some may have a code of 0.
    pub(crate) entries: u64,
    /// Squared error of what dead latents make of the residuals.
    pub(crate) aux_error: f64,
    /// Squares and sums by column of the target.
    pub(crate) squares: f64,
    pub(crate) columns: Vec<f32>,
    /// The first row that holds a value that is not a number or too large to square.
    pub(crate) bad_row: Option<usize>,
}

/// Buffers are kept from step to step.
#[derive(Debug, Default)]
pub(crate) struct Tile {
    pub(crate) sums: TileSums,
    /// Sum of squares of each row that the encoder reads.
    pub(crate) row_squares: Vec<f32>,
    /// Kept only where the choice depends on other tiles.
    pub(crate) candidates: Candidates,
    pub(crate) lists: Lists,
    /// Entries of dead latents, numbered among themselves.
    pub(crate) aux: Lists,
}

/// Factors of the auxiliary loss.
#[derive(Clone, Copy)]
pub(crate) struct Auxiliary {
    /// Values of `r` in a row of the batch.
    pub(crate) stride: usize,
    /// What the residuals in `r` are multiplied by.
    pub(crate) residual: f32,
    /// What those of the dead latents have to be.
    pub(crate) factor: f32,
}

/// How a row's entries are reconstructed.
#[derive(Clone, Copy)]
pub(crate) struct Reconstruction<'a> {
    pub(crate) weights: Weights<'a>,
    pub(crate) formula: &'a dyn Formula,
    pub(crate) factors: Factors,
    /// Numbers of latents that reconstruct by themselves; the last is all.
    pub(crate) prefixes: &'a [usize],
}

#[derive(Default)]
struct Scratch {
    coefficients: Vec<f32>,
    /// Residuals of a row's second reconstruction.
    second_r: Vec<f32>,
    left_over: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Tile {
    /// Copies rows of the batch times `scale` into `x` and starts the tile's sums.
    pub(crate) fn load(&mut self, batch: ArrayView2<'_, f32>, scale: f32, x: &mut [f32], center: Option<&[f32]>) {
        let columns = std::mem::take(&mut self.sums.columns);
        self.sums = TileSums { columns, ..TileSums::default() };
        self.sums.columns.clear();
        self.sums.columns.resize(batch.ncols(), 0.0);
        self.row_squares.clear();
        for (i, (row, x)) in batch.rows().into_iter().zip(x.chunks_exact_mut(batch.ncols())).enumerate() {
            match row.as_slice() {
                Some(row) => x.copy_from_slice(row),
                None => x.iter_mut().zip(row).for_each(|(x, value)| *x = *value),
            }
            let mut row_squares = load_row(x, scale, &mut self.sums.columns);
            if !row_squares.is_finite() && self.sums.bad_row.is_none() {
                self.sums.bad_row = Some(i);
            }
            self.sums.squares += f64::from(row_squares);
            if let Some(center) = center {
                subtract_row(x, center);
                row_squares = squares(x);
            }
            self.row_squares.push(row_squares);
        }
    }

    /// The same for what is to be reconstructed, where that is not the input: the sums are of this.
    pub(crate) fn load_target(&mut self, batch: ArrayView2<'_, f32>, scale: f32, x: &mut [f32]) {
        let (row_squares, bad_row) = (std::mem::take(&mut self.row_squares), self.sums.bad_row);
        self.load(batch, scale, x, None);
        self.row_squares = row_squares;
        self.sums.bad_row = bad_row.or(self.sums.bad_row);
    }

    /// Codes, residuals and gradients of the entries. `r` `[rows, prefixes, d_out]` becomes the gradients of the reconstructions of each group of latents
    /// between two prefixes.
    pub(crate) fn run(&mut self, target: &[f32], r: &mut [f32], by: Reconstruction<'_>) {
        let Reconstruction { weights: of, formula, factors, prefixes } = by;
        let (d, stride, layout) = (of.d_out, of.d_out * prefixes.len().max(1), formula.layout());
        let (lists, sums) = (&mut self.lists, &mut self.sums);
        let n = lists.latents.len();
        sums.entries = n as u64;
        let n_second = if layout.second_reconstruction { n } else { 0 };
        for (values, n) in [
            (&mut lists.codes, n),
            (&mut lists.dots, n),
            (&mut lists.second, n_second),
            (&mut lists.second_dots, n_second),
        ] {
            values.resize(n, 0.0);
        }
        let entries = Entries { latents: &lists.latents, pre: &lists.pre, of: of.of };
        sums.penalty += formula.codes(entries, &mut lists.codes, &mut lists.second);
        SCRATCH.with_borrow_mut(|Scratch { coefficients, second_r, .. }| {
            second_r.resize(d, 0.0);
            for (i, (target, r)) in target.chunks_exact(d).zip(r.chunks_exact_mut(stride)).enumerate() {
                let range = lists.starts[i]..lists.starts[i + 1];
                let (latents, codes) = (&lists.latents[range.clone()], &lists.codes[range.clone()]);
                let (sum, active) = sum_row(codes);
                sums.codes += f64::from(sum);
                sums.active += u64::from(active);
                coefficients.clear();
                coefficients.extend(latents.iter().zip(codes).map(|(j, c)| c * of.scale[*j as usize]));
                let dots = &mut lists.dots[range.clone()];
                if prefixes.is_empty() {
                    let error = decode_row(target, of.offset, latents, coefficients, of.dec, factors.residual, r);
                    sums.squared_error += f64::from(error);
                    sums.objective += f64::from(error);
                    dot_rows(r, latents, of.dec, dots);
                } else {
                    decode_prefixes(target, latents, coefficients, by, r, sums);
                    for_groups(latents, prefixes, |group, entries| {
                        dot_rows(&r[group * d..][..d], &latents[entries.clone()], of.dec, &mut dots[entries]);
                    });
                }
                for (dot, j) in dots.iter_mut().zip(latents) {
                    *dot *= of.scale[*j as usize];
                }
                if layout.second_reconstruction {
                    let second = &lists.second[range.clone()];
                    let error = decode_row(target, of.offset, latents, second, of.dec, factors.residual, second_r);
                    sums.objective += f64::from(error);
                    dot_rows(second_r, latents, of.dec, &mut lists.second_dots[range]);
                }
            }
        });
        lists.sort_by_latent(of.scale.len(), layout.extras.len());
        let ByLatent { latents, pre, dots, second_dots, deltas, extras, .. } = &mut lists.by_latent;
        let dots = Dots { first: dots, second: second_dots, penalty: factors.penalty };
        formula.gradients(Entries { latents, pre, of: of.of }, dots, deltas, extras.each_mut().map(Vec::as_mut_slice));
    }

    /// The auxiliary loss on the entries of dead latents: they reconstruct what the others left over. The last `d` values of each row of `r` are the gradient of
    /// the others' whole reconstruction; `aux_r` becomes that of the dead latents'.
    pub(crate) fn run_aux(&mut self, r: &[f32], aux_r: &mut [f32], dead: Weights<'_>, by: Auxiliary) {
        let (d, lists) = (dead.d_out, &mut self.aux);
        lists.codes.clone_from(&lists.pre);
        lists.dots.resize(lists.codes.len(), 0.0);
        SCRATCH.with_borrow_mut(|Scratch { left_over, .. }| {
            left_over.resize(d, 0.0);
            for (i, (r, aux_r)) in r.chunks_exact(by.stride).zip(aux_r.chunks_exact_mut(d)).enumerate() {
                let (latents, codes) = lists.row(i);
                // The gradient is that of `x_hat - x`; what is left over is its opposite.
                let values = left_over.iter_mut().zip(&r[by.stride - d..]);
                values.for_each(|(left_over, r)| *left_over = -r / by.residual);
                let error = decode_row(left_over, dead.offset, latents, codes, dead.dec, by.factor, aux_r);
                self.sums.aux_error += f64::from(error);
                let range = lists.starts[i]..lists.starts[i + 1];
                dot_rows(aux_r, &lists.latents[range.clone()], dead.dec, &mut lists.dots[range]);
            }
        });
        lists.sort_by_latent(dead.scale.len(), 0);
        let ByLatent { dots, deltas, .. } = &mut lists.by_latent;
        deltas.copy_from_slice(dots);
    }

    /// The smallest of the k-th largest codes of the rows, each relative to the row's root mean square; 0 if a row has fewer.
    pub(crate) fn smallest_limit(&self, k: usize, d_in: usize) -> f32 {
        let rows = self.lists.starts.windows(2).zip(&self.row_squares);
        let limits = rows.map(|(entries, squares)| {
            let pre = &self.lists.pre[entries[0]..entries[1]];
            if pre.len() < k {
                0.0
            } else {
                pre.iter().copied().fold(f32::INFINITY, f32::min) / (squares / d_in as f32).sqrt()
            }
        });
        limits.fold(f32::INFINITY, f32::min)
    }

    /// Bytes of the buffers.
    pub(crate) fn bytes(&self) -> usize {
        self.candidates.bytes()
            + self.lists.bytes()
            + self.aux.bytes()
            + 4 * (self.sums.columns.capacity() + self.row_squares.capacity())
    }
}

/// Calls `each` with the groups of latents between two prefixes that have entries, and those.
fn for_groups(latents: &[u32], prefixes: &[usize], mut each: impl FnMut(usize, std::ops::Range<usize>)) {
    let mut first = 0;
    for (group, end) in prefixes.iter().enumerate() {
        let last = first + latents[first..].partition_point(|j| (*j as usize) < *end);
        if last > first {
            each(group, first..last);
        }
        first = last;
    }
}

/// Reconstructs with each prefix of the latents; `r` `[prefixes, d]` becomes, for each group of latents, the sum of the gradients of all reconstructions
/// that it takes part in.
fn decode_prefixes(
    target: &[f32],
    latents: &[u32],
    coefficients: &[f32],
    by: Reconstruction<'_>,
    r: &mut [f32],
    sums: &mut TileSums,
) {
    let Reconstruction { weights: of, factors, prefixes, .. } = by;
    let d = of.d_out;
    let (first, _) = r.split_at_mut(d);
    first.iter_mut().zip(of.offset.iter().zip(target)).for_each(|(r, (offset, target))| *r = offset - target);
    let mut done = 0;
    for (group, end) in prefixes.iter().enumerate() {
        if group > 0 {
            r.copy_within((group - 1) * d..group * d, group * d);
        }
        let last = done + latents[done..].partition_point(|j| (*j as usize) < *end);
        let residual = &mut r[group * d..][..d];
        add_rows(&latents[done..last], &coefficients[done..last], of.dec, residual);
        done = last;
        let error = f64::from(squares(residual));
        sums.objective += error / prefixes.len() as f64;
        if group + 1 == prefixes.len() {
            sums.squared_error += error;
        }
    }
    r.iter_mut().for_each(|r| *r *= factors.residual);
    for group in (1..prefixes.len()).rev() {
        let (before, after) = r.split_at_mut(group * d);
        add_row(&mut before[(group - 1) * d..], &after[..d]);
    }
}

/// The parameters of a few latents, gathered: what the auxiliary loss encodes and decodes with.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    pub(crate) latents: Vec<u32>,
    enc: Vec<f32>,
    dec: Vec<f32>,
    bias: Vec<f32>,
    scale: Vec<f32>,
    offset: Vec<f32>,
    pub(crate) length: Vec<f32>,
    pub(crate) threshold: Vec<f32>,
}

impl Gathered {
    /// Copies the parameters of `latents`.
    pub(crate) fn set(&mut self, latents: impl Iterator<Item = usize>, of: Weights<'_>, length: &[f32]) {
        let Self { latents: ids, enc, dec, bias, scale, offset, length: lengths, threshold } = self;
        ids.clear();
        for values in [&mut *enc, dec, bias, scale, lengths] {
            values.clear();
        }
        for j in latents {
            ids.push(j as u32);
            enc.extend_from_slice(&of.enc[j * of.d_in..][..of.d_in]);
            dec.extend_from_slice(&of.dec[j * of.d_out..][..of.d_out]);
            bias.push(of.of.bias[j]);
            scale.push(of.scale[j]);
            lengths.push(length[j]);
        }
        offset.resize(of.d_out, 0.0);
        threshold.resize(ids.len(), 0.0);
    }

    /// As weights of their own, without a decoder bias.
    pub(crate) fn weights(&self, d_in: usize, d_out: usize) -> Weights<'_> {
        let of = PerLatent { bias: &self.bias, extras: [&[]; 2], derived: &[] };
        let Self { enc, dec, scale, offset, .. } = self;
        Weights { enc, dec, scale, of, offset, d_in, d_out }
    }

    /// Bytes of the buffers.
    pub(crate) fn bytes(&self) -> usize {
        let floats = [&self.enc, &self.dec, &self.bias, &self.scale, &self.offset, &self.length, &self.threshold];
        4 * (floats.into_iter().map(Vec::capacity).sum::<usize>() + self.latents.capacity())
    }
}
