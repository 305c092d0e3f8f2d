//! Sweeps: every size with every coefficient at several places, on the same axes as the baselines, and which features come again.

use super::dictionary::pareto;
use super::planted_grid::heat;
use super::{Context, Section, hooks_of, label_of, on_what};
use crate::ReportError;
use crate::chart::{AxisSpec, Dash, Heat, Panel, Point, Series, Shape, Style, draw_grid, draw_heats};
use crate::escape::html;
use crate::palette;
use crate::row::{ResultRow, Setting};
use crate::table;

/// Metric, the comparison it belongs to (the first word of the setting `to`), title, and whether shades follow the logarithm.
const MAPS: [(&str, Option<&str>, &str, bool); 9] = [
    ("fvu", None, "FVU", true),
    ("l0", None, "L0", true),
    ("alive_latents", None, "alive latents", true),
    ("capacity", None, "capacity of a direction (dimensions)", false),
    ("skew", None, "skew of the codes", true),
    ("kurtosis", None, "kurtosis of the codes", true),
    ("mmcs", Some("seed"), "MMCS to another seed", false),
    ("matched_same", Some("seed"), "share paired above 0.9, other seed", false),
    ("mmcs", Some("ratio"), "MMCS to the next larger", false),
];

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(
        "Autoencoders of every size R (latents / width) with every coefficient α, each measured on the same held-out vectors as the baselines. A latent is alive when it is active on \
         more than 10 of these vectors. Skew and kurtosis are those of table 2 of the paper, E c³ / var^1.5 and E c⁴ / var², means over the latents that are alive. The capacity \
         of a direction is how much of a dimension it has for itself: 1 if it is at right angles to all others. MMCS: the mean over the latents that are alive of the largest cosine \
         with one of the other dictionary. Pairs: both dictionaries' latents matched one to one, so that the sum of cosines is the largest possible.",
    );
    for hook in hooks_of(rows) {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        let (between, own): (Vec<&ResultRow>, Vec<&ResultRow>) =
            here.iter().partition(|r| Setting::parse(&r.setting).get("to").is_some());
        section.hook_heading(&hook);
        pareto(context, &mut section, &hook, &first_seed(&own), &format!("sweep-fvu-l0-{hook}"))?;
        maps(context, &mut section, &hook, &here)?;
        alive(context, &mut section, &hook, &first_seed(&own))?;
        let all = table::wide("All measurements at this hook; 95 % intervals in brackets.", &own, false);
        section.folded("All measurements, one line each", &all);
        if !between.is_empty() {
            let caption = "From each dictionary to another: of another seed, the next larger, or the next layer.";
            section.folded("All comparisons of dictionaries, one line each", &table::wide(caption, &between, false));
        }
    }
    layers(&mut section, rows);
    Ok(section)
}

/// Rows without those of other seeds than the first that was named.
fn first_seed<'r>(rows: &[&'r ResultRow]) -> Vec<&'r ResultRow> {
    let seed = |row: &ResultRow| Setting::parse(&row.setting).get("seed").map(str::to_owned);
    let first = rows.iter().find_map(|row| seed(row));
    rows.iter().copied().filter(|row| seed(row).is_none() || seed(row) == first).collect()
}

fn maps(context: &Context<'_>, section: &mut Section, hook: &str, rows: &[&ResultRow]) -> Result<(), ReportError> {
    // The method that was swept over sizes: the one with comparisons, or else with most sizes.
    let sizes = |method: &str| {
        let of = rows.iter().filter(|r| r.method == method).map(|r| Setting::parse(&r.setting));
        table::distinct(of.filter(|s| s.get("alpha").is_some()).map(|s| s.get("ratio").map(str::to_owned))).len()
    };
    let methods = table::distinct(rows.iter().map(|r| Some(r.method.clone())));
    let Some(method) = methods.iter().rev().max_by_key(|method| sizes(method)) else { return Ok(()) };
    let of_method: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.method == *method).collect();
    let of_method = first_seed(&of_method);
    let map = |&(metric, to, title, log): &(&str, Option<&str>, &str, bool)| -> Option<Heat> {
        let is_meant = |row: &&&ResultRow| {
            let setting = Setting::parse(&row.setting);
            setting.get("to").map(|to| to.split(' ').next().unwrap_or("")) == to
        };
        heat(&of_method.iter().filter(is_meant).copied().collect::<Vec<_>>(), (metric, title, log))
    };
    let maps: Vec<Heat> = MAPS.iter().filter_map(map).filter(|map| map.x.1.len() > 1).collect();
    if maps.is_empty() {
        return Ok(());
    }
    let caption = format!(
        "<b>{} at {}</b>: every size (down) with every coefficient (across). {}.",
        html(method),
        on_what(context, hook),
        table::n_in_words(of_method.iter().copied().filter(|r| r.metric == "fvu")),
    );
    section.figure(
        &format!("sweep-maps-{hook}"),
        &format!("Sweep over size and coefficient at {hook}"),
        &caption,
        draw_heats(&maps, 2),
    )
}

