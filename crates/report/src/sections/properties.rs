//! How well the best single feature tells a property that the text is known to have.

use std::collections::HashMap;

use super::look::{Dictionary, Looks};
use super::{Context, Section, hooks_of};
use crate::ReportError;
use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting};
use crate::table::{self, Cell};

const MEASURED: [&str; 2] = ["property", "seed"];

pub(super) fn section(_: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(
        "The text is generated, so that what holds at every token is known: inside a quotation, say. A dictionary that has found such a \
         property has one feature that is active where it holds and silent elsewhere.",
    );
    for hook in hooks_of(rows) {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        section.hook_heading(&hook);
        heat(&mut section, &here, "best_auroc", 0.5, "AUROC of the best single feature: 0.5 is chance, 1 perfect.");
        heat(&mut section, &here, "f1", 0.0, "F1 of the best single feature, active or not: 1 is perfect.");
        let all = table::wide("All measurements; 95 % intervals in brackets.", &here, false);
        section.folded("All measurements, one line each", &all);
    }
    Ok(section)
}

/// Properties down, dictionaries across, shaded from `chance` to 1.
fn heat(section: &mut Section, rows: &[&ResultRow], metric: &str, chance: f64, caption: &str) {
    let property = |r: &ResultRow| Setting::parse(&r.setting).get("property").map(str::to_owned);
    let rows: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.metric == metric && property(r).is_some()).collect();
    if rows.is_empty() {
        return;
    }
    let columns = Looks::of(rows.iter().map(|r| Dictionary::of(r, &MEASURED))).all;
    let mut cells: HashMap<(String, usize), &ResultRow> = HashMap::new();
    for row in &rows {
        let column = columns.binary_search(&Dictionary::of(row, &MEASURED)).unwrap_or(0);
        // The first of several seeds; the table of all measurements has the others.
        cells.entry((property(row).unwrap_or_default(), column)).or_insert(row);
    }
    let mut heads = vec![("property".to_owned(), false)];
    heads.extend(columns.iter().map(|d| (html(&d.label()), true)));
    let lines: Vec<Vec<Cell>> = table::distinct(rows.iter().map(|r| property(r)))
        .into_iter()
        .map(|name| {
            let mut line = vec![Cell::text(&name.replace('_', " "))];
            line.extend((0..columns.len()).map(|i| match cells.get(&(name.clone(), i)) {
                None => Cell::none(),
                Some(row) => {
                    let share = ((row.value - chance) / (1.0 - chance)).clamp(0.0, 1.0);
                    // A share of at most 1, so the cast is exact.
                    let (level, value) = ((10.0 * share).round() as u8, number::significant(row.value, 2));
                    Cell { html: format!("<span class=\"heat a{level}\">{value}</span>"), key: Some(row.value) }
                }
            }));
            line
        })
        .collect();
    let caption = format!(
        "{caption} {}; intervals are in the list of all measurements.",
        table::n_in_words(rows.iter().copied())
    );
    section.html.push_str(&table::render(&caption, &heads, &lines));
}
