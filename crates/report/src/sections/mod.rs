//! Sections of the page, one function per experiment. An experiment nobody wrote a section for gets a table.

mod attribution;
mod autointerp;
mod case_study;
mod circuit;
mod claims;
mod dictionary;
mod erasure;
mod features;
pub(crate) mod fidelity;
mod generic;
mod interp;
mod ioi;
mod layers;
mod look;
mod planted;
mod planted_grid;
mod properties;
mod splice;
mod sweep;
mod task;
mod training;

use std::cmp::Ordering;
use std::fmt::Write as _;

use crate::chart::{Dash, Drawn, Point, Series, Shape, Style};
use crate::escape::{html, slug};
use crate::number;
use crate::palette;
use crate::row::{ResultRow, Setting, natural_order};
use crate::{CaseStudy, Circuit, Extras, FeatureExample, Provenance, ReportError};

/// What a section may look at.
pub(crate) struct Context<'r> {
    /// All rows of the run, in the order of the file.
    pub(crate) rows: &'r [ResultRow],
    /// Features, circuits and case studies, in the order given.
    pub(crate) extras: Extras<'r>,
    pub(crate) provenance: &'r Provenance,
}

impl<'r> Context<'r> {
    pub(crate) fn of(&self, experiment: &str) -> Vec<&'r ResultRow> {
        self.rows.iter().filter(|r| r.experiment == experiment).collect()
    }

    pub(crate) fn features_of(&self, experiment: &str) -> Vec<&'r FeatureExample> {
        self.extras.features.iter().filter(|f| f.experiment == experiment).collect()
    }

    pub(crate) fn circuits_of(&self, experiment: &str) -> &'r [Circuit] {
        if experiment == "circuit" { self.extras.circuits } else { &[] }
    }

    pub(crate) fn case_studies_of(&self, experiment: &str) -> &'r [CaseStudy] {
        if experiment == "case-study" { self.extras.case_studies } else { &[] }
    }

    /// Whether there is anything to show of an experiment.
    pub(crate) fn has(&self, experiment: &str) -> bool {
        self.rows.iter().any(|r| r.experiment == experiment)
            || self.extras.features.iter().any(|f| f.experiment == experiment)
            || !self.circuits_of(experiment).is_empty()
            || !self.case_studies_of(experiment).is_empty()
    }
}

/// A finished section.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) html: String,
    /// Name and SVG, in order of appearance.
    pub(crate) figures: Vec<(String, String)>,
    /// Parts worth an entry of their own in the contents: id and title (HTML).
    pub(crate) parts: Vec<(String, String)>,
}

impl Section {
    fn new(title: &str) -> Section {
        Section { title: title.to_owned(), ..Section::default() }
    }

    /// A paragraph; `text` is HTML.
    fn paragraph(&mut self, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.html, "<p>{text}</p>");
    }

    /// Something long that is unfolded on demand; both are HTML.
    fn folded(&mut self, summary: &str, content: &str) {
        let _ = writeln!(self.html, "<details><summary>{summary}</summary>\n{content}</details>");
    }

    fn hook_heading(&mut self, hook: &str) {
        self.hook_heading_of("h3", hook);
    }

    /// The heading of a hook point below another heading: `tag` is `h3` or `h4`.
    fn hook_heading_of(&mut self, tag: &str, hook: &str) {
        if !hook.is_empty() {
            let words =
                number::hook_in_words(hook).map(|w| format!(" <small>{}</small>", html(&w))).unwrap_or_default();
            let _ = writeln!(self.html, "<{tag}><code>{}</code>{words}</{tag}>", html(hook));
        }
    }

    /// A figure with its caption (HTML); `name` becomes the file name and the anchor.
    fn figure(&mut self, name: &str, alt: &str, caption: &str, svg: Drawn<String>) -> Result<(), ReportError> {
        let mut name = slug(name);
        while self.figures.iter().any(|(other, _)| *other == name) {
            name.push_str("-2");
        }
        let svg = svg.map_err(|reason| ReportError::Draw { figure: name.clone(), reason })?;
        let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{}\" ", html(alt)), 1);
        let _ = writeln!(
            self.html,
            "<figure class=\"fig\" id=\"fig-{name}\"><div class=\"scroll\">{svg}</div>\n<figcaption>{caption} \
             <span class=\"file\">figures/{name}.svg</span></figcaption></figure>"
        );
        self.figures.push((name, svg));
        Ok(())
    }
}

