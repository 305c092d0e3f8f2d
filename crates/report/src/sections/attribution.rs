//! Attribution patching: the effect of a feature as a gradient says it, beside the effect that patching it has.

use std::collections::HashMap;

use super::look::{Dictionary, Looks};
use super::{Context, Section, hooks_of, method_order, on_what};
use crate::ReportError;
use crate::chart::{AxisSpec, Beside, Dash, Entry, Panel, Point, RowChart, Series, Shape, Style, draw_grid, draw_rows};
use crate::number;
use crate::palette;
use crate::row::{ResultRow, Setting, value_order};
use crate::table::{self, Cell};

const READING: &str = "To patch every feature of a dictionary alone takes a run of the model for each. Attribution patching takes one run and one gradient for all: the \
     change of a feature's code times the gradient of the KL with respect to it is what patching it would do if the model were linear there. \
     Where it agrees with the exact effects, the order it gives is worth as much as theirs: a correlation near 1 and areas that are equal are good.";

/// Panels beside each other.
const COLUMNS: usize = 3;

/// One dictionary on one set of prompts.
struct Compared<'r> {
    method: &'r str,
    /// All of the setting that does not belong to a metric.
    setting: Setting,
    /// Metric, the value at the end of its setting that belongs to it, and the row.
    measured: Vec<(&'r str, Option<String>, &'r ResultRow)>,
}

/// The key at the end of the setting that belongs to a metric.
fn key_of(metric: &str) -> Option<&'static str> {
    match metric {
        "top_overlap" => Some("k"),
        "kl_auc" => Some("ranking"),
        "exact_effect" | "attributed_effect" => Some("feature"),
        _ => None,
    }
}

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    let all = compared(rows);
    let looks = Looks::of(all.iter().map(Compared::dictionary));
    for hook in hooks_of(rows) {
        section.hook_heading(&hook);
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        let compared = compared(&here);
        scatter(context, &mut section, &hook, &compared, &looks)?;
        areas(&mut section, &hook, &compared, &looks)?;
        agreement(&mut section, &compared);
        let effects: Vec<&ResultRow> = here.iter().copied().filter(|r| key_of(&r.metric) == Some("feature")).collect();
        if !effects.is_empty() {
            let caption = "The effect of each feature alone on the KL, as patching and as the gradient has it; means over n prompts.";
            section.folded("The effects, one line for each feature", &table::wide(caption, &effects, false));
        }
    }
    Ok(section)
}

/// The rows of each dictionary, in reading order.
fn compared<'r>(rows: &[&'r ResultRow]) -> Vec<Compared<'r>> {
    let mut all: Vec<Compared<'r>> = Vec::new();
    let mut places: HashMap<(&str, String), usize> = HashMap::new();
    for row in rows {
        let setting = Setting::parse(&row.setting);
        let own = key_of(&row.metric).and_then(|key| setting.split_last(key));
        let (setting, value) =
            own.map_or((setting.clone(), None), |(setting, value)| (setting, Some(value.to_owned())));
        let place = *places.entry((&row.method, super::label_of("", &setting))).or_insert_with(|| {
            all.push(Compared { method: &row.method, setting, measured: Vec::new() });
            all.len() - 1
        });
        all[place].measured.push((&row.metric, value, row));
    }
    all.sort_by(|a, b| method_order(a.method, b.method).then_with(|| a.setting.cmp(&b.setting)));
    all
}

impl<'r> Compared<'r> {
    fn dictionary(&self) -> Dictionary {
        Dictionary { method: self.method.to_owned(), setting: self.setting.clone() }
    }

    fn get(&self, metric: &str, value: Option<&str>) -> Option<&'r ResultRow> {
        let is_meant = |(m, v, _): &&(&str, Option<String>, &ResultRow)| *m == metric && v.as_deref() == value;
        self.measured.iter().find(is_meant).map(|(_, _, row)| *row)
    }

    /// Exact and attributed effect of every feature that has both.
    fn effects(&self) -> Vec<Point> {
        let attributed: HashMap<&str, f64> = self
            .measured
            .iter()
            .filter(|(metric, _, _)| *metric == "attributed_effect")
            .filter_map(|(_, feature, row)| Some((feature.as_deref()?, row.value)))
            .collect();
        let exact = self.measured.iter().filter(|(metric, _, _)| *metric == "exact_effect");
        exact
            .filter_map(|(_, feature, row)| {
                let y = *attributed.get(feature.as_deref()?)?;
                Some(Point::new(row.value, y, None, None))
            })
            .collect()
    }
}

