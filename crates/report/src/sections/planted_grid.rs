//! The planted experiment of the code behind the paper: heat maps over sizes and coefficients, and the figures known of that code beside ours.

use super::{Context, Section, generator_of};
use crate::ReportError;
use crate::chart::{Heat, draw_heats};
use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting, natural_order};
use crate::table::{self, Cell};

/// Metric, title, and whether shades follow the logarithm.
const MAPS: [(&str, &str, bool); 5] = [
    ("mmcs", "MMCS from true features to latents", false),
    ("mmcs_next_larger", "MMCS to the next larger dictionary", false),
    ("silent_latents", "latents silent in ten batches", false),
    ("fvu", "FVU", true),
    ("l0", "L0", true),
];

/// More columns than this take the width of the page.
const HALF: usize = 8;

pub(super) fn section(_: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(
        "The experiment of the code behind the paper: an untied autoencoder without a decoder's bias, begun from an orthogonal decoder, trained by Adam as published on \
         <code>mse + α mean(Σ c) / n_latents</code>. R is the number of latents over that of the true features.",
    );
    for generator in table::distinct(rows.iter().map(|r| Some(generator_of(r)))) {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| generator_of(r) == generator).collect();
        let maps: Vec<Heat> = MAPS.iter().filter_map(|map| heat(&here, *map)).collect();
        let columns = if maps.iter().all(|map| map.x.1.len() <= HALF) { 2 } else { 1 };
        let caption = format!(
            "<b>Planted features, generator {}</b>: every dictionary size (down) with every coefficient (across). {}.",
            html(&generator),
            table::n_in_words(here.iter().copied().filter(|r| r.metric == "fvu"))
        );
        let name = format!("planted-grid-{generator}");
        section.html.push_str(&format!("<h3>Generator: {}</h3>\n", html(&generator)));
        section.figure(&name, &format!("Heat maps, {generator}"), &caption, draw_heats(&maps, columns))?;
        let all = table::wide("All measurements; 95 % intervals in brackets.", &here, false);
        section.folded("All measurements, one line each", &all);
    }
    Ok(section)
}

/// The values of a metric, shaded over sizes (down) and coefficients (across); none where it was not measured.
pub(super) fn heat(rows: &[&ResultRow], (metric, title, log): (&str, &str, bool)) -> Option<Heat> {
    let of: Vec<(Setting, f64)> =
        rows.iter().filter(|r| r.metric == metric).map(|r| (Setting::parse(&r.setting), r.value)).collect();
    let values = |key: &str| {
        let mut all: Vec<String> = table::distinct(of.iter().map(|(setting, _)| setting.get(key).map(str::to_owned)));
        all.sort_by(|a, b| match (a.parse::<f64>(), b.parse::<f64>()) {
            (Ok(a), Ok(b)) => a.total_cmp(&b),
            _ => natural_order(a, b),
        });
        all
    };
    let (alphas, ratios) = (values("alpha"), values("ratio"));
    let at = |ratio: &String, alpha: &String| {
        let is = |setting: &Setting| setting.get("ratio") == Some(ratio) && setting.get("alpha") == Some(alpha);
        of.iter().find(|(setting, _)| is(setting)).map(|(_, value)| *value)
    };
    let cells: Vec<Vec<Option<f64>>> =
        ratios.iter().map(|ratio| alphas.iter().map(|alpha| at(ratio, alpha)).collect()).collect();
    let names = |values: Vec<String>| values.iter().map(|value| number::setting_value(value)).collect();
    (!of.is_empty()).then(|| Heat {
        title: title.to_owned(),
        x: ("α".to_owned(), names(alphas)),
        y: ("R".to_owned(), names(ratios)),
        values: cells,
        log,
    })
}

/// What the paper's code gave, and what comes out here.
pub(super) fn anchors(_: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    const THEIRS: &str = "paper-code";
    let mut section = Section::new("");
    section.paragraph(
        "Runs of the code behind the paper whose figures are known, one run each, repeated here with several seeds. Their figure <i>agrees</i> if it lies where 95 % of further runs of \
         ours would: the mean ± t s √(1 + 1/n) over our n seeds.",
    );
    let anchor_of = |row: &ResultRow| Setting::parse(&row.setting).get("anchor").unwrap_or("").to_owned();
    let heads =
        ["run", "metric", "the paper's code", "ours, mean [95 %]", "our seeds", "a further run, 95 %", "agrees"];
    let heads: Vec<(String, bool)> = heads.iter().enumerate().map(|(i, head)| ((*head).to_owned(), i > 1)).collect();
    let mut lines = Vec::new();
    let (mut within, mut all) = (0, 0);
    for theirs in rows.iter().filter(|row| row.method == THEIRS) {
        let ours = |row: &&&ResultRow| {
            row.method != THEIRS && row.metric == theirs.metric && anchor_of(row) == anchor_of(theirs)
        };
        let is_seed = |row: &&&ResultRow| Setting::parse(&row.setting).get("seed").is_some();
        let seeds: Vec<f64> = rows.iter().filter(ours).filter(is_seed).map(|row| row.value).collect();
        let Some(mean) = rows.iter().filter(ours).find(|row| !is_seed(row)) else { continue };
        let (low, high) = (
            seeds.iter().copied().fold(f64::INFINITY, f64::min),
            seeds.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        );
        // The interval of the mean is ± t s / √n.
        let half = mean.ci_high.map_or(0.0, |high| (high - mean.value) * ((mean.n + 1) as f64).sqrt());
        let further = (mean.value - half, mean.value + half);
        let is_within = (further.0..=further.1).contains(&theirs.value);
        all += 1;
        within += usize::from(is_within);
        lines.push(vec![
            Cell::text(&anchor_of(theirs)),
            Cell::text(number::metric(&theirs.metric)),
            Cell::number(&number::significant(theirs.value, 3), theirs.value),
            Cell::number(&number::with_interval(mean.value, mean.ci_low, mean.ci_high), mean.value),
            Cell::text(&format!("{} to {}", number::significant(low, 3), number::significant(high, 3))),
            Cell::text(&format!("{} to {}", number::significant(further.0, 3), number::significant(further.1, 3))),
            Cell::text(if is_within { "yes" } else { "no" }),
        ]);
    }
    let caption = format!("{within} of {all} figures agree.");
    section.html.push_str(&table::render(&caption, &heads, &lines));
    Ok(section)
}
