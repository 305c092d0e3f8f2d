//! Curves over training steps, and whether they had levelled off.

use std::collections::BTreeMap;

use super::{Context, Section, generator_of, hooks_of, label_of, method_order, on_what};
use crate::ReportError;
use crate::chart::{AxisSpec, Dash, Panel, Point, Series, Shape, Style, draw_grid};
use crate::escape::html;
use crate::number;
use crate::palette;
use crate::row::{ResultRow, Setting};
use crate::table::{self, Cell};

/// One autoencoder: its method and its setting without the step.
type Run = (String, Setting);

/// Curves by metric: step and measurement, by step.
type Curves<'r> = BTreeMap<String, Vec<(f64, &'r ResultRow)>>;

/// More lines than this cannot be told apart.
const MOST_LINES: usize = 32;

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    let experiment = rows.first().map_or("training", |row| row.experiment.as_str());
    let places = hooks_of(rows).into_iter().flat_map(|hook| {
        let here = rows.iter().filter(|r| r.hook == hook).map(|r| Some(generator_of(r)));
        table::distinct(here).into_iter().map(|generator| (hook.clone(), generator)).collect::<Vec<_>>()
    });
    for (hook, generator) in places {
        let here: Vec<&ResultRow> =
            rows.iter().copied().filter(|r| r.hook == hook && generator_of(r) == generator).collect();
        let mut runs: Vec<(Run, Curves<'_>)> = Vec::new();
        let mut stepless: Vec<&ResultRow> = Vec::new();
        for row in &here {
            let setting = Setting::parse(&row.setting);
            let Some(step) = setting.number("step") else {
                stepless.push(row);
                continue;
            };
            let run = (row.method.clone(), setting.without(&["step", "generator"]));
            let at = runs.iter().position(|(r, _)| *r == run).unwrap_or_else(|| {
                runs.push((run, Curves::new()));
                runs.len() - 1
            });
            runs[at].1.entry(row.metric.clone()).or_default().push((step, *row));
        }
        runs.sort_by(|a, b| method_order(&a.0.0, &b.0.0).then_with(|| a.0.1.cmp(&b.0.1)));
        for curve in runs.iter_mut().flat_map(|(_, curves)| curves.values_mut()) {
            curve.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.value.total_cmp(&b.1.value)));
        }
        // One seed for all tells nothing apart.
        if table::distinct(runs.iter().map(|(run, _)| Some(run.1.get("seed").unwrap_or("").to_owned()))).len() == 1 {
            for (run, _) in &mut runs {
                run.1 = run.1.without(&["seed"]);
            }
        }
        section.hook_heading(&hook);
        if !generator.is_empty() {
            section.html.push_str(&format!("<h3>Planted features, generator: {}</h3>\n", html(&generator)));
        }
        let (place, name) = match (hook.as_str(), generator.as_str()) {
            ("", "") => (String::new(), experiment.to_owned()),
            ("", _) => {
                (format!(" on planted features, generator {}", html(&generator)), format!("{experiment}-{generator}"))
            }
            _ => (format!(" at {}", on_what(context, &hook)), format!("{experiment}-{hook}-{generator}")),
        };
        curves(&mut section, &place, &name, &here, &runs)?;
        levelled(&mut section, &runs);
        if !stepless.is_empty() {
            section.html.push_str(&table::wide("Rows without a step.", &stepless, false));
        }
    }
    Ok(section)
}

