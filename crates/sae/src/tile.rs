//! The sparse path, one tile of rows at a time: encode, keep what is active, decode, residual, back to the active latents.

use std::cell::RefCell;

use monosem_bf16::{Active, Affine, Columns, Kernel, Rows, active};
use ndarray::ArrayView2;

use crate::kernels::{Matrix, compact_row, decode_row, dot_rows, load_row, product};

/// Rows of a tile. A tile's activations and residuals stay in the cache of the core that works on it; the size is fixed, because sums
/// over tiles must not depend on the number of threads.
pub(crate) const TILE_ROWS: usize = 256;

/// Latents encoded at once: a tile's pre-activations are `TILE_ROWS x ENCODE_BLOCK` values, whatever the number of latents.
const ENCODE_BLOCK: usize = 256;

/// How far below 0 a pre-activation in bf16 may be for its latent to be computed again, in units of the root mean square of the largest row. Rounding moves each
/// product by about a relative 2⁻⁹·⁵, and over a direction of length 1 that adds up to as many such units: this is eleven times as far, so that
/// hardly any code is missed.
const BF16_MARGIN: f32 = 1.0 / 64.0;

/// What encoding and back-propagation read: directions are `w` times `scale`, row by row.
#[derive(Clone, Copy)]
pub(crate) struct Directions<'a> {
    /// `[n_latents, d]`.
    pub(crate) w: &'a [f32],
    /// One over the length of each row `[n_latents]`.
    pub(crate) scale: &'a [f32],
    /// `[n_latents]`.
    pub(crate) bias: &'a [f32],
    /// Width.
    pub(crate) d: usize,
}

/// Factors of the loss's gradient.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// `2 / (rows d)`, of a residual.
    pub(crate) residual: f32,
    /// `alpha / rows`, of an active code.
    pub(crate) code: f32,
}

/// What one tile adds to the figures of a step.
#[derive(Debug, Default, Clone)]
pub(crate) struct TileSums {
    pub(crate) squared_error: f64,
    pub(crate) codes: f64,
    pub(crate) active: u64,
    pub(crate) squares: f64,
    pub(crate) columns: Vec<f32>,
    /// The first row that holds a value that is not a number or too large to square.
    pub(crate) bad_row: Option<usize>,
}

#[derive(Default)]
struct Scratch {
    pre: Vec<f32>,
    columns: Columns,
    thresholds: Vec<f32>,
    candidates: Active,
    latents: Vec<u32>,
    coefficients: Vec<f32>,
    deltas: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One tile's active codes, first by row, then by latent. Buffers are kept from step to step.
#[derive(Default)]
pub(crate) struct Tile {
    pub(crate) sums: TileSums,
    rows: usize,
    /// The largest sum of squares of a row.
    largest: f32,
    /// Segment `block * rows + row` of the entries begins here; one more at the end.
    segments: Vec<usize>,
    latents: Vec<u32>,
    codes: Vec<f32>,
    deltas: Vec<f32>,
    /// The entries of latent j are `starts[j]..starts[j + 1]` of the three below, rows ascending.
    starts: Vec<u32>,
    by_latent_rows: Vec<u32>,
    by_latent_codes: Vec<f32>,
    by_latent_deltas: Vec<f32>,
}

impl Tile {
    /// Copies rows of the batch times `scale` into `x` and starts the tile's sums.
    pub(crate) fn load(&mut self, batch: ArrayView2<'_, f32>, scale: f32, x: &mut [f32]) {
        let d = batch.ncols();
        self.rows = batch.nrows();
        self.sums = TileSums { columns: std::mem::take(&mut self.sums.columns), ..TileSums::default() };
        self.largest = 0.0;
        self.sums.columns.clear();
        self.sums.columns.resize(d, 0.0);
        for (i, (row, x)) in batch.rows().into_iter().zip(x.chunks_exact_mut(d)).enumerate() {
            match row.as_slice() {
                Some(row) => x.copy_from_slice(row),
                None => x.iter_mut().zip(row).for_each(|(x, value)| *x = *value),
            }
            let squares = load_row(x, scale, &mut self.sums.columns);
            if !squares.is_finite() && self.sums.bad_row.is_none() {
                self.sums.bad_row = Some(i);
            }
            self.largest = self.largest.max(squares);
            self.sums.squares += f64::from(squares);
        }
    }

