//! Marker shapes and line patterns.

use crate::palette;

/// One shape per family of methods, and one for each kind of sparse autoencoder, so that figures can be read without colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
    Plus,
    Cross,
    Wedge,
    Star,
    Left,
    Right,
    /// A circle with a dot in it.
    Target,
}

impl Shape {
    pub(crate) fn of_family(family: &str) -> Shape {
        match family {
            "sae" => Shape::Circle,
            "pca" | "none" => Shape::Square,
            "ica" => Shape::Triangle,
            "nmf" | "leace" => Shape::Diamond,
            "identity" => Shape::Plus,
            "random" => Shape::Cross,
            _ => Shape::Wedge,
        }
    }

    /// Shape of a kind of sparse autoencoder, by the place of its hue in the palette, and whether it is filled.
    pub(crate) fn of_sae(hue: usize) -> (Shape, bool) {
        let all = [
            (Shape::Circle, true),
            (Shape::Circle, false),
            (Shape::Star, true),
            (Shape::Right, true),
            (Shape::Left, true),
            (Shape::Left, false),
            (Shape::Target, false),
        ];
        all[hue % all.len()]
    }

    /// Corners around the centre in pixels, for the shapes that are polygons.
    pub(crate) fn corners(self) -> Option<Vec<(f64, f64)>> {
        match self {
            Shape::Square => Some(vec![(-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)]),
            Shape::Triangle => Some(vec![(0.0, -5.0), (4.75, 3.5), (-4.75, 3.5)]),
            Shape::Wedge => Some(vec![(0.0, 5.0), (4.75, -3.5), (-4.75, -3.5)]),
            Shape::Diamond => Some(vec![(0.0, -5.25), (5.25, 0.0), (0.0, 5.25), (-5.25, 0.0)]),
            Shape::Left => Some(vec![(-5.0, 0.0), (3.5, -4.75), (3.5, 4.75)]),
            Shape::Right => Some(vec![(5.0, 0.0), (-3.5, -4.75), (-3.5, 4.75)]),
            Shape::Star => Some(star()),
            Shape::Circle | Shape::Target | Shape::Plus | Shape::Cross => None,
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

/// Five points, the first upwards.
fn star() -> Vec<(f64, f64)> {
    let corner = |i: u32| {
        let (radius, angle) = (if i.is_multiple_of(2) { 5.75 } else { 2.5 }, std::f64::consts::PI / 5.0 * f64::from(i));
        (radius * angle.sin(), -radius * angle.cos())
    };
    (0..10).map(corner).collect()
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
    /// Open markers for a method that keeps every code, filled ones for its sparse and other variants; among sparse autoencoders it
    /// tells two kinds of one shape apart.
    pub(crate) filled: bool,
    pub(crate) dash: Dash,
}
