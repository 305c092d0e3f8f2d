//! The page: header, sections, timings, glossary, profile; nothing in it leads outside.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::case_study::CaseStudy;
use crate::circuit::Circuit;
use crate::escape::{html, slug};
use crate::feature::FeatureExample;
use crate::palette;
use crate::provenance::{NodeInfo, Provenance};
use crate::row::{ResultRow, in_order, write_whole};
use crate::sections::{self, Context, Section};
use crate::table::{self, Cell};
use crate::{ReportError, entries, number};

const STYLE: &str = include_str!("assets/report.css");
const SCRIPT: &str = include_str!("assets/report.js");
const GLOSSARY: &str = include_str!("assets/glossary.html");

/// A figure of the report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Figure {
    /// File name without extension: lower case letters, digits, dots and hyphens.
    pub name: String,
    /// A whole SVG document, for a white page.
    pub svg: String,
}

/// A finished report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rendered {
    /// One self-contained page, figures included.
    pub html: String,
    /// The figures again, in the order of the page.
    pub figures: Vec<Figure>,
}

impl Rendered {
    /// Writes `report.html` and `figures/<name>.svg` into `folder`, which is made if need be. Each file appears whole or not at all.
    ///
    /// # Errors
    /// A folder cannot be made or a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        let figures = folder.join("figures");
        fs::create_dir_all(&figures).map_err(|source| ReportError::Io { path: figures.clone(), source })?;
        for figure in &self.figures {
            let svg = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", figure.svg);
            write_whole(&figures.join(format!("{}.svg", figure.name)), svg.as_bytes())?;
        }
        write_whole(&folder.join("report.html"), self.html.as_bytes())
    }
}

/// What a report shows besides numbers; any of it may be empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'e> {
    /// Features with text they are active on; of each dictionary the first ones are shown.
    pub features: &'e [FeatureExample],
    /// Graphs of features for the section of experiment `circuit`.
    pub circuits: &'e [Circuit],
    /// Histograms and effects of single features for the section of experiment `case-study`.
    pub case_studies: &'e [CaseStudy],
}

impl Extras<'_> {
    fn check(&self) -> Result<(), ReportError> {
        self.features.iter().try_for_each(FeatureExample::check)?;
        entries::check(self.circuits, None)?;
        entries::check(self.case_studies, None)
    }
}

/// Renders a report. The same rows, in whatever order, the same extras and the same provenance give the same bytes.
///
/// # Errors
/// A row, feature, circuit or case study holds a number that is not finite or lists and indices that do not fit (it is named), or
/// the plotting library fails.
pub fn render(rows: &[ResultRow], extras: Extras<'_>, provenance: &Provenance) -> Result<Rendered, ReportError> {
    rows.iter().try_for_each(ResultRow::check)?;
    extras.check()?;
    let rows: Vec<ResultRow> = in_order(rows).into_iter().cloned().collect();
    let context = Context { rows: &rows, extras, provenance };

    let mut sections: Vec<(String, Section)> = Vec::new();
    let mut left_out: Vec<&str> = Vec::new();
    for (experiment, title, _) in sections::KNOWN {
        if !context.has(experiment) {
            left_out.push(experiment);
            continue;
        }
        let mut section = sections::build(&context, experiment)?;
        section.title = html(title);
        sections.push((experiment.to_owned(), section));
    }
    if let Some(mut section) = sections::fidelity::section(&context) {
        section.title = "The paper, place by place".to_owned();
        let after_claims = usize::from(sections.first().is_some_and(|(experiment, _)| experiment == "claims"));
        sections.insert(after_claims, ("fidelity".to_owned(), section));
    }
    let others: BTreeSet<&str> = rows
        .iter()
        .map(|r| r.experiment.as_str())
        .chain(extras.features.iter().map(|f| f.experiment.as_str()))
        .collect();
    for experiment in others {
        if !sections::KNOWN.iter().any(|(name, _, _)| *name == experiment) {
            let mut section = sections::build(&context, experiment)?;
            section.title = format!("Experiment: {}", html(experiment));
            sections.push((experiment.to_owned(), section));
        }
    }

    let figures = sections
        .iter()
        .flat_map(|(_, section)| {
            section.figures.iter().map(|(name, svg)| Figure { name: name.clone(), svg: svg.clone() })
        })
        .collect();
    Ok(Rendered { html: page(&context, &sections, &left_out), figures })
}

