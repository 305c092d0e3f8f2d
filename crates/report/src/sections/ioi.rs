//! Which features carry a behaviour: KL against how much is patched, for the identification of indirect objects and for other tasks.

use std::collections::HashMap;

use super::look::{Dictionary, Looks};
use super::{Context, Groups, Section, features, hooks_of, layers, on_what};
use crate::ReportError;
use crate::chart::{AxisSpec, Panel, Point, RowChart, draw_grid, draw_rows};
use crate::escape::html;
use crate::row::{ResultRow, Setting};
use crate::table;

/// Keys of a setting that say what was patched, not in which dictionary.
pub(super) const MEASURED: [&str; 5] = ["prompts", "names", "seed", "threshold", "task"];

/// With more points than this on a line, markers would hide it, and whiskers would hide everything.
const MOST_MARKERS: usize = 14;

/// With more lines than this, bands would cover one another, and lines of few points have whiskers instead.
const MOST_BANDS: usize = 6;

const READING: &str = "Prompts such as <q>When Mary and John went to the shop, John gave a drink to</q> have one sensible next word, the indirect object. A \
     second prompt has another name in its place. Features of the first prompt are set to their values on the second, and the \
     model's answer moves towards that of the second; KL measures how far it still is. A dictionary is good if few features and \
     a small edit suffice. Settings (layer, penalty) are chosen on some prompts (<code>choose</code>); the figures show others, of other \
     names and sentences (<code>report</code>), for which features are selected anew.";

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    let caption = "The model itself, nothing patched: how often it prefers the indirect object to the subject, and the log \
                   odds of the two.";
    let log_odds =
        "Logit difference: log odds of the counterfactual name against the indirect object of the first prompt.";
    let of = Behaviour { experiment: "ioi", task: "", model: caption, log_odds, heading: "h3" };
    of.measured(context, &mut section, rows, &looks(rows))?;
    features::browser(&mut section, "ioi", &context.features_of("ioi"));
    Ok(section)
}

/// How the dictionaries of these rows are drawn; the model itself is none.
pub(super) fn looks(rows: &[&ResultRow]) -> Looks {
    Looks::of(rows.iter().filter(|r| r.method != "model").map(|r| Dictionary::of(r, &MEASURED)))
}

/// The rows of the prompts that had no part in the choice of settings, or of all where there is no choice.
pub(super) fn is_reported(row: &ResultRow) -> bool {
    Setting::parse(&row.setting).get("prompts") != Some("choose")
}

/// How many names the prompts draw from; empty where from all.
pub(super) fn names_of(row: &ResultRow) -> String {
    Setting::parse(&row.setting).get("names").unwrap_or("").to_owned()
}

/// The end of a figure's name, and of a caption's words for the prompts.
pub(super) fn told_names(names: &str) -> (String, String) {
    if names.is_empty() {
        (String::new(), String::new())
    } else {
        (format!("-{names}-names"), format!(" with no more than {} different names", html(names)))
    }
}

/// Which prompts, after a comma, where not all names are in them (HTML).
pub(super) fn of_prompts(names: &str) -> String {
    if names.is_empty() { String::new() } else { format!(", prompts{}", told_names(names).1) }
}