fn curves(
    section: &mut Section,
    place: &str,
    name: &str,
    rows: &[&ResultRow],
    runs: &[(Run, Curves<'_>)],
) -> Result<(), ReportError> {
    let shown = &runs[..runs.len().min(MOST_LINES)];
    let distinct = |key: &str| table::distinct(shown.iter().map(|(run, _)| run.1.get(key).map(str::to_owned)));
    let (alphas, ratios) = (distinct("alpha"), distinct("ratio"));
    let style = |run: &Run| {
        let place =
            |key: &str, all: &[String]| run.1.get(key).and_then(|v| all.iter().position(|a| a == v)).unwrap_or(0);
        Style {
            colour: palette::ordered(place("alpha", &alphas), alphas.len()),
            shape: Shape::Circle,
            filled: true,
            dash: Dash::nth(place("ratio", &ratios)),
        }
    };
    let panels: Vec<Panel> = [
        ("fvu", AxisSpec::linear("FVU (fraction of variance unexplained)").with_zero().capped(1.2)),
        ("l0", AxisSpec::log("L0 (active latents per vector, log scale)")),
        ("loss", AxisSpec::log("training loss (log scale)")),
        ("mmcs", AxisSpec::linear("MMCS from true features to latents")),
        ("dead_latents", AxisSpec::linear("dead latents").with_zero()),
    ]
    .into_iter()
    .map(|(metric, y)| Panel {
        title: String::new(),
        x: AxisSpec::linear("training step"),
        y,
        series: shown
            .iter()
            .filter_map(|(run, curves)| {
                let line = curves.get(metric)?;
                let line = line.iter().map(|&(x, r)| Point::new(x, r.value, None, None)).collect::<Vec<_>>();
                let single = line.len() == 1;
                Some(Series {
                    label: label_of(&run.0, &run.1),
                    style: style(run),
                    lines: vec![line],
                    markers: single,
                    band: false,
                    direct: false,
                })
            })
            .collect(),
        references: Vec::new(),
    })
    .filter(|panel| !panel.series.is_empty())
    .collect();
    if panels.is_empty() {
        return Ok(());
    }
    let left_out = match runs.len() - shown.len() {
        0 => String::new(),
        more => format!(" {more} further autoencoders are only in the table."),
    };
    let caption = format!(
        "<b>Training</b>{place}: one line per autoencoder, shade by α, dashes by size R; each point of FVU and L0 rests on held-out \
         vectors, {}. The table has the intervals of where they end.{left_out}",
        table::n_in_words(rows.iter().copied().filter(|r| matches!(r.metric.as_str(), "fvu" | "l0"))),
    );
    let columns = if panels.len() == 1 { 1 } else { 2 };
    let height = if panels.len() == 1 { 320.0 } else { 210.0 };
    let svg = draw_grid(&panels, columns, height);
    section.figure(name, "Training curves", &caption, svg)
}

/// The last value of every curve, and how far it moved over the last fifth of training.
fn levelled(section: &mut Section, runs: &[(Run, Curves<'_>)]) {
    let known = ["fvu", "l0", "loss", "mmcs", "dead_latents"];
    let mut metrics: Vec<&str> = runs.iter().flat_map(|(_, curves)| curves.keys().map(String::as_str)).collect();
    metrics.sort_by_key(|m| (known.iter().position(|k| k == m).unwrap_or(known.len()), *m));
    metrics.dedup();
    let mut heads = vec![("autoencoder".to_owned(), false), ("steps".to_owned(), true)];
    for metric in &metrics {
        heads.push((format!("{} at the end", html(number::metric(metric))), true));
        if *metric != "dead_latents" {
            heads.push(("change over the last fifth".to_owned(), true));
        }
    }
    let lines: Vec<Vec<Cell>> = runs
        .iter()
        .map(|(run, curves)| {
            let steps = curves.values().filter_map(|c| c.last()).map(|p| p.0).fold(0.0, f64::max);
            let mut line = vec![Cell::text(&label_of(&run.0, &run.1)), Cell::number(&number::value(steps), steps)];
            for metric in &metrics {
                let curve = curves.get(*metric).map_or(&[][..], Vec::as_slice);
                let end = |(_, r): &(f64, &ResultRow)| {
                    Cell::number(&number::with_interval(r.value, r.ci_low, r.ci_high), r.value)
                };
                line.push(curve.last().map_or_else(Cell::none, end));
                if *metric != "dead_latents" {
                    let curve: Vec<(f64, f64)> = curve.iter().map(|(step, r)| (*step, r.value)).collect();
                    line.push(change(&curve).map_or_else(Cell::none, |c| Cell::number(&percent(c), c)));
                }
            }
            line
        })
        .collect();
    if !lines.is_empty() {
        let caption = "Had training levelled off? Where each curve ended, and its change over the last fifth of the steps relative to the end; 95 % intervals in \
                       brackets.";
        section.html.push_str(&table::render(caption, &heads, &lines));
    }
}

/// Relative change from the last point at or before 80 % of the steps to the end.
fn change(curve: &[(f64, f64)]) -> Option<f64> {
    let &(end, last) = curve.last()?;
    let &(_, before) = curve.iter().rev().find(|(step, _)| *step <= 0.8 * end)?;
    let change = (last - before) / last.abs();
    change.is_finite().then_some(change)
}

fn percent(share: f64) -> String {
    let text = format!("{:+.1} %", 100.0 * share).replace('-', "\u{2212}");
    if text.ends_with("0.0 %") && text.len() < 9 {
        "0.0 %".to_owned()
    } else if text.len() > 14 {
        number::significant(100.0 * share, 2) + " %"
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_compares_the_last_fifth() {
        let curve = [(0.0, 1.0), (80.0, 0.22), (90.0, 0.21), (100.0, 0.2)];
        assert!((change(&curve).unwrap() + 0.1).abs() < 1e-12);
        assert_eq!(change(&[(100.0, 1.0)]), None);
        assert_eq!(percent(-0.1), "\u{2212}10.0 %");
    }
}
