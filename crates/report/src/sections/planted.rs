//! Data made from known features: are they found again?

use super::{Context, Groups, Section, generator_of, label_of, method_order, sae_methods, sizes_of, style_of};
use crate::ReportError;
use crate::chart::{AxisSpec, Panel, Point, Reference, draw_grid};
use crate::escape::html;
use crate::number;
use crate::row::{ResultRow, Setting};
use crate::table;

pub(super) fn section(_: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(
        "Activations made by adding a few of many known directions, so that the truth is known. MMCS here is the mean, over the \
         true features, of the largest cosine with a learned latent: 1 when every feature is found.",
    );
    let generators = table::distinct(rows.iter().map(|r| Some(generator_of(r))));
    for generator_name in generators {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| generator_of(r) == generator_name).collect();
        if !generator_name.is_empty() {
            section.html.push_str(&format!("<h3>Generator: {}</h3>\n", html(&generator_name)));
        }
        let panels: Vec<Panel> = [
            ("mmcs", AxisSpec::linear("MMCS from true features to latents")),
            ("fvu", AxisSpec::linear("FVU (fraction of variance unexplained)").with_zero().capped(1.2)),
            ("l0", AxisSpec::log("L0 (active latents per sample, log scale)")),
            ("dead_latents", AxisSpec::linear("dead latents").with_zero()),
        ]
        .into_iter()
        .map(|(metric, y)| panel(&here, metric, y))
        .filter(|p| !p.series.is_empty())
        .collect();
        if !panels.is_empty() {
            let caption = format!(
                "<b>Planted features</b>{}: one line per dictionary size (R = latents / width) over the sparsity coefficient α. \
                 Broken lines: methods without α. {}; whiskers: 95 % interval where one was computed.",
                if generator_name.is_empty() {
                    String::new()
                } else {
                    format!(", generator {}", html(&generator_name))
                },
                table::n_in_words(here.iter().copied()),
            );
            let (columns, height) = if panels.len() == 1 { (1, 320.0) } else { (2, 200.0) };
            let name = format!("planted-{generator_name}");
            section.figure(
                &name,
                &format!("Planted features, {generator_name}"),
                &caption,
                draw_grid(&panels, columns, height),
            )?;
        }
        section.html.push_str(&table::wide("All measurements; 95 % intervals in brackets.", &here, false));
    }
    Ok(section)
}

fn panel(rows: &[&ResultRow], metric: &str, y: AxisSpec) -> Panel {
    let sizes = sizes_of(rows.iter().copied());
    let saes = sae_methods(rows.iter().copied());
    let mut groups = Groups::default();
    let mut references: Vec<Reference> = Vec::new();
    let mut points: Vec<(&ResultRow, Setting)> =
        rows.iter().filter(|r| r.metric == metric).map(|r| (*r, Setting::parse(&r.setting))).collect();
    points.sort_by(|a, b| method_order(&a.0.method, &b.0.method).then_with(|| a.1.cmp(&b.1)));
    for (row, setting) in points {
        let rest = setting.without(&["generator", "alpha", "seed"]);
        let Some(alpha) = setting.number("alpha") else {
            let label = format!("{} {}", label_of(&row.method, &rest), number::significant(row.value, 3));
            references.push(Reference { label, value: row.value });
            continue;
        };
        let point = Point::new(alpha, row.value, row.ci_low, row.ci_high);
        let style = style_of(&row.method, rest.get("ratio"), &sizes, &saes);
        groups.add(&row.method, rest, &setting, style, point);
    }
    let series = groups.into_series(false);
    Panel { title: String::new(), x: AxisSpec::log("α (sparsity coefficient, log scale)"), y, series, references }
}