/// What is read off the curves of a behaviour.
pub(super) struct Reading {
    pub(super) metric: &'static str,
    /// Part of a figure's name.
    pub(super) slug: &'static str,
    /// The axis, and whether it is logarithmic.
    pub(super) axis: (&'static str, bool),
    /// What a figure shows, for readers without it.
    pub(super) alt: &'static str,
    /// The caption's first words, which are bold, and what follows them.
    caption: (&'static str, &'static str),
}

impl Reading {
    pub(super) fn axis(&self) -> AxisSpec {
        if self.axis.1 { AxisSpec::log(self.axis.0) } else { AxisSpec::linear(self.axis.0).with_zero() }
    }
}

pub(super) const READINGS: [Reading; 2] = [
    Reading {
        metric: "kl_auc",
        slug: "auc",
        axis: ("area under KL (mean share of it that is left)", false),
        alt: "Area under the curve of KL",
        caption: (
            "Area under KL",
            "the mean share of the KL that is left, along the logarithm of the number of patched features up to the width of the activation; less is \
             better.",
        ),
    },
    Reading {
        metric: "features_for_half_kl",
        slug: "half",
        axis: ("features that halve the KL (log scale)", true),
        alt: "Features that halve the KL",
        caption: (
            "Features needed to halve the KL",
            "between the two prompts; fewer is better. A dictionary that never gets there has no row.",
        ),
    },
];

/// A behaviour whose causes are looked for.
pub(super) struct Behaviour<'b> {
    pub(super) experiment: &'b str,
    /// Its name; empty where the experiment has only one.
    pub(super) task: &'b str,
    /// Caption of what the model itself does (HTML).
    pub(super) model: &'b str,
    /// What the logit differences of its sets are between (HTML).
    pub(super) log_odds: &'b str,
    /// Tag of the headings of hook points.
    pub(super) heading: &'b str,
}

impl Behaviour<'_> {
    /// Everything measured of it: what the model does, each reading over the layers, and for each hook point curves, readings and tables.
    pub(super) fn measured(
        &self,
        context: &Context<'_>,
        section: &mut Section,
        rows: &[&ResultRow],
        looks: &Looks,
    ) -> Result<(), ReportError> {
        let (model, rows): (Vec<&ResultRow>, Vec<&ResultRow>) = rows.iter().partition(|r| r.method == "model");
        if !model.is_empty() {
            section.html.push_str(&table::wide(self.model, &model, model.iter().any(|r| !r.hook.is_empty())));
        }
        // All names first, then ever fewer.
        let of_names = |rows: &[&ResultRow]| -> Vec<String> {
            table::distinct(rows.iter().map(|r| Some(names_of(r)))).into_iter().rev().collect()
        };
        for names in of_names(&rows) {
            let of: Vec<&ResultRow> = rows.iter().copied().filter(|r| names_of(r) == names && is_reported(r)).collect();
            self.by_layer(section, &names, &of, looks)?;
        }
        for hook in hooks_of(&rows) {
            section.hook_heading_of(self.heading, &hook);
            let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
            for names in of_names(&here) {
                let (report, choose): (Vec<&ResultRow>, Vec<&ResultRow>) =
                    here.iter().filter(|r| names_of(r) == names).partition(|r| is_reported(r));
                self.curves(context, section, &hook, &names, &report, looks)?;
                for reading in &READINGS {
                    self.reading(section, reading, &hook, &names, &report, looks)?;
                }
                tables(section, &report, &choose, self.log_odds);
            }
        }
        Ok(())
    }

    /// The beginning of a figure's name.
    fn stem(&self) -> String {
        if self.task.is_empty() { self.experiment.to_owned() } else { format!("{}-{}", self.experiment, self.task) }
    }

    /// The paper's Fig. 17: each reading over the layers of a site, where there are two or more.
    fn by_layer(
        &self,
        section: &mut Section,
        names: &str,
        rows: &[&ResultRow],
        looks: &Looks,
    ) -> Result<(), ReportError> {
        let (suffix, _) = told_names(names);
        let of = |metric: &str| -> Vec<(Dictionary, &ResultRow)> {
            rows.iter().filter(|r| r.metric == metric).map(|r| (Dictionary::of(r, &MEASURED), *r)).collect()
        };
        for site in layers::sites(rows.iter().copied()) {
            let panel = |reading: &Reading| {
                let panel = layers::panel("", "", &site, &of(reading.metric), looks)?;
                Some(Panel { y: reading.axis(), ..panel })
            };
            let panels: Vec<Panel> = READINGS.iter().filter_map(panel).collect();
            if panels.is_empty() {
                continue;
            }
            let caption = format!(
                "<b>By layer</b>, site <code>{}</code>{} (figure 17 of the paper): what is read off the curve of each layer. \
                 Low is good. A line goes through the layers at which a dictionary was patched; whiskers: 95 % interval over prompts and orders of visiting.",
                html(&site),
                of_prompts(names)
            );
            let name = format!("{}-layers-{site}{suffix}", self.stem());
            section.figure(&name, "Readings of the KL curves by layer", &caption, draw_grid(&panels, 1, 240.0))?;
        }
        Ok(())
    }

    /// The paper's Fig. 3: KL against the number of patched features, and against the size of the edit.
    fn curves(
        &self,
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
             to the left is good. {} prompts{with_names}{}; bands and whiskers: 95 % interval.",
            on_what(context, hook),
            table::n_in_words(rows.iter().copied().filter(|r| r.metric == "kl")),
            if held_out { " that had no part in the choice of settings" } else { "" },
        );
        section.figure(
            &format!("{}-{hook}{suffix}", self.stem()),
            &format!("KL against patched features and size of the edit at {hook}"),
            &caption,
            draw_grid(&panels, 1, 280.0),
        )
    }

    /// A reading as one dot for each dictionary.
    fn reading(
        &self,
        section: &mut Section,
        reading: &Reading,
        hook: &str,
        names: &str,
        rows: &[&ResultRow],
        looks: &Looks,
    ) -> Result<(), ReportError> {
        let (suffix, with_names) = told_names(names);
        let mut found: Vec<(Dictionary, &ResultRow)> =
            rows.iter().filter(|r| r.metric == reading.metric).map(|r| (Dictionary::of(r, &MEASURED), *r)).collect();
        if found.is_empty() {
            return Ok(());
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let dots = found.iter().map(|(dictionary, row)| looks.row(dictionary, row, 3)).collect();
        let axis = reading.axis();
        let chart =
            RowChart { axis, rows: dots, references: Vec::new(), bars: false, headed: false, legend: Vec::new() };
        let (bold, rest) = reading.caption;
        let caption =
            format!("<b>{bold}</b>{with_names}, {rest} Whiskers: 95 % interval over prompts and orders of visiting.");
        let name = format!("{}-{}-{hook}{suffix}", self.stem(), reading.slug);
        section.figure(&name, &format!("{} at {hook}", reading.alt), &caption, draw_rows(&chart))
    }
}

