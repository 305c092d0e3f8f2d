//! Marker shapes and line patterns.

use crate::palette;

/// One shape per family of methods, so that figures can be read without colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
    Plus,
    Cross,
    Wedge,
}

impl Shape {
    pub(crate) fn of_family(family: &str) -> Shape {
        match family {
            "sae" => Shape::Circle,
            "pca" => Shape::Square,
            "ica" => Shape::Triangle,
            "nmf" => Shape::Diamond,
            "identity" => Shape::Plus,
            "random" => Shape::Cross,
            _ => Shape::Wedge,
        }
    }

    /// Corners around the centre in pixels, for the shapes that are polygons.
    pub(crate) fn corners(self) -> Option<Vec<(f64, f64)>> {
        match self {
            Shape::Square => Some(vec![(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)]),
            Shape::Triangle => Some(vec![(0.0, -5.0), (4.75, 3.5), (-4.75, 3.5)]),
            Shape::Wedge => Some(vec![(0.0, 5.0), (4.75, -3.5), (-4.75, -3.5)]),
            Shape::Diamond => Some(vec![(0.0, -5.25), (5.25, 0.0), (0.0, 5.25), (-5.25, 0.0)]),
            Shape::Circle | Shape::Plus | Shape::Cross => None,
        }
    }

    /// Strokes around the centre, for the shapes made of lines.
    pub(crate) fn arms(self) -> Option<[[(f64, f64); 2]; 2]> {
        match self {
            Shape::Plus => Some([[(-5.0, 0.0), (5.0, 0.0)], [(0.0, -5.0), (0.0, 5.0)]]),
            Shape::Cross => Some([[(-3.75, -3.75), (3.75, 3.75)], [(-3.75, 3.75), (3.75, -3.75)]]),
            _ => None,
        }
    }
}

/// Line patterns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dash {
    Solid,
    Long,
    Short,
    Mixed,
    /// The thin broken line of references.
    Hair,
}

impl Dash {
    pub(crate) const BROKEN: [Dash; 4] = [Dash::Long, Dash::Short, Dash::Mixed, Dash::Hair];

    /// Patterns repeat after four.
    pub(crate) fn nth(index: usize) -> Dash {
        [Dash::Solid, Dash::Long, Dash::Short, Dash::Mixed][index % 4]
    }

    /// Lengths of strokes and gaps in pixels.
    pub(crate) fn pattern(self) -> [f64; 4] {
        match self {
            Dash::Solid => [1.0, 0.0, 1.0, 0.0],
            Dash::Long => [7.0, 3.5, 7.0, 3.5],
            Dash::Short => [2.0, 2.5, 2.0, 2.5],
            Dash::Mixed => [8.0, 3.0, 2.0, 3.0],
            Dash::Hair => [3.0, 3.0, 3.0, 3.0],
        }
    }

    /// Line width in pixels.
    pub(crate) fn width(self) -> f64 {
        if self == Dash::Hair { 1.0 } else { 1.75 }
    }
}

/// How a series looks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Style {
    pub(crate) colour: palette::Colour,
    pub(crate) shape: Shape,
    /// Open markers for a method that keeps every code, filled ones for sparse methods and for variants of a method.
    pub(crate) filled: bool,
    pub(crate) dash: Dash,
}
