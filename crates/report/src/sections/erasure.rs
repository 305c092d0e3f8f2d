//! Erasing a concept: how well it can still be told, against what else the edit changes.

use super::look::{Dictionary, Looks};
use super::{Context, Groups, Section, hooks_of, on_what};
use crate::ReportError;
use crate::chart::{AxisSpec, Panel, Point, Reference, draw_grid};
use crate::escape::html;
use crate::row::{ResultRow, Setting};
use crate::table;

/// Keys of a setting that say what was measured, not how it was erased.
const MEASURED: [&str; 1] = ["concept"];

/// Accuracy of a guess between two classes.
const CHANCE: f64 = 0.5;

const READING: &str = "A concept is erased from the activation, by removing features of a dictionary or by taking away the directions that other methods find, and the model answers as \
     before. Accuracy is how often it still gets the concept right: 0.5 is chance for two classes. An erasure is good if little of the concept is left \
     after a small edit that changes little else: lower left.";

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    let looks = Looks::of(rows.iter().map(|r| Dictionary::of(r, &MEASURED)));
    for hook in hooks_of(rows) {
        section.hook_heading(&hook);
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        for concept in table::distinct(here.iter().map(|r| Some(concept_of(r)))) {
            let of: Vec<&ResultRow> = here.iter().copied().filter(|r| concept_of(r) == concept).collect();
            scatter(context, &mut section, &hook, &concept, &of, &looks)?;
            let caption = format!(
                "Erasing {}: all measurements at this hook. KL: of the answers on ordinary text from those without any edit. 95 % intervals in brackets.",
                in_words(&concept)
            );
            section.html.push_str(&table::wide(&caption, &of, false));
        }
    }
    Ok(section)
}

fn concept_of(row: &ResultRow) -> String {
    Setting::parse(&row.setting).get("concept").unwrap_or("").to_owned()
}

/// The concept in a caption (HTML).
fn in_words(concept: &str) -> String {
    if concept.is_empty() { "the concept".to_owned() } else { html(concept) }
}

/// Both accuracies against both costs.
fn scatter(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    concept: &str,
    rows: &[&ResultRow],
    looks: &Looks,
) -> Result<(), ReportError> {
    let mut panels = Vec::new();
    for (accuracy, y) in
        [("accuracy", "accuracy that is left"), ("transfer_accuracy", "accuracy that is left on other prompts")]
    {
        for (cost, x) in [("edit_norm", "size of the edit (mean norm)"), ("kl", "KL on ordinary text (nats)")] {
            let series = against(rows, accuracy, cost, looks).into_series(false);
            if !series.is_empty() {
                panels.push(Panel {
                    title: String::new(),
                    x: AxisSpec::linear(x).with_zero(),
                    y: AxisSpec::linear(y),
                    series,
                    references: vec![Reference { label: "chance".into(), value: CHANCE }],
                });
            }
        }
    }
    if panels.is_empty() {
        return Ok(());
    }
    let caption = format!(
        "<b>What is left of {} against what the edit costs</b> at {}; {}. A mark is a way to erase it. Lower left is good; below the broken line the answer is wrong more \
         often than by chance, so that the concept is turned round and not erased. Whiskers: 95 % intervals of both.",
        in_words(concept),
        on_what(context, hook),
        table::n_in_words(rows.iter().copied().filter(|r| r.metric == "accuracy")),
    );
    let name = if concept.is_empty() { format!("erasure-{hook}") } else { format!("erasure-{concept}-{hook}") };
    let alt = format!("Accuracy after erasure against edit norm and KL at {hook}");
    section.figure(&name, &alt, &caption, draw_grid(&panels, 2, 250.0))
}

/// An accuracy over a cost of the same erasure.
fn against(rows: &[&ResultRow], accuracy: &str, cost: &str, looks: &Looks) -> Groups {
    let mut groups = Groups::default();
    for row in rows.iter().filter(|r| r.metric == accuracy) {
        let same = |r: &&&ResultRow| r.metric == cost && r.method == row.method && r.setting == row.setting;
        let Some(cost) = rows.iter().find(same) else { continue };
        let dictionary = Dictionary::of(row, &MEASURED);
        let mut point = Point::new(cost.value, row.value, row.ci_low, row.ci_high);
        point.x_ends = cost.ci_low.zip(cost.ci_high);
        let style = looks.style(&dictionary);
        groups.add(&dictionary.method, dictionary.setting, &Setting::parse(&row.setting), style, point);
    }
    groups
}