type Build = fn(&Context<'_>, &[&ResultRow]) -> Result<Section, ReportError>;

/// The experiments that have a section of their own, in the order of the page.
pub(crate) const KNOWN: [(&str, &str, Build); 18] = [
    ("claims", "Did the claims of the paper hold here?", claims::section),
    ("dictionary", "Dictionaries: reconstruction against sparsity", dictionary::section),
    ("training", "Training curves", training::section),
    ("sweep", "Sweeps over size, sparsity and place", sweep::section),
    ("sweep-training", "Training curves of the sweeps", training::section),
    ("splice", "Language modelling with the reconstruction spliced in", splice::section),
    ("interp", "Interpretability scores", interp::section),
    ("autointerp", "Explanations by a language model, scored several ways", autointerp::section),
    ("ioi", "Indirect objects: which features carry a behaviour", ioi::section),
    ("task", "Other causal tasks", task::section),
    ("attribution", "Attribution patching", attribution::section),
    ("circuit", "Circuits", circuit::section),
    ("case-study", "Case studies", case_study::section),
    ("erasure", "Erasing a concept", erasure::section),
    ("properties", "Known properties of the text", properties::section),
    ("planted", "Planted features", planted::section),
    ("planted-grid", "Planted features, as in the paper's code", planted_grid::section),
    ("anchor", "Figures known of the code behind the paper", planted_grid::anchors),
];

/// The section of an experiment.
pub(crate) fn build(context: &Context<'_>, experiment: &str) -> Result<Section, ReportError> {
    let rows = context.of(experiment);
    match KNOWN.iter().find(|(name, _, _)| *name == experiment) {
        Some((_, _, build)) => build(context, &rows),
        None => generic::section(context, experiment, &rows),
    }
}

/// Sparse autoencoders first, then the baselines by family, random last.
pub(crate) fn method_order(a: &str, b: &str) -> Ordering {
    const FAMILIES: [&str; 8] = ["model", "none", "sae", "pca", "ica", "nmf", "identity", "random"];
    let place = |m: &str| FAMILIES.iter().position(|f| *f == palette::family(m)).unwrap_or(FAMILIES.len() - 1);
    place(a).cmp(&place(b)).then_with(|| natural_order(a, b))
}

/// Hooks in layer order.
fn hooks_of(rows: &[&ResultRow]) -> Vec<String> {
    let mut hooks: Vec<String> = rows.iter().map(|r| r.hook.clone()).collect();
    hooks.sort_by(|a, b| natural_order(a, b));
    hooks.dedup();
    hooks
}

/// The generator of planted features that a row names; empty where it names none.
fn generator_of(row: &ResultRow) -> String {
    Setting::parse(&row.setting).get("generator").unwrap_or("").to_owned()
}

/// `sae-tied, R 2, α 8.58e−4`.
fn label_of(method: &str, setting: &Setting) -> String {
    let mut label = method.to_owned();
    for (key, value) in &setting.0 {
        let space = if key.is_empty() { "" } else { " " };
        let _ = write!(label, ", {}{space}{}", number::setting_key(key), number::setting_value(value));
    }
    label
}

/// `blocks.3.hook_resid_post of MODEL on TEXT`, as far as known (HTML).
fn on_what(context: &Context<'_>, hook: &str) -> String {
    let mut out = if hook.is_empty() { String::new() } else { format!("<code>{}</code> of ", html(hook)) };
    let (model, text) = (&context.provenance.model, &context.provenance.text);
    out.push_str(&if model.is_empty() { "the model".to_owned() } else { html(model) });
    if !text.is_empty() {
        let _ = write!(out, " reading {}", html(text));
    }
    out
}

/// The settings that tell dictionaries of one method apart by size; they choose the shade.
fn sizes_of<'r>(rows: impl Iterator<Item = &'r ResultRow>) -> Vec<String> {
    crate::table::distinct(
        rows.filter(|r| palette::family(&r.method) == "sae")
            .map(|r| Setting::parse(&r.setting).get("ratio").map(str::to_owned)),
    )
}

