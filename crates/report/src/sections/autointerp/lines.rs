//! Rows put together: all that one scorer says of one dictionary, and how far two scorers agree.

use std::cmp::Ordering;

use super::super::look::{CONTROLS, Dictionary};
use super::scorers;
use crate::palette;
use crate::row::{ResultRow, Setting, natural_order};

/// Keys of a setting that say how a dictionary was scored, not which it is.
const MEASURED: [&str; 4] = ["explainer", "control", "scorer", "scorers"];

/// What was scored: a dictionary with explanations from one source, or a control of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Subject {
    pub(super) dictionary: Dictionary,
    /// Where the explanations come from; empty where the row does not say.
    pub(super) explainer: String,
    /// Empty for the dictionary as it is.
    pub(super) control: String,
}

impl Subject {
    fn of(row: &ResultRow) -> Subject {
        let setting = Setting::parse(&row.setting);
        let get = |key: &str| setting.get(key).unwrap_or("").to_owned();
        Subject { dictionary: Dictionary::of(row, &MEASURED), explainer: get("explainer"), control: get("control") }
    }

    /// The dictionary, and the rest where it tells subjects apart.
    pub(super) fn label(&self, with_explainer: bool) -> String {
        let mut label = self.dictionary.label();
        if with_explainer && !self.explainer.is_empty() {
            label = format!("{label}, {}", self.explainer);
        }
        if self.control.is_empty() { label } else { format!("{label}, {}", self.control) }
    }

    /// Random directions that belong to no dictionary: a control of all.
    pub(super) fn is_for_all(&self) -> bool {
        self.control == "random-directions" && palette::family(&self.dictionary.method) == "random"
    }

    /// Whether this is a control of `other`.
    pub(super) fn is_control_of(&self, other: &Subject) -> bool {
        let same = self.dictionary == other.dictionary || self.is_for_all();
        !self.control.is_empty() && other.control.is_empty() && same && self.explainer == other.explainer
    }
}

impl PartialOrd for Subject {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Subject {
    fn cmp(&self, other: &Self) -> Ordering {
        let explainer = |s: &Subject| scorers::explainer_rank(&s.explainer);
        let control = |s: &Subject| match s.control.as_str() {
            "" => 0,
            c => 1 + CONTROLS.iter().position(|(key, ..)| *key == c).unwrap_or(CONTROLS.len()),
        };
        self.dictionary
            .cmp(&other.dictionary)
            .then_with(|| explainer(self).cmp(&explainer(other)))
            .then_with(|| natural_order(&self.explainer, &other.explainer))
            .then_with(|| control(self).cmp(&control(other)))
            .then_with(|| natural_order(&self.control, &other.control))
    }
}

/// All measurements of a subject by one scorer, in the order of the rows.
pub(super) struct Line<'r> {
    pub(super) scorer: String,
    pub(super) subject: Subject,
    rows: Vec<&'r ResultRow>,
}

impl<'r> Line<'r> {
    /// The first measurement of that name; the list of all rows has any others.
    pub(super) fn get(&self, metric: &str) -> Option<&'r ResultRow> {
        self.rows.iter().copied().find(|r| r.metric == metric)
    }

    /// All measurements of that name: one for each hook point, where the line is of several.
    pub(super) fn all(&self, metric: &str) -> impl Iterator<Item = &'r ResultRow> {
        self.rows.iter().copied().filter(move |r| r.metric == metric)
    }

    /// Value and n of a count, and its share where there is one.
    pub(super) fn count(&self, metric: &str) -> Option<(&'r ResultRow, f64)> {
        let row = self.get(metric)?;
        Some((row, if row.n > 0 { row.value / row.n as f64 } else { 0.0 }))
    }

    /// Among how many the choice was.
    pub(super) fn choices(&self) -> Option<u32> {
        scorers::choices(&self.scorer, self.get("score")?.value, self.get("corrected_score")?.value)
    }
}

/// How far two scorers agree about the features of a subject; `first` comes before `second` in the order of scorers.
pub(super) struct Agreement<'r> {
    pub(super) subject: Subject,
    pub(super) first: String,
    pub(super) second: String,
    pub(super) row: &'r ResultRow,
}

/// The measurements by each scorer, by scorer and then by subject.
pub(super) fn lines<'r>(rows: &[&'r ResultRow]) -> Vec<Line<'r>> {
    let mut lines: Vec<Line<'r>> = Vec::new();
    for row in rows {
        let Some(scorer) = Setting::parse(&row.setting).get("scorer").map(str::to_owned) else { continue };
        let subject = Subject::of(row);
        match lines.iter_mut().find(|l| l.scorer == scorer && l.subject == subject) {
            Some(line) => line.rows.push(row),
            None => lines.push(Line { scorer, subject, rows: vec![row] }),
        }
    }
    lines.sort_by(|a, b| by_rank(&a.scorer, &b.scorer).then_with(|| a.subject.cmp(&b.subject)));
    lines
}

/// Agreements of one metric, by subject and then by scorers.
pub(super) fn agreements<'r>(rows: &[&'r ResultRow], metric: &str) -> Vec<Agreement<'r>> {
    let mut found: Vec<Agreement<'r>> = rows
        .iter()
        .copied()
        .filter(|r| r.metric == metric)
        .filter_map(|row| {
            let setting = Setting::parse(&row.setting);
            let (a, b) = setting.get("scorers")?.split_once('+')?;
            let (first, second) = if by_rank(a, b) == Ordering::Greater { (b, a) } else { (a, b) };
            Some(Agreement { subject: Subject::of(row), first: first.to_owned(), second: second.to_owned(), row })
        })
        .collect();
    found.sort_by(|a, b| {
        let scorers = by_rank(&a.first, &b.first).then_with(|| by_rank(&a.second, &b.second));
        a.subject.cmp(&b.subject).then(scorers)
    });
    found
}

fn by_rank(a: &str, b: &str) -> Ordering {
    scorers::rank(a).cmp(&scorers::rank(b)).then_with(|| natural_order(a, b))
}

/// Names of scorers in order, each once.
pub(super) fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort_by(|a, b| by_rank(a, b));
    names.dedup();
    names
}

/// Sources of explanations in order, each once.
pub(super) fn explainers<'a>(lines: impl IntoIterator<Item = &'a Line<'a>>) -> Vec<String> {
    let mut names: Vec<String> = lines.into_iter().map(|l| l.subject.explainer.clone()).collect();
    names.sort_by(|a, b| scorers::explainer_rank(a).cmp(&scorers::explainer_rank(b)).then_with(|| natural_order(a, b)));
    names.dedup();
    names
}
