//! A drawing surface in pixels of the finished figure, over plotters' SVG backend.
//!
//! The backend only takes whole coordinates, so everything is drawn [`SCALE`] times too large and the view box brings it back:
//! positions and line widths are then good to a quarter of a pixel.

use std::cell::RefCell;
use std::fmt::Write as _;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::mark::{Dash, Shape};
use crate::escape;
use crate::palette::{self, Colour};

/// Drawn units per pixel.
pub(crate) const SCALE: f64 = 4.0;

/// The backend divides font sizes by this when it writes them.
const FONT_FACTOR: f64 = 1.24;

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Where a text sits relative to its position; vertically it is always centred.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A box in pixels, for keeping labels apart.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Rect {
    pub(crate) x0: f64,
    pub(crate) y0: f64,
    pub(crate) x1: f64,
    pub(crate) y1: f64,
}

impl Rect {
    pub(crate) fn around(x: f64, y: f64, half: f64) -> Rect {
        Rect { x0: x - half, y0: y - half, x1: x + half, y1: y + half }
    }

    /// The box of a text that [`Canvas::text`] would draw.
    pub(crate) fn of_text(text: &str, x: f64, y: f64, size: f64, anchor: Anchor) -> Rect {
        let w = text_width(text, size);
        let x0 = match anchor {
            Anchor::Start => x,
            Anchor::Middle => x - w / 2.0,
            Anchor::End => x - w,
        };
        Rect { x0, y0: y - size * 0.6, x1: x0 + w, y1: y + size * 0.6 }
    }

    /// Shared area in square pixels.
    pub(crate) fn overlap(&self, other: &Rect) -> f64 {
        let w = self.x1.min(other.x1) - self.x0.max(other.x0);
        let h = self.y1.min(other.y1) - self.y0.max(other.y0);
        if w > 0.0 && h > 0.0 { w * h } else { 0.0 }
    }

    pub(crate) fn inside(&self, outer: &Rect) -> bool {
        self.x0 >= outer.x0 && self.x1 <= outer.x1 && self.y0 >= outer.y0 && self.y1 <= outer.y1
    }
}

/// Width of a text in pixels, estimated on the wide side of the common sans-serif fonts: no font is at hand here, and a
/// label with a gap beside it is better than one that overflows.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    let em: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | 'I' => 0.30,
            'f' | 't' | 'r' | '(' | ')' | '[' | ']' | ' ' | '-' | '/' => 0.38,
            'm' | 'w' | 'M' | 'W' | '@' | '%' | '+' | '=' | '\u{2212}' => 0.87,
            'A'..='Z' => 0.70,
            c if c.is_ascii() => 0.60,
            c if (c as u32) < 0x1100 => 0.66,
            _ => 1.05,
        })
        .sum();
    em * size
}

/// Cuts a text that would be wider than `width` and ends it in an ellipsis.
pub(crate) fn fit(text: &str, size: f64, width: f64) -> String {
    if text_width(text, size) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    for c in text.chars() {
        out.push(c);
        if text_width(&out, size) + 0.9 * size > width {
            out.pop();
            break;
        }
    }
    out.push('…');
    out
}

pub(crate) struct Canvas<'a> {
    root: Area<'a>,
    /// Boxes with what is told where the pointer rests on them, as SVG.
    hints: RefCell<String>,
}

pub(crate) type Drawn<T = ()> = Result<T, String>;