/// Figure 16 of the paper: how many latents are alive in a dictionary of so many.
fn alive(context: &Context<'_>, section: &mut Section, hook: &str, rows: &[&ResultRow]) -> Result<(), ReportError> {
    let mut lines: Vec<(String, Setting, Vec<Point>)> = Vec::new();
    let mut alphas: Vec<f64> = Vec::new();
    for row in rows.iter().filter(|r| r.metric == "alive_latents" && palette::family(&r.method) == "sae") {
        let same = |r: &&&ResultRow| r.metric == "n_latents" && r.method == row.method && r.setting == row.setting;
        let Some(all) = rows.iter().find(same) else { continue };
        let setting = Setting::parse(&row.setting).without(&["ratio", "seed"]);
        let point = Point::new(all.value, row.value, None, None);
        alphas.extend(setting.number("alpha"));
        match lines.iter_mut().find(|(method, of, _)| *method == row.method && *of == setting) {
            Some((_, _, line)) => line.push(point),
            None => lines.push((row.method.clone(), setting, vec![point])),
        }
    }
    lines.retain(|(_, _, line)| line.len() > 1);
    if lines.is_empty() {
        return Ok(());
    }
    alphas.sort_by(f64::total_cmp);
    alphas.dedup();
    let series = lines.into_iter().map(|(method, setting, mut line)| {
        line.sort_by(|a, b| a.x.total_cmp(&b.x));
        let place = setting.number("alpha").and_then(|alpha| alphas.iter().position(|a| *a == alpha)).unwrap_or(0);
        let colour = palette::ordered(place, alphas.len());
        Series {
            label: label_of(&method, &setting),
            style: Style { colour, shape: Shape::Circle, filled: true, dash: Dash::Solid },
            lines: vec![line],
            markers: true,
            band: false,
            direct: false,
        }
    });
    let panel = Panel {
        title: String::new(),
        x: AxisSpec::log("latents (log scale)"),
        y: AxisSpec::log("alive latents (log scale)"),
        series: series.collect(),
        references: Vec::new(),
    };
    let caption = format!(
        "<b>Alive latents against all</b> at {} (figure 16 of the paper). A dictionary without dead latents lies on the diagonal.",
        on_what(context, hook)
    );
    let name = format!("sweep-alive-{hook}");
    section.figure(&name, &format!("Alive latents at {hook}"), &caption, draw_grid(&[panel], 1, 260.0))
}

/// Comparisons with the next layer.
fn layers(section: &mut Section, rows: &[&ResultRow]) {
    let to_layer = |row: &&&ResultRow| {
        Setting::parse(&row.setting).get("to").is_some_and(|to| !to.starts_with("seed ") && !to.starts_with("ratio "))
    };
    let rows: Vec<&ResultRow> = rows.iter().filter(to_layer).copied().collect();
    if !rows.is_empty() {
        section.html.push_str("<h3>From layer to layer</h3>\n");
        let caption = "How far the directions that are alive at one layer come again at the next one that was swept: MMCS, and matched one to one.";
        section.html.push_str(&table::wide(caption, &rows, true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Extras, Provenance};

    fn row(setting: String, metric: &str, value: f64) -> ResultRow {
        ResultRow {
            experiment: "sweep".into(),
            method: "sae-tied".into(),
            hook: "blocks.3.hook_resid_post".into(),
            setting,
            metric: metric.into(),
            value,
            ci_low: None,
            ci_high: None,
            n: 100,
            unit: "1".into(),
        }
    }

    #[test]
    fn a_sweep_is_a_frontier_maps_and_counts_of_the_first_seed() {
        let mut rows = Vec::new();
        for (i, ratio) in [1, 2].into_iter().enumerate() {
            for (j, alpha) in [0.001, 0.01].into_iter().enumerate() {
                let of = format!("ratio={ratio},alpha={alpha}");
                for seed in [7, 8] {
                    let setting = || format!("{of},seed={seed}");
                    let value = 0.125 * (1 + i + 2 * j) as f64 * f64::from(seed - 6);
                    rows.push(row(setting(), "fvu", value));
                    rows.push(row(setting(), "l0", 64.0 * value));
                    rows.push(row(setting(), "alive_latents", 100.0 * f64::from(ratio)));
                    rows.push(row(setting(), "n_latents", 128.0 * f64::from(ratio)));
                }
                rows.push(row(format!("{of},to=seed 8"), "mmcs", 0.375));
                rows.push(row(format!("{of},to=blocks.4.hook_resid_post"), "mmcs", 0.25));
            }
        }
        let provenance = Provenance::default();
        let context = Context { rows: &rows, extras: Extras::default(), provenance: &provenance };
        let built = section(&context, &rows.iter().collect::<Vec<_>>()).unwrap();
        let svg = |name: &str| {
            let name = format!("sweep-{name}-blocks.3.hook-resid-post");
            &built.figures.iter().find(|figure| figure.0 == name).unwrap_or_else(|| panic!("no figure {name}")).1
        };
        // FVU of the first seed alone: 1/8 to 4/8, not 2/8 to 8/8.
        let maps = svg("maps");
        assert!(maps.contains("0.500") && maps.contains("0.375") && !maps.contains(">1<"), "{maps}");
        assert!(maps.contains("MMCS to another seed") && !maps.contains("next larger"), "{maps}");
        assert!(svg("fvu-l0").contains("FVU") && svg("alive").contains("alive latents"));
        assert!(built.html.contains("From layer to layer") && built.html.contains("blocks.4.hook_resid_post"));
    }
}
