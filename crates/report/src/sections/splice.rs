//! What the language model loses when its activation is replaced by the reconstruction.

use super::dictionary::against_l0;
use super::look::{Dictionary, Looks};
use super::{Context, Section, hooks_of, label_of, layers, method_order, on_what, sae_methods, sizes_of, style_of};
use crate::ReportError;
use crate::chart::{AxisSpec, Panel, Reference, Row, RowChart, draw_grid, draw_rows};
use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting};
use crate::table;

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(
        "The activation at the hook is replaced by its reconstruction on held-out text, and the rest of the model runs on. \
         What was lost is what the model needed. References: nothing replaced (none), and the activation replaced by its mean \
         or by zero.",
    );
    by_layer(&mut section, rows)?;
    let l0_rows = context.of("dictionary");
    let mut hooks = hooks_of(rows);
    // References without a hook serve every hook; on their own they still deserve a table.
    if hooks.len() > 1 {
        hooks.retain(|h| !h.is_empty());
    }
    for hook in hooks {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook || r.hook.is_empty()).collect();
        section.hook_heading(&hook);
        let metric = ["perplexity", "ce_loss"].into_iter().find(|m| here.iter().any(|r| r.metric == *m));
        if let Some(metric) = metric {
            by_method(context, &mut section, &hook, &here, metric)?;
            over_l0(context, &mut section, &hook, &here, &l0_rows, metric)?;
        }
        section.html.push_str(&table::wide("All measurements at this hook; 95 % intervals in brackets.", &here, false));
    }
    Ok(section)
}

/// The share of the loss that is recovered over the layers, where more than one was measured.
fn by_layer(section: &mut Section, rows: &[&ResultRow]) -> Result<(), ReportError> {
    let measured: Vec<(Dictionary, &ResultRow)> = rows
        .iter()
        .filter(|r| r.metric == "loss_recovered" && !r.hook.is_empty())
        .map(|r| (Dictionary::of(r, &[]), *r))
        .collect();
    // A k that is an autoencoder's L0 differs from layer to layer; what has a point at one layer only has no line.
    let often = |dictionary: &Dictionary| measured.iter().filter(|(other, _)| other == dictionary).count() > 1;
    let measured: Vec<(Dictionary, &ResultRow)> = measured.iter().filter(|(d, _)| often(d)).cloned().collect();
    let looks = Looks::of(measured.iter().map(|(dictionary, _)| dictionary.clone()));
    for site in layers::sites(measured.iter().map(|(_, r)| *r)) {
        let Some(mut panel) = layers::panel("", "loss recovered", &site, &measured, &looks) else { continue };
        panel.y = AxisSpec::linear("loss recovered (1: nothing lost, 0: as zero ablation)").with_zero().capped(1.05);
        let caption = format!(
            "<b>Loss recovered by layer</b>, site <code>{}</code>: (loss with zeros - loss spliced in) / (loss with zeros - loss as it is), so that              zero ablation is 0 and the activation itself 1; mean ablation is among the lines. Whiskers: 95 % interval over contexts.",
            html(&site)
        );
        let name = format!("splice-layers-{site}");
        section.figure(&name, "Loss recovered by layer", &caption, draw_grid(&[panel], 1, 300.0))?;
    }
    Ok(())
}

fn axis_title(metric: &str) -> &'static str {
    if metric == "perplexity" { "perplexity (per token, log scale)" } else { "cross-entropy (nats per token)" }
}

fn axis(metric: &str) -> AxisSpec {
    if metric == "perplexity" { AxisSpec::log(axis_title(metric)) } else { AxisSpec::linear(axis_title(metric)) }
}

/// The rows that say what happens without any dictionary: name and value, smallest first.
fn references(rows: &[&ResultRow], metric: &str) -> Vec<(String, f64)> {
    let mut found: Vec<(String, f64)> = rows
        .iter()
        .filter(|r| r.metric == metric)
        .filter_map(|r| {
            let setting = Setting::parse(&r.setting);
            let name = match setting.get("ablation")? {
                "none" => "nothing replaced".to_owned(),
                other => format!("{other} ablation"),
            };
            Some((format!("{name} {}", number::significant(r.value, 3)), r.value))
        })
        .collect();
    found.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
    found.dedup();
    found
}

fn is_reference(row: &ResultRow) -> bool {
    Setting::parse(&row.setting).get("ablation").is_some()
}

fn by_method(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    rows: &[&ResultRow],
    metric: &str,
) -> Result<(), ReportError> {
    let sizes = sizes_of(rows.iter().copied());
    let saes = sae_methods(rows.iter().copied());
    let mut measured: Vec<(&ResultRow, Setting)> = rows
        .iter()
        .filter(|r| r.metric == metric && !is_reference(r))
        .map(|r| (*r, Setting::parse(&r.setting)))
        .collect();
    measured.sort_by(|a, b| method_order(&a.0.method, &b.0.method).then_with(|| a.1.cmp(&b.1)));
    let dots: Vec<Row> = measured
        .iter()
        .map(|(row, setting)| Row {
            label: label_of(&row.method, setting),
            value: row.value,
            low: row.ci_low,
            high: row.ci_high,
            text: number::significant(row.value, 4),
            style: style_of(&row.method, setting.get("ratio"), &sizes, &saes),
            group: format!("{} {}", row.method, setting.get("ratio").unwrap_or("")),
            beside: Vec::new(),
        })
        .collect();
    let references = references(rows, metric);
    if dots.is_empty() && references.is_empty() {
        return Ok(());
    }
    let name = number::metric(metric);
    let caption = format!(
        "<b>{} with the reconstruction spliced in</b> at {}; {} predicted tokens of held-out text. Lower is better; broken lines: \
         nothing replaced, and mean or zero ablation of the same activation. Whiskers: 95 % interval where one was computed.",
        if metric == "perplexity" { "Perplexity" } else { "Cross-entropy" },
        on_what(context, hook),
        table::n_in_words(rows.iter().copied().filter(|r| r.metric == metric)),
    );
    let chart = RowChart { axis: axis(metric), rows: dots, references, bars: false, headed: false, legend: Vec::new() };
    section.figure(&format!("splice-{hook}"), &format!("{name} by method at {hook}"), &caption, draw_rows(&chart))
}

/// The fair comparison: the same numbers at the L0 they were bought with.
fn over_l0(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    rows: &[&ResultRow],
    l0_rows: &[&ResultRow],
    metric: &str,
) -> Result<(), ReportError> {
    let measured: Vec<&ResultRow> = rows.iter().copied().filter(|r| !is_reference(r)).collect();
    let series = against_l0(&measured, l0_rows, metric);
    if series.iter().map(|s| s.lines.iter().map(Vec::len).sum::<usize>()).sum::<usize>() < 2 {
        return Ok(());
    }
    let references = references(rows, metric).into_iter().map(|(label, value)| Reference { label, value }).collect();
    let panel = Panel {
        title: String::new(),
        x: AxisSpec::log("L0 (active latents per vector, log scale)"),
        y: axis(metric),
        series,
        references,
    };
    let caption = format!(
        "<b>The same against L0</b> at {}. L0 is that of the section on dictionaries (held-out activation vectors).",
        on_what(context, hook),
    );
    let name = format!("splice-l0-{hook}");
    section.figure(
        &name,
        &format!("{} against L0 at {hook}", number::metric(metric)),
        &caption,
        draw_grid(&[panel], 1, 320.0),
    )
}