fn page(context: &Context<'_>, sections: &[(String, Section)], left_out: &[&str]) -> String {
    let p = context.provenance;
    let title = if p.title.is_empty() { "Report".to_owned() } else { html(&p.title) };
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{STYLE}\n\
         @media screen and (prefers-color-scheme: dark) {{\n{}}}\n</style>\n</head>\n<body>\n",
        palette::dark_rules()
    );
    header(&mut out, context, &title);
    contents(&mut out, sections);
    for (i, (experiment, section)) in sections.iter().enumerate() {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(out, "<section id=\"s{i}-{}\">\n<h2>{}</h2>", slug(experiment), section.title);
        out.push_str(&section.html);
        source(&mut out, context, experiment);
        out.push_str("</section>\n");
    }
    if !left_out.is_empty() {
        let names: Vec<String> = left_out.iter().map(|name| format!("<code>{}</code>", html(name))).collect();
        let _ = writeln!(
            out,
            "<p class=\"source\">Left out, because this run has no such results: {}.</p>",
            names.join(", ")
        );
    }
    timings(&mut out, &p.nodes);
    let _ = writeln!(out, "<section id=\"how-to-read\">\n<h2>How to read this</h2>\n{GLOSSARY}</section>");
    if !p.profile_toml.is_empty() {
        let _ = writeln!(
            out,
            "<section id=\"profile\">\n<h2>Profile</h2>\n<details><summary>The resolved profile{}, as TOML</summary>\
             <pre>{}</pre></details>\n</section>",
            if p.profile.is_empty() { String::new() } else { format!(" <code>{}</code>", html(&p.profile)) },
            html(&p.profile_toml)
        );
    }
    let _ = writeln!(
        out,
        "<footer>Made by monosem {}.</footer>\n<script>\n{SCRIPT}</script>\n</body>\n</html>",
        html(&p.version)
    );
    out
}

fn header(out: &mut String, context: &Context<'_>, title: &str) {
    let p = context.provenance;
    let _ = writeln!(out, "<header>\n<h1>{title}</h1>\n<dl class=\"facts\">");
    let seconds: f64 = p.nodes.iter().map(|n| n.seconds).filter(|s| s.is_finite()).sum();
    let cached = p.nodes.iter().filter(|n| n.cached).count();
    let work = format!(
        "{} nodes, {}{}",
        p.nodes.len(),
        number::duration(seconds),
        if cached == 0 { String::new() } else { format!(" ({cached} of them taken from the store)") }
    );
    let facts = [
        ("Model", p.model.as_str()),
        ("Text", p.text.as_str()),
        ("Profile", p.profile.as_str()),
        ("Numbers", &format!("{} rows of results.json", number::count(context.rows.len() as u64))),
        ("Work", if p.nodes.is_empty() { "" } else { &work }),
        ("Version", p.version.as_str()),
    ];
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", html(value));
    }
    out.push_str("</dl>\n");
    if !p.notes.is_empty() {
        out.push_str("<div class=\"notes\"><h2>Read this first</h2><ul>\n");
        for note in &p.notes {
            let _ = writeln!(out, "<li>{}</li>", html(note));
        }
        out.push_str("</ul></div>\n");
    }
    out.push_str("</header>\n");
}

fn contents(out: &mut String, sections: &[(String, Section)]) {
    out.push_str("<nav aria-label=\"Contents\"><ul>\n");
    for (i, (experiment, section)) in sections.iter().enumerate() {
        let _ = writeln!(out, "<li><a href=\"#s{i}-{}\">{}</a></li>", slug(experiment), section.title);
        for (id, title) in &section.parts {
            let _ = writeln!(out, "<li><a href=\"#{id}\">{title}</a></li>");
        }
    }
    out.push_str("<li><a href=\"#timings\">Timings</a></li>\n<li><a href=\"#how-to-read\">How to read this</a></li>\n</ul></nav>\n");
}

