//! Histograms whose bars are divided among kinds, each bar as high as the others, with bars of effects below.

use super::canvas::{Anchor, Canvas, Drawn, Rect, fit, paint, text_width};
use super::{SMALL, TEXT, WIDTH};
use crate::number;
use crate::palette::{self, AXIS, Colour, GRID, INK, MUTED};

/// One histogram.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Stack {
    pub(crate) title: String,
    pub(crate) subtitle: String,
    /// One more than there are bins.
    pub(crate) edges: Vec<f64>,
    /// Names with a count for each bin, from the bottom up; no more than [`palette::N_KINDS`] of them have a colour of their own.
    pub(crate) kinds: Vec<(String, Vec<u64>)>,
    /// Counts of everything else.
    pub(crate) other: Vec<u64>,
    pub(crate) effects: Vec<Effect>,
}

/// A bar from zero to either side.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Effect {
    pub(crate) label: String,
    pub(crate) value: f64,
}

/// What the axes are called.
const EDGES: &str = "activation";
const EFFECTS: &str = "change of the log-probability when it is removed (nats)";
const REST: &str = "other tokens";

const COLUMNS: usize = 2;
const CELL: f64 = WIDTH / COLUMNS as f64;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 56.0;
const BARS: f64 = 150.0;
const AXES: f64 = 40.0;
const ROW: f64 = 16.0;
const SWATCH: f64 = 10.0;
/// Names of the effects.
const NAMES: f64 = 96.0;
const VALUES: f64 = 48.0;

/// Draws histograms in two columns; effects beside each other have one scale.
pub(crate) fn draw_stacks(stacks: &[Stack]) -> Drawn<String> {
    let rows: Vec<(&[Stack], f64, f64)> = stacks
        .chunks(COLUMNS)
        .map(|row| {
            let most = |of: fn(&Stack) -> f64| row.iter().map(of).fold(0.0, f64::max);
            (row, most(Stack::legend_height), most(Stack::effects_height))
        })
        .collect();
    let height_of = |legend: f64, effects: f64| TOP + BARS + AXES + legend + effects + 20.0;
    let total: f64 = rows.iter().map(|(_, legend, effects)| height_of(*legend, *effects)).sum();
    paint(WIDTH, total, |canvas| {
        let mut y = 0.0;
        for (row, legend, effects) in &rows {
            for (i, stack) in row.iter().enumerate() {
                stack.draw(canvas, (i as f64 * CELL, y), *legend, Stack::ends(row))?;
            }
            y += height_of(*legend, *effects);
        }
        Ok(())
    })
}

impl Stack {
    fn bins(&self) -> usize {
        self.edges.len().saturating_sub(1)
    }

    /// The kinds with a colour, and the others as one.
    fn parts(&self) -> Vec<(&str, Colour, Vec<u64>)> {
        let (shown, rest) = self.kinds.split_at(self.kinds.len().min(palette::N_KINDS));
        let mut parts: Vec<(&str, Colour, Vec<u64>)> = shown
            .iter()
            .enumerate()
            .map(|(i, (name, counts))| (name.as_str(), palette::kind(i), counts.clone()))
            .collect();
        let of_rest = |bin: usize| {
            let counts = rest.iter().map(|(_, counts)| counts).chain([&self.other]);
            counts.filter_map(|counts| counts.get(bin)).fold(0u64, |sum, n| sum.saturating_add(*n))
        };
        parts.push((REST, AXIS, (0..self.bins()).map(of_rest).collect()));
        parts
    }

    /// The entries of the legend: where each begins, in as many lines as it takes.
    fn legend(&self) -> Vec<(String, Colour, f64, usize)> {
        let room = CELL - LEFT - RIGHT;
        let (mut x, mut line) = (0.0, 0);
        let mut entries = Vec::new();
        for (name, colour, _) in self.parts() {
            let name = fit(name, SMALL, room - SWATCH - 6.0);
            let width = SWATCH + 5.0 + text_width(&name, SMALL) + 12.0;
            if x > 0.0 && x + width > room + 12.0 {
                (x, line) = (0.0, line + 1);
            }
            entries.push((name, colour, x, line));
            x += width;
        }
        entries
    }

