#![doc = include_str!("../README.md")]

mod active;
mod kernel;
mod operands;
mod precision;

pub use active::{Active, Affine, active};
pub use kernel::Kernel;
pub use operands::{Columns, PANEL, Rows};
pub use precision::Precision;

use kernel::{GROUP, dots};

/// What happens to what was in the output before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// `out = a bᵀ`
    Replace,
    /// `out += a bᵀ`
    Add,
}

/// `a bᵀ` of `a` `[rows, depth]` and `b` `[columns, depth]`, into `out`, rows of `stride` values of which the first `columns` are written.
/// On the calling thread only: whoever calls owns the parallelism.
///
/// # Panics
/// If the depths differ, `stride` is below the number of columns, or `out` is too short.
pub fn product(kernel: Kernel, a: &Rows, b: &Columns, out: &mut [f32], stride: usize, store: Store) {
    let columns = b.columns();
    assert!(stride >= columns, "rows of {stride} values for {columns} columns");
    let needed = if a.rows() == 0 { 0 } else { (a.rows() - 1) * stride + columns };
    assert!(out.len() >= needed, "room for {} values, {needed} needed", out.len());
    by_panels(kernel, a, b, |row, first, values| {
        let out = &mut out[row * stride + first..][..PANEL.min(columns - first)];
        match store {
            Store::Replace => out.copy_from_slice(&values[..out.len()]),
            Store::Add => out.iter_mut().zip(values).for_each(|(out, value)| *out += value),
        }
    });
}

/// Calls `epilogue(row, first_column, dots)` for every row and panel of columns, one panel after the other: each is read from the cache again for
/// every group of rows. What lies beyond the last column is 0.
fn by_panels(kernel: Kernel, a: &Rows, b: &Columns, mut epilogue: impl FnMut(usize, usize, &[f32; PANEL])) {
    assert_eq!(a.depth(), b.depth(), "rows of depth {} and columns of depth {}", a.depth(), b.depth());
    let mut block = [[0.0; PANEL]; GROUP];
    for (q, panel) in b.panels().enumerate() {
        for (first, rows) in a.groups() {
            let block = &mut block[..GROUP.min(a.rows() - first)];
            dots(kernel, rows, panel, block);
            for (row, values) in (first..).zip(block) {
                epilogue(row, q * PANEL, values);
            }
        }
    }
}

/// The same, row by row.
fn by_rows(kernel: Kernel, a: &Rows, b: &Columns, mut epilogue: impl FnMut(usize, usize, &[f32; PANEL])) {
    assert_eq!(a.depth(), b.depth(), "rows of depth {} and columns of depth {}", a.depth(), b.depth());
    let mut blocks = vec![[[0.0; PANEL]; GROUP]; b.columns().div_ceil(PANEL)];
    for (first, rows) in a.groups() {
        let n = GROUP.min(a.rows() - first);
        for (block, panel) in blocks.iter_mut().zip(b.panels()) {
            dots(kernel, rows, panel, &mut block[..n]);
        }
        for i in 0..n {
            for (q, block) in blocks.iter().enumerate() {
                epilogue(first + i, q * PANEL, &block[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
