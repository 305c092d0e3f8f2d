//! The forward half of a step: the batch is loaded, encoded and reconstructed, tile by tile.

use std::cell::RefCell;

use ndarray::{ArrayView2, s};
use rayon::prelude::*;

use crate::Spaces;
use crate::dense;
use crate::encode::{Candidates, Encoder, Search, TILE_ROWS};
use crate::family::Selection;
use crate::lists::Choice;
use crate::tile::{Reconstruction, Tile};

/// Candidates of a choice among a whole batch have to be above this share of the value that was the limit in the step before. Where too few are, less is asked
/// of them, so that it only decides how long the search takes and how many are listed.
const HINT: f32 = 0.95;

/// By how much less is asked each time; after [`HINT_TIMES`] nothing but that they are positive.
const HINT_AGAIN: f32 = 0.5;
const HINT_TIMES: u32 = 8;

thread_local! {
    static CANDIDATES: RefCell<Candidates> = RefCell::default();
}

/// The rows of one step, as they come.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub(crate) input: ArrayView2<'a, f32>,
    pub(crate) target: Option<ArrayView2<'a, f32>>,
    pub(crate) spaces: Spaces,
    /// What the encoder reads the input without.
    pub(crate) center: Option<&'a [f32]>,
}

/// A tile and its part of the buffers.
pub(crate) struct Work<'a> {
    tile: &'a mut Tile,
    x: &'a mut [f32],
    /// Empty where the target is what is read.
    target: &'a mut [f32],
    r: &'a mut [f32],
    /// Of the second reconstruction in the dense path, else empty.
    second_r: &'a mut [f32],
}

