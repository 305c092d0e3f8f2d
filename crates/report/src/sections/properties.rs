//! How well single features, and a few together, tell a property that the text is known to have; and whose place is taken by more specific ones.

use super::look::{Dictionary, Looks};
use super::{Context, Section, hooks_of};
use crate::ReportError;
use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting};
use crate::table::{self, Cell};

const MEASURED: [&str; 4] = ["property", "seed", "latents", "within"];

/// How many latents a probe has when it has all: a dense probe.
const ALL: &str = "all";

pub(super) fn section(_: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(
        "The text is generated, so that what holds at every token is known: inside a quotation, say. A dictionary that has found such a \
         property has one feature that is active where it holds and silent elsewhere.",
    );
    for hook in hooks_of(rows) {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        section.hook_heading(&hook);
        let measured = Measured::of(&here);
        measured.best(&mut section, "best_auroc", 0.5, "AUROC of the best single feature: 0.5 is chance, 1 perfect.");
        measured.best(&mut section, "f1", 0.0, "F1 of the best single feature, active or not: 1 is perfect.");
        measured.probes(&mut section);
        measured.absorption(&mut section);
        let all = table::wide("All measurements; 95 % intervals in brackets.", &here, false);
        section.folded("All measurements, one line each", &all);
    }
    Ok(section)
}

/// A column of a table: a dictionary, and whether it is of dense probes.
struct Column {
    head: String,
    dictionary: Dictionary,
    dense: bool,
}

/// The rows of a hook point, by what they speak of.
struct Measured<'r>(Vec<Measurement<'r>>);

struct Measurement<'r> {
    row: &'r ResultRow,
    dictionary: Dictionary,
    /// `None` for a mean over properties.
    property: Option<String>,
    /// The number of latents of a probe.
    latents: Option<String>,
}

impl<'r> Measured<'r> {
    fn of(rows: &[&'r ResultRow]) -> Self {
        let measurement = |row: &&'r ResultRow| {
            let setting = Setting::parse(&row.setting);
            let own = |key: &str| setting.get(key).map(str::to_owned);
            // The rows of one property within another are in the list of all.
            let dictionary = Dictionary::of(row, &MEASURED);
            let (property, latents) = (own("property"), own("latents"));
            own("within").is_none().then_some(Measurement { row, dictionary, property, latents })
        };
        Self(rows.iter().filter_map(measurement).collect())
    }