/// Where the numbers of a section came from.
fn source(out: &mut String, context: &Context<'_>, experiment: &str) {
    let all = |count: usize, [one, what]: [&str; 2], file: &str| match count {
        0 => None,
        1 => Some(format!("the one {one} of <code>{file}</code>")),
        n => Some(format!("the {} {what} of <code>{file}</code>", number::count(n as u64))),
    };
    let mut from = [
        all(context.of(experiment).len(), ["row", "rows"], "results.json"),
        all(context.features_of(experiment).len(), ["feature", "features"], "features.json"),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(" and ");
    if !from.is_empty() {
        let _ = write!(from, " whose <code>experiment</code> is <code>{}</code>", html(experiment));
    }
    let drawn = [
        all(context.circuits_of(experiment).len(), ["circuit", "circuits"], "circuits.json"),
        all(context.case_studies_of(experiment).len(), ["study", "studies"], "case-studies.json"),
    ];
    for drawn in drawn.into_iter().flatten() {
        let _ = write!(from, "{}{drawn}", if from.is_empty() { "" } else { ", and " });
    }
    if from.is_empty() {
        // An account of other sections.
        return;
    }
    let _ = write!(out, "<p class=\"source\"><b>Where these numbers came from:</b> {from}");
    let nodes: Vec<String> = context
        .provenance
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, n)| n.experiments.iter().any(|e| e == experiment))
        .map(|(i, n)| {
            format!(
                "<a href=\"#node-{i}\"><code>{}</code></a> (key <code>{}</code>)",
                html(&n.name),
                html(&short(&n.key))
            )
        })
        .collect();
    match nodes.len() {
        0 => out.push_str(".</p>\n"),
        1 => _ = writeln!(out, ", written by node {}.</p>", nodes[0]),
        _ => _ = writeln!(out, ", written by nodes {}.</p>", nodes.join(", ")),
    }
}

/// The first twelve characters of a key, as in the names of the store's folders.
fn short(key: &str) -> String {
    key.chars().take(12).collect()
}

fn timings(out: &mut String, nodes: &[NodeInfo]) {
    out.push_str("<section id=\"timings\">\n<h2>Timings</h2>\n");
    if nodes.is_empty() {
        out.push_str("<p>No nodes were recorded for this run.</p>\n</section>\n");
        return;
    }
    let total: f64 = nodes.iter().map(|n| n.seconds).filter(|s| s.is_finite() && *s > 0.0).sum();
    let heads = [
        ("node", false),
        ("seconds", true),
        ("share", true),
        ("cached", false),
        ("key", false),
        ("folder", false),
        ("made from", false),
    ]
    .map(|(head, numeric)| (head.to_owned(), numeric));
    let lines: Vec<Vec<Cell>> = nodes
        .iter()
        .enumerate()
        .map(|(i, node)| {
            let share =
                if total > 0.0 && node.seconds.is_finite() { (node.seconds / total).clamp(0.0, 1.0) } else { 0.0 };
            let code = |text: &str| Cell { html: format!("<code>{}</code>", html(text)), key: None };
            vec![
                Cell { html: format!("<code id=\"node-{i}\">{}</code>", html(&node.name)), key: None },
                Cell::number(
                    &number::duration(node.seconds),
                    if node.seconds.is_finite() { node.seconds } else { -1.0 },
                ),
                Cell {
                    html: format!(
                        "<span class=\"share\" style=\"--share:{:.1}%\">{:.1} %</span>",
                        100.0 * share,
                        100.0 * share
                    ),
                    key: Some(share),
                },
                Cell::text(if node.cached { "from the store" } else { "ran" }),
                Cell {
                    html: format!("<code title=\"{}\">{}</code>", html(&node.key), html(&short(&node.key))),
                    key: None,
                },
                code(&node.folder),
                sources(&node.sources),
            ]
        })
        .collect();
    let caption = format!(
        "Every node of the experiment graph; {} in all. Seconds of a node from the store are those of the run that made it.",
        number::duration(total)
    );
    out.push_str(&table::render(&caption, &heads, &lines));
    out.push_str("</section>\n");
}

/// What a node was made from, folded away: the last nodes are made from dozens of things.
fn sources(sources: &[String]) -> Cell {
    if sources.is_empty() {
        return Cell::none();
    }
    let listed: Vec<String> = sources.iter().map(|source| format!("<code>{}</code>", html(source))).collect();
    let html = format!("<details><summary>{}</summary>{}</details>", listed.len(), listed.join("<br>"));
    Cell { html, key: Some(listed.len() as f64) }
}