    fn legend_height(&self) -> f64 {
        self.legend().last().map_or(0.0, |(_, _, _, line)| (*line as f64 + 1.0) * ROW + 6.0)
    }

    fn effects_height(&self) -> f64 {
        if self.effects.is_empty() { 0.0 } else { 28.0 + self.effects.len() as f64 * ROW }
    }

    /// The smallest and the largest effect of any, and zero.
    fn ends(row: &[Stack]) -> (f64, f64) {
        let values = || row.iter().flat_map(|stack| &stack.effects).map(|e| e.value);
        (values().fold(0.0, f64::min), values().fold(0.0, f64::max))
    }

    fn draw(&self, canvas: &Canvas<'_>, (left, top): (f64, f64), legend: f64, ends: (f64, f64)) -> Drawn {
        canvas.bold(&fit(&self.title, TEXT * 1.1, CELL - 24.0), (left + 10.0, top + 12.0), TEXT)?;
        canvas.text(
            &fit(&self.subtitle, SMALL, CELL - 20.0),
            (left + 10.0, top + 28.0),
            SMALL,
            MUTED,
            Anchor::Start,
        )?;
        let plot = Rect { x0: left + LEFT, y0: top + TOP, x1: left + CELL - RIGHT, y1: top + TOP + BARS };
        self.draw_bars(canvas, plot)?;
        for (name, colour, x, line) in self.legend() {
            let (x, y) = (plot.x0 + x, plot.y1 + AXES + (line as f64 + 0.5) * ROW);
            let half = SWATCH / 2.0;
            canvas.bar(Rect { x0: x, y0: y - half, x1: x + SWATCH, y1: y + half }, colour)?;
            canvas.text(&name, (x + SWATCH + 5.0, y), SMALL, INK, Anchor::Start)?;
        }
        self.draw_effects(canvas, (left, plot.y1 + AXES + legend), ends)
    }

    fn draw_bars(&self, canvas: &Canvas<'_>, plot: Rect) -> Drawn {
        for (share, label) in [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")] {
            let y = plot.y1 - share * BARS;
            canvas.line(&[(plot.x0, y), (plot.x1, y)], GRID, 1.0)?;
            canvas.text(label, (plot.x0 - 6.0, y), SMALL - 1.0, MUTED, Anchor::End)?;
        }
        let step = (plot.x1 - plot.x0) / self.bins().max(1) as f64;
        let parts = self.parts();
        for bin in 0..self.bins() {
            let x0 = plot.x0 + bin as f64 * step + 1.5;
            let count = |counts: &[u64]| counts.get(bin).copied().unwrap_or(0);
            let total = parts.iter().fold(0u64, |sum, (_, _, counts)| sum.saturating_add(count(counts)));
            let mut below = 0.0;
            for (_, colour, counts) in parts.iter().filter(|(_, _, counts)| count(counts) > 0) {
                // Sums that saturate must not leave the plot.
                let above = (below + count(counts) as f64 / total as f64).min(1.0);
                let (y0, y1) = (plot.y1 - above * BARS, plot.y1 - below * BARS);
                canvas.bar(Rect { x0, y0, x1: x0 + step - 3.0, y1 }, *colour)?;
                below = above;
            }
            let middle = (x0 + step / 2.0 - 1.5, plot.y0 - 8.0);
            canvas.text(&short(total), middle, SMALL - 1.5, if total > 0 { INK } else { MUTED }, Anchor::Middle)?;
        }
        canvas.line(&[(plot.x0, plot.y1), (plot.x1, plot.y1)], AXIS, 1.0)?;
        for (i, edge) in self.edges.iter().enumerate().step_by(2) {
            let x = plot.x0 + i as f64 * step;
            canvas.line(&[(x, plot.y1), (x, plot.y1 + 3.5)], AXIS, 1.0)?;
            let label = fit(&number::significant(*edge, 2), SMALL - 1.0, 2.0 * step - 2.0);
            canvas.text(&label, (x, plot.y1 + 12.0), SMALL - 1.0, INK, Anchor::Middle)?;
        }
        canvas.text(EDGES, ((plot.x0 + plot.x1) / 2.0, plot.y1 + 27.0), SMALL, MUTED, Anchor::Middle)
    }

