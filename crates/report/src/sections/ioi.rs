//! Which features carry the identification of an indirect object: KL against how much is patched.

use std::collections::HashMap;

use super::look::{Dictionary, Looks};
use super::{Context, Groups, Section, features, hooks_of, on_what};
use crate::ReportError;
use crate::chart::{AxisSpec, Panel, Point, RowChart, draw_grid, draw_rows};
use crate::escape::html;
use crate::row::{ResultRow, Setting};
use crate::table;

/// Keys of a setting that say what was patched, not in which dictionary.
const MEASURED: [&str; 4] = ["prompts", "names", "seed", "threshold"];

/// With more points than this on a line, markers would hide it.
const MOST_MARKERS: usize = 14;

/// With more lines than this, bands would cover one another: the tables have the intervals.
const MOST_BANDS: usize = 6;

const READING: &str = "Prompts such as <q>When Mary and John went to the shop, John gave a drink to</q> have one sensible next word, the indirect object. A \
     second prompt has another name in its place. Features of the first prompt are set to their values on the second, and the \
     model's answer moves towards that of the second; KL measures how far it still is. A dictionary is good if few features and \
     a small edit suffice. Settings (layer, penalty) are chosen on some prompts (<code>choose</code>); the figures show others, of other \
     names and sentences (<code>report</code>), for which features are selected anew.";

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    let (model, rows): (Vec<&ResultRow>, Vec<&ResultRow>) = rows.iter().partition(|r| r.method == "model");
    if !model.is_empty() {
        let caption = "The model itself, nothing patched: how often it prefers the indirect object to the subject, and the difference of \
                       their logits.";
        section.html.push_str(&table::wide(caption, &model, model.iter().any(|r| !r.hook.is_empty())));
    }
    let looks = Looks::of(rows.iter().map(|r| Dictionary::of(r, &MEASURED)));
    for hook in hooks_of(&rows) {
        section.hook_heading(&hook);
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        // All names first, then ever fewer.
        for names in table::distinct(here.iter().map(|r| Some(names_of(r)))).into_iter().rev() {
            let (choose, report): (Vec<&ResultRow>, Vec<&ResultRow>) = here
                .iter()
                .filter(|r| names_of(r) == names)
                .partition(|r| Setting::parse(&r.setting).get("prompts") == Some("choose"));
            curves(context, &mut section, &hook, &names, &report, &looks)?;
            half(&mut section, &hook, &names, &report, &looks)?;
            tables(&mut section, &report, &choose);
        }
    }
    features::browser(&mut section, "ioi", &context.features_of("ioi"));
    Ok(section)
}

/// How many names the prompts draw from; empty where from all.
fn names_of(row: &ResultRow) -> String {
    Setting::parse(&row.setting).get("names").unwrap_or("").to_owned()
}

/// The end of a figure's name, and of a caption's words for the prompts.
fn told_names(names: &str) -> (String, String) {
    if names.is_empty() {
        (String::new(), String::new())
    } else {
        (format!("-{names}-names"), format!(" with no more than {} different names", html(names)))
    }
}

fn threshold(row: &ResultRow) -> Option<String> {
    Setting::parse(&row.setting).get("threshold").map(str::to_owned)
}

/// The paper's Fig. 3: KL against the number of patched features, and against the size of the edit.
fn curves(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    names: &str,
    rows: &[&ResultRow],
    looks: &Looks,
) -> Result<(), ReportError> {
    let (suffix, with_names) = told_names(names);
    let panels: Vec<Panel> = [
        ("patched_features", AxisSpec::log("patched features (log scale)")),
        ("edit_norm", AxisSpec::linear("size of the edit (mean norm per token)").with_zero()),
    ]
    .into_iter()
    .map(|(metric, x)| {
        let series = against(rows, metric, looks);
        let y = AxisSpec::linear("KL to the counterfactual prompt (nats)").with_zero();
        Panel { title: String::new(), x, y, series, references: Vec::new() }
    })
    .filter(|panel| !panel.series.is_empty())
    .collect();
    if panels.is_empty() {
        return Ok(());
    }
    let held_out = rows.iter().all(|r| Setting::parse(&r.setting).get("prompts") == Some("report"));
    let caption = format!(
        "<b>KL against what is patched</b> at {}: each line joins the sets of one dictionary, from nothing patched (0) to everything. Low and \
         to the left is good. {} prompts{with_names}{}; whiskers, and bands where there are few lines: 95 % interval.",
        on_what(context, hook),
        table::n_in_words(rows.iter().copied().filter(|r| r.metric == "kl")),
        if held_out { " that had no part in the choice of settings" } else { "" },
    );
    section.figure(
        &format!("ioi-{hook}{suffix}"),
        &format!("KL against patched features and size of the edit at {hook}"),
        &caption,
        draw_grid(&panels, 1, 280.0),
    )
}

