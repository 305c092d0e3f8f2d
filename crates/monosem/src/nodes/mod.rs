//! The experiment graph of a profile: which nodes there are, what each reads, and what each writes.
//!
//! A node is a small function from folders to a folder. What it needs to know comes from its parameters (a piece of the profile), so
//! that its key changes when and only when something it depends on does.

mod anchors;
mod attribution;
mod autointerp;
mod baselines;
mod capture;
mod case_study;
mod circuit;
mod corpus;
mod curve;
mod erasure;
mod fetch;
mod grid;
mod interp;
mod ioi;
mod measure;
mod planted;
mod probing;
mod properties;
mod sae;
mod splice;
mod sweep;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use monosem_assets::Assets;
use monosem_dictionary::Estimate;
use monosem_graph::{Ctx, Node};
use monosem_hooks::HookPoint;
use monosem_report::{ResultRow, write_results};
use serde_json::json;

use crate::model::Model;
use crate::profile::{Language, Profile};
use crate::sources;
use crate::text::{Text, Texts};

pub(crate) use sae::input_scale;
pub(crate) use splice::of_losses;

/// The file in which a node leaves its results.
pub const ROWS: &str = "rows.json";

/// The file in which a node leaves features to be looked at.
pub const FEATURES: &str = "features.json";

/// The file in which a node leaves circuits to be drawn.
pub const CIRCUITS: &str = "circuits.json";

/// The file in which a node leaves studies of single features.
pub const CASE_STUDIES: &str = "case-studies.json";

/// The graph of `profile`. Nodes fetch through `assets`.
#[must_use]
pub fn of_profile<'a>(profile: &'a Profile, assets: &'a Assets) -> Vec<Node<'a>> {
    let mut nodes = Vec::new();
    if let Some(language) = &profile.language {
        nodes.extend(of_language(language, assets));
    }
    if let Some(planted) = &profile.planted {
        nodes.extend(planted::nodes(planted));
    }
    nodes
}

fn of_language<'a>(language: &'a Language, assets: &'a Assets) -> Vec<Node<'a>> {
    let mut nodes = fetch::nodes(language, assets);
    nodes.extend(corpus::nodes(language, assets));
    nodes.extend(capture::nodes(language, assets));
    for hook in language.hooks() {
        nodes.extend(baselines::nodes(language, hook));
    }
    nodes.extend(sweep::nodes(language));
    for hook in &language.capture.hooks {
        nodes.extend(sae::nodes(language, *hook));
        nodes.extend(sae::families_node(language, *hook));
        nodes.push(measure::node(language, *hook));
        nodes.push(splice::node(language, *hook, assets));
    }
    if let Some(interp) = &language.interp {
        for hook in &language.capture.hooks {
            nodes.extend(sae::random_node(language, interp, *hook));
            nodes.push(interp::node(language, interp, *hook, assets));
            nodes.extend(autointerp::node(language, interp, *hook, assets));
        }
    }
    if let Some(properties) = &language.properties {
        for hook in &language.capture.hooks {
            nodes.push(properties::node(language, properties, *hook, assets));
        }
    }
    nodes.extend(ioi::nodes(language, assets));
    nodes.extend(sae::causal_nodes(language));
    nodes.extend(language.circuits.iter().map(|circuits| circuit::node(language, circuits, assets)));
    if let Some(studies) = &language.case_studies {
        nodes.extend(studies.hooks.iter().map(|hook| case_study::node(language, studies, *hook, assets)));
    }
    if let Some(erasure) = &language.erasure {
        nodes.extend(erasure.hooks.iter().map(|hook| erasure::node(language, erasure, *hook, assets)));
    }
    nodes
}

/// A node that is one function call; `code` names the workspace crates and the files of this folder that do the work.
fn node<'a>(
    name: String,
    deps: Vec<String>,
    params: serde_json::Value,
    code: &[&str],
    weight: f64,
    run: impl Fn(&Ctx<'_>) -> Result<()> + Send + Sync + 'a,
) -> Node<'a> {
    let sources: BTreeMap<String, String> = code.iter().map(|name| ((*name).to_owned(), sources::hash(name))).collect();
    Node {
        name,
        deps,
        params,
        inputs: Vec::new(),
        sources,
        weight,
        run: Box::new(move |ctx| run(ctx).map_err(Into::into)),
    }
}

/// The node that trains one autoencoder.
fn sae_name(hook: HookPoint, ratio: f64, alpha: f32) -> String {
    format!("sae-{hook}-r{ratio}-a{alpha}")
}

fn sae_setting(ratio: f64, alpha: f32) -> String {
    format!("ratio={ratio},alpha={alpha}")
}

/// Where results of one dictionary belong: the first four columns of a row.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) experiment: &'static str,
    pub(crate) method: String,
    pub(crate) hook: String,
    pub(crate) setting: String,
}

impl Label {
    pub(crate) fn new(experiment: &'static str, method: &str, hook: impl ToString, setting: impl Into<String>) -> Self {
        Self { experiment, method: method.into(), hook: hook.to_string(), setting: setting.into() }
    }

    pub(crate) fn with_setting(&self, more: &str) -> Self {
        let setting = if self.setting.is_empty() { more.to_owned() } else { format!("{},{more}", self.setting) };
        Self { setting, ..self.clone() }
    }

    pub(crate) fn row(&self, metric: &str, value: f64, n: u64, unit: &str) -> ResultRow {
        ResultRow {
            experiment: self.experiment.into(),
            method: self.method.clone(),
            hook: self.hook.clone(),
            setting: self.setting.clone(),
            metric: metric.into(),
            value,
            ci_low: None,
            ci_high: None,
            n,
            unit: unit.into(),
        }
    }

    pub(crate) fn estimate(&self, metric: &str, estimate: Estimate, n: u64, unit: &str) -> ResultRow {
        let (ci_low, ci_high) = estimate.interval.unzip();
        ResultRow { ci_low, ci_high, ..self.row(metric, estimate.value, n, unit) }
    }
}

fn save_rows(ctx: &Ctx<'_>, rows: &[ResultRow]) -> Result<()> {
    Ok(write_results(&ctx.out().join(ROWS), rows)?)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn read_json(path: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// What identifies a model in a key: its name, and its content where the name says nothing of that.
fn model_params(model: &Model, centred: bool) -> serde_json::Value {
    json!({ "source": model.identity(), "center_writing_weights": centred })
}

fn model_inputs(model: &Model) -> Vec<std::path::PathBuf> {
    model.path().map(Path::to_owned).into_iter().collect()
}

fn text_inputs(texts: &Texts) -> Vec<std::path::PathBuf> {
    texts.0.iter().filter_map(Text::path).map(Path::to_owned).collect()
}
