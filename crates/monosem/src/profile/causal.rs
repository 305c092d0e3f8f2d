//! What is asked of features by changing them: causal tasks, circuits, case studies, erasure.

use anyhow::{Context as _, Result, bail, ensure};
use monosem_hooks::{HookPoint, Site};
use monosem_lm::Precision;
use serde::{Deserialize, Serialize};

use super::claims::distinct;
use crate::causal;

/// More prompts, thresholds or resamples than this are a slip of the pen: a selection would take weeks.
const MOST: usize = 10_000;

/// A causal task, indirect object identification for instance: which features, patched from a counterfactual run, move the answer.
///
/// What is left out is as in the paper: 50 prompts, 50 thresholds from 1e-5 to 1 nat, all features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ioi {
    /// The task: `english`, `toy` or `toy-held-out` for indirect object identification; `pronoun`, `gender`, `agreement`, `greater-than`,
    /// `closing`, `toy-pronoun`, `toy-gender`, `toy-agreement`; or the path of a TOML file of such a form, from the working directory.
    pub task: String,
    /// How many names the prompts of each half draw from, and 0 for all: the whole experiment for each. A sparse
    /// dictionary spends features on each name, while a dense basis uses the same ones for all.
    #[serde(default = "all_names")]
    pub names: Vec<usize>,
    /// Where features are patched. Where `capture.hooks` does not have one, the autoencoders are trained there for this alone.
    pub hooks: Vec<HookPoint>,
    /// The ratio of the autoencoders that are patched.
    pub ratio: f64,
    /// Their alphas.
    pub alphas: Vec<f32>,
    /// The alpha that is compared with the baselines in the claims: to be chosen by what the `choose` prompts say.
    pub alpha: f32,
    /// Patch the autoencoders of `[[language.families]]` too.
    #[serde(default)]
    pub families: bool,
    /// Patch each autoencoder a second time with the change of its error kept, whatever the set: what its features miss.
    #[serde(default)]
    pub error_term: bool,
    /// Prompts by which settings such as the layer and alpha are chosen; 0 where they were chosen elsewhere.
    #[serde(default)]
    pub prompts: usize,
    /// Prompts of other names and templates, on which the claims are reported.
    #[serde(default = "fifty")]
    pub report_prompts: usize,
    /// Thresholds on the rise of KL, as many in equal ratios from `threshold_low` to `threshold_high` (50 from 1e-5 to 1 in the paper).
    #[serde(default = "fifty")]
    pub thresholds: usize,
    /// The lowest threshold, in nats.
    #[serde(default = "low")]
    pub threshold_low: f64,
    /// The highest threshold, in nats.
    #[serde(default = "high")]
    pub threshold_high: f64,
    /// Start with this many features instead of all; 0 for all.
    #[serde(default)]
    pub max_candidates: usize,
    /// Which those are.
    #[serde(default)]
    pub screen: Screen,
    /// What the model's maps are computed in: `bf16` takes about half the time where the processor has AVX512-BF16. Prompts and
    /// counterfactuals are run alike.
    #[serde(default)]
    pub precision: Precision,
    /// Orders in which features are visited, one selection each.
    #[serde(default = "one_order")]
    pub seeds: Vec<u64>,
    /// Bootstrap resamples over prompts and orders for the intervals of curves; claims take 9999 where this is less.
    #[serde(default = "thousand")]
    pub resamples: usize,
    /// So many features of each dictionary are ranked by attribution and by their exact effect, on the prompts to report; 0 for none.
    #[serde(default)]
    pub attribution: usize,
    /// Chosen features of each dictionary that the report shows.
    #[serde(default = "dozen")]
    pub examples: usize,
    /// Draws names, templates and prompts.
    #[serde(default)]
    pub seed: u64,
}

fn all_names() -> Vec<usize> {
    vec![0]
}

fn fifty() -> usize {
    50
}

fn low() -> f64 {
    1e-5
}

fn high() -> f64 {
    1.0
}

fn one_order() -> Vec<u64> {
    vec![0]
}

fn thousand() -> usize {
    1000
}

fn dozen() -> usize {
    12
}

/// By what features are left out from the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Screen {
    /// Keep those whose codes change most, times the norm of their direction.
    #[default]
    Change,
    /// Keep those to which gradients attribute the largest effects, either way.
    Attribution,
}

impl Ioi {
    /// The thresholds, ascending, in nats.
    #[must_use]
    pub fn grid(&self) -> Vec<f64> {
        thresholds(self.thresholds, self.threshold_low, self.threshold_high)
    }

    /// The number of features to start with, where there is a limit.
    #[must_use]
    pub fn candidates(&self) -> Option<usize> {
        (self.max_candidates > 0).then_some(self.max_candidates)
    }

