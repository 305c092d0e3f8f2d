//! Axes: a range that holds the data, ticks at round numbers, linear or logarithmic.
//!
//! Every axis maps its values to a plain range of `f64` in which the chart is linear; the chart never sees a logarithm.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::number;

/// What an axis is asked to be.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct AxisSpec {
    /// Name and unit.
    pub(crate) title: String,
    pub(crate) log: bool,
    /// Whether zero must be on the axis (linear axes only).
    pub(crate) from_zero: bool,
    /// Values that must be on the axis, whatever the data.
    pub(crate) reach: Vec<f64>,
    /// The only values that are ticks, if any are given (linear axes only).
    pub(crate) ticks: Vec<f64>,
    /// What the places 0, 1, 2, ... are called, where they are no numbers.
    pub(crate) names: Vec<String>,
    /// Values far above this are drawn at the edge, with an arrow.
    pub(crate) cap: Option<f64>,
}

impl AxisSpec {
    pub(crate) fn linear(title: impl Into<String>) -> AxisSpec {
        AxisSpec {
            title: title.into(),
            log: false,
            from_zero: false,
            reach: Vec::new(),
            ticks: Vec::new(),
            names: Vec::new(),
            cap: None,
        }
    }

    pub(crate) fn log(title: impl Into<String>) -> AxisSpec {
        AxisSpec { log: true, ..AxisSpec::linear(title) }
    }

    /// Things side by side, in the middle of a place each.
    pub(crate) fn of_names(title: impl Into<String>, names: Vec<String>) -> AxisSpec {
        let reach = vec![-0.5, names.len() as f64 - 0.5];
        AxisSpec { reach, names, ..AxisSpec::linear(title) }
    }

    pub(crate) fn with_zero(mut self) -> AxisSpec {
        self.from_zero = true;
        self
    }

    pub(crate) fn with_ticks(mut self, ticks: Vec<f64>) -> AxisSpec {
        self.ticks = ticks;
        self
    }

    pub(crate) fn capped(mut self, cap: f64) -> AxisSpec {
        self.cap = Some(cap);
        self
    }
}

/// A fitted axis.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Axis {
    log: bool,
    /// Ends in the linear space.
    pub(crate) lo: f64,
    pub(crate) hi: f64,
    /// Places in the linear space, with their labels.
    pub(crate) ticks: Vec<(f64, String)>,
    /// Where values go that a logarithmic axis cannot show: zero and below.
    zero: Option<f64>,
}

/// Beyond this no figure makes sense, and sums could overflow.
const HUGE: f64 = 1e120;

impl Axis {
    /// An axis for these values, with about `want` ticks.
    pub(crate) fn fit(spec: &AxisSpec, values: impl Iterator<Item = f64>, want: usize) -> Axis {
        let values = values.chain(spec.reach.iter().copied());
        let mut values: Vec<f64> = values.filter(|v| v.is_finite()).map(|v| v.clamp(-HUGE, HUGE)).collect();
        if let Some(cap) = spec.cap
            && values.iter().any(|v| *v > 1.2 * cap)
        {
            values.retain(|v| *v <= cap);
            values.push(cap);
        }
        if spec.log { Axis::fit_log(&values, want) } else { Axis::fit_linear(spec, values, want) }
    }

    fn fit_linear(spec: &AxisSpec, mut values: Vec<f64>, want: usize) -> Axis {
        let from_zero = spec.from_zero;
        if from_zero {
            values.push(0.0);
        }
        let (mut lo, mut hi) = bounds(&values).unwrap_or((0.0, 1.0));
        let largest = lo.abs().max(hi.abs());
        if hi - lo <= 1e-9 * largest || hi - lo < 1e-100 {
            let pad = if largest > 1e-90 { 0.1 * largest } else { 0.5 };
            (lo, hi) = (if from_zero && lo >= 0.0 { 0.0 } else { lo - pad }, hi + pad);
        } else {
            let pad = 0.05 * (hi - lo);
            let floor = from_zero && lo >= 0.0;
            (lo, hi) = (if floor { 0.0 } else { lo - pad }, hi + pad);
        }
        let mut ticks = round_ticks(lo, hi, want);
        if !spec.ticks.is_empty() {
            // Every second, third, ... where they would crowd.
            let every = spec.ticks.len().div_ceil(want.max(2));
            ticks = spec.ticks.iter().copied().step_by(every).filter(|v| (lo..=hi).contains(v)).collect();
        }
        let decimals = ticks.get(1).map_or(0, |b| decimals_of(b - ticks[0]));
        let ticks = ticks.into_iter().map(|v| (v, tick_label(v, decimals))).collect();
        Axis { log: false, lo, hi, ticks, zero: None }
    }

