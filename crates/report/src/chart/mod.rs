//! Charts: grids of panels with lines and points, and rows of bars or dots. They know nothing of experiments.

mod axis;
mod canvas;
mod graph;
mod heat;
mod legend;
mod mark;
mod panel;
mod rows;
mod stack;

pub(crate) use axis::AxisSpec;
pub(crate) use canvas::Drawn;
pub(crate) use graph::{Edge, Graph, Node, draw_graph};
pub(crate) use heat::{Heat, draw_heats};
pub(crate) use legend::Entry;
pub(crate) use mark::{Dash, Shape, Style};
pub(crate) use panel::{Panel, Point, Reference, Series, draw_grid};
pub(crate) use rows::{Beside, Row, RowChart, draw_rows};
pub(crate) use stack::{Effect, Stack, draw_stacks};

/// Width of every figure in pixels.
pub(crate) const WIDTH: f64 = 800.0;

/// Sizes of text in pixels.
const TEXT: f64 = 12.0;
const SMALL: f64 = 11.0;
