//! Single features looked at closely, and a concept erased.

use anyhow::{Context as _, Result, bail, ensure};
use monosem_hooks::HookPoint;
use monosem_patching::EditFrom;
use serde::{Deserialize, Serialize};

use super::claims::distinct;
use crate::causal;

/// More prompts, contexts or directions than this are a slip of the pen.
const MOST: usize = 10_000;

/// The tokens behind single features of an autoencoder and single dimensions of the activation, and what both do to the model's output (section 8 of the
/// paper).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseStudies {
    /// Where; each is also a hook point of `capture.hooks`.
    pub hooks: Vec<HookPoint>,
    /// The ratio of the autoencoder.
    pub ratio: f64,
    /// Its alpha.
    pub alpha: f32,
    /// Features that a person chose.
    #[serde(default)]
    pub named: Vec<NamedFeature>,
    /// So many more at each hook point: those of the largest skew.
    #[serde(default)]
    pub automatic: usize,
    /// A feature is only chosen for its skew if it is active on so many tokens.
    #[serde(default = "fifty")]
    pub least_active: usize,
    /// Dimensions of the activation, at each hook point.
    #[serde(default)]
    pub dimensions: Vec<usize>,
    /// So many more: those that correlate most, by magnitude, with the first feature of the hook point.
    #[serde(default)]
    pub automatic_dimensions: usize,
    /// Tokens that are counted by themselves.
    #[serde(default = "eight")]
    pub tokens: usize,
    /// Positions over which the effect on the output is a mean: those of the largest activation, each from another context.
    #[serde(default = "thirty_two")]
    pub contexts: usize,
    /// Tokens whose change is kept.
    #[serde(default = "twenty")]
    pub top_changes: usize,
}

/// A feature with the name that a person gave it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedFeature {
    /// Where.
    pub hook: HookPoint,
    /// Index of the feature in the autoencoder.
    pub feature: usize,
    /// What it seems to stand for.
    pub name: String,
}

fn fifty() -> usize {
    50
}

fn eight() -> usize {
    8
}

fn thirty_two() -> usize {
    32
}

fn twenty() -> usize {
    20
}

impl CaseStudies {
    /// The features that a person chose at a hook point.
    pub(crate) fn named_at(&self, hook: HookPoint) -> impl Iterator<Item = &NamedFeature> {
        self.named.iter().filter(move |named| named.hook == hook)
    }

    /// Checks the settings, against the hook points that are captured and the ratios and alphas that are trained.
    pub(super) fn validate(&self, captured: &[HookPoint], cases: &[(f64, f32)]) -> Result<()> {
        let section = "language.case_studies";
        check_hooks(section, &self.hooks, captured)?;
        check_case(section, cases, self.ratio, self.alpha)?;
        let named: Vec<_> = self.named.iter().map(|named| (named.hook, named.feature)).collect();
        distinct(&format!("{section}.named"), &named)?;
        distinct(&format!("{section}.dimensions"), &self.dimensions)?;
        for NamedFeature { hook, feature, name } in &self.named {
            ensure!(
                self.hooks.contains(hook),
                "{section}.named: feature {feature} of {hook}, which is not one of {section}.hooks"
            );
            ensure!(!name.trim().is_empty(), "{section}.named: feature {feature} of {hook} has no name");
        }
        for hook in &self.hooks {
            let features = self.named_at(*hook).count() + self.automatic;
            ensure!(
                features > 0 || !self.dimensions.is_empty(),
                "{section}: nothing to study at {hook}: name a feature or a dimension, or set automatic"
            );
            ensure!(
                features > 0 || self.automatic_dimensions == 0,
                "{section}.automatic_dimensions are those that correlate with a feature, of which there is none at {hook}: name one, or set automatic"
            );
        }
        let counts = [("tokens", self.tokens), ("contexts", self.contexts), ("top_changes", self.top_changes)];
        within(section, &counts)?;
        let others = [("automatic", self.automatic), ("automatic_dimensions", self.automatic_dimensions)];
        match others.iter().find(|(_, n)| *n > MOST) {
            Some((key, n)) => bail!("{section}.{key} = {n}: at most {MOST}"),
            None => Ok(()),
        }
    }
}

