//! Panels of lines and points over two axes, in a grid with one legend.

use plotters::prelude::*;

use super::axis::{Axis, AxisSpec};
use super::canvas::{Anchor, Canvas, Drawn, Rect, SCALE, fit, font_of, paint, text_width, units};
use super::legend::{self, Entry};
use super::mark::{Dash, Style};
use super::{SMALL, TEXT, WIDTH};
use crate::number;
use crate::palette::{self, INK, MUTED};

/// A measured point, perhaps with an interval of its `y`, perhaps with one of its `x`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) y_low: Option<f64>,
    pub(crate) y_high: Option<f64>,
    pub(crate) x_ends: Option<(f64, f64)>,
}

impl Point {
    pub(crate) fn new(x: f64, y: f64, y_low: Option<f64>, y_high: Option<f64>) -> Point {
        Point { x, y, y_low, y_high, x_ends: None }
    }
}

/// Points that share a look and an entry in the legend.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Series {
    /// Empty: not in the legend.
    pub(crate) label: String,
    pub(crate) style: Style,
    /// Each inner list is joined by a line (several where only the seed differs).
    pub(crate) lines: Vec<Vec<Point>>,
    pub(crate) markers: bool,
    /// Whether intervals are a band along the line instead of whiskers at the points: for lines of many points.
    pub(crate) band: bool,
    /// Whether to name the series beside its first point instead of in the legend, where there is room.
    pub(crate) direct: bool,
}

/// A horizontal reference line.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Reference {
    pub(crate) label: String,
    pub(crate) value: f64,
}

/// One pair of axes.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: AxisSpec,
    pub(crate) y: AxisSpec,
    pub(crate) series: Vec<Series>,
    pub(crate) references: Vec<Reference>,
}

const LEFT: f64 = 52.0;
const RIGHT: f64 = 18.0;
const BOTTOM: f64 = 46.0;

/// Draws panels row by row, `columns` in a row, each plot `height` pixels high, with one legend below.
pub(crate) fn draw_grid(panels: &[Panel], columns: usize, height: f64) -> Drawn<String> {
    let columns = columns.clamp(1, panels.len().max(1));
    let top = if panels.iter().any(|p| !p.title.is_empty()) { 48.0 } else { 30.0 };
    let cell = (WIDTH / columns as f64, top + height + BOTTOM);
    let fitted: Vec<Fitted<'_>> = panels
        .iter()
        .enumerate()
        .map(|(i, panel)| {
            let (x, y) = ((i % columns) as f64 * cell.0, (i / columns) as f64 * cell.1);
            let plot = Rect { x0: x + LEFT, y0: y + top, x1: x + cell.0 - RIGHT, y1: y + top + height };
            Fitted::new(panel, plot)
        })
        .collect();
    let mut entries: Vec<Entry> = Vec::new();
    for fitted in &fitted {
        for (series, label) in fitted.panel.series.iter().zip(&fitted.labels) {
            let entry = Entry {
                label: series.label.clone(),
                style: series.style,
                line: series.lines.iter().any(|l| l.len() > 1),
                marker: series.markers,
            };
            let named = series.label.is_empty() || (series.direct && label.is_some());
            if !named && !entries.contains(&entry) {
                entries.push(entry);
            }
        }
    }
    let rows = panels.len().div_ceil(columns) as f64;
    let total = rows * cell.1 + legend::height(&entries) + 6.0;
    paint(WIDTH, total, |canvas| {
        for fitted in &fitted {
            fitted.draw(canvas)?;
        }
        legend::draw(canvas, &entries, rows * cell.1 + 2.0)
    })
}

/// A panel with its axes fitted and its labels placed.
struct Fitted<'p> {
    panel: &'p Panel,
    plot: Rect,
    x: Axis,
    y: Axis,
    /// For each series, the direct label that found room.
    labels: Vec<Option<Label>>,
    /// Values beside the points that lie beyond the upper edge.
    beyond: Vec<Label>,
    /// The names of the references.
    references: Vec<Label>,
}

#[derive(Clone, PartialEq, Debug)]
struct Label {
    text: String,
    x: f64,
    y: f64,
    anchor: Anchor,
}