/// One series per dictionary: KL over another metric of the same set.
fn against(rows: &[&ResultRow], metric: &str, looks: &Looks) -> Vec<crate::chart::Series> {
    let across: HashMap<(&str, &str), f64> = rows
        .iter()
        .filter(|r| r.metric == metric)
        .map(|r| ((r.method.as_str(), r.setting.as_str()), r.value))
        .collect();
    let mut groups = Groups::default();
    for row in rows.iter().filter(|r| r.metric == "kl" && threshold(r).is_some()) {
        let Some(&x) = across.get(&(row.method.as_str(), row.setting.as_str())) else { continue };
        let dictionary = Dictionary::of(row, &MEASURED);
        let point = Point { x, y: row.value, y_low: row.ci_low, y_high: row.ci_high };
        let style = looks.style(&dictionary);
        groups.add(&dictionary.method, dictionary.setting, &Setting::parse(&row.setting), style, point);
    }
    let mut series = groups.into_series(false);
    let few = series.len() <= MOST_BANDS;
    for s in &mut series {
        let longest = s.lines.iter().map(Vec::len).max().unwrap_or(0);
        s.band = few && longest > 1;
        s.markers = longest <= MOST_MARKERS;
    }
    series
}

/// How many features it takes to come half the way.
fn half(section: &mut Section, hook: &str, names: &str, rows: &[&ResultRow], looks: &Looks) -> Result<(), ReportError> {
    let (suffix, with_names) = told_names(names);
    let mut found: Vec<(Dictionary, &ResultRow)> = rows
        .iter()
        .filter(|r| r.metric == "features_for_half_kl")
        .map(|r| (Dictionary::of(r, &MEASURED), *r))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let dots = found.iter().map(|(dictionary, row)| looks.row(dictionary, row, 3)).collect();
    let axis = AxisSpec::log("features that halve the KL (log scale)");
    let chart = RowChart { axis, rows: dots, references: Vec::new(), bars: false, headed: false, legend: Vec::new() };
    let caption = format!(
        "<b>Features needed to halve the KL</b> between the two prompts{with_names}; fewer is better. A dictionary that never gets there has \
         no row. Whiskers: 95 % interval over prompts."
    );
    section.figure(
        &format!("ioi-half-{hook}{suffix}"),
        &format!("Features that halve the KL at {hook}"),
        &caption,
        draw_rows(&chart),
    )
}

fn tables(section: &mut Section, report: &[&ResultRow], choose: &[&ResultRow]) {
    let (sets, summary): (Vec<&ResultRow>, Vec<&ResultRow>) = report.iter().partition(|r| threshold(r).is_some());
    if !summary.is_empty() {
        section.html.push_str(&table::wide("Summary of the curves; 95 % intervals in brackets.", &summary, false));
    }
    // Thresholds are numbers and two words; the words are the ends of every curve.
    let words = "Logit difference: of the counterfactual name over the indirect object of the first prompt.";
    for (rows, what) in [
        (&sets[..], "Every set, on the prompts of the figure"),
        (choose, "Every set, on the prompts to choose settings by"),
    ] {
        if !rows.is_empty() {
            section.folded(what, &table::wide(&format!("{what}; 95 % intervals in brackets. {words}"), rows, false));
        }
    }
}
