//! FVU against L0 for every method, what that says at equal sparsity, and dead latents.

use super::{Context, Groups, Section, hooks_of, label_of, method_order, on_what, sae_methods, sizes_of, style_of};
use crate::ReportError;
use crate::chart::{AxisSpec, Panel, Point, Row, RowChart, Series, draw_grid, draw_rows};
use crate::escape::html;
use crate::number;
use crate::palette;
use crate::row::{ResultRow, Setting};
use crate::table::{self, Cell};

/// Settings along which a method's points are joined by a line.
const SWEPT: [&str; 2] = ["alpha", "k"];

/// Autoencoders of one point each that are named beside their points: they are near each other, unlike the other methods.
const MOST_NAMED: usize = 3;

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(
        "Each method turns an activation vector into a few active latents and back. A good one is low and to the left: \
         little variance lost with few active latents. Methods are only comparable at equal L0.",
    );
    for hook in hooks_of(rows) {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        section.hook_heading(&hook);
        pareto(context, &mut section, &hook, &here, &format!("fvu-l0-{hook}"))?;
        equal_sparsity(&mut section, &here);
        dead(context, &mut section, &hook, &here)?;
        tables(&mut section, &here);
    }
    Ok(section)
}

/// FVU against L0 of every method at a hook point.
pub(super) fn pareto(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    rows: &[&ResultRow],
    name: &str,
) -> Result<(), ReportError> {
    let series = against_l0(rows, rows, "fvu");
    if series.is_empty() {
        return Ok(());
    }
    let used = rows.iter().copied().filter(|r| r.metric == "fvu");
    let caption = format!(
        "<b>FVU against L0</b> at {}. Each line joins one autoencoder size (R = latents / width) over its sparsity \
         coefficients α, or a top-k baseline over k; single points are methods without such a setting. FVU: squared error \
         over variance around the per-dimension mean; L0: mean number of nonzero codes per vector. Both on held-out \
         activation vectors, {}; whiskers: 95 % interval of FVU where one was computed. An arrow ↑ gives the value of a \
         point beyond the upper edge.",
        on_what(context, hook),
        table::n_in_words(used),
    );
    let panel = Panel {
        title: String::new(),
        x: AxisSpec::log("L0 (active latents per vector, log scale)"),
        y: AxisSpec::linear("FVU (fraction of variance unexplained)").with_zero().capped(1.2),
        series,
        references: Vec::new(),
    };
    section.figure(name, &format!("FVU against L0 at {hook}"), &caption, draw_grid(&[panel], 1, 360.0))
}

/// One series per method and size, `metric` over L0; L0 comes from `l0_rows` with the same method, hook and setting.
pub(super) fn against_l0(rows: &[&ResultRow], l0_rows: &[&ResultRow], metric: &str) -> Vec<Series> {
    let sizes = sizes_of(rows.iter().copied());
    let saes = sae_methods(rows.iter().copied());
    let mut found: Vec<(String, Setting, Setting, Point)> = Vec::new();
    for row in rows.iter().filter(|r| r.metric == metric) {
        let same = |l: &&&ResultRow| {
            l.metric == "l0" && l.method == row.method && l.hook == row.hook && l.setting == row.setting
        };
        let Some(l0) = l0_rows.iter().find(same) else { continue };
        let setting = Setting::parse(&row.setting);
        let point = Point::new(l0.value, row.value, row.ci_low, row.ci_high);
        found.push((row.method.clone(), setting.without(&SWEPT).without(&["seed"]), setting, point));
    }
    let mut groups = Groups::default();
    for (method, group, setting, point) in found {
        let style = style_of(&method, setting.get("ratio"), &sizes, &saes);
        groups.add(&method, group, &setting, style, point);
    }
    let mut series = groups.into_series(true);
    // Many points in one place push their names so far away that nobody knows whose they are; the legend takes them then.
    if series.iter().filter(|s| s.direct && s.label.starts_with("sae")).count() > MOST_NAMED {
        series.iter_mut().filter(|s| s.label.starts_with("sae")).for_each(|s| s.direct = false);
    }
    series
}