impl Label {
    fn rect(&self) -> Rect {
        Rect::of_text(&self.text, self.x, self.y, SMALL, self.anchor)
    }
}

impl<'p> Fitted<'p> {
    fn new(panel: &'p Panel, plot: Rect) -> Fitted<'p> {
        let points = || panel.series.iter().flat_map(|s| s.lines.iter().flatten());
        let xs = points().flat_map(|p| [Some(p.x), p.x_ends.map(|ends| ends.0), p.x_ends.map(|ends| ends.1)]).flatten();
        let mut x = Axis::fit(&panel.x, xs, ((plot.x1 - plot.x0) / 75.0).max(4.0) as usize);
        let room = (plot.x1 - plot.x0) / panel.x.names.len().max(1) as f64 - 8.0;
        x.name(&panel.x.names, |name| fit(name, SMALL, room));
        let ys = points().flat_map(|p| [Some(p.y), p.y_low, p.y_high]).flatten();
        let y =
            Axis::fit(&panel.y, ys.chain(panel.references.iter().map(|r| r.value)), (plot.y1 - plot.y0) as usize / 38);
        let mut fitted = Fitted { panel, plot, x, y, labels: Vec::new(), beyond: Vec::new(), references: Vec::new() };
        fitted.place_labels();
        fitted
    }

    fn pixel(&self, x: f64, y: f64) -> (f64, f64) {
        let across = (self.x.place(x).0 - self.x.lo) / (self.x.hi - self.x.lo);
        let up = (self.y.place(y).0 - self.y.lo) / (self.y.hi - self.y.lo);
        (self.plot.x0 + across * (self.plot.x1 - self.plot.x0), self.plot.y1 - up * (self.plot.y1 - self.plot.y0))
    }

    fn path(&self, line: &[Point]) -> Vec<(f64, f64)> {
        line.iter().map(|p| self.pixel(p.x, p.y)).collect()
    }

    /// Where the intervals of a series are drawn.
    fn whiskers(&self, series: &Series) -> Vec<Rect> {
        let points = series.lines.iter().flatten();
        let upright = points.filter_map(|p| Some((self.pixel(p.x, p.y_low?), self.pixel(p.x, p.y_high?))));
        upright.map(|(low, high)| Rect { x0: low.0 - 3.0, y0: high.1, x1: low.0 + 3.0, y1: low.1 }).collect()
    }

    /// Finds room for the direct labels: the first place around the point that touches nothing.
    fn place_labels(&mut self) {
        let mut taken: Vec<Rect> = Vec::new();
        for series in &self.panel.series {
            for line in &series.lines {
                let path = self.path(line);
                taken.extend(path.iter().filter(|_| series.markers).map(|&(x, y)| Rect::around(x, y, 5.0)));
                taken.extend(path.windows(2).flat_map(|ends| along(ends[0], ends[1])));
            }
        }
        let whiskers: Vec<Rect> = self.panel.series.iter().filter(|s| !s.band).flat_map(|s| self.whiskers(s)).collect();
        for reference in &self.panel.references {
            let label = self.reference_label(reference, &[&taken[..], &whiskers].concat());
            let (_, y) = self.pixel(1.0, reference.value);
            taken.extend([label.rect(), Rect { x0: self.plot.x0, y0: y - 1.0, x1: self.plot.x1, y1: y + 1.0 }]);
            self.references.push(label);
        }
        for series in &self.panel.series {
            let first = series.lines.iter().flatten().next();
            let text = first.map(|p| {
                let arrow = self.y.place(p.y).1.then(|| format!(" ↑ {}", number::significant(p.y, 3)));
                format!("{}{}", series.label, arrow.unwrap_or_default())
            });
            let label = match (first, text) {
                (Some(p), Some(text)) if series.direct => self.find_room(&text, self.pixel(p.x, p.y), &taken),
                _ => None,
            };
            taken.extend(label.iter().map(Label::rect));
            let named = label.is_some();
            self.labels.push(label);
            for p in series.lines.iter().flatten().filter(|p| !named && self.y.place(p.y).1) {
                let text = format!("↑ {}", number::significant(p.y, 3));
                if let Some(label) = self.find_room(&text, self.pixel(p.x, p.y), &taken) {
                    taken.push(label.rect());
                    self.beyond.push(label);
                }
            }
        }
    }

    /// The end of the line, above or below it, where its name covers least.
    fn reference_label(&self, reference: &Reference, taken: &[Rect]) -> Label {
        let (_, y) = self.pixel(1.0, reference.value);
        let text = fit(&reference.label, SMALL, self.plot.x1 - self.plot.x0 - 8.0);
        let third = (self.plot.x1 - self.plot.x0) / 3.0;
        let mut best: Option<(f64, Label)> = None;
        for dy in [-8.0, 9.0] {
            for (x, anchor) in [
                (self.plot.x1 - 4.0, Anchor::End),
                (self.plot.x0 + 6.0, Anchor::Start),
                (self.plot.x1 - third, Anchor::Middle),
                (self.plot.x0 + third, Anchor::Middle),
            ] {
                let label = Label { text: text.clone(), x, y: y + dy, anchor };
                let rect = label.rect();
                let outside = if rect.y1 > self.plot.y1 || rect.y0 < self.plot.y0 - 8.0 { 1e6 } else { 0.0 };
                let cost = outside + taken.iter().map(|t| t.overlap(&rect)).sum::<f64>();
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, label));
                }
            }
        }
        best.map_or_else(|| Label { text, x: self.plot.x0, y, anchor: Anchor::Start }, |(_, label)| label)
    }

    fn find_room(&self, text: &str, (x, y): (f64, f64), taken: &[Rect]) -> Option<Label> {
        let outer = Rect {
            x0: self.plot.x0 + 2.0,
            y0: self.plot.y0 - 6.0,
            x1: self.plot.x1 + RIGHT - 4.0,
            y1: self.plot.y1 - 2.0,
        };
        for far in [0.0, 7.0, 14.0, 28.0, 42.0] {
            let places = [
                (9.0 + far, 0.0, Anchor::Start),
                (-9.0 - far, 0.0, Anchor::End),
                (0.0, -13.0 - far, Anchor::Middle),
                (0.0, 13.0 + far, Anchor::Middle),
                (7.0, -11.0 - far, Anchor::Start),
                (7.0, 11.0 + far, Anchor::Start),
                (-7.0, -11.0 - far, Anchor::End),
                (-7.0, 11.0 + far, Anchor::End),
            ];
            for (dx, dy, anchor) in places {
                let label = Label { text: text.to_owned(), x: x + dx, y: y + dy, anchor };
                let rect = label.rect();
                if rect.inside(&outer) && taken.iter().all(|t| t.overlap(&rect) == 0.0) {
                    return Some(label);
                }
            }
        }
        None
    }

    fn draw(&self, canvas: &Canvas<'_>) -> Drawn {
        self.draw_axes(canvas)?;
        for reference in &self.panel.references {
            let (_, y) = self.pixel(1.0, reference.value);
            canvas.dashed(&[(self.plot.x0, y), (self.plot.x1, y)], MUTED, Dash::Hair)?;
        }
        for series in self.panel.series.iter().filter(|s| s.band) {
            series.lines.iter().try_for_each(|line| self.draw_band(canvas, series, line))?;
        }
        for series in &self.panel.series {
            for line in &series.lines {
                if !series.band {
                    self.draw_whiskers(canvas, series, line)?;
                }
                if line.len() > 1 {
                    canvas.dashed(&self.path(line), series.style.colour, series.style.dash)?;
                }
            }
        }
        for series in self.panel.series.iter().filter(|s| s.markers) {
            for at in series.lines.iter().flat_map(|line| self.path(line)) {
                canvas.marker(series.style.shape, series.style.filled, series.style.colour, at)?;
            }
        }
        for (series, label) in self.panel.series.iter().zip(&self.labels) {
            if let Some(label) = label {
                canvas.text(&label.text, (label.x, label.y), SMALL, series.style.colour, label.anchor)?;
            }
        }
        for label in self.beyond.iter().chain(&self.references) {
            canvas.text(&label.text, (label.x, label.y), SMALL, MUTED, label.anchor)?;
        }
        Ok(())
    }

    fn draw_band(&self, canvas: &Canvas<'_>, series: &Series, line: &[Point]) -> Drawn {
        let ends = |p: &Point| Some((self.pixel(p.x, p.y_low?), self.pixel(p.x, p.y_high?)));
        let (low, mut high): (Vec<_>, Vec<_>) = line.iter().filter_map(ends).unzip();
        high.reverse();
        let outline: Vec<(f64, f64)> = low.into_iter().chain(high).collect();
        if outline.len() < 4 { Ok(()) } else { canvas.tint(&outline, series.style.colour) }
    }

    fn draw_whiskers(&self, canvas: &Canvas<'_>, series: &Series, line: &[Point]) -> Drawn {
        for p in line {
            if let (Some(low), Some(high)) = (p.y_low, p.y_high) {
                let (x, y0) = self.pixel(p.x, low);
                let (_, y1) = self.pixel(p.x, high);
                canvas.line(&[(x, y0), (x, y1)], series.style.colour, 1.0)?;
                for y in [y0, y1] {
                    canvas.line(&[(x - 3.0, y), (x + 3.0, y)], series.style.colour, 1.0)?;
                }
            }
            if let Some((low, high)) = p.x_ends {
                let (x0, y) = self.pixel(low, p.y);
                let (x1, _) = self.pixel(high, p.y);
                canvas.line(&[(x0, y), (x1, y)], series.style.colour, 1.0)?;
                for x in [x0, x1] {
                    canvas.line(&[(x, y - 3.0), (x, y + 3.0)], series.style.colour, 1.0)?;
                }
            }
        }
        Ok(())
    }

    fn draw_axes(&self, canvas: &Canvas<'_>) -> Drawn {
        let plot = self.plot;
        let room = plot.x1 - plot.x0 + LEFT - 8.0;
        let title = &self.panel.title;
        if !title.is_empty() {
            canvas.bold(&fit(title, TEXT * 1.05, room), (plot.x0 - LEFT + 10.0, plot.y0 - 34.0), TEXT)?;
        }
        canvas.text(
            &fit(&self.panel.y.title, SMALL, room),
            (plot.x0 - LEFT + 10.0, plot.y0 - 16.0),
            SMALL,
            MUTED,
            Anchor::Start,
        )?;
        let x_title = fit(&self.panel.x.title, SMALL, room);
        let half = text_width(&x_title, SMALL) / 2.0;
        let middle = ((plot.x0 + plot.x1) / 2.0).max(plot.x0 - LEFT + half);
        canvas.text(&x_title, (middle, plot.y1 + 34.0), SMALL, MUTED, Anchor::Middle)?;

        let outer = Rect { x0: plot.x0 - LEFT, y0: plot.y0, x1: plot.x1, y1: plot.y1 + BOTTOM };
        let area = canvas.area(outer);
        let mut chart = ChartBuilder::on(&area)
            .set_label_area_size(LabelAreaPosition::Left, units(LEFT))
            .set_label_area_size(LabelAreaPosition::Bottom, units(BOTTOM))
            .build_cartesian_2d(self.x.clone(), self.y.clone())
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(palette::GRID.rgb().stroke_width(SCALE as u32))
            .axis_style(palette::AXIS.rgb().stroke_width(SCALE as u32))
            .set_all_tick_mark_size(units(3.5))
            .label_style(font_of(SMALL, INK, FontStyle::Normal))
            .draw()
            .map_err(|e| e.to_string())
    }
}

/// Small boxes along a line, so that labels keep off it.
fn along((x0, y0): (f64, f64), (x1, y1): (f64, f64)) -> impl Iterator<Item = Rect> {
    let steps = ((x1 - x0).hypot(y1 - y0) / 5.0).ceil().clamp(1.0, 400.0) as usize;
    (0..=steps).map(move |i| {
        let t = i as f64 / steps as f64;
        Rect::around(x0 + t * (x1 - x0), y0 + t * (y1 - y0), 1.5)
    })
}