    /// Checks the settings of a section, against the ratios and alphas that are trained.
    pub(super) fn validate(&self, section: &str, cases: &[(f64, f32)]) -> Result<()> {
        let task = causal::task(&self.task).with_context(|| format!("{section}.task"))?;
        distinct(&format!("{section}.names"), &self.names)?;
        if let Some(n) = self.names.iter().find(|n| **n > 0) {
            let Some(there) = task.n_names() else {
                bail!(
                    "{section}.names has {n}: the prompts of {:?} draw from no list of names, leave the key out",
                    self.task
                );
            };
            if let Some(many) = self.names.iter().find(|n| n.saturating_mul(2) > there) {
                bail!(
                    "{section}.names has {many}: {:?} has {there} names, of which either half of the prompts gets half",
                    self.task
                );
            }
        }
        if let Some(few) = self.names.iter().find(|n| (1..3).contains(*n)) {
            bail!("{section}.names has {few}: a prompt and its counterfactual need 3 names, and 0 stands for all");
        }
        distinct(&format!("{section}.hooks"), &self.hooks)?;
        distinct(&format!("{section}.alphas"), &self.alphas)?;
        distinct(&format!("{section}.seeds"), &self.seeds)?;
        let most = [
            ("prompts", self.prompts),
            ("report_prompts", self.report_prompts),
            ("thresholds", self.thresholds),
            ("resamples", self.resamples),
            ("examples", self.examples),
        ];
        if let Some((key, n)) = most.iter().find(|(_, n)| *n > MOST) {
            bail!("{section}.{key} = {n}: at most {MOST}");
        }
        if let Some(alpha) = self.alphas.iter().find(|alpha| !cases.contains(&(self.ratio, **alpha))) {
            bail!("{section}: no autoencoder of ratio {} and alpha {alpha} is trained", self.ratio);
        }
        ensure!(
            self.alphas.contains(&self.alpha),
            "{section}.alpha = {} is not one of alphas = {:?}",
            self.alpha,
            self.alphas
        );
        let low = self.threshold_low;
        ensure!(
            low.is_normal() && low > 0.0 && low < self.threshold_high && (self.threshold_high / low).is_finite(),
            "{section}: thresholds from {low} to {}: expected two positive numbers, the lower first, such as 1e-5 and 1",
            self.threshold_high
        );
        let counts = [
            ("names", self.names.len()),
            ("hooks", self.hooks.len()),
            ("report_prompts", self.report_prompts),
            ("thresholds", self.thresholds),
            ("seeds", self.seeds.len()),
            ("resamples", self.resamples),
            ("examples", self.examples),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, value)| *value == 0) {
            bail!("{section}.{key} must be at least 1 or have an item");
        }
        Ok(())
    }
}

/// `n` thresholds in equal ratios.
pub(crate) fn thresholds(n: usize, low: f64, high: f64) -> Vec<f64> {
    let step = (high / low).ln() / (n.max(2) - 1) as f64;
    (0..n).map(|i| low * (step * i as f64).exp()).collect()
}

/// Features of the last of several dictionaries traced back through the earlier ones.
///
/// What is left out is as in the paper: three edges a node, none below 1 %, every active feature ablated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Circuits {
    /// The residual stream after two blocks or more, ascending. Where `capture.hooks` does not have one, the autoencoder is trained there for
    /// this alone.
    pub hooks: Vec<HookPoint>,
    /// The ratio of the autoencoders.
    pub ratio: f64,
    /// Their alpha.
    pub alpha: f32,
    /// Features of the last autoencoder to begin from.
    #[serde(default)]
    pub targets: Vec<usize>,
    /// So many more, those with the largest skew.
    #[serde(default)]
    pub automatic: usize,
    /// Texts over which effects on a feature are means: those where it is most active, each from another context.
    #[serde(default = "sixteen")]
    pub occurrences: usize,
    /// Edges kept into a node.
    #[serde(default = "three")]
    pub edges_per_node: usize,
    /// The least effect of an edge, a share of the later feature's activation.
    #[serde(default = "one_percent")]
    pub least_effect: f64,
    /// Ablate only so many features for each node, those to which gradients attribute most; 0 for every active one.
    #[serde(default)]
    pub max_ablations: usize,
}

fn sixteen() -> usize {
    16
}

fn three() -> usize {
    3
}

fn one_percent() -> f64 {
    0.01
}

impl Circuits {
    /// Checks the settings, against the ratios and alphas that are trained.
    pub(super) fn validate(&self, cases: &[(f64, f32)]) -> Result<()> {
        let section = "language.circuits";
        distinct(&format!("{section}.targets"), &self.targets)?;
        let ascending = self.hooks.is_sorted_by(|a, b| a.layer < b.layer);
        if self.hooks.len() < 2 || !ascending || self.hooks.iter().any(|hook| hook.site != Site::ResidPost) {
            bail!("{section}.hooks: expected hook_resid_post of two layers or more, ascending");
        }
        if !cases.contains(&(self.ratio, self.alpha)) {
            bail!("{section}: no autoencoder of ratio {} and alpha {} is trained", self.ratio, self.alpha);
        }
        ensure!(
            !self.targets.is_empty() || self.automatic > 0,
            "{section}: name targets, or say how many automatic ones"
        );
        ensure!(
            self.occurrences > 0 && self.edges_per_node > 0,
            "{section}: occurrences and edges_per_node must be at least 1"
        );
        let most =
            [("automatic", self.automatic), ("occurrences", self.occurrences), ("edges_per_node", self.edges_per_node)];
        if let Some((key, n)) = most.iter().find(|(_, n)| *n > MOST) {
            bail!("{section}.{key} = {n}: at most {MOST}");
        }
        let least = self.least_effect;
        ensure!((0.0..=1.0).contains(&least), "{section}.least_effect = {least}: expected a share from 0 to 1");
        Ok(())
    }
}
