//! Explanations by a language model: what each scorer gives them, beside controls, and whether scorers agree.

mod lines;
mod scorers;
mod tables;

use lines::{Line, Subject};

use super::look::{CONTROLS, Dictionary, Looks, of_control};
use super::{Context, Section, features, hooks_of, layers, on_what};
use crate::chart::{AxisSpec, Beside, Entry, Panel, Row, RowChart, Shape, Style, draw_grid, draw_rows};
use crate::escape::html;
use crate::row::ResultRow;
use crate::{ReportError, table};

/// A figure of more rows than these does not fit on a screen; each scorer gets one of its own then.
const MOST_ROWS: usize = 60;

const READING: &str = "Each feature has an explanation in words, and a scorer asks how much the words are worth, on text that the explanation was \
     not made from. Scorers ask different things in different units, so figures show <em>chance-corrected</em> scores: (score − chance) / \
     (1 − chance), which is 0 for who knows nothing and 1 for who knows all. A score means little by itself: read it against its \
     controls. With explanations dealt to other features it should fall to 0; what is left is what any explanation gets. And what random \
     directions or a model with random weights get is what can be explained without anything having been learned.";

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    let all = lines::lines(rows);
    section.html.push_str(&scorers::definitions(&lines::in_order(all.iter().map(|l| l.scorer.as_str()))));
    let sources = scorers::sources(&lines::explainers(&all));
    if !sources.is_empty() {
        section.paragraph(&sources);
    }
    let looks = Looks::of(all.iter().map(|l| l.subject.dictionary.clone()));
    by_layer(&mut section, &all, &looks)?;
    for hook in hooks_of(rows) {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        let lines = lines::lines(&here);
        section.hook_heading(&hook);
        tables::warning(&mut section, &lines);
        by_scorer(context, &mut section, &hook, &lines, &looks)?;
        tables::scores(&mut section, &lines);
        tables::agreement(&mut section, &here);
        let every = table::wide("All measurements at this hook; 95 % intervals in brackets.", &here, false);
        section.folded("All measurements, one line each", &every);
    }
    features::browser(&mut section, "autointerp", &context.features_of("autointerp"));
    Ok(section)
}