/// Runs `draw` on a surface of `width` x `height` pixels and returns the SVG.
pub(crate) fn paint(width: f64, height: f64, draw: impl FnOnce(&Canvas<'_>) -> Drawn) -> Drawn<String> {
    let mut svg = String::new();
    let hints;
    let (w, h) = (units(width).max(1) as u32, units(height).max(1) as u32);
    {
        let root = SVGBackend::with_string(&mut svg, (w, h)).into_drawing_area();
        root.fill(&palette::PAPER.rgb()).map_err(|e| e.to_string())?;
        let canvas = Canvas { root, hints: RefCell::default() };
        draw(&canvas)?;
        canvas.root.present().map_err(|e| e.to_string())?;
        hints = canvas.hints.into_inner();
    }
    // The backend knows neither a size apart from the view box nor dashes; texts cannot hold a quote, so nothing from
    // outside can look like these attributes.
    let mut svg = svg.replacen(
        &format!("width=\"{w}\" height=\"{h}\""),
        &format!("width=\"{}\" height=\"{}\"", f64::from(w) / SCALE, f64::from(h) / SCALE),
        1,
    );
    for dash in Dash::BROKEN {
        let pattern = dash.pattern().map(|d| units(d).to_string()).join(" ");
        svg = svg.replace(
            &format!("stroke-width=\"{}\"", dash_code(dash)),
            &format!("stroke-width=\"{}\" stroke-dasharray=\"{pattern}\"", units(dash.width())),
        );
    }
    let end = svg.rfind("</svg>").unwrap_or(svg.len());
    svg.insert_str(end, &hints);
    Ok(svg)
}

/// A stroke width that is never drawn, standing for a dash until [`paint`] puts the pattern in.
fn dash_code(dash: Dash) -> u32 {
    match dash {
        Dash::Solid => units(dash.width()) as u32,
        Dash::Long => 9001,
        Dash::Short => 9002,
        Dash::Mixed => 9003,
        Dash::Hair => 9004,
    }
}

pub(crate) fn units(pixels: f64) -> i32 {
    (pixels * SCALE).round() as i32
}

fn at(x: f64, y: f64) -> (i32, i32) {
    (units(x), units(y))
}

impl<'a> Canvas<'a> {
    /// The part of the surface that a chart takes, in drawn units.
    pub(crate) fn area(&self, r: Rect) -> Area<'a> {
        self.root.clone().shrink(at(r.x0, r.y0), at(r.x1 - r.x0, r.y1 - r.y0))
    }

    fn draw<'e, E>(&self, element: &'e E) -> Drawn
    where
        E: plotters::element::Drawable<SVGBackend<'a>>,
        &'e E: plotters::element::PointCollection<'e, (i32, i32)>,
    {
        self.root.draw(element).map_err(|e| e.to_string())
    }

    pub(crate) fn line(&self, points: &[(f64, f64)], colour: Colour, width: f64) -> Drawn {
        self.stroke(points, colour, units(width).max(1) as u32)
    }

    pub(crate) fn dashed(&self, points: &[(f64, f64)], colour: Colour, dash: Dash) -> Drawn {
        self.stroke(points, colour, dash_code(dash))
    }

    fn stroke(&self, points: &[(f64, f64)], colour: Colour, width: u32) -> Drawn {
        let path: Vec<_> = points.iter().map(|&(x, y)| at(x, y)).collect();
        self.draw(&PathElement::new(path, colour.rgb().stroke_width(width)))
    }

    pub(crate) fn bar(&self, r: Rect, colour: Colour) -> Drawn {
        self.draw(&Rectangle::new([at(r.x0, r.y0), at(r.x1, r.y1)], colour.rgb().filled()))
    }

    /// An outline; nothing inside it.
    pub(crate) fn frame(&self, r: Rect, colour: Colour, width: f64) -> Drawn {
        self.line(&[(r.x0, r.y0), (r.x1, r.y0), (r.x1, r.y1), (r.x0, r.y1), (r.x0, r.y0)], colour, width)
    }

    pub(crate) fn polygon(&self, corners: &[(f64, f64)], colour: Colour) -> Drawn {
        let path: Vec<_> = corners.iter().map(|&(x, y)| at(x, y)).collect();
        self.draw(&Polygon::new(path, colour.rgb().filled()))
    }

    /// A text that shows while the pointer rests on a box: for what is too long to be drawn.
    pub(crate) fn hint(&self, r: Rect, text: &str) {
        // The backend has no such element. Writing to a String cannot fail.
        let _ = writeln!(
            self.hints.borrow_mut(),
            "<g><title>{}</title><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" pointer-events=\"all\"/></g>",
            escape::html(&escape::clean(text)),
            units(r.x0),
            units(r.y0),
            units(r.x1 - r.x0).max(0),
            units(r.y1 - r.y0).max(0),
        );
    }

    /// A translucent polygon.
    pub(crate) fn tint(&self, outline: &[(f64, f64)], colour: Colour) -> Drawn {
        let path: Vec<_> = outline.iter().map(|&(x, y)| at(x, y)).collect();
        self.draw(&Polygon::new(path, colour.rgb().mix(0.1).filled()))
    }

    /// A marker whose area looks about the same in every shape; open ones are filled with the paper so that lines do not run through.
    pub(crate) fn marker(&self, shape: Shape, filled: bool, colour: Colour, (x, y): (f64, f64)) -> Drawn {
        const EDGE: f64 = 1.5;
        if let Some(arms) = shape.arms() {
            for arm in arms {
                self.line(&arm.map(|(dx, dy)| (x + dx, y + dy)), colour, 2.25)?;
            }
            return Ok(());
        }
        let inside = if filled { colour } else { palette::PAPER };
        if let Some(corners) = shape.corners() {
            let path: Vec<_> = corners.iter().map(|&(dx, dy)| at(x + dx, y + dy)).collect();
            self.draw(&Polygon::new(path.clone(), inside.rgb().filled()))?;
            let closed: Vec<_> = path.iter().chain(path.first()).copied().collect();
            return self.draw(&PathElement::new(closed, colour.rgb().stroke_width(units(EDGE) as u32)));
        }
        self.draw(&Circle::new(at(x, y), units(4.0), inside.rgb().filled()))?;
        self.draw(&Circle::new(at(x, y), units(4.0), colour.rgb().stroke_width(units(EDGE) as u32)))?;
        if shape == Shape::Target {
            self.draw(&Circle::new(at(x, y), units(1.75), colour.rgb().filled()))
        } else {
            Ok(())
        }
    }

    pub(crate) fn text(&self, text: &str, (x, y): (f64, f64), size: f64, colour: Colour, anchor: Anchor) -> Drawn {
        self.write(text, (x, y), size, colour, anchor, FontStyle::Normal)
    }

    pub(crate) fn bold(&self, text: &str, (x, y): (f64, f64), size: f64) -> Drawn {
        self.write(text, (x, y), size, palette::INK, Anchor::Start, FontStyle::Bold)
    }

    fn write(
        &self,
        text: &str,
        (x, y): (f64, f64),
        size: f64,
        colour: Colour,
        anchor: Anchor,
        font: FontStyle,
    ) -> Drawn {
        let h = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let style = font_of(size, colour, font).pos(Pos::new(h, VPos::Center));
        self.draw(&Text::new(escape::clean(text), at(x, y), style))
    }
}

/// The one font of the figures, `size` pixels high.
pub(crate) fn font_of(size: f64, colour: Colour, style: FontStyle) -> TextStyle<'static> {
    let font = (FontFamily::SansSerif, size * SCALE * FONT_FACTOR, style).into_font();
    TextStyle { color: colour.rgb().to_backend_color(), ..TextStyle::from(font) }
}
