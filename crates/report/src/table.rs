//! Tables: one line per method and setting, one column per metric.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting, natural_order, value_order};

/// Metrics in reading order; others follow by name.
const METRIC_ORDER: [&str; 62] = [
    "n_latents",
    "l0",
    "fvu",
    "mmcs",
    "ce_loss",
    "perplexity",
    "loss_recovered",
    "loss",
    "dead_latents",
    "alive_latents",
    "interp_score",
    "interp_score_top",
    "interp_score_random",
    "interp_score_top_less_random",
    "interp_score_all",
    "scored_features",
    "unscored_features",
    "skew_correlation",
    "kurtosis_correlation",
    "score",
    "corrected_score",
    "score_top",
    "score_random",
    "auc",
    "unparsed_replies",
    "refused_replies",
    "agreement_rank",
    "agreement",
    "patched_features",
    "kl",
    "kl_auc",
    "features_for_half_kl",
    "edit_norm",
    "ioi_accuracy",
    "task_accuracy",
    "logit_diff",
    "rank_correlation",
    "pearson",
    "top_overlap",
    "exact_effect",
    "attributed_effect",
    "target_activation",
    "circuit_nodes",
    "circuit_edges",
    "largest_edge",
    "attribution_correlation",
    "active_share",
    "top_token_share",
    "largest_logit_effect",
    "accuracy",
    "transfer_accuracy",
    "p_correct",
    "best_auroc",
    "f1",
    "probe_auroc",
    "probe_auroc_mean",
    "probe_balanced_accuracy",
    "absorption_rate",
    "absorption_rate_mean",
    "main_silent_rate",
    "split_latents",
    "split_latents_mean",
];

/// A cell: what is shown (HTML) and what it is sorted by.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Cell {
    pub(crate) html: String,
    pub(crate) key: Option<f64>,
}

impl Cell {
    /// A name: kept on one line while it is of reasonable length.
    pub(crate) fn text(text: &str) -> Cell {
        let escaped = html(text);
        let html = if text.chars().count() > 48 { escaped } else { format!("<span class=\"name\">{escaped}</span>") };
        Cell { html, key: None }
    }

    pub(crate) fn number(text: &str, key: f64) -> Cell {
        Cell { html: html(text), key: Some(key) }
    }

    /// Nothing was measured here.
    pub(crate) fn none() -> Cell {
        Cell { html: "<span class=\"none\">–</span>".to_owned(), key: None }
    }
}

/// A sortable table; `numeric` says which columns are set right and sorted by number.
pub(crate) fn render(caption: &str, heads: &[(String, bool)], lines: &[Vec<Cell>]) -> String {
    render_with_foot(caption, heads, lines, &[])
}

/// A sortable table with lines at its foot, which stay there.
pub(crate) fn render_with_foot(
    caption: &str,
    heads: &[(String, bool)],
    lines: &[Vec<Cell>],
    foot: &[Vec<Cell>],
) -> String {
    let mut out =
        format!("<div class=\"scroll\"><table class=\"sortable\"><caption><span>{caption}</span></caption><thead><tr>");
    for (head, numeric) in heads {
        let class = if *numeric { " class=\"num\"" } else { "" };
        // Writing to a String cannot fail.
        let _ = write!(out, "<th scope=\"col\"{class}>{head}</th>");
    }
    out.push_str("</tr></thead><tbody>\n");
    lines.iter().for_each(|line| push_line(&mut out, heads, line));
    out.push_str("</tbody>");
    if !foot.is_empty() {
        out.push_str("<tfoot>\n");
        foot.iter().for_each(|line| push_line(&mut out, heads, line));
        out.push_str("</tfoot>");
    }
    out.push_str("</table></div>\n");
    out
}

fn push_line(out: &mut String, heads: &[(String, bool)], line: &[Cell]) {
    out.push_str("<tr>");
    for (cell, (_, numeric)) in line.iter().zip(heads) {
        let class = if *numeric { " class=\"num\"" } else { "" };
        let key = cell.key.map(|k| format!(" data-key=\"{k:e}\"")).unwrap_or_default();
        let _ = write!(out, "<td{class}{key}>{}</td>", cell.html);
    }
    out.push_str("</tr>\n");
}

/// A row of a wide table: all the metrics of one method, hook and setting.
type Line<'r> = BTreeMap<&'r str, &'r ResultRow>;