/// A concept with two classes, erased from activations in several ways: how much of it is left in the model's answers, and what else changes (the first
/// version of the paper, arXiv 2309.08600v1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erasure {
    /// Where; each is also a hook point of `capture.hooks`.
    pub hooks: Vec<HookPoint>,
    /// The ratio of the autoencoders.
    pub ratio: f64,
    /// Their alphas; of each autoencoder one feature is removed.
    pub alphas: Vec<f32>,
    /// The task whose answers are of two classes, by name or as the path of a TOML file: `gender`, `toy-gender`.
    pub task: String,
    /// Another task that takes the same concept: `pronoun`, `toy-pronoun`.
    pub transfer: String,
    /// Where in a prompt erasers are fitted, features chosen, and both used: `start` (everywhere), `first-change` (from the word that tells the class on), or
    /// `end` (the last position, where the answer is asked for).
    #[serde(default = "from_first_change")]
    pub positions: EditFrom,
    /// Prompts that erasers are fitted to, and features chosen by.
    #[serde(default = "hundred")]
    pub prompts: usize,
    /// Prompts of other names and templates, of each task, on which the outcome is reported.
    #[serde(default = "hundred")]
    pub report_prompts: usize,
    /// Features of each dictionary that are tried out: those whose mean differs most between the classes.
    #[serde(default = "thirty_two")]
    pub candidates: usize,
    /// Random directions, each removed by itself.
    #[serde(default = "ten")]
    pub random: usize,
    /// Held-out contexts on which it is measured what else changes.
    #[serde(default = "thirty_two")]
    pub contexts: usize,
    /// Draws prompts and random directions.
    #[serde(default)]
    pub seed: u64,
}

fn from_first_change() -> EditFrom {
    EditFrom::FirstChange
}

fn hundred() -> usize {
    100
}

fn ten() -> usize {
    10
}

impl Erasure {
    /// Checks the settings, against the hook points that are captured and the ratios and alphas that are trained.
    pub(super) fn validate(&self, captured: &[HookPoint], cases: &[(f64, f32)]) -> Result<()> {
        let section = "language.erasure";
        for (key, task) in [("task", &self.task), ("transfer", &self.transfer)] {
            let found = causal::task(task).with_context(|| format!("{section}.{key}"))?;
            ensure!(
                found.n_classes() == Some(2),
                "{section}.{key} = {task:?}: expected a task of two classes, such as gender"
            );
        }
        ensure!(self.task != self.transfer, "{section}.transfer is its task, {:?}: name another", self.task);
        check_hooks(section, &self.hooks, captured)?;
        distinct(&format!("{section}.alphas"), &self.alphas)?;
        ensure!(!self.alphas.is_empty(), "{section}.alphas is empty");
        self.alphas.iter().try_for_each(|alpha| check_case(section, cases, self.ratio, *alpha))?;
        let counts = [
            ("prompts", self.prompts),
            ("report_prompts", self.report_prompts),
            ("candidates", self.candidates),
            ("random", self.random),
            ("contexts", self.contexts),
        ];
        within(section, &counts)
    }
}

fn check_hooks(section: &str, hooks: &[HookPoint], captured: &[HookPoint]) -> Result<()> {
    distinct(&format!("{section}.hooks"), hooks)?;
    ensure!(!hooks.is_empty(), "{section}.hooks is empty");
    if let Some(hook) = hooks.iter().find(|hook| !captured.contains(hook)) {
        bail!("{section}.hooks has {hook}, which is not among language.capture.hooks");
    }
    Ok(())
}

