//! How well short explanations predict features: by method, by layer, by length, and against skew and kurtosis.

use super::look::{self, Dictionary, Looks};
use super::{Context, Groups, Section, features, hooks_of, layers, on_what};
use crate::chart::{AxisSpec, Beside, Entry, Panel, Point, Row, RowChart, Series, draw_grid, draw_rows};
use crate::escape::html;
use crate::row::{ResultRow, Setting};
use crate::{FeatureExample, ReportError, number, table};

/// Keys of a setting that say how a dictionary was scored, not which it is.
const MEASURED: [&str; 4] = ["patterns", "bits", "control", "seed"];

/// Patterns in an explanation that one sentence can hold: the length at which methods are compared.
const SENTENCE: &str = "5";

/// More bands than these over one another are a fog.
const MOST_BANDS: usize = 8;

/// Fewer points than this are no cloud.
const FEWEST_POINTS: usize = 20;

const READING: &str = "Each feature is explained by a short list of patterns (the token, its class, what came before), found on some documents; the \
     list then predicts the activations on other documents, and the score is the correlation of prediction and truth. 1: the \
     explanation says everything; 0: nothing. What counts is how much a <em>short</em> explanation says: a long enough list describes \
     any direction, also one that mixes many things, while a feature that means one thing needs few words.";

pub(super) fn section(context: &Context<'_>, rows: &[&ResultRow]) -> Result<Section, ReportError> {
    let mut section = Section::new("");
    section.paragraph(READING);
    // What the text was is said of the model, which has no features.
    let (text, rows): (Vec<&ResultRow>, Vec<&ResultRow>) = rows.iter().partition(|r| r.method == "model");
    let rows = &rows[..];
    let looks = Looks::of(rows.iter().map(|r| Dictionary::of(r, &MEASURED)));
    let headline = headline(rows);
    let examples = context.features_of("interp");
    if let Some(patterns) = &headline {
        by_layer(&mut section, rows, &looks, patterns)?;
    }
    for hook in hooks_of(rows) {
        let here: Vec<&ResultRow> = rows.iter().copied().filter(|r| r.hook == hook).collect();
        section.hook_heading(&hook);
        sample(&mut section, &text.iter().copied().filter(|r| r.hook == hook).collect::<Vec<_>>(), &here);
        if let Some(patterns) = &headline {
            by_method(context, &mut section, &hook, &here, &looks, patterns)?;
        }
        by_length(context, &mut section, &hook, &here, &looks)?;
        against_kurtosis(&mut section, &hook, &examples)?;
        tables(&mut section, &here, headline.as_deref());
    }
    features::browser(&mut section, "interp", &examples);
    Ok(section)
}

/// On how many features and fragments everything below rests, in words.
fn sample(section: &mut Section, text: &[&ResultRow], rows: &[&ResultRow]) {
    let value = |metric: &str| Some(number::value(text.iter().find(|r| r.metric == metric)?.value));
    let fragments = || {
        let (fragments, tokens, documents) = (value("fragments")?, value("fragment_tokens")?, value("documents")?);
        let (explain, top, random) =
            (value("explain_fragments")?, value("score_fragments_top")?, value("score_fragments_random")?);
        Some(format!(
            "Looked at were {fragments} fragments of {tokens} tokens each, from {documents} documents. A feature is explained from at most \
             {explain} fragments on which it is active, and scored on others: the {top} on which it is strongest, and {random} random ones."
        ))
    };
    let mut scored: Vec<(Dictionary, &ResultRow)> =
        rows.iter().filter(|r| r.metric == "scored_features").map(|r| (Dictionary::of(r, &["patterns"]), *r)).collect();
    scored.sort_by(|a, b| a.0.cmp(&b.0));
    let of = |(dictionary, row): &(Dictionary, &ResultRow)| {
        format!("{} of {} of {}", number::value(row.value), number::count(row.n), html(&dictionary.label()))
    };
    let scored: Vec<String> = scored.iter().map(of).collect();
    let scored = (!scored.is_empty()).then(|| format!("Features scored, of those looked at: {}.", scored.join("; ")));
    let words: Vec<String> = fragments().into_iter().chain(scored).collect();
    if !words.is_empty() {
        section.paragraph(&words.join(" "));
    }
}

/// The number of patterns at which methods are compared: that of a sentence, or else the least there is.
fn headline(rows: &[&ResultRow]) -> Option<String> {
    let lengths = table::distinct(rows.iter().map(|r| Setting::parse(&r.setting).get("patterns").map(str::to_owned)));
    lengths.iter().find(|l| *l == SENTENCE).or(lengths.first()).cloned()
}