    fn draw_effects(&self, canvas: &Canvas<'_>, (left, top): (f64, f64), (low, high): (f64, f64)) -> Drawn {
        if self.effects.is_empty() {
            return Ok(());
        }
        let title = fit(EFFECTS, SMALL, CELL - 20.0);
        canvas.text(&title, (left + 10.0, top + 12.0), SMALL, MUTED, Anchor::Start)?;
        let (x0, x1) = (left + 10.0 + NAMES, left + CELL - RIGHT - VALUES);
        // Halves, because the difference of two large numbers may have no end.
        let span = (high / 2.0 - low / 2.0).max(f64::MIN_POSITIVE);
        let across = |v: f64| x0 + ((v / 2.0 - low / 2.0) / span).clamp(0.0, 1.0) * (x1 - x0);
        let zero = across(0.0);
        for (i, effect) in self.effects.iter().enumerate() {
            let y = top + 28.0 + (i as f64 + 0.5) * ROW;
            let label = fit(&effect.label, SMALL, NAMES - 8.0);
            canvas.text(&label, (x0 - 8.0, y), SMALL, INK, Anchor::End)?;
            let x = across(effect.value);
            let colour = if effect.value < 0.0 { palette::PCA } else { palette::SAE_BLUE };
            canvas.bar(Rect { x0: x.min(zero), y0: y - 5.0, x1: x.max(zero), y1: y + 5.0 }, colour)?;
            let text = fit(&number::significant(effect.value, 2), SMALL, VALUES);
            canvas.text(&text, (x1 + VALUES, y), SMALL, INK, Anchor::End)?;
        }
        let bottom = top + 28.0 + self.effects.len() as f64 * ROW;
        canvas.line(&[(zero, top + 26.0), (zero, bottom)], AXIS, 1.0)
    }
}

/// `9,999`, `12k`, `3.4M`: a count that fits above a bar.
fn short(n: u64) -> String {
    let of = |unit: f64, name: &str| {
        let scaled = n as f64 / unit;
        if scaled < 9.95 { format!("{scaled:.1}{name}") } else { format!("{scaled:.0}{name}") }
    };
    match n {
        0..10_000 => number::count(n),
        10_000..1_000_000 => of(1e3, "k"),
        1_000_000..1_000_000_000 => of(1e6, "M"),
        _ => of(1e9, "G"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_above_bars_are_short() {
        let counts = [0, 9999, 12_345, 990_400, 3_400_000, 25_000_000_000];
        assert_eq!(counts.map(short), ["0", "9,999", "12k", "990k", "3.4M", "25G"]);
    }

    #[test]
    fn effects_beside_each_other_have_one_scale() {
        let stack = |value: f64| Stack {
            title: String::new(),
            subtitle: String::new(),
            edges: vec![0.0, 1.0],
            kinds: Vec::new(),
            other: vec![1],
            effects: vec![Effect { label: "s".into(), value }],
        };
        assert_eq!(Stack::ends(&[stack(-2.0), stack(0.5)]), (-2.0, 0.5));
        assert_eq!(Stack::ends(&[stack(3.0)]), (0.0, 3.0));
    }

    #[test]
    fn kinds_without_a_colour_are_among_the_others() {
        let kinds = (0..12).map(|i| (format!("t{i}"), vec![1, i])).collect();
        let edges = vec![0.0, 1.0, 2.0];
        let stack = Stack {
            title: String::new(),
            subtitle: String::new(),
            edges,
            kinds,
            other: vec![5, 7],
            effects: Vec::new(),
        };
        let parts = stack.parts();
        assert_eq!(parts.len(), palette::N_KINDS + 1);
        assert_eq!(parts[palette::N_KINDS], (REST, AXIS, vec![5 + 3, 7 + 9 + 10 + 11]));
    }
}