/// For every k of the top-k baselines, the autoencoder whose L0 is nearest.
fn equal_sparsity(section: &mut Section, rows: &[&ResultRow]) {
    struct Scored<'r> {
        row: &'r ResultRow,
        setting: Setting,
        l0: f64,
    }
    let scored: Vec<Scored<'_>> = rows
        .iter()
        .filter(|r| r.metric == "fvu")
        .filter_map(|row| {
            let l0 = rows.iter().find(|l| l.metric == "l0" && l.method == row.method && l.setting == row.setting)?;
            Some(Scored { row, setting: Setting::parse(&row.setting), l0: l0.value })
        })
        .collect();
    let is_baseline = |s: &&Scored<'_>| palette::family(&s.row.method) != "sae" && s.setting.number("k").is_some();
    let ks = table::distinct(scored.iter().filter(is_baseline).map(|s| s.setting.get("k").map(str::to_owned)));
    let mut methods: Vec<&str> = scored.iter().filter(is_baseline).map(|s| s.row.method.as_str()).collect();
    methods.sort_by(|a, b| method_order(a, b));
    methods.dedup();
    let mut lines = Vec::new();
    for k in &ks {
        let at_k: Vec<&Scored<'_>> =
            scored.iter().filter(is_baseline).filter(|s| s.setting.get("k") == Some(k)).collect();
        let positive: Vec<f64> = at_k.iter().map(|s| s.l0).filter(|l| *l > 0.0).collect();
        if positive.is_empty() {
            continue;
        }
        let target = positive.iter().sum::<f64>() / positive.len() as f64;
        let far = |s: &Scored<'_>| (s.l0 / target).ln().abs();
        let nearest = scored
            .iter()
            .filter(|s| palette::family(&s.row.method) == "sae" && s.l0 > 0.0 && far(s).is_finite())
            .min_by(|a, b| far(a).total_cmp(&far(b)));
        // Further apart than this, "equal" would be untrue.
        let Some(sae) = nearest.filter(|s| far(s) < 1.3f64.ln()) else { continue };
        let fvu_cell = |s: &Scored<'_>| {
            let fvu = number::with_interval(s.row.value, s.row.ci_low, s.row.ci_high);
            Cell::number(&format!("{fvu} (L0 {})", number::significant(s.l0, 3)), s.row.value)
        };
        let mut line = vec![
            Cell::number(&number::setting_value(k), k.parse().unwrap_or(0.0)),
            Cell::text(&label_of(&sae.row.method, &sae.setting)),
            fvu_cell(sae),
        ];
        line.extend(
            methods.iter().map(|m| at_k.iter().find(|s| s.row.method == *m).map_or_else(Cell::none, |s| fvu_cell(s))),
        );
        lines.push(line);
    }
    if lines.is_empty() {
        return;
    }
    let mut heads =
        vec![("k".to_owned(), true), ("nearest autoencoder".to_owned(), false), ("its FVU".to_owned(), true)];
    heads.extend(methods.iter().map(|m| (html(m), true)));
    section.html.push_str(&table::render(
        "FVU at equal sparsity: for each k of the baselines, the autoencoder whose L0 is nearest (within 30 %).",
        &heads,
        &lines,
    ));
}

fn dead(context: &Context<'_>, section: &mut Section, hook: &str, rows: &[&ResultRow]) -> Result<(), ReportError> {
    let sizes = sizes_of(rows.iter().copied());
    let saes = sae_methods(rows.iter().copied());
    let mut dead: Vec<(&ResultRow, Setting, Option<f64>)> = rows
        .iter()
        .filter(|r| r.metric == "dead_latents")
        .map(|row| {
            let metric = |name: &str| {
                let same = |r: &&&ResultRow| r.metric == name && r.method == row.method && r.setting == row.setting;
                rows.iter().find(same).map(|r| r.value)
            };
            let all = metric("n_latents").or_else(|| metric("alive_latents").map(|alive| alive + row.value));
            (*row, Setting::parse(&row.setting), all.filter(|n| *n > 0.0))
        })
        .collect();
    dead.sort_by(|a, b| method_order(&a.0.method, &b.0.method).then_with(|| a.1.cmp(&b.1)));
    if dead.is_empty() {
        return Ok(());
    }
    let n = table::n_in_words(dead.iter().map(|d| d.0));
    // Rows without a bar would only push the others apart.
    let mut none: Vec<String> = dead.iter().filter(|d| d.0.value == 0.0).map(|d| label_of(&d.0.method, &d.1)).collect();
    none.dedup();
    let none = match &none[..] {
        [] => String::new(),
        names => format!(" No dead latents: {}.", html(&names.join("; "))),
    };
    dead.retain(|d| d.0.value != 0.0);
    if dead.is_empty() {
        section.paragraph(&format!(
            "A latent is dead when it is active on at most 10 of the held-out vectors ({n}).{none}"
        ));
        return Ok(());
    }
    let shares = dead.iter().all(|(_, _, all)| all.is_some());
    let bars = dead
        .iter()
        .map(|(row, setting, all)| {
            let value = match all {
                Some(all) if shares => 100.0 * row.value / all,
                _ => row.value,
            };
            let of = all.map(|all| format!(" of {}", number::value(all))).unwrap_or_default();
            Row {
                label: label_of(&row.method, setting),
                value,
                low: None,
                high: None,
                text: format!("{}{of}", number::value(row.value)),
                style: style_of(&row.method, setting.get("ratio"), &sizes, &saes),
                group: format!("{} {}", row.method, setting.get("ratio").unwrap_or("")),
                beside: Vec::new(),
            }
        })
        .collect();
    let title = if shares { "dead latents (% of all latents)" } else { "dead latents" };
    let axis = AxisSpec::linear(title).with_zero();
    let chart = RowChart { axis, rows: bars, references: Vec::new(), bars: true, headed: false, legend: Vec::new() };
    let caption = format!(
        "<b>Dead latents</b> at {}. A latent is dead when it is active on at most 10 of the held-out vectors ({}). \
         Counts at the right edge.{none}",
        on_what(context, hook),
        n,
    );
    section.figure(&format!("dead-{hook}"), &format!("Dead latents at {hook}"), &caption, draw_rows(&chart))
}

fn tables(section: &mut Section, rows: &[&ResultRow]) {
    let (between, own): (Vec<&ResultRow>, Vec<&ResultRow>) =
        rows.iter().partition(|r| r.metric == "mmcs" && Setting::parse(&r.setting).get("to").is_some());
    if !own.is_empty() {
        section.html.push_str(&table::wide("All measurements at this hook; 95 % intervals in brackets.", &own, false));
    }
    if !between.is_empty() {
        let caption = "How much of a dictionary another one holds: MMCS from each latent of the first to its nearest in the second (signed, \
                       not symmetric). Sizes of one seed begin with the same directions, so part of it is where they began.";
        section.html.push_str(&table::wide(caption, &between, false));
    }
}