fn check_case(section: &str, cases: &[(f64, f32)], ratio: f64, alpha: f32) -> Result<()> {
    ensure!(cases.contains(&(ratio, alpha)), "{section}: no autoencoder of ratio {ratio} and alpha {alpha} is trained");
    Ok(())
}

fn within(section: &str, counts: &[(&str, usize)]) -> Result<()> {
    match counts.iter().find(|(_, n)| !(1..=MOST).contains(n)) {
        Some((key, n)) => bail!("{section}.{key} = {n}: expected 1 to {MOST}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOOK: &str = "blocks.2.hook_resid_post";

    type Validate<T> = fn(&T, &[HookPoint], &[(f64, f32)]) -> Result<()>;

    fn refused<T: for<'de> Deserialize<'de>>(text: &str, validate: Validate<T>) -> String {
        let section: T = toml::from_str(text).unwrap();
        let captured = [HOOK.parse().unwrap()];
        validate(&section, &captured, &[(8.0, 8e-3)]).err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn settings_of_case_studies_are_checked() {
        let base = format!("hooks = [{HOOK:?}]\nratio = 8.0\nalpha = 8e-3\n");
        let check = |more: &str| refused(&format!("{base}{more}"), CaseStudies::validate);
        assert_eq!(check("automatic = 1\nautomatic_dimensions = 1"), "");
        assert_eq!(check("dimensions = [3]"), "");
        for (more, said) in [
            ("automatic = 10001", "language.case_studies.automatic = 10001: at most 10000"),
            ("", "nothing to study at blocks.2.hook_resid_post"),
            ("dimensions = [3]\nautomatic_dimensions = 1", "of which there is none at blocks.2.hook_resid_post"),
            ("dimensions = [3, 3]", "language.case_studies.dimensions names 3 twice"),
            ("automatic = 1\ntokens = 0", "language.case_studies.tokens = 0: expected 1 to 10000"),
            (
                r#"named = [{ hook = "blocks.1.hook_resid_post", feature = 3, name = "he" }]"#,
                "feature 3 of blocks.1.hook_resid_post, which is not one of",
            ),
            (
                r#"named = [{ hook = "blocks.2.hook_resid_post", feature = 3, name = " " }]"#,
                "feature 3 of blocks.2.hook_resid_post has no name",
            ),
        ] {
            assert!(check(more).contains(said), "{more}: {}", check(more));
        }
        let other = base.replace("8e-3", "1e-3") + "automatic = 1";
        assert_eq!(
            refused(&other, CaseStudies::validate),
            "language.case_studies: no autoencoder of ratio 8 and alpha 0.001 is trained"
        );
    }

    #[test]
    fn settings_of_erasure_are_checked() {
        let base = format!(
            "hooks = [{HOOK:?}]\nratio = 8.0\nalphas = [8e-3]\ntask = \"toy-gender\"\ntransfer = \"toy-pronoun\"\n"
        );
        assert_eq!(refused(&base, Erasure::validate), "");
        for (from, to, said) in [
            (
                HOOK,
                "blocks.1.hook_resid_post",
                "language.erasure.hooks has blocks.1.hook_resid_post, which is not among",
            ),
            ("[8e-3]", "[]", "language.erasure.alphas is empty"),
            ("[8e-3]", "[1e-3]", "no autoencoder of ratio 8 and alpha 0.001"),
            ("toy-pronoun", "toy-gender", "language.erasure.transfer is its task"),
            ("toy-gender", "toy", "language.erasure.task = \"toy\": expected a task of two classes"),
            ("toy-gender", "gendre", "language.erasure.task: \"gendre\" is neither a task"),
            ("ratio", "random = 0\nratio", "language.erasure.random = 0: expected 1 to 10000"),
        ] {
            let found = refused(&base.replace(from, to), Erasure::validate);
            assert!(found.contains(said), "{to}: {found}");
        }
    }
}