    fn fit_log(values: &[f64], want: usize) -> Axis {
        let logs: Vec<f64> = values.iter().filter(|v| **v > 0.0).map(|v| v.log10()).collect();
        let (lo, hi) = bounds(&logs).unwrap_or((0.0, 1.0));
        let pad = (0.06 * (hi - lo)).max(0.03);
        let (mut lo, hi) = (lo - pad, hi + pad);
        let mut ticks: Vec<(f64, String)> = log_ticks(lo, hi, want);
        let zero = values.iter().any(|v| *v <= 0.0).then(|| {
            let place = lo - 0.06 * (hi - lo);
            lo -= 0.10 * (hi - lo);
            ticks.insert(0, (place, "0".to_owned()));
            place
        });
        Axis { log: true, lo, hi, ticks, zero }
    }

    /// Gives the places of names their names as ticks.
    pub(crate) fn name(&mut self, names: &[String], shorten: impl Fn(&str) -> String) {
        if !names.is_empty() {
            self.ticks = names.iter().enumerate().map(|(i, name)| (i as f64, shorten(name))).collect();
        }
    }

    /// Where a value goes, and whether it had to be moved to the upper edge.
    pub(crate) fn place(&self, v: f64) -> (f64, bool) {
        let x = match (self.log, v > 0.0) {
            (false, _) => v.clamp(-HUGE, HUGE),
            (true, true) => v.min(HUGE).log10(),
            (true, false) => self.zero.unwrap_or(self.lo),
        };
        (x.clamp(self.lo, self.hi), x > self.hi)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.lo) / (self.hi - self.lo);
        (f64::from(from) + share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Light points would become a second, finer mesh.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.iter().map(|(v, _)| *v).collect() }
    }

    fn range(&self) -> Range<f64> {
        self.lo..self.hi
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.ticks.iter().find(|(v, _)| v == value).map_or_else(String::new, |(_, label)| label.clone())
    }
}

fn bounds(values: &[f64]) -> Option<(f64, f64)> {
    values.iter().fold(None, |range, &v| match range {
        None => Some((v, v)),
        Some((lo, hi)) => Some((v.min(lo), v.max(hi))),
    })
}

/// Multiples of 1, 2, 2.5 or 5 times a power of ten.
fn round_ticks(lo: f64, hi: f64, want: usize) -> Vec<f64> {
    let raw = (hi - lo) / want.max(2) as f64;
    let base = 10f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * base).into_iter().find(|s| *s >= raw * 0.999).unwrap_or(10.0 * base);
    let first = (lo / step).ceil();
    (0..=2 * want.max(2) + 2).map(|i| (first + i as f64) * step).take_while(|v| *v <= hi + 1e-9 * step).collect()
}

/// Ticks of a logarithmic axis: the densest familiar set that does not crowd.
fn log_ticks(lo: f64, hi: f64, want: usize) -> Vec<(f64, String)> {
    let want = want.max(3);
    if hi - lo < 0.45 {
        let (from, to) = (10f64.powf(lo), 10f64.powf(hi));
        let ticks = round_ticks(from, to, want);
        let decimals = ticks.get(1).map_or(0, |b| decimals_of(b - ticks[0]));
        return ticks.into_iter().filter(|v| *v > 0.0).map(|v| (v.log10(), tick_label(v, decimals))).collect();
    }
    let (first, last) = (lo.floor() as i32, hi.ceil() as i32);
    for digits in [&[1.0, 2.0, 5.0][..], &[1.0, 3.0], &[1.0]] {
        let ticks: Vec<_> = (first..=last)
            .flat_map(|power| digits.iter().map(move |d| (f64::from(power) + f64::log10(*d), d * 10f64.powi(power))))
            .filter(|(x, _)| (lo..=hi).contains(x))
            .collect();
        if (2..=want + 1).contains(&ticks.len()) {
            return ticks.into_iter().map(|(x, v)| (x, power_label(v))).collect();
        }
    }
    let every = ((last - first) as usize / want + 1).max(1);
    (first..=last)
        .step_by(every)
        .filter(|p| (lo..=hi).contains(&f64::from(*p)))
        .map(|p| (f64::from(p), power_label(10f64.powi(p))))
        .collect()
}

