//! The encoder: the one dense product of a step, of which only what may be chosen is ever written down.

use std::cell::RefCell;

use monosem_bf16::{Active, Affine, Columns, Kernel, Rows, active};
use rayon::prelude::*;

use crate::kernels::{AffineRow, Matrix, compact_row, dot_rows, product};
use crate::parameters::Weights;

/// Rows of a tile. A tile's activations and residuals stay in the cache of the core that works on it; the size is fixed, because sums
/// over tiles must not depend on the number of threads.
pub(crate) const TILE_ROWS: usize = 256;

/// Latents encoded at once: a tile's pre-activations are `TILE_ROWS x ENCODE_BLOCK` values, whatever the number of latents.
const ENCODE_BLOCK: usize = 256;

/// The same in bf16, a multiple of the rows that its kernel takes at once.
const BF16_BLOCK: usize = 504;

/// Up to this many values of the encoder are rounded once for all tiles; beyond it each tile rounds a block at a time, which takes a little longer and no
/// memory to speak of.
const ROUNDED_MOST: usize = 1 << 23;

/// How far from its value in `f32` a pre-activation in bf16 may be, in units of the root mean square of the row times the length of the encoder's.
/// Rounding moves each product by about a relative 2⁻⁹·⁵, and over a direction of length 1 that adds up to as many such units: this is eleven times as far, so
/// that hardly any code is missed.
pub const BF16_MARGIN: f32 = 1.0 / 64.0;

/// What has to be found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Search {
    /// Everything that exceeds its latent's threshold by more than this.
    Above(f32),
    /// The k largest values above 0 of each row, and perhaps some more.
    Largest(usize),
}

/// Pre-activations found, in segments: `block * rows + row`, latents ascending.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    rows: usize,
    segments: Vec<usize>,
    latents: Vec<u32>,
    pre: Vec<f32>,
}

impl Candidates {
    /// The segments of row `i`.
    pub(crate) fn row(&self, i: usize) -> impl Iterator<Item = (&[u32], &[f32])> {
        (i..self.segments.len() - 1).step_by(self.rows).map(|segment| {
            let entries = self.segments[segment]..self.segments[segment + 1];
            (&self.latents[entries.clone()], &self.pre[entries])
        })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// All values.
    pub(crate) fn values(&self) -> &[f32] {
        &self.pre[..self.len()]
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.last().copied().unwrap_or(0)
    }

    pub(crate) fn bytes(&self) -> usize {
        8 * self.segments.capacity() + 4 * (self.latents.capacity() + self.pre.capacity())
    }

    fn make_room(&mut self, needed: usize) {
        if self.latents.len() < needed {
            let room = needed + needed / 4;
            self.latents.resize(room, 0);
            self.pre.resize(room, 0.0);
        }
    }
}

/// The encoder's rows in bf16, in blocks.
#[derive(Debug, Default)]
pub(crate) struct Rounded {
    blocks: Vec<Rows>,
}

impl Rounded {
    /// Rounds all of `w`, unless that is a lot.
    pub(crate) fn set(&mut self, w: &[f32], d: usize) {
        let blocks = if w.len() <= ROUNDED_MOST { w.len().div_ceil(BF16_BLOCK * d) } else { 0 };
        self.blocks.resize_with(blocks, Rows::default);
        self.blocks.par_iter_mut().zip(w.par_chunks(BF16_BLOCK * d)).for_each(|(rows, w)| rows.set(w, d));
    }

    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(Rows::bytes).sum()
    }
}

/// What encodes a tile.
#[derive(Clone, Copy)]
pub(crate) struct Encoder<'a> {
    pub(crate) weights: Weights<'a>,
    /// What a pre-activation of each latent has to exceed.
    pub(crate) threshold: &'a [f32],
    /// Length of each row of the encoder.
    pub(crate) length: &'a [f32],
    /// Present where candidates are looked for in bf16.
    pub(crate) rounded: Option<&'a Rounded>,
    pub(crate) search: Search,
    /// In a search for the largest of each row: they are probably above this many root mean squares of the row. Where they are not, the search is done again without.
    pub(crate) hint: f32,
}