impl<'a> Work<'a> {
    /// Cuts the buffers into tiles; the widths are those of a row in each.
    pub(crate) fn cut(
        tiles: &'a mut [Tile],
        [x, target, r, second_r]: [&'a mut [f32]; 4],
        [d_in, d_out, stride]: [usize; 3],
    ) -> Vec<Self> {
        let n = tiles.len();
        let (mut targets, mut seconds) = (parts(target, d_out, n), parts(second_r, d_out, n));
        let rows = x.chunks_mut(TILE_ROWS * d_in).zip(r.chunks_mut(TILE_ROWS * stride));
        let works = tiles.iter_mut().zip(rows).map(|(tile, (x, r))| Work {
            tile,
            x,
            target: targets.next().unwrap_or_default(),
            r,
            second_r: seconds.next().unwrap_or_default(),
        });
        works.collect()
    }

    /// Loads tile `t` of the batch; false if it holds a value that is not finite.
    fn load(&mut self, t: usize, batch: Batch<'_>) -> bool {
        let of = s![t * TILE_ROWS..((t + 1) * TILE_ROWS).min(batch.input.nrows()), ..];
        self.tile.load(batch.input.slice_move(of), batch.spaces.input.scale, self.x, batch.center);
        if let (Some(target), Some(space)) = (batch.target, batch.spaces.target) {
            self.tile.load_target(target.slice_move(of), space.scale, self.target);
        }
        self.tile.sums.bad_row.is_none()
    }

    fn encode(&mut self, encoder: &Encoder<'_>) {
        encoder.encode(self.x, &self.tile.row_squares, &mut self.tile.candidates);
    }

    /// From the entries that were chosen to gradients.
    fn run(&mut self, by: Reconstruction<'_>) {
        let target = if self.target.is_empty() { &*self.x } else { &*self.target };
        self.tile.run(target, self.r, by);
    }
}

/// Parts of a buffer, or of an empty one nothing for each.
fn parts(values: &mut [f32], d: usize, n: usize) -> impl Iterator<Item = &mut [f32]> {
    values.chunks_mut(TILE_ROWS * d).take(n)
}

/// The dense path.
pub(crate) fn dense(works: &mut [Work<'_>], batch: Batch<'_>, by: Reconstruction<'_>, floor: &[f32]) {
    works.par_iter_mut().enumerate().for_each(|(t, work)| {
        if work.load(t, batch) {
            let target = if work.target.is_empty() { &*work.x } else { &*work.target };
            let rows = (&*work.x, target);
            dense::forward(rows, (work.r, work.second_r), by, floor, &mut work.tile.sums);
        }
    });
}

/// Each tile by itself, from end to end while it is near. Returns the smallest limit of a row, relative to its size, where the k largest are chosen.
pub(crate) fn one_by_one(
    works: &mut [Work<'_>],
    batch: Batch<'_>,
    encoder: &Encoder<'_>,
    by: Reconstruction<'_>,
) -> f32 {
    let limits = works.par_iter_mut().enumerate().map(|(t, work)| {
        if !work.load(t, batch) {
            return 0.0;
        }
        let k = if let Search::Largest(k) = encoder.search { Some(k) } else { None };
        CANDIDATES.with_borrow_mut(|candidates| {
            encoder.encode(work.x, &work.tile.row_squares, candidates);
            work.tile.lists.choose(candidates, k.map_or(Choice::All, Choice::Largest));
        });
        work.run(by);
        k.map_or(0.0, |k| work.tile.smallest_limit(k, by.weights.d_in))
    });
    limits.reduce(|| f32::INFINITY, f32::min)
}

/// The `k` a row largest of the whole batch: all tiles are encoded before any is reconstructed. `last_choice` is what this returned in the step before, the smallest
/// value chosen (0 before the first).
pub(crate) fn together(
    works: &mut [Work<'_>],
    batch: Batch<'_>,
    encoder: Encoder<'_>,
    by: Reconstruction<'_>,
    (k, last_choice, values): (usize, f32, &mut Vec<f32>),
) -> f32 {
    works.par_iter_mut().enumerate().for_each(|(t, work)| _ = work.load(t, batch));
    if works.iter().any(|work| work.tile.sums.bad_row.is_some()) {
        return 0.0;
    }
    let mut hint = last_choice * HINT;
    if hint == 0.0 {
        // What the limit would be if the first tile were all.
        let first = &mut works[0];
        let rows = first.x.len() / by.weights.d_in;
        first.encode(&Encoder { search: Search::Largest(4 * k), hint: 0.0, ..encoder });
        if let Choice::Above(limit, _) = choose(std::iter::once(&first.tile.candidates), k * rows, values)[0] {
            hint = limit * HINT;
        }
    }
    let wanted = k * batch.input.nrows();
    let mut enough = false;
    for times in 0.. {
        let search = Search::Above(if times < HINT_TIMES { hint } else { 0.0 });
        works.par_iter_mut().for_each(|work| work.encode(&Encoder { search, ..encoder }));
        let found = works.iter().map(|work| work.tile.candidates.len()).sum::<usize>();
        enough = found >= wanted;
        if enough || search == Search::Above(0.0) {
            break;
        }
        hint *= HINT_AGAIN;
    }
    let choices = choose(works.iter().map(|work| &work.tile.candidates), wanted, values);
    let chosen = works.par_iter_mut().zip(choices).map(|(work, choice)| {
        let smallest = work.tile.lists.choose(&work.tile.candidates, choice);
        work.run(by);
        smallest
    });
    let smallest = chosen.reduce(|| f32::INFINITY, f32::min);
    // Where all that are positive were taken there is no limit.
    if enough { smallest } else { 0.0 }
}

/// For each tile, which of its candidates are among the `wanted` largest of all; of equal ones those of earlier tiles.
fn choose<'a>(
    tiles: impl Iterator<Item = &'a Candidates> + Clone,
    wanted: usize,
    values: &mut Vec<f32>,
) -> Vec<Choice> {
    values.clear();
    tiles.clone().for_each(|tile| values.extend_from_slice(tile.values()));
    if values.len() <= wanted {
        return tiles.map(|_| Choice::All).collect();
    }
    let limit = *values.select_nth_unstable_by(wanted - 1, |a, b| b.total_cmp(a)).1;
    let mut ties_left = wanted - values[..wanted].iter().filter(|v| **v > limit).count();
    tiles
        .map(|tile| {
            let ties = tile.values().iter().filter(|v| **v == limit).count().min(ties_left);
            ties_left -= ties;
            Choice::Above(limit, ties)
        })
        .collect()
}

/// What search a choice begins with.
pub(crate) fn search(selection: Selection) -> Search {
    match selection {
        Selection::TopK(k) => Search::Largest(k),
        Selection::Threshold | Selection::BatchTopK(_) => Search::Above(0.0),
    }
}

/// Lets the dead latents of a tile reconstruct what the others left over.
pub(crate) fn choose_dead(tile: &mut Tile, x: &[f32], encoder: &Encoder<'_>, k: usize) {
    CANDIDATES.with_borrow_mut(|candidates| {
        encoder.encode(x, &tile.row_squares, candidates);
        tile.aux.choose(candidates, Choice::Largest(k));
    });
}