/// Pivots rows into one line per (hook, method, setting); rows that measure the same twice get a line of their own.
///
/// Shows every row it is given, with interval and n.
pub(crate) fn wide(caption: &str, rows: &[&ResultRow], with_hook: bool) -> String {
    let mut lines: Vec<(&ResultRow, Setting, Line<'_>)> = Vec::new();
    let mut places: HashMap<(&str, &str, &str), Vec<usize>> = HashMap::new();
    for row in rows {
        let same = places.entry((&row.hook, &row.method, &row.setting)).or_default();
        match same.iter().find(|i| !lines[**i].2.contains_key(row.metric.as_str())) {
            Some(i) => _ = lines[*i].2.insert(&row.metric, row),
            None => {
                same.push(lines.len());
                lines.push((row, Setting::parse(&row.setting), Line::from([(row.metric.as_str(), *row)])));
            }
        }
    }
    lines.sort_by(|a, b| {
        natural_order(&a.0.hook, &b.0.hook)
            .then_with(|| crate::sections::method_order(&a.0.method, &b.0.method))
            .then_with(|| a.1.cmp(&b.1))
    });
    let mut keys: Vec<String> = Vec::new();
    for (key, _) in lines.iter().flat_map(|(_, s, _)| &s.0) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    let mut metrics: Vec<&str> = rows.iter().map(|r| r.metric.as_str()).collect();
    metrics.sort_by_key(|m| (METRIC_ORDER.iter().position(|k| k == m).unwrap_or(METRIC_ORDER.len()), *m));
    metrics.dedup();

    let numeric_key = |key: &String| {
        lines.iter().filter_map(|(_, s, _)| s.get(key)).all(|v| v.parse::<f64>().is_ok_and(f64::is_finite))
    };
    let mut heads = vec![("method".to_owned(), false)];
    if with_hook {
        heads.insert(0, ("hook".to_owned(), false));
    }
    for key in &keys {
        let name = if key.is_empty() { "setting" } else { key };
        heads.push((html(name), numeric_key(key)));
    }
    for metric in &metrics {
        heads.push((metric_head(metric, rows), true));
    }
    let shared = shared_n(rows, &metrics);
    if shared.is_none() {
        heads.push(("n".to_owned(), true));
    }
    let caption = match &shared {
        Some(text) => format!("{caption} n: {}.", html(text)),
        None => caption.to_owned(),
    };
    let cells: Vec<Vec<Cell>> = lines
        .iter()
        .map(|(first, setting, line)| {
            let mut cells = vec![Cell::text(&first.method)];
            if with_hook {
                cells.insert(0, Cell::text(&first.hook));
            }
            cells.extend(keys.iter().map(|key| match setting.get(key) {
                None => Cell::none(),
                Some(v) => Cell { html: html(&number::setting_value(v)), key: setting.number(key) },
            }));
            cells.extend(metrics.iter().map(|m| line.get(m).map_or_else(Cell::none, |row| value_cell(row))));
            if shared.is_none() {
                cells.push(n_cell(line));
            }
            cells
        })
        .collect();
    render(&caption, &heads, &cells)
}

/// A value with its interval in small print.
pub(crate) fn value_cell(row: &ResultRow) -> Cell {
    let text = number::with_interval(row.value, row.ci_low, row.ci_high);
    let (value, interval) = text.split_once(" [").map_or((text.as_str(), None), |(v, i)| (v, Some(i)));
    let interval = interval.map(|i| format!(" <span class=\"ci\">[{}</span>", html(i))).unwrap_or_default();
    Cell { html: format!("{}{interval}", html(value)), key: Some(row.value) }
}

/// Name of the metric with its unit, where all rows agree on one that says something.
fn metric_head(metric: &str, rows: &[&ResultRow]) -> String {
    let mut units: Vec<&str> = rows.iter().filter(|r| r.metric == metric).map(|r| r.unit.as_str()).collect();
    units.sort_unstable();
    units.dedup();
    let name = format!("<span title=\"{}\">{}</span>", html(metric), html(number::metric(metric)));
    match units[..] {
        [unit] if !matches!(unit, "" | "1") && !number::metric(metric).contains(unit) => {
            format!("{name} <span class=\"unit\">{}</span>", html(unit))
        }
        _ => name,
    }
}

/// Metrics by the n they rest on, largest n first: `25,600 (FVU, L0); 512 (MMCS)`.
fn n_by_metric<'m>(pairs: impl Iterator<Item = (u64, &'m str)>) -> Vec<(u64, Vec<&'m str>)> {
    let mut by_n: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (n, metric) in pairs {
        by_n.entry(n).or_default().push(number::metric(metric));
    }
    by_n.into_iter().rev().collect()
}

fn n_text(groups: &[(u64, Vec<&str>)]) -> String {
    let parts: Vec<String> =
        groups.iter().map(|(n, metrics)| format!("{} ({})", number::count(*n), metrics.join(", "))).collect();
    parts.join("; ")
}

/// Where every metric has one n throughout the table, but not all the same: which has which, to be said once.
fn shared_n(rows: &[&ResultRow], metrics: &[&str]) -> Option<String> {
    let mut pairs = Vec::new();
    for metric in metrics {
        let mut ns = rows.iter().filter(|r| r.metric == *metric).map(|r| r.n);
        let first = ns.next()?;
        if ns.any(|n| n != first) {
            return None;
        }
        pairs.push((first, *metric));
    }
    let groups = n_by_metric(pairs.into_iter());
    (groups.len() > 1).then(|| n_text(&groups))
}

/// One n where all metrics rest on the same, else the least and the largest.
fn n_cell(line: &Line<'_>) -> Cell {
    let least = line.values().map(|row| row.n).min().unwrap_or(0);
    let largest = line.values().map(|row| row.n).max().unwrap_or(0);
    let text = if least < largest {
        format!("{} to {}", number::count(least), number::count(largest))
    } else {
        number::count(largest)
    };
    Cell { html: format!("<span class=\"name\">{}</span>", html(&text)), key: Some(largest as f64) }
}

/// `n = 20,000`, or the range, over rows.
pub(crate) fn n_in_words<'r>(rows: impl Iterator<Item = &'r ResultRow>) -> String {
    let range = rows.map(|r| r.n).fold(None, |range: Option<(u64, u64)>, n| match range {
        None => Some((n, n)),
        Some((a, b)) => Some((a.min(n), b.max(n))),
    });
    match range {
        None => "n unknown".to_owned(),
        Some((a, b)) if a == b => format!("n = {}", number::count(a)),
        Some((a, b)) => format!("n = {} to {}", number::count(a), number::count(b)),
    }
}

/// Distinct values of a key over rows, by size.
pub(crate) fn distinct(settings: impl Iterator<Item = Option<String>>) -> Vec<String> {
    let mut values: Vec<String> = settings.flatten().collect();
    values.sort_by(|a, b| value_order(a, b));
    values.dedup();
    values
}
