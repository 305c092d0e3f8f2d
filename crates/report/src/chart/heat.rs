//! Heat maps: a value for every pair of two settings, as shade and as number.

use super::canvas::{Anchor, Canvas, Drawn, Rect, fit, paint};
use super::{SMALL, WIDTH};
use crate::number;
use crate::palette::{self, INK, MUTED, PAPER};

/// Shades between the smallest and the largest value.
const SHADES: usize = 16;

const LEFT: f64 = 56.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;
const CELL: f64 = 22.0;
/// Cells narrower than this show no number.
const NARROWEST: f64 = 34.0;

/// One map.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Heat {
    pub(crate) title: String,
    /// What the columns and the rows stand for, and their values in order.
    pub(crate) x: (String, Vec<String>),
    pub(crate) y: (String, Vec<String>),
    /// Row by row; none where nothing was measured.
    pub(crate) values: Vec<Vec<Option<f64>>>,
    /// Whether shades follow the logarithm.
    pub(crate) log: bool,
}

/// Draws maps row by row, `columns` in a row.
pub(crate) fn draw_heats(heats: &[Heat], columns: usize) -> Drawn<String> {
    let columns = columns.clamp(1, heats.len().max(1));
    let rows = heats.iter().map(|heat| heat.y.1.len()).max().unwrap_or(0) as f64;
    let (width, height) = (WIDTH / columns as f64, TOP + rows * CELL + BOTTOM);
    paint(WIDTH, heats.len().div_ceil(columns) as f64 * height, |canvas| {
        for (i, heat) in heats.iter().enumerate() {
            let (x0, y0) = ((i % columns) as f64 * width, (i / columns) as f64 * height);
            heat.draw(canvas, Rect { x0, y0, x1: x0 + width, y1: y0 + height })?;
        }
        Ok(())
    })
}

impl Heat {
    fn draw(&self, canvas: &Canvas<'_>, room: Rect) -> Drawn {
        let cell = (room.x1 - room.x0 - LEFT - 10.0) / self.x.1.len().max(1) as f64;
        let (left, top) = (room.x0 + LEFT, room.y0 + TOP);
        canvas.bold(&fit(&self.title, SMALL, room.x1 - left), (left, room.y0 + 12.0), SMALL)?;
        for (row, (name, values)) in self.y.1.iter().zip(&self.values).enumerate() {
            let y0 = top + row as f64 * CELL;
            canvas.text(name, (left - 6.0, y0 + CELL / 2.0), SMALL, MUTED, Anchor::End)?;
            for (column, value) in values.iter().enumerate() {
                let Some(value) = value else { continue };
                let x0 = left + column as f64 * cell;
                let colour = palette::ordered(self.shade(*value), SHADES);
                canvas.bar(Rect { x0, y0, x1: x0 + cell - 1.0, y1: y0 + CELL - 1.0 }, colour)?;
                if cell >= NARROWEST {
                    let text = number::significant(*value, 3);
                    let centre = (x0 + (cell - 1.0) / 2.0, y0 + (CELL - 1.0) / 2.0);
                    canvas.text(&fit(&text, SMALL - 1.0, cell - 2.0), centre, SMALL - 1.0, PAPER, Anchor::Middle)?;
                }
            }
        }
        let bottom = top + self.y.1.len() as f64 * CELL;
        // As many names as fit beside each other.
        let every = (30.0 / cell).ceil().max(1.0) as usize;
        for (column, name) in self.x.1.iter().enumerate().step_by(every) {
            let x = left + (column as f64 + 0.5) * cell;
            canvas.text(name, (x, bottom + 9.0), SMALL - 1.0, MUTED, Anchor::Middle)?;
        }
        canvas.text(&self.x.0, ((left + room.x1) / 2.0, bottom + 25.0), SMALL, INK, Anchor::Middle)?;
        canvas.text(&fit(&self.y.0, SMALL, LEFT), (room.x0 + 2.0, room.y0 + 12.0), SMALL, INK, Anchor::Start)
    }

    /// The place of a value between the smallest and the largest.
    fn shade(&self, value: f64) -> usize {
        let place = |v: f64| if self.log { v.max(f64::MIN_POSITIVE).ln() } else { v };
        let shown = || self.values.iter().flatten().flatten().filter(|v| !self.log || **v > 0.0).map(|v| place(*v));
        let (low, high) = (shown().fold(f64::INFINITY, f64::min), shown().fold(f64::NEG_INFINITY, f64::max));
        let share = if high > low { (place(value) - low) / (high - low) } else { 0.5 };
        (share.clamp(0.0, 1.0) * (SHADES - 1) as f64).round() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heat(values: Vec<Vec<Option<f64>>>, log: bool) -> Heat {
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        let (x, y) = (names(values[0].len()), names(values.len()));
        Heat { title: "MMCS".into(), x: ("α".into(), x), y: ("R".into(), y), values, log }
    }

    #[test]
    fn shades_run_from_the_smallest_to_the_largest() {
        let heat = heat(vec![vec![Some(1.0), None], vec![Some(10.0), Some(100.0)]], true);
        assert_eq!([1.0, 10.0, 100.0].map(|v| heat.shade(v)), [0, 8, 15]);
        let svg = draw_heats(&[heat.clone(), heat], 2).unwrap();
        assert!(svg.contains("MMCS") && svg.contains("100"), "{svg}");
    }

    #[test]
    fn equal_values_and_zeros_have_a_shade() {
        assert_eq!(heat(vec![vec![Some(2.0), Some(2.0)]], false).shade(2.0), 8);
        assert_eq!(heat(vec![vec![Some(0.0), Some(4.0), Some(2.0)]], true).shade(0.0), 0);
    }
}
