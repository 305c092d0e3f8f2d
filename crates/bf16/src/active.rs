//! What is above a threshold, without ever writing the rest.

use crate::{Columns, Kernel, PANEL, Rows, by_rows};

/// `dot * scale + bias` of a row, kept where `dot * scale + bias - threshold` is above the `floor` of its column.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// A factor for each row.
    pub scale: &'a [f32],
    /// A summand for each row.
    pub bias: &'a [f32],
    /// What a value has to exceed: 0 for ReLU, that of the latent for JumpReLU.
    pub threshold: &'a [f32],
    /// What it has to exceed beyond that, for each column: 0, or what the largest of its values so far allow in a search for the largest.
    pub floor: &'a [f32],
}

/// The values above their threshold, as one list for each row, columns ascending. Buffers are reused.
#[derive(Debug, Clone, Default)]
pub struct Active {
    columns: Vec<u32>,
    values: Vec<f32>,
    starts: Vec<usize>,
}

impl Active {
    /// Columns of all rows, row by row.
    #[must_use]
    pub fn columns(&self) -> &[u32] {
        &self.columns[..self.len()]
    }

    /// Values of all rows, row by row.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values[..self.len()]
    }

    /// Row i has the entries from `starts[i]` to `starts[i + 1]`.
    #[must_use]
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Products of all rows with all columns, of which those above the threshold are listed in `out`. On the calling thread only.
///
/// All columns are read again for every few rows, so they had better fit the second-level cache: let the encoder of an autoencoder be the rows, and
/// a tile of some hundred activations the columns. The lists then are by latent.
///
/// # Panics
/// If the depths differ, or there is not one scale, bias and threshold for each row and one floor for each column.
pub fn active(kernel: Kernel, a: &Rows, b: &Columns, affine: Affine<'_>, out: &mut Active) {
    let lengths = [affine.scale.len(), affine.bias.len(), affine.threshold.len()];
    assert_eq!(lengths, [a.rows(); 3], "scales, biases and thresholds of {} rows", a.rows());
    let n = b.columns();
    assert_eq!(affine.floor.len(), n, "floors of {n} columns");
    let Active { columns, values, starts } = out;
    starts.clear();
    starts.push(0);
    let mut found = 0;
    by_rows(kernel, a, b, |row, first, dots| {
        if columns.len() < found + PANEL {
            let room = (found + PANEL).next_power_of_two();
            columns.resize(room, 0);
            values.resize(room, 0.0);
        }
        let (columns, values) = (&mut columns[found..found + PANEL], &mut values[found..found + PANEL]);
        let (scale, bias, threshold) = (affine.scale[row], affine.bias[row], affine.threshold[row]);
        let floor = &affine.floor[first..n.min(first + PANEL)];
        found += compact(&dots[..floor.len()], floor, scale, bias, threshold, first as u32, columns, values);
        if first + PANEL >= n {
            starts.push(found);
        }
    });
    // Rows without any column.
    starts.resize(a.rows() + 1, found);
}

/// Lists what is above the threshold and the floor; returns how many.
#[allow(clippy::too_many_arguments, reason = "one row's share of each array")]
fn compact(
    dots: &[f32],
    floor: &[f32],
    scale: f32,
    bias: f32,
    threshold: f32,
    first: u32,
    columns: &mut [u32],
    values: &mut [f32],
) -> usize {
    const LANES: usize = 16;
    let mut found = 0;
    for ((dots, floor), first) in dots.chunks(LANES).zip(floor.chunks(LANES)).zip((first..).step_by(LANES)) {
        let mut lanes = [0.0_f32; LANES];
        let mut any = false;
        for ((lane, dot), floor) in lanes.iter_mut().zip(dots).zip(floor) {
            *lane = dot * scale + bias;
            any |= *lane - threshold > *floor;
        }
        if any {
            for ((lane, floor), column) in lanes.iter().zip(floor).zip(first..) {
                // Written without a branch: what is not above is overwritten by the next, or lies behind the last.
                columns[found] = column;
                values[found] = *lane;
                found += usize::from(*lane - threshold > *floor);
            }
        }
    }
    found
}