fn threshold(row: &ResultRow) -> Option<String> {
    Setting::parse(&row.setting).get("threshold").map(str::to_owned)
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
        let point = Point::new(x, row.value, row.ci_low, row.ci_high);
        let style = looks.style(&dictionary);
        groups.add(&dictionary.method, dictionary.setting, &Setting::parse(&row.setting), style, point);
    }
    let mut series = groups.into_series(false);
    let few = series.len() <= MOST_BANDS;
    for s in &mut series {
        let longest = s.lines.iter().map(Vec::len).max().unwrap_or(0);
        s.band = longest > 1 && (few || longest > MOST_MARKERS);
        s.markers = longest <= MOST_MARKERS;
    }
    series
}

fn tables(section: &mut Section, report: &[&ResultRow], choose: &[&ResultRow], log_odds: &str) {
    let (sets, summary): (Vec<&ResultRow>, Vec<&ResultRow>) = report.iter().partition(|r| threshold(r).is_some());
    if !summary.is_empty() {
        section.html.push_str(&table::wide("Summary of the curves; 95 % intervals in brackets.", &summary, false));
    }
    // Thresholds are numbers and two words; the words are the ends of every curve.
    for (rows, what) in [
        (&sets[..], "Every set, on the prompts of the figure"),
        (choose, "Every set, on the prompts to choose settings by"),
    ] {
        if !rows.is_empty() {
            section.folded(what, &table::wide(&format!("{what}; 95 % intervals in brackets. {log_odds}"), rows, false));
        }
    }
}
