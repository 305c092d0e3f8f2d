//! Colours. Each has a light and a dark value; figures are drawn with the light ones, and the page's style sheet
//! exchanges them where the reader prefers dark.
//!
//! The hues of the families follow Okabe and Ito's colour-blind-safe set, darkened where it is too pale for thin lines on
//! white; ordered quantities (dictionary size, alpha) are ramps of lightness, which survive grey printing.

use std::fmt::Write as _;

use plotters::style::RGBColor;

/// A colour by its place in [`table`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Colour(u8);

pub(crate) const INK: Colour = Colour(0);
pub(crate) const MUTED: Colour = Colour(1);
pub(crate) const GRID: Colour = Colour(2);
pub(crate) const PAPER: Colour = Colour(3);
pub(crate) const AXIS: Colour = Colour(4);
pub(crate) const PCA: Colour = Colour(5);
const ICA: Colour = Colour(6);
const NMF: Colour = Colour(7);
const IDENTITY: Colour = Colour(8);
const RANDOM: Colour = Colour(9);
const OTHER: Colour = Colour(10);
const LEACE: Colour = Colour(11);
const FIXED: u8 = 12;
const RAMP: u8 = 8;
const STEPS: u8 = 16;

type Rgb = [u8; 3];

const FIXED_PAIRS: [(Rgb, Rgb); FIXED as usize] = [
    ([0x1c, 0x1e, 0x21], [0xe8, 0xe6, 0xe3]),
    ([0x5c, 0x63, 0x6b], [0xa3, 0xa8, 0xae]),
    ([0xe9, 0xeb, 0xee], [0x2c, 0x30, 0x36]),
    ([0xff, 0xff, 0xff], [0x16, 0x18, 0x1b]),
    ([0x8a, 0x91, 0x99], [0x6d, 0x74, 0x7c]),
    ([0xd5, 0x5e, 0x00], [0xff, 0x8f, 0x45]),
    ([0x00, 0x80, 0x5d], [0x35, 0xc9, 0x9d]),
    ([0xa9, 0x4f, 0x86], [0xe4, 0x9d, 0xc6]),
    ([0x44, 0x47, 0x4b], [0xd2, 0xd5, 0xd9]),
    ([0xa8, 0x74, 0x00], [0xf0, 0xbd, 0x45]),
    ([0x6e, 0x5a, 0x4a], [0xc9, 0xb3, 0xa0]),
    ([0x99, 0x1f, 0x2e], [0xf5, 0x8a, 0x7a]),
];

/// A middle shade of the first ramp.
pub(crate) const SAE_BLUE: Colour = Colour(FIXED + 3);

/// Kinds of sparse autoencoder that can be told apart by hue.
pub(crate) const SAE_HUES: usize = 7;

/// Ends of the ramps: (light page from, to), (dark page from, to). Neighbours in this list differ most, and all keep away from
/// the hues of the other families; seven hues are more than a colour-blind reader can tell, so each also has a shape of its own.
const SAE_ENDS: [[Rgb; 4]; SAE_HUES] = [
    // Blue.
    [[0x59, 0xa5, 0xdb], [0x06, 0x28, 0x5a], [0x3b, 0x84, 0xc4], [0xd0, 0xe8, 0xfc]],
    // Purple.
    [[0xb3, 0x8b, 0xd6], [0x3d, 0x10, 0x66], [0x93, 0x62, 0xc4], [0xe9, 0xd8, 0xfb]],
    // Crimson.
    [[0xef, 0x6f, 0x80], [0x80, 0x08, 0x1f], [0xd2, 0x46, 0x5c], [0xff, 0xd0, 0xd6]],
    // Olive.
    [[0x9d, 0xae, 0x33], [0x3f, 0x4a, 0x08], [0x80, 0x91, 0x22], [0xe6, 0xf0, 0xab]],
    // Cyan.
    [[0x2f, 0xb6, 0xbd], [0x04, 0x48, 0x52], [0x14, 0x94, 0xa0], [0xbd, 0xf2, 0xf4]],
    // Magenta.
    [[0xe4, 0x73, 0xdb], [0x75, 0x08, 0x6e], [0xc8, 0x4b, 0xbf], [0xfb, 0xd3, 0xf7]],
    // Slate.
    [[0x8d, 0x9b, 0xb3], [0x26, 0x33, 0x4d], [0x70, 0x80, 0x9c], [0xdc, 0xe4, 0xf2]],
];

/// Viridis (van der Walt and Smith), sampled; the light page leaves out its pale end, the dark page its dark end.
const VIRIDIS: [Rgb; 11] = [
    [0x44, 0x01, 0x54],
    [0x48, 0x25, 0x76],
    [0x41, 0x44, 0x87],
    [0x35, 0x5f, 0x8d],
    [0x2a, 0x78, 0x8e],
    [0x21, 0x91, 0x8c],
    [0x22, 0xa8, 0x84],
    [0x44, 0xbf, 0x70],
    [0x7a, 0xd1, 0x51],
    [0xbd, 0xdf, 0x26],
    [0xfd, 0xe7, 0x25],
];

fn mix(a: Rgb, b: Rgb, t: f64) -> Rgb {
    std::array::from_fn(|i| (f64::from(a[i]) * (1.0 - t) + f64::from(b[i]) * t).round() as u8)
}

