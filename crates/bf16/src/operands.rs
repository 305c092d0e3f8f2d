//! The two operands, rounded to bf16 and laid out as the kernels read them: pairs of neighbours along the depth share 32 bits.

use rayon::prelude::*;

use crate::kernel::{GROUP, round};

/// Columns that a kernel works on at once.
pub const PANEL: usize = 64;

/// The left operand: `[rows, depth]`, rounded to nearest even. Its buffer is reused from one [`Rows::set`] to the next.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    rows: usize,
    depth: usize,
    pairs: Vec<u32>,
}

impl Rows {
    /// Rounds `values`, rows of `depth`.
    ///
    /// # Panics
    /// If `depth` is 0 or does not divide the number of values.
    pub fn set(&mut self, values: &[f32], depth: usize) {
        let per_row = self.resize(values, depth);
        let rows = values.chunks_exact(depth).zip(self.pairs.chunks_exact_mut(per_row));
        rows.for_each(|(row, pairs)| round(row, pairs));
    }

    /// The same, on rayon's threads.
    ///
    /// # Panics
    /// If `depth` is 0 or does not divide the number of values.
    pub fn par_set(&mut self, values: &[f32], depth: usize) {
        let per_row = self.resize(values, depth);
        let rows = values.par_chunks_exact(depth).zip(self.pairs.par_chunks_exact_mut(per_row));
        rows.with_min_len(64).for_each(|(row, pairs)| round(row, pairs));
    }

    /// Makes room; returns the number of pairs of a row.
    fn resize(&mut self, values: &[f32], depth: usize) -> usize {
        let rows = count(values, depth);
        (self.rows, self.depth) = (rows, depth);
        let per_row = depth.div_ceil(2);
        self.pairs.resize(rows * per_row, 0);
        per_row
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of a row.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes of the buffer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * self.pairs.capacity()
    }

    /// The first row and the pairs of each group of rows that a kernel works on at once.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (usize, &[u32])> {
        let group = (GROUP * self.depth.div_ceil(2)).max(1);
        (0..).step_by(GROUP).zip(self.pairs.chunks(group))
    }
}

/// The right operand: `[columns, depth]`, a column of the product for each of its rows. In panels of [`PANEL`] columns, the pairs of one depth beside
/// each other; the last panel is filled up with zeros.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    columns: usize,
    depth: usize,
    pairs: Vec<u32>,
}

impl Columns {
    /// Rounds `values`, rows of `depth`.
    ///
    /// # Panics
    /// If `depth` is 0 or does not divide the number of values.
    pub fn set(&mut self, values: &[f32], depth: usize) {
        let panel = self.resize(values, depth);
        let panels = self.pairs.chunks_exact_mut(panel).zip(values.chunks(PANEL * depth));
        panels.for_each(|(panel, values)| set_panel(panel, values, depth));
    }

    /// The same, on rayon's threads.
    ///
    /// # Panics
    /// If `depth` is 0 or does not divide the number of values.
    pub fn par_set(&mut self, values: &[f32], depth: usize) {
        let panel = self.resize(values, depth);
        let panels = self.pairs.par_chunks_exact_mut(panel).zip(values.par_chunks(PANEL * depth));
        panels.for_each(|(panel, values)| set_panel(panel, values, depth));
    }

    /// Makes room; returns the number of pairs of a panel.
    fn resize(&mut self, values: &[f32], depth: usize) -> usize {
        let columns = count(values, depth);
        (self.columns, self.depth) = (columns, depth);
        let panel = PANEL * depth.div_ceil(2);
        self.pairs.resize(columns.div_ceil(PANEL) * panel, 0);
        panel
    }

    /// Number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Length of a column.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Bytes of the buffer.
    #[must_use]
    pub fn bytes(&self) -> usize {
        4 * self.pairs.capacity()
    }

    pub(crate) fn panels(&self) -> impl Iterator<Item = &[u32]> {
        self.pairs.chunks_exact((PANEL * self.depth.div_ceil(2)).max(1))
    }
}

fn count(values: &[f32], depth: usize) -> usize {
    assert!(depth > 0 && values.len().is_multiple_of(depth), "{} values in rows of {depth}", values.len());
    values.len() / depth
}

/// Lays out the columns of one panel, in squares of a line of the cache each way.
fn set_panel(panel: &mut [u32], values: &[f32], depth: usize) {
    const SIDE: usize = 16;
    let mut square = [[0_u32; SIDE]; SIDE];
    for first in (0..PANEL).step_by(SIDE) {
        for (lines, start) in panel.chunks_mut(SIDE * PANEL).zip((0..depth).step_by(2 * SIDE)) {
            let n_pairs = lines.len() / PANEL;
            let run = start..depth.min(start + 2 * SIDE);
            for (c, pairs) in square.iter_mut().enumerate() {
                match values.get((first + c) * depth..(first + c + 1) * depth) {
                    Some(column) => round(&column[run.clone()], &mut pairs[..n_pairs]),
                    None => pairs.fill(0),
                }
            }
            for (p, line) in lines.chunks_exact_mut(PANEL).enumerate() {
                for (out, pairs) in line[first..first + SIDE].iter_mut().zip(&square) {
                    *out = pairs[p];
                }
            }
        }
    }
}