/// Names of the sparse autoencoder families present, for the choice of hue.
fn sae_methods<'r>(rows: impl Iterator<Item = &'r ResultRow>) -> Vec<&'r str> {
    let mut methods: Vec<&str> = rows.map(|r| r.method.as_str()).filter(|m| palette::family(m) == "sae").collect();
    methods.sort_by(|a, b| natural_order(a, b));
    methods.dedup();
    methods
}

/// How a method looks: family, and among `saes` the kind, decides hue and shape; dictionary size the shade and the dash; keeping all
/// codes opens the marker.
fn style_of(method: &str, ratio: Option<&str>, sizes: &[String], saes: &[&str]) -> Style {
    let family = palette::family(method);
    if family == "sae" {
        let size = ratio.and_then(|r| sizes.iter().position(|s| s == r)).unwrap_or(0);
        let hue = look::hue_of(method, saes);
        let (shape, filled) = Shape::of_sae(hue);
        return Style { colour: palette::sae(hue, size, sizes.len()), shape, filled, dash: Dash::nth(size) };
    }
    let dash = match method.split_once('-') {
        _ if family == "random" => Dash::Short,
        None | Some((_, "topk")) => Dash::Solid,
        Some(_) => Dash::Long,
    };
    Style { colour: palette::of_family(family), shape: Shape::of_family(family), filled: method.contains('-'), dash }
}

/// Points on their way to becoming series: one series per method and group, one line per seed.
#[derive(Default)]
struct Groups(Vec<Group>);

struct Group {
    method: String,
    setting: Setting,
    /// The setting of the first point, all but the seed: names a series of one point.
    first: Setting,
    style: Style,
    lines: Vec<(Option<String>, Vec<Point>)>,
}

impl Groups {
    fn add(&mut self, method: &str, group: Setting, setting: &Setting, style: Style, point: Point) {
        let at = self.0.iter().position(|g| g.method == method && g.setting == group).unwrap_or_else(|| {
            let first = setting.without(&["seed"]);
            self.0.push(Group { method: method.to_owned(), setting: group, first, style, lines: Vec::new() });
            self.0.len() - 1
        });
        let seed = setting.get("seed").map(str::to_owned);
        let lines = &mut self.0[at].lines;
        match lines.iter_mut().find(|(s, _)| *s == seed) {
            Some((_, line)) => line.push(point),
            None => lines.push((seed, vec![point])),
        }
    }

    /// The series in reading order; one of a single point is named beside it if `direct`, with its whole setting.
    fn into_series(mut self, direct: bool) -> Vec<Series> {
        self.0.sort_by(|a, b| method_order(&a.method, &b.method).then_with(|| a.setting.cmp(&b.setting)));
        let series = self.0.into_iter().map(|group| {
            let mut lines: Vec<Vec<Point>> = group.lines.into_iter().map(|(_, line)| line).collect();
            for line in &mut lines {
                line.sort_by(|a, b| a.x.total_cmp(&b.x).then_with(|| a.y.total_cmp(&b.y)));
            }
            let single = lines.iter().map(Vec::len).sum::<usize>() == 1;
            let setting = if single && direct { &group.first } else { &group.setting };
            let label = label_of(&group.method, setting);
            Series { label, style: group.style, lines, markers: true, band: false, direct: single && direct }
        });
        series.collect()
    }
}