/// The headline scores: of the dictionaries as they are, or of one control.
fn scores<'r>(rows: &[&'r ResultRow], patterns: &str, control: Option<&str>) -> Vec<(Dictionary, &'r ResultRow)> {
    let mut found: Vec<(Dictionary, &ResultRow)> = rows
        .iter()
        .filter(|r| r.metric == "interp_score")
        .filter(|r| {
            let setting = Setting::parse(&r.setting);
            setting.get("patterns") == Some(patterns) && setting.get("control") == control
        })
        .map(|r| (Dictionary::of(r, &MEASURED), *r))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The paper's Fig. 2: scores over the layers, where more than one was measured.
fn by_layer(section: &mut Section, rows: &[&ResultRow], looks: &Looks, patterns: &str) -> Result<(), ReportError> {
    let found = scores(rows, patterns, None);
    for of_site in layers::sites(found.iter().map(|(_, r)| *r)) {
        let Some(panel) = layers::panel("", &format!("score with {patterns} patterns"), &of_site, &found, looks) else {
            continue;
        };
        let caption = format!(
            "<b>Score by layer</b>, site <code>{}</code>: mean over the scored features of each dictionary, with explanations of \
             {} patterns; whiskers: 95 % interval. Points of one layer are set a little apart.",
            html(&of_site),
            html(patterns),
        );
        section.figure(
            &format!("interp-layers-{of_site}"),
            "Score by layer",
            &caption,
            draw_grid(&[panel], 1, 320.0),
        )?;
    }
    Ok(())
}

fn by_method(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    rows: &[&ResultRow],
    looks: &Looks,
    patterns: &str,
) -> Result<(), ReportError> {
    let mut legend = Vec::new();
    let mut control_dots: Vec<(Dictionary, Beside)> = Vec::new();
    for (control, words, style) in
        look::CONTROLS.map(|(control, words, shape)| (control, words, look::of_control(shape)))
    {
        let found = scores(rows, patterns, Some(control));
        if !found.is_empty() {
            legend.push(Entry { label: format!("control: {words}"), style, line: false, marker: true });
        }
        let dot = |r: &ResultRow| Beside { value: r.value, low: r.ci_low, high: r.ci_high, style };
        control_dots.extend(found.into_iter().map(|(dictionary, row)| (dictionary, dot(row))));
    }
    let found = scores(rows, patterns, None);
    if found.is_empty() {
        return Ok(());
    }
    let dots = found
        .iter()
        .map(|(dictionary, row)| Row {
            beside: control_dots.iter().filter(|(d, _)| d == dictionary).map(|(_, dot)| dot.clone()).collect(),
            ..looks.row(dictionary, row, 2)
        })
        .collect();
    let axis = AxisSpec::linear(format!("score with {patterns} patterns (correlation)")).with_zero();
    let chart = RowChart { axis, rows: dots, references: Vec::new(), bars: false, headed: false, legend };
    let caption = format!(
        "<b>Score by method</b> at {}, with explanations of {} patterns; mean over scored features, {}; whiskers: 95 % interval.",
        on_what(context, hook),
        html(patterns),
        table::n_in_words(found.iter().map(|(_, r)| *r)),
    );
    section.figure(&format!("interp-{hook}"), &format!("Score by method at {hook}"), &caption, draw_rows(&chart))
}

fn by_length(
    context: &Context<'_>,
    section: &mut Section,
    hook: &str,
    rows: &[&ResultRow],
    looks: &Looks,
) -> Result<(), ReportError> {
    let panels: Vec<Panel> =
        [("patterns", "patterns in the explanation (log scale)"), ("bits", "bits of the explanation (log scale)")]
            .into_iter()
            .map(|(key, title)| {
                let mut groups = Groups::default();
                for row in rows.iter().filter(|r| r.metric == "interp_score") {
                    let setting = Setting::parse(&row.setting);
                    let (Some(length), None) = (setting.number(key), setting.get("control")) else { continue };
                    let dictionary = Dictionary::of(row, &MEASURED);
                    let point = Point::new(length, row.value, row.ci_low, row.ci_high);
                    let style = looks.style(&dictionary);
                    groups.add(&dictionary.method, dictionary.setting, &setting, style, point);
                }
                let mut series = groups.into_series(false);
                series.iter_mut().for_each(|s| s.band = s.lines.iter().any(|l| l.len() > 1));
                if series.len() > MOST_BANDS {
                    series.iter_mut().flat_map(|s| s.lines.iter_mut().flatten()).for_each(without_interval);
                }
                let y = AxisSpec::linear("score (correlation)").with_zero();
                Panel { title: String::new(), x: AxisSpec::log(title), y, series, references: Vec::new() }
            })
            // A single length is in the figure above.
            .filter(|panel| panel.series.iter().any(|s| s.band))
            .collect();
    if panels.is_empty() {
        return Ok(());
    }
    let bands = if panels.iter().all(|p| p.series.len() <= MOST_BANDS) {
        "Bands: 95 % interval."
    } else {
        "The intervals, which would cover each other here, are in the tables below."
    };
    let caption = format!(
        "<b>Score against length of the explanation</b> at {}: the first patterns of each explanation, or as many as fit into so many \
         bits. {bands} Read the left end: there an explanation is short enough to be one.",
        on_what(context, hook),
    );
    let (columns, height) = if panels.len() == 1 { (1, 320.0) } else { (2, 260.0) };
    section.figure(
        &format!("interp-length-{hook}"),
        &format!("Score against length of the explanation at {hook}"),
        &caption,
        draw_grid(&panels, columns, height),
    )
}

fn without_interval(point: &mut Point) {
    (point.y_low, point.y_high) = (None, None);
}

/// One point per feature of the features file that has a score and a kurtosis.
fn against_kurtosis(section: &mut Section, hook: &str, examples: &[&FeatureExample]) -> Result<(), ReportError> {
    let mut points: Vec<(Dictionary, Point)> = examples
        .iter()
        .filter(|f| f.hook == hook)
        .filter_map(|f| {
            let dictionary = Dictionary { method: f.method.clone(), setting: Setting::parse(&f.setting) };
            let x = f.kurtosis.filter(|k| *k > 0.0)?;
            Some((dictionary, Point::new(x, f.score?, None, None)))
        })
        .collect();
    if points.len() < FEWEST_POINTS {
        return Ok(());
    }
    points.sort_by(|a, b| a.0.cmp(&b.0));
    let looks = Looks::of(points.iter().map(|(d, _)| d.clone()));
    let count = points.len();
    let series = looks.all.iter().map(|dictionary| Series {
        label: dictionary.label(),
        style: looks.style(dictionary),
        lines: points.iter().filter(|(d, _)| d == dictionary).map(|(_, p)| vec![*p]).collect(),
        markers: true,
        band: false,
        direct: false,
    });
    let panel = Panel {
        title: String::new(),
        x: AxisSpec::log("kurtosis of the activations (uncentred, log scale)"),
        y: AxisSpec::linear("score (correlation)"),
        series: series.collect(),
        references: Vec::new(),
    };
    let caption = format!(
        "<b>Score against kurtosis</b> at <code>{}</code>: one point for each of the {} features of <code>features.json</code>. A high \
         kurtosis means rarely active, and then strongly.",
        html(hook),
        number::count(count as u64),
    );
    section.figure(
        &format!("interp-kurtosis-{hook}"),
        &format!("Score against kurtosis at {hook}"),
        &caption,
        draw_grid(&[panel], 1, 280.0),
    )
}

fn tables(section: &mut Section, rows: &[&ResultRow], headline: Option<&str>) {
    let (short, other): (Vec<&ResultRow>, Vec<&ResultRow>) = rows.iter().partition(|r| {
        let setting = Setting::parse(&r.setting);
        setting.get("bits").is_none() && setting.get("patterns").is_none_or(|p| Some(p) == headline)
    });
    // One length for all, which the captions give.
    let short: Vec<ResultRow> = short.into_iter().map(|r| without(r, "patterns")).collect();
    let (moments, scores): (Vec<&ResultRow>, Vec<&ResultRow>) =
        short.iter().partition(|r| matches!(r.metric.as_str(), "skew_correlation" | "kurtosis_correlation"));
    let (controls, scores): (Vec<&ResultRow>, Vec<&ResultRow>) =
        scores.into_iter().partition(|r| Setting::parse(&r.setting).get("control").is_some());
    let length = headline.map_or_else(String::new, |p| format!(" with explanations of {} patterns", html(p)));
    let wide = |rows: &[&ResultRow], caption: String| match rows {
        [] => String::new(),
        rows => table::wide(&caption, rows, false),
    };
    section.html.push_str(&wide(
        &scores,
        format!(
            "Scores{length}: on all held-out fragments, on those of the largest activations only, and on random ones only, with the difference of \
             the two, feature by feature. A feature active on too few fragments is unscored; the last score counts those as 0."
        ),
    ));
    section
        .html
        .push_str(&wide(&controls, format!("Controls{length}: what a score is worth when there is nothing to find.")));
    section.html.push_str(&wide(
        &moments,
        format!(
            "Do scores{length} go with skew and kurtosis of the activations? Correlations over the scored features."
        ),
    ));
    if !other.is_empty() {
        let all = wide(&other, "Scores with explanations of other lengths; 95 % intervals in brackets.".to_owned());
        section.folded("Scores with explanations of other lengths, as a table", &all);
    }
}

/// The row with one key less in its setting.
fn without(row: &ResultRow, key: &str) -> ResultRow {
    let pairs = Setting::parse(&row.setting).without(&[key]).0;
    let setting: Vec<String> =
        pairs.into_iter().map(|(k, v)| if k.is_empty() { v } else { format!("{k}={v}") }).collect();
    ResultRow { setting: setting.join(","), ..row.clone() }
}
