//! Scores as they came, what could not be scored, and agreement between scorers.

use super::super::Section;
use super::lines::{Agreement, Line, Subject, agreements, explainers, in_order};
use super::scorers;
use crate::escape::html;
use crate::number;
use crate::row::ResultRow;
use crate::table::{self, Cell};

/// A larger share of unscored features is worth a warning.
const MANY: f64 = 0.1;

/// More dictionaries than these make a table of agreements long enough to be folded away.
const MOST_MATRICES: usize = 4;

/// Says which scores rest on a selection: features that cannot be scored are not like the others.
pub(super) fn warning(section: &mut Section, lines: &[Line<'_>]) {
    let mut items: Vec<String> = Vec::new();
    for scorer in in_order(lines.iter().map(|l| l.scorer.as_str())) {
        let of_scorer = || lines.iter().filter(|l| l.scorer == scorer);
        let with_explainer = explainers(of_scorer()).len() > 1;
        let (mut cases, mut controls) = (Vec::new(), Vec::new());
        for line in of_scorer() {
            let Some((row, share)) = line.count("unscored_features").filter(|(_, share)| *share > MANY) else {
                continue;
            };
            if line.subject.control.is_empty() {
                let case = format!("{}: {} ({})", line.subject.label(with_explainer), of(row), percent(share));
                cases.push(html(&case));
            } else {
                controls.push(share);
            }
        }
        let most = controls.iter().copied().fold(0.0, f64::max);
        match controls.len() {
            0 => {}
            1 => cases.push(format!("{} of a control", percent(most))),
            n => cases.push(format!("up to {} of {n} controls", percent(most))),
        }
        if !cases.is_empty() {
            items.push(format!("<li><b>{}</b>: {}</li>", html(&scorer), cases.join("; ")));
        }
    }
    if !items.is_empty() {
        section.html.push_str(&format!(
            "<div class=\"notes\"><p>More than a tenth of the features could not be scored here. They are counted, not scored as 0, so \
             these means are over a selection, and scorers with other gaps are not about the same features:</p>\n<ul>{}</ul></div>\n",
            items.join("\n")
        ));
    }
}

/// One table of the dictionaries as they are, and one of the controls.
pub(super) fn scores(section: &mut Section, lines: &[Line<'_>]) {
    let (own, controls): (Vec<&Line<'_>>, Vec<&Line<'_>>) = lines.iter().partition(|l| l.subject.control.is_empty());
    section.html.push_str(&score_table(
        &own,
        "Scores as they came, each in its own unit, with its 95 % interval; <em>corrected</em>: with chance taken \
         out, as in the figure. \
         <em>On the strongest</em>, <em>on random</em>: on the fragments of the largest activations only, and on random active ones \
         only. <em>AUC</em>: area under the ROC curve from how sure the judge was. <em>n</em>: features scored; the rest are unscored. \
         <em>Unread</em>: replies of another form than asked for; <em>refused</em>: withheld ones.",
    ));
    let caption = "Controls: what a score is worth when there is nothing to find.";
    let table = score_table(&controls, caption);
    if controls.len() > 8 && !own.is_empty() {
        section.folded("Scores of the controls, as a table", &table);
    } else {
        section.html.push_str(&table);
    }
}

/// Two lines in most cells, so that the table fits beside nothing else; empty where there are no lines, and a column that would be
/// empty is left out.
fn score_table(lines: &[&Line<'_>], caption: &str) -> String {
    type Show = fn(&Line<'_>) -> Option<Cell>;
    const COLUMNS: [(&str, bool, Show); 10] = [
        ("scorer", false, |l| Some(scorer_cell(l))),
        ("score", true, |l| l.get("score").map(score_cell)),
        ("corrected", true, corrected_cell),
        ("on the strongest", true, |l| l.get("score_top").map(score_cell)),
        ("on random", true, |l| l.get("score_random").map(score_cell)),
        ("AUC", true, |l| l.get("auc").map(score_cell)),
        ("n", true, |l| l.get("score").map(|r| Cell::number(&number::count(r.n), r.n as f64))),
        ("unscored features", true, |l| l.count("unscored_features").map(share_cell)),
        ("unread replies", true, |l| l.count("unparsed_replies").map(share_cell)),
        ("refused replies", true, |l| l.count("refused_replies").map(share_cell)),
    ];
    let Some(first) = lines.first() else { return String::new() };
    let with_explainer = lines.iter().any(|l| l.subject.explainer != first.subject.explainer);
    let shown: Vec<&(&str, bool, Show)> =
        COLUMNS.iter().filter(|(_, _, show)| lines.iter().any(|l| show(l).is_some())).collect();
    let mut heads = vec![("dictionary".to_owned(), false)];
    heads.extend(shown.iter().map(|(head, numeric, _)| ((*head).to_owned(), *numeric)));
    let cells: Vec<Vec<Cell>> = lines
        .iter()
        .map(|line| {
            let mut cells = vec![subject_cell(&line.subject, with_explainer)];
            cells.extend(shown.iter().map(|(_, _, show)| show(line).unwrap_or_else(Cell::none)));
            cells
        })
        .collect();
    table::render(caption, &heads, &cells)
}

/// A cell of two lines, the second in small print; both are HTML, and the second may be empty.
fn two_lines(first: &str, second: &str, key: Option<f64>) -> Cell {
    let below = if second.is_empty() { String::new() } else { format!("<br><span class=\"ci name\">{second}</span>") };
    Cell { html: format!("{first}{below}"), key }
}

/// The dictionary, and under it where its explanations came from and which control this is.
fn subject_cell(subject: &Subject, with_explainer: bool) -> Cell {
    let explained = with_explainer && !subject.explainer.is_empty();
    let about: Vec<String> = [("explained by", &subject.explainer, explained), ("control:", &subject.control, true)]
        .into_iter()
        .filter(|(_, text, shown)| *shown && !text.is_empty())
        .map(|(words, text, _)| format!("{words} {}", html(text)))
        .collect();
    two_lines(&Cell::text(&subject.dictionary.label()).html, &about.join(", "), None)
}

/// `detection`, and under it its unit.
fn scorer_cell(line: &Line<'_>) -> Cell {
    two_lines(&html(&line.scorer), &html(line.get("score").map_or("", |r| &r.unit)), None)
}

/// The score with chance taken out, and under it its interval and what chance is.
fn corrected_cell(line: &Line<'_>) -> Option<Cell> {
    let chance = scorers::chance(&line.scorer, line.choices());
    match line.get("corrected_score") {
        Some(row) => {
            let (value, interval) = with_interval(row);
            let below = [html(&interval), chance].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
            Some(two_lines(&html(&value), &below.join("; "), Some(row.value)))
        }
        None if line.get("score").is_some() && !chance.is_empty() => Some(two_lines("", &chance, None)),
        None => None,
    }
}

fn score_cell(row: &ResultRow) -> Cell {
    let (value, interval) = with_interval(row);
    two_lines(&html(&value), &html(&interval), Some(row.value))
}

/// A value, and its interval in brackets, which is empty where there is none.
fn with_interval(row: &ResultRow) -> (String, String) {
    let text = number::with_interval(row.value, row.ci_low, row.ci_high);
    match text.split_once(" [") {
        Some((value, interval)) => (value.to_owned(), format!("[{interval}")),
        None => (text, String::new()),
    }
}

/// `7 of 40`, and under it the share; a none needs no share.
fn share_cell((row, share): (&ResultRow, f64)) -> Cell {
    let below = if row.value > 0.0 && row.n > 0 { percent(share) } else { String::new() };
    two_lines(&html(&of(row)), &html(&below), Some(share))
}

fn of(row: &ResultRow) -> String {
    format!("{} of {}", number::value(row.value), number::count(row.n))
}

/// Two digits, and no decimals where there are two before the point.
fn percent(share: f64) -> String {
    if share >= 0.1 {
        format!("{:.0} %", 100.0 * share)
    } else {
        format!("{} %", number::significant(100.0 * share, 1))
    }
}

/// Rank correlations as matrices under one another; the others folded away.
pub(super) fn agreement(section: &mut Section, rows: &[&ResultRow]) {
    let of_controls = |a: &Agreement<'_>| !a.subject.control.is_empty();
    let find = |metric: &str| -> Vec<Agreement<'_>> {
        // With explanations that are not theirs, scores of features are noise; the list of all rows has those.
        agreements(rows, metric).into_iter().filter(|a| !of_controls(a)).collect()
    };
    let (ranks, plain) = (find("agreement_rank"), find("agreement"));
    let caption = "Do scorers agree about which features are well explained? Rank correlation (Spearman) over the features that both \
                   scored, with its 95 % interval; 1: the same order; 0: unrelated.";
    let table = matrix(&ranks, caption);
    if subjects(&ranks).len() > MOST_MATRICES {
        section.folded("Agreement between scorers, rank correlation", &table);
    } else {
        section.html.push_str(&table);
    }
    if !plain.is_empty() {
        let table = matrix(&plain, "The same as plain (Pearson) correlation, which also minds distances.");
        section.folded("Agreement between scorers, plain correlation", &table);
    }
}

fn subjects<'a>(found: &'a [Agreement<'_>]) -> Vec<&'a Subject> {
    let mut all: Vec<&Subject> = found.iter().map(|a| &a.subject).collect();
    all.dedup();
    all
}

fn matrix(found: &[Agreement<'_>], caption: &str) -> String {
    if found.is_empty() {
        return String::new();
    }
    let shared = found.iter().all(|a| a.row.n == found[0].row.n);
    let with_explainer = found.iter().any(|a| a.subject.explainer != found[0].subject.explainer);
    let columns = in_order(found.iter().map(|a| a.second.as_str()));
    let mut heads = vec![("dictionary".to_owned(), false), ("scorer".to_owned(), false)];
    heads.extend(columns.iter().map(|name| (html(name), true)));
    let mut lines = Vec::new();
    for subject in subjects(found) {
        let here: Vec<&Agreement<'_>> = found.iter().filter(|a| a.subject == *subject).collect();
        for first in in_order(here.iter().map(|a| a.first.as_str())) {
            let mut line = vec![subject_cell(subject, with_explainer), Cell::text(&first)];
            line.extend(columns.iter().map(|second| {
                let pair = here.iter().find(|a| a.first == first && a.second == *second);
                // Half of the matrix would say the same again: it stays empty.
                pair.map_or_else(Cell::default, |a| agreement_cell(a.row, !shared))
            }));
            lines.push(line);
        }
    }
    let n =
        if shared { format!(" {} features.", table::n_in_words(found.iter().map(|a| a.row))) } else { String::new() };
    table::render(&format!("{caption}{n}"), &heads, &lines)
}

/// Shaded from 0 to 1, the interval and n under it.
fn agreement_cell(row: &ResultRow, with_n: bool) -> Cell {
    // A share of at most 1, so the cast is exact.
    let level = (10.0 * row.value.clamp(0.0, 1.0)).round() as u8;
    let two = |v: f64| format!("{v:.2}").replace('-', "\u{2212}");
    let interval = row.ci_low.zip(row.ci_high).map(|(low, high)| format!("[{}, {}]", two(low), two(high)));
    let n = with_n.then(|| format!("n {}", number::count(row.n)));
    let below: Vec<String> = interval.into_iter().chain(n).map(|t| html(&t)).collect();
    two_lines(
        &format!("<span class=\"heat a{level}\">{}</span>", html(&two(row.value))),
        &below.join(" "),
        Some(row.value),
    )
}