/// The largest values seen so far of each row, and the smallest that a further one has to exceed.
#[derive(Default)]
struct Largest {
    k: Option<usize>,
    floor: Vec<f32>,
    values: Vec<Vec<f32>>,
}

impl Largest {
    fn start(&mut self, search: Search, row_sizes: impl ExactSizeIterator<Item = f32>, hint: f32) {
        self.floor.clear();
        match search {
            Search::Above(floor) => {
                self.k = None;
                self.floor.resize(row_sizes.len(), floor);
            }
            Search::Largest(k) => {
                self.k = Some(k);
                self.values.resize_with(self.values.len().max(row_sizes.len()), Vec::new);
                self.values.iter_mut().for_each(Vec::clear);
                self.floor.extend(row_sizes.map(|size| hint * size));
            }
        }
    }

    /// Whether all rows have as many as are looked for.
    fn is_enough(&self) -> bool {
        self.k.is_none_or(|k| self.values[..self.floor.len()].iter().all(|values| values.len() >= k))
    }

    /// After block `block`: raises the floors. The number of blocks doubles from one time to the next, for the k largest of twice as many values take the place of
    /// half of those before.
    fn raise(&mut self, block: usize) {
        let Some(k) = self.k.filter(|_| (block + 1).is_power_of_two()) else { return };
        for (floor, values) in self.floor.iter_mut().zip(&mut self.values) {
            if values.len() > k {
                values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
                values.truncate(k);
                *floor = values[k - 1];
            }
        }
    }
}

#[derive(Default)]
struct Scratch {
    pre: Vec<f32>,
    largest: Largest,
    columns: Columns,
    rows: Rows,
    found: Active,
    /// Of each row of the tile, and the floors of the largest less that for the longest latent.
    margins: Vec<f32>,
    floors: Vec<f32>,
    /// Row, latent and value of what was found in bf16.
    all: Vec<(u32, u32, f32)>,
    latents: Vec<u32>,
    dots: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Encoder<'_> {
    /// Encodes the rows of `x`, whose sums of squares are known.
    pub(crate) fn encode(&self, x: &[f32], row_squares: &[f32], out: &mut Candidates) {
        out.rows = x.len() / self.weights.d_in;
        let sizes = || row_squares.iter().map(|squares| (squares / self.weights.d_in as f32).sqrt());
        SCRATCH.with_borrow_mut(|scratch| {
            for hint in [self.hint, 0.0] {
                scratch.largest.start(self.search, sizes(), hint);
                match self.rounded {
                    None => self.encode_in_f32(x, scratch, out),
                    Some(rounded) => self.find_in_bf16(x, rounded, sizes(), scratch),
                }
                if hint == 0.0 || scratch.largest.is_enough() {
                    break;
                }
            }
            if self.rounded.is_some() {
                self.compute_found(x, scratch, out);
            }
        });
    }

    fn encode_in_f32(&self, x: &[f32], scratch: &mut Scratch, out: &mut Candidates) {
        let Weights { enc, scale, of, d_in: d, .. } = self.weights;
        let Scratch { pre, largest, .. } = scratch;
        out.segments.clear();
        out.segments.push(0);
        let mut found = 0;
        for (block, first) in (0..scale.len()).step_by(ENCODE_BLOCK).enumerate() {
            let latents = first..(first + ENCODE_BLOCK).min(scale.len());
            let width = latents.len();
            pre.resize(out.rows * width, 0.0);
            product(pre, Matrix::new(x, d), Matrix::new(&enc[first * d..latents.end * d], d).t(), false);
            let affine = AffineRow {
                scale: &scale[latents.clone()],
                bias: &of.bias[latents.clone()],
                threshold: &self.threshold[latents],
            };
            for (row, pre) in pre.chunks_exact(width).enumerate() {
                out.make_room(found + width);
                let room = found..found + width;
                let (latents, values) = (&mut out.latents[room.clone()], &mut out.pre[room]);
                let new = compact_row(pre, affine, largest.floor[row], first as u32, latents, values);
                if largest.k.is_some() {
                    largest.values[row].extend_from_slice(&values[..new]);
                }
                found += new;
                out.segments.push(found);
            }
            largest.raise(block);
        }
    }