fn decimals_of(step: f64) -> usize {
    let mut decimals = (-step.abs().log10().floor()).clamp(0.0, 6.0) as usize;
    // A step of 2.5 needs one decimal more than its size says.
    if (step * 10f64.powi(decimals as i32)).fract().abs() > 1e-6 {
        decimals += 1;
    }
    decimals
}

fn tick_label(v: f64, decimals: usize) -> String {
    if v.abs() >= 1e7 || (v != 0.0 && v.abs() < 1e-4) {
        return power_label(v);
    }
    let text = format!("{v:.decimals$}");
    let text = if text.trim_start_matches(['-', '0', '.']).is_empty() { text.replace('-', "") } else { text };
    match text.split_once('.') {
        Some((whole, fraction)) => format!("{}.{fraction}", grouped(whole)),
        None => grouped(&text),
    }
}

fn grouped(whole: &str) -> String {
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |d| ("\u{2212}", d));
    match digits.parse::<u64>() {
        Ok(n) => format!("{sign}{}", number::count(n)),
        Err(_) => whole.to_owned(),
    }
}

/// `0.01`, `500`, `10⁻⁴`, `2×10⁶`.
fn power_label(v: f64) -> String {
    if (9.99e-4..=9.99e5).contains(&v.abs()) {
        return number::significant(v, 1);
    }
    let text = format!("{v:.0e}");
    let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
    let power: String = power
        .chars()
        .map(|c| match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            digit => char::from_u32('⁰' as u32 + digit.to_digit(10).unwrap_or(0)).unwrap_or(digit),
        })
        .collect();
    if mantissa == "1" { format!("10{power}") } else { format!("{}×10{power}", mantissa.replace('-', "\u{2212}")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(spec: &AxisSpec, values: &[f64]) -> Vec<String> {
        Axis::fit(spec, values.iter().copied(), 6).ticks.into_iter().map(|(_, l)| l).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            labels(&AxisSpec::linear("").with_zero(), &[0.03, 0.97]),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(labels(&AxisSpec::log(""), &[3.0, 1200.0]), ["3", "10", "30", "100", "300", "1,000"]);
        assert_eq!(
            labels(&AxisSpec::log(""), &[1e-4, 1e-1]),
            ["10⁻⁴", "3×10⁻⁴", "0.001", "0.003", "0.01", "0.03", "0.1"]
        );
        assert_eq!(labels(&AxisSpec::linear("").with_ticks(vec![3.0, 5.0, 11.0]), &[2.9, 11.2]), ["3", "5", "11"]);
        assert_eq!(labels(&AxisSpec::linear(""), &[0.0, 5000.0])[..3], ["0", "1,000", "2,000"]);
    }

    #[test]
    fn zero_has_a_place_on_a_logarithmic_axis() {
        let axis = Axis::fit(&AxisSpec::log(""), [0.0, 1e-4, 1e-2].into_iter(), 6);
        assert_eq!(axis.ticks[0].1, "0");
        assert!(axis.place(0.0).0 < axis.place(1e-4).0);
    }

    #[test]
    fn a_cap_moves_outliers_to_the_edge() {
        let axis = Axis::fit(&AxisSpec::linear("").capped(1.2), [0.1, 0.9, 35.0].into_iter(), 6);
        assert!(axis.place(35.0).1 && !axis.place(1.1).1);
        assert!(axis.hi < 1.3);
    }

    proptest! {
        #[test]
        fn any_numbers_fit(values in prop::collection::vec(prop::num::f64::ANY, 0..8), log: bool, zero: bool) {
            let mut spec = if log { AxisSpec::log("") } else { AxisSpec::linear("") };
            spec.from_zero = zero;
            let axis = Axis::fit(&spec, values.iter().copied(), 6);
            prop_assert!(axis.lo < axis.hi && axis.lo.is_finite() && axis.hi.is_finite());
            prop_assert!(axis.ticks.len() <= 16);
            for v in values.iter().filter(|v| v.is_finite()) {
                let (x, _) = axis.place(*v);
                prop_assert!(x >= axis.lo && x <= axis.hi);
            }
        }
    }
}