    fn metric(&self, metric: &str) -> impl Iterator<Item = &Measurement<'r>> {
        self.0.iter().filter(move |m| m.row.metric == metric)
    }

    /// The first of several seeds; the table of all measurements has the others.
    fn find(
        &self,
        metric: &str,
        dictionary: &Dictionary,
        property: Option<&str>,
        latents: Option<&str>,
    ) -> Option<&'r ResultRow> {
        let is = |m: &&Measurement<'_>| {
            m.property.as_deref() == property && m.latents.as_deref() == latents && m.dictionary == *dictionary
        };
        self.metric(metric).find(is).map(|m| m.row)
    }

    /// The dictionaries that a metric was measured of by property, with dense probes or with others.
    fn columns(&self, metric: &str, dense: bool) -> Vec<Column> {
        let is = |m: &&Measurement<'_>| m.property.is_some() && (m.latents.as_deref() == Some(ALL)) == dense;
        let dictionaries = Looks::of(self.metric(metric).filter(is).map(|m| m.dictionary.clone())).all;
        let head = |dictionary: &Dictionary| match (dense, dictionary.method.as_str()) {
            (false, _) => dictionary.label(),
            (true, "identity") => "dense probe".to_owned(),
            (true, _) => format!("{}, all latents", dictionary.label()),
        };
        dictionaries.into_iter().map(|dictionary| Column { head: head(&dictionary), dictionary, dense }).collect()
    }

    /// One number a cell, shaded from `chance` to 1.
    fn best(&self, section: &mut Section, metric: &str, chance: f64, caption: &str) {
        let cell = |property: Option<&str>, column: &Column| {
            let row = self.find(metric, &column.dictionary, Some(property?), None)?;
            Some((shaded(row.value, chance), row.value))
        };
        self.table(section, metric, caption, &self.columns(metric, false), cell);
    }

    /// Sparse probes of the fewest and of the most latents side by side, and the dense probe.
    fn probes(&self, section: &mut Section) {
        const METRIC: &str = "probe_auroc";
        let sizes = table::distinct(self.metric(METRIC).map(|m| m.latents.clone().filter(|latents| latents != ALL)));
        let mut shown: Vec<&str> = sizes.first().into_iter().chain(sizes.last()).map(String::as_str).collect();
        shown.dedup();
        let mut columns = self.columns(METRIC, false);
        columns.extend(self.columns(METRIC, true));
        if columns.is_empty() {
            return;
        }
        section.paragraph(
            "A probe is a logistic regression. One that reads one or a few latents tells what the dictionary has made explicit; a dense one, which \
             reads whole activations, tells what can be read from the model at all, be it spread over many latents. Latents are chosen and \
             probes fitted on one half of the text, and measured on the other.",
        );
        let cell = |property: Option<&str>, column: &Column| {
            let metric = if property.is_some() { METRIC } else { "probe_auroc_mean" };
            let sizes = if column.dense { &[ALL] } else { shown.as_slice() };
            let of_size = |latents: &&str| self.find(metric, &column.dictionary, property, Some(latents));
            let values: Vec<f64> = sizes.iter().filter_map(of_size).map(|row| row.value).collect();
            let cells: Vec<String> = values.iter().map(|value| shaded(*value, 0.5)).collect();
            Some((cells.join(" "), *values.last()?))
        };
        let caption = format!(
            "AUROC of probes on {} latents chosen by the difference of their means, and of the dense probe.",
            html(&shown.join(" | "))
        );
        self.table(section, METRIC, &caption, &columns, cell);
    }

    /// Rates, with the number of main latents beside them.
    fn absorption(&self, section: &mut Section) {
        const METRIC: &str = "absorption_rate";
        let columns = self.columns(METRIC, false);
        if columns.is_empty() {
            return;
        }
        section.paragraph(
            "A latent that stands for a property may be silent on some of its rows because a more specific latent has taken its direction over \
             (feature absorption): one name, say, whose latent also says that it is a name. The rate is the share of the rows at which the \
             property holds, and the dense probe says so, where all of its main latents are silent and another one carries it. Properties \
             that the dense probe does not find are left out.",
        );
        let cell = |property: Option<&str>, column: &Column| {
            let name = |metric: &str| if property.is_some() { metric.to_owned() } else { format!("{metric}_mean") };
            let row = self.find(&name(METRIC), &column.dictionary, property, None)?;
            let main = self.find(&name("split_latents"), &column.dictionary, property, None);
            let main = main.map(|row| format!(" <span class=\"ci\">{}</span>", number::significant(row.value, 2)));
            Some((on_shade(&number::share(row.value), row.value) + &main.unwrap_or_default(), row.value))
        };
        let caption = "Absorption rate; beside it the number of main latents that the property is split over.";
        self.table(section, METRIC, caption, &columns, cell);
    }

    /// Properties down, dictionaries across, means over properties at the foot; `cell` gives HTML and the number to sort by.
    fn table(
        &self,
        section: &mut Section,
        metric: &str,
        caption: &str,
        columns: &[Column],
        cell: impl Fn(Option<&str>, &Column) -> Option<(String, f64)>,
    ) {
        let properties = table::distinct(self.metric(metric).map(|m| m.property.clone()));
        if columns.is_empty() || properties.is_empty() {
            return;
        }
        let mut heads = vec![("property".to_owned(), false)];
        heads.extend(columns.iter().map(|column| (html(&column.head), true)));
        let line = |property: Option<&str>| {
            let name = property.map_or("mean".to_owned(), |property| property.replace('_', " "));
            let cells = columns.iter().map(|column| match cell(property, column) {
                None => Cell::none(),
                Some((html, key)) => Cell { html, key: Some(key) },
            });
            std::iter::once(Cell::text(&name)).chain(cells).collect::<Vec<Cell>>()
        };
        let lines: Vec<Vec<Cell>> = properties.iter().map(|property| line(Some(property))).collect();
        let means = line(None);
        let foot = if means.iter().any(|cell| cell.key.is_some()) { vec![means] } else { Vec::new() };
        let n = table::n_in_words(self.metric(metric).filter(|m| m.property.is_some()).map(|m| m.row));
        let caption = format!("{caption} {n}; intervals are in the list of all measurements.");
        section.html.push_str(&table::render_with_foot(&caption, &heads, &lines, &foot));
    }
}

/// A number on a shade from `chance` to 1.
fn shaded(value: f64, chance: f64) -> String {
    on_shade(&number::significant(value, 2), (value - chance) / (1.0 - chance))
}

/// Text on a shade from 0 to 1.
fn on_shade(text: &str, share: f64) -> String {
    // A share of at most 1, so the cast is exact.
    let level = (10.0 * share.clamp(0.0, 1.0)).round() as u8;
    format!("<span class=\"heat a{level}\">{}</span>", html(text))
}