    /// The whole sparse path of the tile: `r` becomes the residuals times `factors.residual`, and [`Self::gather`] is ready.
    pub(crate) fn run(
        &mut self,
        x: &[f32],
        r: &mut [f32],
        directions: Directions<'_>,
        rounded: Option<&Rows>,
        factors: Factors,
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            match rounded {
                None => self.encode(x, directions, &mut scratch.pre),
                Some(rounded) => self.encode_in_bf16(x, directions, rounded, scratch),
            }
            self.backward(x, r, directions, factors, scratch);
        });
        self.sort_by_latent(directions.bias.len());
    }

    fn encode(&mut self, x: &[f32], of: Directions<'_>, pre: &mut Vec<f32>) {
        let n_latents = of.bias.len();
        self.segments.clear();
        self.segments.push(0);
        let mut found = 0;
        for first in (0..n_latents).step_by(ENCODE_BLOCK) {
            let block = first..(first + ENCODE_BLOCK).min(n_latents);
            let width = block.len();
            pre.resize(self.rows * width, 0.0);
            let w = Matrix::new(&of.w[block.start * of.d..block.end * of.d], of.d);
            product(pre, Matrix::new(x, of.d), w.t(), false);
            for pre in pre.chunks_exact(width) {
                if self.latents.len() < found + width {
                    let room = (found + width).next_power_of_two();
                    self.latents.resize(room, 0);
                    self.codes.resize(room, 0.0);
                }
                let room = found..found + width;
                let (latents, codes) = (&mut self.latents[room.clone()], &mut self.codes[room]);
                found +=
                    compact_row(pre, &of.scale[block.clone()], &of.bias[block.clone()], first as u32, latents, codes);
                self.segments.push(found);
            }
        }
        self.deltas.resize(self.latents.len(), 0.0);
        self.sums.active = found as u64;
        self.sums.codes = self.codes[..found].iter().map(|c| f64::from(*c)).sum();
    }

    /// Finds candidates in bf16 and computes their codes in f32.
    fn encode_in_bf16(&mut self, x: &[f32], of: Directions<'_>, rounded: &Rows, scratch: &mut Scratch) {
        let Scratch { columns, thresholds, candidates, latents, coefficients, .. } = scratch;
        thresholds.clear();
        thresholds.resize(of.bias.len(), -BF16_MARGIN * (self.largest / of.d as f32).sqrt());
        columns.set(x, of.d);
        let affine = Affine { scale: of.scale, bias: of.bias, threshold: thresholds };
        active(Kernel::detect(), rounded, columns, affine, candidates);

        // The candidates are by latent; by row, by counting. `segments[i]` serves as the place of row i's next candidate, and has become the beginning of
        // row i + 1 when all are placed.
        self.segments.clear();
        self.segments.resize(self.rows + 1, 0);
        for row in candidates.columns() {
            self.segments[*row as usize + 1] += 1;
        }
        for row in 0..self.rows {
            self.segments[row + 1] += self.segments[row];
        }
        latents.resize(candidates.len(), 0);
        for (j, entries) in (0_u32..).zip(candidates.starts().windows(2)) {
            for row in &candidates.columns()[entries[0]..entries[1]] {
                let place = &mut self.segments[*row as usize];
                latents[*place] = j;
                *place += 1;
            }
        }
        self.segments.rotate_right(1);
        self.segments[0] = 0;

        if self.latents.len() < latents.len() {
            let room = latents.len().next_power_of_two();
            self.latents.resize(room, 0);
            self.codes.resize(room, 0.0);
        }
        let (mut first, mut found) = (0, 0);
        for (row, x) in x.chunks_exact(of.d).enumerate() {
            let candidates = &latents[first..self.segments[row + 1]];
            first = self.segments[row + 1];
            coefficients.resize(candidates.len(), 0.0);
            dot_rows(x, candidates, of.w, of.scale, 0.0, coefficients);
            for (latent, dot) in candidates.iter().zip(&*coefficients) {
                let code = dot + of.bias[*latent as usize];
                self.latents[found] = *latent;
                self.codes[found] = code;
                found += usize::from(code > 0.0);
            }
            self.segments[row + 1] = found;
        }
        self.deltas.resize(self.latents.len(), 0.0);
        self.sums.active = found as u64;
        self.sums.codes = self.codes[..found].iter().map(|c| f64::from(*c)).sum();
    }

    fn backward(&mut self, x: &[f32], r: &mut [f32], of: Directions<'_>, factors: Factors, scratch: &mut Scratch) {
        for (i, (x, r)) in x.chunks_exact(of.d).zip(r.chunks_exact_mut(of.d)).enumerate() {
            let segments = (i..self.segments.len() - 1).step_by(self.rows);
            scratch.latents.clear();
            scratch.coefficients.clear();
            for segment in segments.clone() {
                let entries = self.segments[segment]..self.segments[segment + 1];
                let latents = &self.latents[entries.clone()];
                scratch.latents.extend_from_slice(latents);
                let scaled = latents.iter().zip(&self.codes[entries]).map(|(j, c)| c * of.scale[*j as usize]);
                scratch.coefficients.extend(scaled);
            }
            let squares = decode_row(x, &scratch.latents, &scratch.coefficients, of.w, factors.residual, r);
            self.sums.squared_error += f64::from(squares);
            scratch.deltas.resize(scratch.latents.len(), 0.0);
            dot_rows(r, &scratch.latents, of.w, of.scale, factors.code, &mut scratch.deltas);
            let mut deltas = scratch.deltas.as_slice();
            for segment in segments {
                let entries = self.segments[segment]..self.segments[segment + 1];
                let (these, others) = deltas.split_at(entries.len());
                self.deltas[entries].copy_from_slice(these);
                deltas = others;
            }
        }
    }

    /// The same entries ordered by latent, by counting.
    fn sort_by_latent(&mut self, n_latents: usize) {
        let active = self.sums.active as usize;
        self.starts.clear();
        self.starts.resize(n_latents + 1, 0);
        for latent in &self.latents[..active] {
            self.starts[*latent as usize + 1] += 1;
        }
        let mut total = 0;
        for start in &mut self.starts {
            total += *start;
            *start = total;
        }
        if self.by_latent_rows.len() < active {
            self.by_latent_rows.resize(self.latents.len(), 0);
            self.by_latent_codes.resize(self.latents.len(), 0.0);
            self.by_latent_deltas.resize(self.latents.len(), 0.0);
        }
        // `starts[j]` serves as the place of latent j's next entry, and has become `starts[j + 1]` when all are placed.
        for segment in 0..self.segments.len() - 1 {
            let row = (segment % self.rows) as u32;
            for entry in self.segments[segment]..self.segments[segment + 1] {
                let place = &mut self.starts[self.latents[entry] as usize];
                self.by_latent_rows[*place as usize] = row;
                self.by_latent_codes[*place as usize] = self.codes[entry];
                self.by_latent_deltas[*place as usize] = self.deltas[entry];
                *place += 1;
            }
        }
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// Rows of this tile, codes and deltas of the entries of latent `j`.
    pub(crate) fn entries(&self, j: usize) -> (&[u32], &[f32], &[f32]) {
        let entries = self.starts[j] as usize..self.starts[j + 1] as usize;
        (&self.by_latent_rows[entries.clone()], &self.by_latent_codes[entries.clone()], &self.by_latent_deltas[entries])
    }

    /// Bytes of the buffers.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.latents.capacity() + self.codes.capacity() + self.deltas.capacity() + self.starts.capacity())
            + 4 * 3 * self.by_latent_rows.capacity()
            + 8 * self.segments.capacity()
            + 4 * self.sums.columns.capacity()
    }
}