/// A panel for each dictionary: a point is a feature, and on the diagonal the gradient is right.
fn scatter(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    compared: &[Compared<'_>],
    looks: &Looks,
) -> Result<(), ReportError> {
    let panel = |one: &Compared<'_>| -> Option<Panel> {
        let points = one.effects();
        let ends = points.iter().flat_map(|p| [p.x, p.y]).chain([0.0]);
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if points.is_empty() {
            return None;
        }
        let diagonal = Series {
            label: "attributed as exact".into(),
            style: Style { colour: palette::MUTED, shape: Shape::Circle, filled: false, dash: Dash::Hair },
            lines: vec![[low, high].map(|v| Point::new(v, v, None, None)).to_vec()],
            markers: false,
            band: false,
            direct: false,
        };
        let features = Series {
            label: String::new(),
            style: looks.style(&one.dictionary()),
            lines: points.iter().map(|point| vec![*point]).collect(),
            markers: true,
            band: false,
            direct: false,
        };
        let axis = |title: &str| AxisSpec { reach: vec![low, high], ..AxisSpec::linear(title) };
        Some(Panel {
            title: one.dictionary().label(),
            x: axis("exact effect (nats)"),
            y: axis("attributed effect (nats)"),
            series: vec![diagonal, features],
            references: Vec::new(),
        })
    };
    let panels: Vec<Panel> = compared.iter().filter_map(panel).collect();
    if panels.is_empty() {
        return Ok(());
    }
    let most = compared.iter().map(|one| one.effects().len()).max().unwrap_or(0);
    let caption = format!(
        "<b>Attributed against exact effect</b> on the KL at {}: a mark is a feature patched alone, of up to {} in each dictionary. Marks near the diagonal are good: there the \
         gradient says what patching does. Far from it the gradient misleads.",
        on_what(context, hook),
        number::count(most as u64),
    );
    let name = format!("attribution-{hook}");
    section.figure(
        &name,
        &format!("Attributed against exact effects at {hook}"),
        &caption,
        draw_grid(&panels, COLUMNS, 190.0),
    )
}

/// What either order is worth: the area under the KL when features are patched in it.
fn areas(section: &mut Section, hook: &str, compared: &[Compared<'_>], looks: &Looks) -> Result<(), ReportError> {
    let by_gradient = Style { colour: palette::MUTED, shape: Shape::Diamond, filled: false, dash: Dash::Solid };
    let row = |one: &Compared<'_>| {
        let [exact, attributed] = ["exact", "attribution"].map(|ranking| one.get("kl_auc", Some(ranking)));
        let (exact, attributed) = (exact?, attributed?);
        let mut row = looks.row(&one.dictionary(), exact, 3);
        row.text = format!("{} · {}", number::significant(exact.value, 3), number::significant(attributed.value, 3));
        let (value, low, high) = (attributed.value, attributed.ci_low, attributed.ci_high);
        row.beside.push(Beside { value, low, high, style: by_gradient });
        Some(row)
    };
    let rows: Vec<_> = compared.iter().filter_map(row).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let entry = |label: &str, style| Entry { label: label.to_owned(), style, line: false, marker: true };
    let chart = RowChart {
        axis: AxisSpec::linear("area under KL (mean share of it that is left)").with_zero(),
        references: Vec::new(),
        bars: false,
        headed: false,
        legend: vec![
            entry("in the order of exact effects", rows[0].style),
            entry("in the order of attributed effects", by_gradient),
        ],
        rows,
    };
    let caption = "<b>What either order is worth</b>: the area under the curve of KL when features are patched in the order of their exact effects (in the colour of \
                   the dictionary, first number) and of their attributed effects (grey, second number). Less is better; where the two are as good as equal, one \
                   gradient does for the selection. Whiskers: 95 % interval over prompts.";
    section.figure(
        &format!("attribution-auc-{hook}"),
        &format!("Areas under KL in two orders at {hook}"),
        caption,
        draw_rows(&chart),
    )
}

/// One line for each dictionary.
fn agreement(section: &mut Section, compared: &[Compared<'_>]) {
    let mut columns: Vec<(&str, Option<String>)> = Vec::new();
    for (metric, value, row) in compared.iter().flat_map(|one| &one.measured) {
        if key_of(&row.metric) != Some("feature") && !columns.contains(&(*metric, value.clone())) {
            columns.push((*metric, value.clone()));
        }
    }
    if columns.is_empty() {
        return;
    }
    let place =
        |metric: &str| ["rank_correlation", "pearson", "top_overlap", "kl_auc"].iter().position(|m| *m == metric);
    columns.sort_by(|a, b| {
        let by_metric =
            place(a.0).unwrap_or(usize::MAX).cmp(&place(b.0).unwrap_or(usize::MAX)).then_with(|| a.0.cmp(b.0));
        by_metric.then_with(|| value_order(b.1.as_deref().unwrap_or(""), a.1.as_deref().unwrap_or("")))
    });
    let head = |(metric, value): &(&str, Option<String>)| {
        let name = number::metric(metric);
        let words = match (*metric, value.as_deref()) {
            ("top_overlap", Some(k)) => format!("overlap of the {k} largest"),
            ("kl_auc", Some("attribution")) => format!("{name}, attributed order"),
            (_, Some(value)) => format!("{name}, {value} order"),
            (_, None) => name.to_owned(),
        };
        (crate::escape::html(&words), true)
    };
    let heads: Vec<(String, bool)> =
        [("dictionary".to_owned(), false)].into_iter().chain(columns.iter().map(head)).collect();
    let lines: Vec<Vec<Cell>> = compared
        .iter()
        .filter(|one| columns.iter().any(|(metric, value)| one.get(metric, value.as_deref()).is_some()))
        .map(|one| {
            let cell = |(metric, value): &(&str, Option<String>)| {
                one.get(metric, value.as_deref()).map_or_else(Cell::none, table::value_cell)
            };
            [Cell::text(&one.dictionary().label())].into_iter().chain(columns.iter().map(cell)).collect()
        })
        .collect();
    let rows =
        compared.iter().flat_map(|one| &one.measured).filter(|(_, _, row)| key_of(&row.metric) != Some("feature"));
    let caption = format!(
        "Agreement of the two effects over the features of a dictionary; overlap: the share of the features of largest exact effect that are among as many of \
         largest attributed effect. 95 % intervals in brackets; {}.",
        table::n_in_words(rows.map(|(_, _, row)| *row))
    );
    section.html.push_str(&table::render(&caption, &heads, &lines));
}