/// Chance-corrected scores over the layers, a panel for each scorer that was run on more than one.
fn by_layer(section: &mut Section, lines: &[Line<'_>], looks: &Looks) -> Result<(), ReportError> {
    let found: Vec<(&Line<'_>, &ResultRow)> = lines
        .iter()
        .filter(|l| l.subject.control.is_empty())
        .flat_map(|l| l.all("corrected_score").map(move |row| (l, row)))
        .collect();
    for site in layers::sites(found.iter().map(|(_, row)| *row)) {
        let mut panels: Vec<Panel> = Vec::new();
        for scorer in lines::in_order(found.iter().map(|(l, _)| l.scorer.as_str())) {
            let of_scorer: Vec<&(&Line<'_>, &ResultRow)> = found.iter().filter(|(l, _)| l.scorer == scorer).collect();
            let explainers = lines::explainers(of_scorer.iter().map(|(l, _)| *l));
            for explainer in &explainers {
                let here = of_scorer.iter().filter(|(l, _)| l.subject.explainer == *explainer);
                let measured: Vec<(Dictionary, &ResultRow)> =
                    here.map(|(l, row)| (l.subject.dictionary.clone(), *row)).collect();
                let title = with_explainer(&scorer, explainer, explainers.len() > 1);
                panels.extend(layers::panel(&title, "chance-corrected score", &site, &measured, looks));
            }
        }
        if panels.is_empty() {
            continue;
        }
        // The same axis in all, for they are to be compared.
        let points = panels.iter().flat_map(|p| &p.series).flat_map(|s| s.lines.iter().flatten());
        let ys: Vec<f64> = points.flat_map(|p| [Some(p.y), p.y_low, p.y_high]).flatten().collect();
        panels.iter_mut().for_each(|p| p.y.reach.clone_from(&ys));
        let caption = format!(
            "<b>Chance-corrected score by layer</b>, site <code>{}</code>, for each scorer that was run on several: mean over the scored \
             features of each dictionary; whiskers: 95 % interval. Points of one layer are set a little apart.",
            html(&site),
        );
        let (columns, height) = if panels.len() == 1 { (1, 300.0) } else { (2, 170.0) };
        let name = format!("autointerp-layers-{site}");
        section.figure(&name, "Chance-corrected score by layer", &caption, draw_grid(&panels, columns, height))?;
    }
    Ok(())
}

/// Rows of dots: for each scorer a group of dictionaries, with controls beside them.
fn by_scorer(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    lines: &[Line<'_>],
    looks: &Looks,
) -> Result<(), ReportError> {
    let scored: Vec<(&Line<'_>, &ResultRow)> =
        lines.iter().filter_map(|l| Some((l, l.get("corrected_score")?))).collect();
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for scorer in lines::in_order(scored.iter().map(|(l, _)| l.scorer.as_str())) {
        let here: Vec<(&Subject, &ResultRow)> =
            scored.iter().filter(|(l, _)| l.scorer == scorer).map(|(l, row)| (&l.subject, *row)).collect();
        let several = lines::explainers(lines.iter().filter(|l| l.scorer == scorer)).len() > 1;
        let all_the_same = lines::explainers(lines).len() < 2;
        let heading = with_explainer(&scorer, &here[0].0.explainer, !several && !all_the_same);
        // A control whose dictionary has no score of its own stands by itself.
        let leads = |s: &Subject| s.control.is_empty() || !here.iter().any(|(other, _)| s.is_control_of(other));
        let dots = here.iter().filter(|(s, _)| leads(s)).map(|(subject, row)| {
            let beside = here.iter().filter(|(s, _)| s.is_control_of(subject)).map(|(s, r)| Beside {
                value: r.value,
                low: r.ci_low,
                high: r.ci_high,
                style: control_style(&s.control),
            });
            let mut dot = Row {
                label: subject.label(several),
                group: heading.clone(),
                beside: beside.collect(),
                ..looks.row(&subject.dictionary, row, 2)
            };
            if !subject.control.is_empty() {
                dot.style = control_style(&subject.control);
            }
            dot
        });
        groups.push((scorer.clone(), dots.collect()));
    }
    if groups.iter().map(|(_, rows)| rows.len()).sum::<usize>() <= MOST_ROWS {
        let all = groups.into_iter().flat_map(|(_, rows)| rows).collect();
        return figure(context, section, hook, &scored, "", all);
    }
    for (scorer, rows) in groups {
        let of: Vec<(&Line<'_>, &ResultRow)> = scored.iter().filter(|(l, _)| l.scorer == scorer).copied().collect();
        figure(context, section, hook, &of, &format!("-{scorer}"), rows)?;
    }
    Ok(())
}

/// The rows of all scorers, or of the one in the name.
fn figure(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    scored: &[(&Line<'_>, &ResultRow)],
    name: &str,
    rows: Vec<Row>,
) -> Result<(), ReportError> {
    if rows.is_empty() {
        return Ok(());
    }
    let controls: Vec<&str> = scored.iter().map(|(l, _)| l.subject.control.as_str()).collect();
    let mut known: Vec<(&str, &str)> = CONTROLS.iter().map(|(key, words, _)| (*key, *words)).collect();
    known.retain(|(key, _)| controls.contains(key));
    let mut others: Vec<&str> =
        controls.into_iter().filter(|c| !c.is_empty() && !known.iter().any(|(key, _)| key == c)).collect();
    others.sort_unstable();
    others.dedup();
    let legend = known.into_iter().chain(others.into_iter().map(|c| (c, c))).map(|(key, words)| Entry {
        label: format!("control: {words}"),
        style: control_style(key),
        line: false,
        marker: true,
    });
    let own = scored.iter().filter(|(l, _)| l.subject.control.is_empty()).map(|(_, row)| *row);
    let n = if own.clone().next().is_some() { format!(", {}", table::n_in_words(own)) } else { String::new() };
    let caption = format!(
        "<b>Chance-corrected score by scorer</b> at {}: mean over the scored features{n}; whiskers: 95 % interval. 0: knows nothing; 1: \
         perfect. Numbers at the right edge are the means.",
        on_what(context, hook),
    );
    let chart = RowChart {
        axis: AxisSpec::linear("chance-corrected score (0: knows nothing, 1: perfect)").with_zero(),
        rows,
        // They also make the axes of all hooks and scorers the same.
        references: vec![("knows nothing".to_owned(), 0.0), ("perfect".to_owned(), 1.0)],
        bars: false,
        headed: true,
        legend: legend.collect(),
    };
    let alt = format!("Chance-corrected score by scorer at {hook}");
    section.figure(&format!("autointerp-{hook}{name}"), &alt, &caption, draw_rows(&chart))
}

/// A scorer, and where that says something the source of the explanations.
fn with_explainer(scorer: &str, explainer: &str, told: bool) -> String {
    if told && !explainer.is_empty() { format!("{scorer}, explanations: {explainer}") } else { scorer.to_owned() }
}

/// The look of a control, also of one that is not known.
fn control_style(control: &str) -> Style {
    of_control(CONTROLS.iter().find(|(key, ..)| *key == control).map_or(Shape::Plus, |(_, _, shape)| *shape))
}
