//! The legend under a figure, in as many columns as fit.

use super::canvas::{Anchor, Canvas, Drawn, fit, text_width};
use super::mark::Style;
use super::{TEXT, WIDTH};
use crate::palette;

/// One line of the legend.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Entry {
    pub(crate) label: String,
    pub(crate) style: Style,
    pub(crate) line: bool,
    pub(crate) marker: bool,
}

const ROW: f64 = 18.0;
const SAMPLE: f64 = 34.0;
const GAP: f64 = 22.0;
const SIDE: f64 = 16.0;

fn shape(entries: &[Entry]) -> (usize, f64) {
    let widest = entries.iter().map(|e| text_width(&e.label, TEXT)).fold(0.0, f64::max);
    let column = (SAMPLE + widest + GAP).min(WIDTH - 2.0 * SIDE);
    let columns = (((WIDTH - 2.0 * SIDE) / column).floor() as usize).clamp(1, entries.len().max(1));
    (columns, column)
}

/// Height in pixels that [`draw`] needs.
pub(crate) fn height(entries: &[Entry]) -> f64 {
    if entries.is_empty() { 0.0 } else { entries.len().div_ceil(shape(entries).0) as f64 * ROW + 14.0 }
}

/// Draws the entries column by column, from `top` down.
pub(crate) fn draw(canvas: &Canvas<'_>, entries: &[Entry], top: f64) -> Drawn {
    let (columns, width) = shape(entries);
    let rows = entries.len().div_ceil(columns).max(1);
    for (i, entry) in entries.iter().enumerate() {
        let x = SIDE + (i / rows) as f64 * width;
        let y = top + 8.0 + (i % rows) as f64 * ROW;
        if entry.line {
            canvas.dashed(&[(x, y), (x + 26.0, y)], entry.style.colour, entry.style.dash)?;
        }
        if entry.marker {
            canvas.marker(entry.style.shape, entry.style.filled, entry.style.colour, (x + 13.0, y))?;
        }
        let label = fit(&entry.label, TEXT, width - SAMPLE - 4.0);
        canvas.text(&label, (x + SAMPLE, y), TEXT, palette::INK, Anchor::Start)?;
    }
    Ok(())
}
