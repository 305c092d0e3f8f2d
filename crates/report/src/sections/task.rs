//! Other behaviours than indirect objects: the same curves for each, and before them one figure over all.

use std::fmt::Write as _;

use super::ioi::{Behaviour, MEASURED, READINGS, Reading, is_reported, looks, names_of, of_prompts, told_names};
use super::look::{Dictionary, Looks};
use super::{Context, Groups, Section, features, hooks_of, layers, on_what};
use crate::ReportError;
use crate::chart::{AxisSpec, Panel, Point, draw_grid};
use crate::escape::{html, slug};
use crate::row::{ResultRow, Setting};
use crate::table;

const EXPERIMENT: &str = "task";

const READING: &str = "The experiment on indirect objects again, with prompts of other behaviours: a pair of prompts differs in one place, so that the model ought \
     to go on differently, and features of the first prompt are set to their values on the second. A dictionary that splits the model's \
     computation well needs few features and small edits for all of them, and not for indirect objects alone.";

/// Share of the room of a task over which its points are spread.
const SPREAD: f64 = 0.7;

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    let looks = looks(rows);
    let tasks = table::distinct(rows.iter().map(|r| Some(task_of(r))));
    if tasks.len() > 1 {
        summary(context, &mut section, &tasks, rows, &looks)?;
    }
    for task in &tasks {
        let id = format!("task-{}", slug(task));
        let title = if task.is_empty() { "no name".to_owned() } else { html(task) };
        // Writing to a String cannot fail.
        let _ = writeln!(section.html, "<h3 id=\"{id}\">Task: {title}</h3>");
        section.parts.push((id, format!("Task: {title}")));
        let of: Vec<&ResultRow> = rows.iter().copied().filter(|r| task_of(r) == *task).collect();
        let caption = "The model itself, nothing patched: how often it prefers its right answers to wrong ones (those of the other prompt; \
                       with years, all that come too early), and the log odds of the two. Features for a behaviour that the model does not have say little.";
        let log_odds = "Logit difference: log odds of the counterfactual's answers against those of the first prompt.";
        let behaviour = Behaviour { experiment: EXPERIMENT, task, model: caption, log_odds, heading: "h4" };
        behaviour.measured(context, &mut section, &of, &looks)?;
    }
    features::browser(&mut section, EXPERIMENT, &context.features_of(EXPERIMENT));
    Ok(section)
}

fn task_of(row: &ResultRow) -> String {
    Setting::parse(&row.setting).get("task").unwrap_or("").to_owned()
}

/// The readings of every task side by side, a figure for each hook point and number of names.
fn summary(
    context: &Context<'_>,
    section: &mut Section,
    tasks: &[String],
    rows: &[&ResultRow],
    looks: &Looks,
) -> Result<(), ReportError> {
    let rows: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.method != "model" && is_reported(r)).collect();
    for hook in hooks_of(&rows) {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        for names in table::distinct(here.iter().map(|r| Some(names_of(r)))).into_iter().rev() {
            let of: Vec<&ResultRow> = here.iter().copied().filter(|r| names_of(r) == names).collect();
            let panels: Vec<Panel> = READINGS
                .iter()
                .map(|reading| across(reading, tasks, &of, looks))
                .filter(|p| !p.series.is_empty())
                .collect();
            if panels.is_empty() {
                continue;
            }
            let (suffix, _) = told_names(&names);
            let caption = format!(
                "<b>All tasks</b> at {}{}: what is read off the curves below. Low is good, and good at every task is what a \
                 dictionary should be. A dictionary that never halves the KL of a task has no mark there. Whiskers: 95 % interval over prompts and orders of visiting.",
                on_what(context, &hook),
                of_prompts(&names)
            );
            let name = format!("task-summary-{hook}{suffix}");
            section.figure(&name, &format!("All tasks at {hook}"), &caption, draw_grid(&panels, 1, 230.0))?;
        }
    }
    Ok(())
}

/// One reading, tasks across.
fn across(reading: &Reading, tasks: &[String], rows: &[&ResultRow], looks: &Looks) -> Panel {
    let mut groups = Groups::default();
    for row in rows.iter().filter(|r| r.metric == reading.metric) {
        let Some(place) = tasks.iter().position(|task| *task == task_of(row)) else { continue };
        let dictionary = Dictionary::of(row, &MEASURED);
        let point = Point::new(place as f64, row.value, row.ci_low, row.ci_high);
        // A line of its own: tasks have no order that one could go along.
        let apart = Setting(vec![("seed".to_owned(), place.to_string())]);
        groups.add(&dictionary.method, dictionary.setting.clone(), &apart, looks.style(&dictionary), point);
    }
    let mut series = groups.into_series(false);
    let step = SPREAD / series.len().max(1) as f64;
    layers::set_apart(&mut series, step);
    Panel {
        title: String::new(),
        x: AxisSpec::of_names("", tasks.to_vec()),
        y: reading.axis(),
        series,
        references: Vec::new(),
    }
}