fn viridis(t: f64) -> Rgb {
    let x = t.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let i = (x.floor() as usize).min(VIRIDIS.len() - 2);
    mix(VIRIDIS[i], VIRIDIS[i + 1], x - i as f64)
}

/// All colours: (light, dark).
fn table() -> Vec<(Rgb, Rgb)> {
    let mut all = FIXED_PAIRS.to_vec();
    for ends in SAE_ENDS {
        for i in 0..RAMP {
            let t = f64::from(i) / f64::from(RAMP - 1);
            all.push((mix(ends[0], ends[1], t), mix(ends[2], ends[3], t)));
        }
    }
    for i in 0..STEPS {
        let t = f64::from(i) / f64::from(STEPS - 1);
        all.push((viridis(0.72 * t), viridis(0.30 + 0.70 * t)));
    }
    all
}

impl Colour {
    /// The light page's value, which the figures carry.
    pub(crate) fn rgb(self) -> RGBColor {
        let [r, g, b] = table()[usize::from(self.0)].0;
        RGBColor(r, g, b)
    }
}

/// A shade for the `index`-th of `count` ordered things, spread over `len` steps.
fn spread(index: usize, count: usize, len: u8) -> u8 {
    let last = f64::from(len - 1);
    let t = if count < 2 { 0.45 } else { index.min(count - 1) as f64 / (count - 1) as f64 };
    (t * last).round() as u8
}

/// Shade of a sparse autoencoder's dictionary size, the `index`-th of `count`, in one of the [`SAE_HUES`].
pub(crate) fn sae(hue: usize, index: usize, count: usize) -> Colour {
    Colour(FIXED + (hue % SAE_HUES) as u8 * RAMP + spread(index, count, RAMP))
}

/// Shade of the `index`-th of `count` ordered things of no family (alphas in training curves).
pub(crate) fn ordered(index: usize, count: usize) -> Colour {
    Colour(FIXED + SAE_HUES as u8 * RAMP + spread(index, count, STEPS))
}

/// Colours for things without order or family: tokens of a histogram.
const KINDS: [Colour; 9] = [
    SAE_BLUE,
    PCA,
    ICA,
    Colour(FIXED + RAMP + 3),
    RANDOM,
    Colour(FIXED + 2 * RAMP + 4),
    Colour(FIXED + 4 * RAMP + 2),
    Colour(FIXED + 3 * RAMP + 3),
    OTHER,
];

/// How many [`kind`]s can be told apart.
pub(crate) const N_KINDS: usize = KINDS.len();

/// Colour of the `index`-th of things without order or family.
pub(crate) fn kind(index: usize) -> Colour {
    KINDS[index % N_KINDS]
}

/// The family of a method: its name up to the first hyphen.
pub(crate) fn family(method: &str) -> &str {
    method.split('-').next().unwrap_or(method)
}

/// Colour of a method that is not a sparse autoencoder.
pub(crate) fn of_family(family: &str) -> Colour {
    match family {
        "sae" => sae(0, 0, 1),
        "pca" => PCA,
        "ica" => ICA,
        "nmf" => NMF,
        "identity" => IDENTITY,
        "random" => RANDOM,
        "none" => MUTED,
        "leace" => LEACE,
        _ => OTHER,
    }
}

/// Rules that exchange every light colour for its dark one inside `.fig`.
pub(crate) fn dark_rules() -> String {
    let mut css = String::new();
    for ([r, g, b], [x, y, z]) in table() {
        // Writing to a String cannot fail.
        let _ = writeln!(
            css,
            ".fig [fill=\"#{r:02X}{g:02X}{b:02X}\"]{{fill:#{x:02x}{y:02x}{z:02x}}}\
             .fig [stroke=\"#{r:02X}{g:02X}{b:02X}\"]{{stroke:#{x:02x}{y:02x}{z:02x}}}"
        );
    }
    css
}

#[cfg(test)]
mod tests {
    use super::*;

    /// WCAG contrast ratio.
    fn contrast(a: Rgb, b: Rgb) -> f64 {
        let luminance = |c: Rgb| {
            let [r, g, b] = c.map(|v| {
                let v = f64::from(v) / 255.0;
                if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
            });
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        let (x, y) = (luminance(a), luminance(b));
        (x.max(y) + 0.05) / (x.min(y) + 0.05)
    }

    #[test]
    fn colours_are_distinct_so_that_dark_rules_do_not_clash() {
        let all = table();
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert_ne!(a.0, b.0);
            }
        }
        assert_eq!(all.len(), usize::from(FIXED + SAE_HUES as u8 * RAMP + STEPS));
    }

    #[test]
    fn marks_stand_out_on_both_pages() {
        let all = table();
        let (white, black) = all[usize::from(PAPER.0)];
        for (i, (light, dark)) in all.iter().enumerate() {
            if ![GRID, PAPER, AXIS].contains(&Colour(i as u8)) {
                assert!(contrast(*light, white) > 2.2, "colour {i} on white: {}", contrast(*light, white));
                assert!(contrast(*dark, black) > 2.2, "colour {i} on dark: {}", contrast(*dark, black));
            }
        }
        for text in [INK, MUTED] {
            assert!(contrast(all[usize::from(text.0)].0, white) > 4.5);
            assert!(contrast(all[usize::from(text.0)].1, black) > 4.5);
        }
    }
}