    /// Lists what may be above in `scratch.all`, by latent.
    fn find_in_bf16(&self, x: &[f32], rounded: &Rounded, row_sizes: impl Iterator<Item = f32>, scratch: &mut Scratch) {
        let Weights { enc, scale, of, d_in: d, .. } = self.weights;
        let Scratch { largest, columns, rows, found, margins, floors, all, .. } = scratch;
        // Where values in bf16 are compared with each other, both may be off.
        let margin = if largest.k.is_some() { 2.0 * BF16_MARGIN } else { BF16_MARGIN };
        margins.clear();
        margins.extend(row_sizes.map(|size| margin * size));
        columns.set(x, d);
        all.clear();
        for (block, first) in (0..scale.len()).step_by(BF16_BLOCK).enumerate() {
            let latents = first..(first + BF16_BLOCK).min(scale.len());
            let rows = if let Some(rows) = rounded.blocks.get(block) {
                rows
            } else {
                rows.set(&enc[first * d..latents.end * d], d);
                &*rows
            };
            let longest = self.length[latents.clone()].iter().copied().fold(0.0, f32::max);
            floors.clear();
            floors.extend(largest.floor.iter().zip(&*margins).map(|(floor, margin)| floor - margin * longest));
            let affine = Affine {
                scale: &scale[latents.clone()],
                bias: &of.bias[latents.clone()],
                threshold: &self.threshold[latents],
                floor: floors,
            };
            active(Kernel::detect(), rows, columns, affine, found);
            for (j, entries) in (first as u32..).zip(found.starts().windows(2)) {
                let entries = entries[0]..entries[1];
                let these = found.columns()[entries.clone()].iter().zip(&found.values()[entries]);
                all.extend(these.clone().map(|(row, value)| (*row, j, *value)));
                if largest.k.is_some() {
                    these.for_each(|(row, value)| largest.values[*row as usize].push(*value));
                }
            }
            largest.raise(block);
        }
        if largest.k.is_some() {
            all.retain(|(row, j, value)| {
                let (row, j) = (*row as usize, *j as usize);
                value - self.threshold[j] > largest.floor[row] - margins[row] * self.length[j]
            });
            // What is left says whether there are enough.
            largest.values.iter_mut().for_each(Vec::clear);
            all.iter().for_each(|(row, _, value)| largest.values[*row as usize].push(*value));
        }
    }

    /// Computes the pre-activations of what was found and keeps those above.
    fn compute_found(&self, x: &[f32], scratch: &mut Scratch, out: &mut Candidates) {
        let Weights { enc, scale, of, d_in: d, .. } = self.weights;
        let Scratch { all, latents, dots, .. } = scratch;
        // By row, by counting. `segments[i]` serves as the place of row i's next candidate, and has become the beginning of row i + 1 when all are placed.
        out.segments.clear();
        out.segments.resize(out.rows + 1, 0);
        for (row, _, _) in &*all {
            out.segments[*row as usize + 1] += 1;
        }
        for row in 0..out.rows {
            out.segments[row + 1] += out.segments[row];
        }
        latents.resize(all.len(), 0);
        for (row, j, _) in &*all {
            let place = &mut out.segments[*row as usize];
            latents[*place] = *j;
            *place += 1;
        }
        out.segments.rotate_right(1);
        out.segments[0] = 0;

        let floor = if let Search::Above(floor) = self.search { floor } else { 0.0 };
        out.make_room(latents.len() + 1);
        let (mut first, mut found) = (0, 0);
        for (row, x) in x.chunks_exact(d).enumerate() {
            let candidates = &latents[first..out.segments[row + 1]];
            first = out.segments[row + 1];
            dots.resize(candidates.len(), 0.0);
            dot_rows(x, candidates, enc, dots);
            for (latent, dot) in candidates.iter().zip(&*dots) {
                let j = *latent as usize;
                let pre = dot * scale[j] + of.bias[j];
                out.latents[found] = *latent;
                out.pre[found] = pre;
                found += usize::from(pre - self.threshold[j] > floor);
            }
            out.segments[row + 1] = found;
        }
    }
}
