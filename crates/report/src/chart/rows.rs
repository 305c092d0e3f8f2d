//! Horizontal bars or dots, one row per method, over one shared axis.

use super::axis::{Axis, AxisSpec};
use super::canvas::{Anchor, Canvas, Drawn, Rect, fit, paint, text_width};
use super::legend::{self, Entry};
use super::mark::{Dash, Style};
use super::{SMALL, TEXT, WIDTH};
use crate::palette::{AXIS, GRID, INK, MUTED, PAPER};

/// One row.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    /// The number in words, at the right edge.
    pub(crate) text: String,
    pub(crate) style: Style,
    /// Rows of one group stand together, with a gap to the next.
    pub(crate) group: String,
    /// Further dots of the same row, under its own.
    pub(crate) beside: Vec<Beside>,
}

/// A dot beside that of its row: a control, say.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Beside {
    pub(crate) value: f64,
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    pub(crate) style: Style,
}

/// A chart of rows.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct RowChart {
    pub(crate) axis: AxisSpec,
    pub(crate) rows: Vec<Row>,
    /// Vertical reference lines: label and value.
    pub(crate) references: Vec<(String, f64)>,
    /// Bars from zero instead of dots.
    pub(crate) bars: bool,
    /// Whether each group has its name above it.
    pub(crate) headed: bool,
    /// What the dots beside are; may be empty.
    pub(crate) legend: Vec<Entry>,
}

const STEP: f64 = 20.0;
const GAP: f64 = 8.0;
const REFERENCE_STEP: f64 = 15.0;
const BOTTOM: f64 = 46.0;

/// Draws the chart.
pub(crate) fn draw_rows(chart: &RowChart) -> Drawn<String> {
    let widest = |texts: &mut dyn Iterator<Item = &str>| texts.map(|t| text_width(t, TEXT)).fold(0.0, f64::max);
    let left = (widest(&mut chart.rows.iter().map(|r| r.label.as_str())) + 18.0).clamp(60.0, 300.0);
    let right = (widest(&mut chart.rows.iter().map(|r| r.text.as_str())) + 18.0).clamp(30.0, 220.0);
    let (x0, x1) = (left, WIDTH - right);
    let beside = chart.rows.iter().flat_map(|r| &r.beside).flat_map(|b| [Some(b.value), b.low, b.high]);
    let values = chart.rows.iter().flat_map(|r| [Some(r.value), r.low, r.high]).chain(beside).flatten();
    let values = values.chain(chart.references.iter().map(|(_, v)| *v));
    let axis = Axis::fit(&chart.axis, values, ((x1 - x0) / 75.0) as usize);
    let across = |v: f64| x0 + (axis.place(v).0 - axis.lo) / (axis.hi - axis.lo) * (x1 - x0);

    let references = lay_out(&chart.references, across);
    let levels = references.iter().map(|r| r.level + 1).max().unwrap_or(0);
    let top = 10.0 + levels as f64 * REFERENCE_STEP;
    let gaps = chart.rows.windows(2).filter(|w| w[0].group != w[1].group).count();
    let heads = if chart.headed && !chart.rows.is_empty() { gaps + 1 } else { 0 };
    let bottom = top + 6.0 + (chart.rows.len() + heads) as f64 * STEP + gaps as f64 * GAP;

    paint(WIDTH, bottom + BOTTOM + legend::height(&chart.legend), |canvas| {
        for (v, label) in &axis.ticks {
            let x = x0 + (v - axis.lo) / (axis.hi - axis.lo) * (x1 - x0);
            canvas.line(&[(x, top), (x, bottom)], GRID, 1.0)?;
            canvas.line(&[(x, bottom), (x, bottom + 3.5)], AXIS, 1.0)?;
            canvas.text(label, (x, bottom + 13.0), SMALL, INK, Anchor::Middle)?;
        }
        canvas.line(&[(x0, bottom), (x1, bottom)], AXIS, 1.0)?;
        let title = fit(&chart.axis.title, SMALL, WIDTH - 24.0);
        let half = text_width(&title, SMALL) / 2.0;
        let middle = ((x0 + x1) / 2.0).clamp(half, (WIDTH - half).max(half));
        canvas.text(&title, (middle, bottom + 34.0), SMALL, MUTED, Anchor::Middle)?;
        for reference in &references {
            let y = 12.0 + (levels - 1 - reference.level) as f64 * REFERENCE_STEP;
            canvas.dashed(&[(reference.x, y + 7.0), (reference.x, bottom)], MUTED, Dash::Hair)?;
        }
        for reference in &references {
            // Paper behind the name: the line of a reference on a higher level may pass here.
            let y = 12.0 + (levels - 1 - reference.level) as f64 * REFERENCE_STEP;
            canvas.bar(Rect::of_text(&reference.label, reference.text_x, y, SMALL, Anchor::Middle), PAPER)?;
            canvas.text(&reference.label, (reference.text_x, y), SMALL, MUTED, Anchor::Middle)?;
        }
        let mut y = top + 6.0 + STEP / 2.0;
        for (i, row) in chart.rows.iter().enumerate() {
            if i > 0 && chart.rows[i - 1].group != row.group {
                y += GAP;
            }
            if chart.headed && (i == 0 || chart.rows[i - 1].group != row.group) {
                let head = fit(&row.group, TEXT * 1.05, WIDTH - 16.0);
                // Bold letters are wider than those of the estimate.
                let behind = Rect::of_text(&head, 8.0, y, TEXT * 1.2, Anchor::Start);
                canvas.bar(behind, PAPER)?;
                canvas.bold(&head, (8.0, y), TEXT)?;
                y += STEP;
            }
            draw_row(canvas, chart.bars, row, y, x0, &across)?;
            canvas.text(&fit(&row.label, TEXT, left - 14.0), (x0 - 10.0, y), TEXT, INK, Anchor::End)?;
            canvas.text(&fit(&row.text, TEXT, right - 12.0), (x1 + 10.0, y), TEXT, INK, Anchor::Start)?;
            y += STEP;
        }
        legend::draw(canvas, &chart.legend, bottom + BOTTOM)
    })
}

