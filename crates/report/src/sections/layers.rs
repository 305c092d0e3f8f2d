//! A measurement over the layers of a model, for hook points of one site.

use super::Groups;
use super::look::{Dictionary, Looks};
use crate::chart::{AxisSpec, Panel, Point, Series};
use crate::row::{ResultRow, Setting};
use crate::table;

/// Share of the gap between two layers over which the points of one layer are spread.
const SPREAD: f64 = 0.3;

/// The site of a hook point, and its layer where it has one: `hook_resid_post` and 3 of `blocks.3.hook_resid_post`.
fn site_and_layer(hook: &str) -> (&str, Option<u32>) {
    let layer = hook.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')?.0.parse().ok());
    (hook.splitn(3, '.').nth(2).unwrap_or(""), layer)
}

/// The sites of rows, by name.
pub(super) fn sites<'r>(rows: impl Iterator<Item = &'r ResultRow>) -> Vec<String> {
    table::distinct(rows.map(|r| Some(site_and_layer(&r.hook).0.to_owned())))
}

/// The rows of one site over its layers, a line for each dictionary; none where fewer than two layers were measured.
pub(super) fn panel(
    title: &str,
    y_title: &str,
    site: &str,
    measured: &[(Dictionary, &ResultRow)],
    looks: &Looks,
) -> Option<Panel> {
    let mut groups = Groups::default();
    let mut layers: Vec<u32> = Vec::new();
    for (dictionary, row) in measured {
        let (of_site, Some(layer)) = site_and_layer(&row.hook) else { continue };
        if of_site != site {
            continue;
        }
        layers.push(layer);
        let point = Point::new(f64::from(layer), row.value, row.ci_low, row.ci_high);
        let style = looks.style(dictionary);
        groups.add(&dictionary.method, dictionary.setting.clone(), &Setting::default(), style, point);
    }
    layers.sort_unstable();
    layers.dedup();
    let gap = layers.windows(2).map(|pair| pair[1] - pair[0]).min()?;
    let mut series = groups.into_series(false);
    let step = (SPREAD / series.len() as f64).min(0.03) * f64::from(gap);
    set_apart(&mut series, step);
    Some(Panel {
        title: title.to_owned(),
        x: AxisSpec::linear("layer").with_ticks(layers.into_iter().map(f64::from).collect()),
        y: AxisSpec::linear(y_title).with_zero(),
        series,
        references: Vec::new(),
    })
}

/// Moves the points of one place beside each other: dictionaries of equal scores would hide each other, and their whiskers.
pub(super) fn set_apart(series: &mut [Series], step: f64) {
    let middle = (series.len() as f64 - 1.0) / 2.0;
    for (i, one) in series.iter_mut().enumerate() {
        one.lines.iter_mut().flatten().for_each(|p| p.x += (i as f64 - middle) * step);
    }
}