fn draw_row(canvas: &Canvas<'_>, bars: bool, row: &Row, y: f64, x0: f64, across: &impl Fn(f64) -> f64) -> Drawn {
    let x = across(row.value);
    if bars {
        return canvas.bar(Rect { x0: x0.min(x), y0: y - 6.0, x1: x0.max(x), y1: y + 6.0 }, row.style.colour);
    }
    // Controls whose intervals cover each other are set a little above and below one another.
    let extents: Vec<(f64, f64)> = row
        .beside
        .iter()
        .map(|b| (across(b.low.unwrap_or(b.value)) - 5.0, across(b.high.unwrap_or(b.value)) + 5.0))
        .collect();
    let meet = |(i, a): (usize, &(f64, f64))| extents[..i].iter().any(|b| a.0 < b.1 && b.0 < a.1);
    let step = if extents.iter().enumerate().any(meet) { 9.0 / (extents.len() - 1) as f64 } else { 0.0 };
    for (i, b) in row.beside.iter().enumerate() {
        let apart = (i as f64 - (extents.len() - 1) as f64 / 2.0) * step;
        draw_dot(canvas, (b.value, b.low, b.high), b.style, y + apart, across)?;
    }
    draw_dot(canvas, (row.value, row.low, row.high), row.style, y, across)
}

/// A marker with its interval: value, low end, high end.
fn draw_dot(
    canvas: &Canvas<'_>,
    (value, low, high): (f64, Option<f64>, Option<f64>),
    style: Style,
    y: f64,
    across: &impl Fn(f64) -> f64,
) -> Drawn {
    if let (Some(low), Some(high)) = (low, high) {
        let (a, b) = (across(low), across(high));
        canvas.line(&[(a, y), (b, y)], style.colour, 1.25)?;
        for end in [a, b] {
            canvas.line(&[(end, y - 3.0), (end, y + 3.0)], style.colour, 1.25)?;
        }
    }
    canvas.marker(style.shape, style.filled, style.colour, (across(value), y))
}

struct Placed {
    label: String,
    x: f64,
    text_x: f64,
    level: usize,
}

/// Puts the names of the references on as few levels as keep them apart.
fn lay_out(references: &[(String, f64)], across: impl Fn(f64) -> f64) -> Vec<Placed> {
    let mut placed: Vec<Placed> = Vec::new();
    let mut boxes: Vec<(usize, Rect)> = Vec::new();
    for (label, value) in references {
        let x = across(*value);
        let label = fit(label, SMALL, WIDTH - 16.0);
        let half = text_width(&label, SMALL) / 2.0;
        let text_x = x.clamp(half + 4.0, (WIDTH - half - 4.0).max(half + 4.0));
        let rect = Rect { x0: text_x - half - 5.0, y0: 0.0, x1: text_x + half + 5.0, y1: 1.0 };
        let free = |level: usize| boxes.iter().all(|(l, b)| *l != level || b.overlap(&rect) == 0.0);
        let level = (0..).find(|level| free(*level)).unwrap_or(0);
        boxes.push((level, rect));
        placed.push(Placed { label, x, text_x, level });
    }
    placed
}
