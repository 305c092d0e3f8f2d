//! The settings of interpretability: explanations and their scores, and properties that are known.

use std::fmt::Debug;

use anyhow::{Context as _, Result, bail, ensure};
use monosem_autointerp::{ExplainerKind, GatherConfig, LlmConfig, PatternConfig, ScorerKind, SplitRule};
use serde::{Deserialize, Serialize};

use crate::endpoint::Llm;

/// Explaining features and scoring the explanations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interp {
    /// Features scored of each dictionary: the first ones by index that have enough fragments; others are passed over and counted.
    pub features: usize,
    /// Latents of each dictionary among which these are looked for.
    pub pool: usize,
    /// Tokens in a fragment; contexts of the interpretation split are cut into fragments, and those that span documents are left out.
    pub fragment: usize,
    /// At most this many fragments.
    pub fragments: usize,
    /// How fragments are divided into those to explain from and those to score on: `documents` (no document on both sides) or
    /// `interleaved` (the paper's rule).
    pub split: SplitRule,
    /// A feature with fewer fragments to explain from is unscored, as is one with fewer fragments to score on than `split` asks for.
    pub explain_min: usize,
    /// How patterns are chosen.
    pub patterns: PatternConfig,
    /// Lengths of explanations, in patterns, at which they are scored.
    pub lengths: Vec<usize>,
    /// Lengths of explanations, in bits.
    pub bits: Vec<usize>,
    /// The length of the headline score, one of `lengths`: what a sentence can hold.
    pub headline: usize,
    /// The autoencoder that stands for the method where one is compared with the baselines: its ratio and alpha.
    pub ratio: f64,
    /// See `ratio`.
    pub alpha: f32,
    /// Features of each dictionary that the report shows.
    pub examples: usize,
    /// Draws fragments, sides and shuffles.
    pub seed: u64,
    /// The control: an autoencoder of the same model with weights drawn anew.
    pub random_model: Option<RandomModel>,
    /// Explanations and scores by a language model.
    #[serde(default)]
    pub llm: Option<Asked>,
}

/// Explanations and scores by a language model, beside those by patterns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Who is asked: `{ local = "MODEL" }`, or `{ server = { base_url = "...", model = "..." } }`.
    pub who: Llm,
    /// Who explains; none for the list of patterns.
    #[serde(default)]
    pub explainer: Option<ExplainerKind>,
    /// How explanations are scored.
    pub scorers: Vec<ScorerKind>,
    /// Which dictionaries, by method (`sae-tied`, `ica-oriented`, ...); of several autoencoders of the first, the one of `ratio` and `alpha`.
    pub methods: Vec<String>,
    /// Features of each dictionary; the first ones that have enough fragments, and those before them, which are unscored.
    pub features: usize,
    /// Fragments to score on: so many of the strongest and as many random ones.
    pub score: usize,
    /// A fragment is quiet if the feature reaches at most this share of its maximum there.
    pub quiet_below: f32,
    /// How the model is asked.
    #[serde(default)]
    pub asking: LlmConfig,
}

/// A model whose weights were drawn anew, as a control.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomModel {
    /// Draws the weights.
    pub seed: u64,
    /// Training tokens that its activations are captured on.
    pub tokens: usize,
    /// Steps of its autoencoder.
    pub steps: u64,
}

impl Interp {
    /// What the gatherer is asked for.
    #[must_use]
    pub fn gather(&self) -> GatherConfig {
        GatherConfig { split: self.split, explain_min: self.explain_min, quiet: 0, quiet_below: 0.0, seed: self.seed }
    }

    /// What the gatherer is asked for where a language model scores.
    #[must_use]
    pub fn gather_for(&self, llm: &Asked) -> GatherConfig {
        let (top, random) = match self.split {
            SplitRule::Documents { explain_top, explain_random, .. } => (explain_top, explain_random),
            SplitRule::Interleaved { top, random, .. } => (top, random),
        };
        let n = llm.score;
        let split = SplitRule::Documents { explain_top: top, explain_random: random, score_top: n, score_random: n };
        GatherConfig { split, quiet: 2 * n, quiet_below: llm.quiet_below, ..self.gather() }
    }

    pub(super) fn validate(&self, context: usize, cases: &[(f64, f32)]) -> Result<()> {
        if let Some(llm) = &self.llm {
            llm.asking.validate().context("language.interp.llm.asking")?;
            self.gather_for(llm).validate().context("language.interp.llm")?;
            ensure!(
                llm.features <= self.pool,
                "language.interp.llm.features = {}: at most pool = {}",
                llm.features,
                self.pool
            );
            distinct("language.interp.llm.scorers", &llm.scorers)?;
            distinct("language.interp.llm.methods", &llm.methods)?;
            if llm.scorers.is_empty() || llm.methods.is_empty() || llm.features == 0 || llm.score == 0 {
                bail!("language.interp.llm: scorers and methods must have an item, features and score be at least 1");
            }
            if let Llm::Server(config) = &llm.who {
                config.validate().context("language.interp.llm.who.server")?;
            }
        }
        self.gather().validate().context("language.interp")?;
        self.patterns.validate().context("language.interp.patterns")?;
        ensure!(
            self.pool >= self.features,
            "language.interp.pool = {}: at least features = {}",
            self.pool,
            self.features
        );
        let counts = [("features", self.features), ("fragments", self.fragments), ("examples", self.examples)];
        if let Some((key, _)) = counts.iter().find(|(_, value)| *value == 0) {
            bail!("language.interp.{key} must be at least 1");
        }
        ensure!(
            (2..=context).contains(&self.fragment),
            "language.interp.fragment = {}: from 2 to the {context} tokens of a context",
            self.fragment
        );
        distinct("language.interp.lengths", &self.lengths)?;
        distinct("language.interp.bits", &self.bits)?;
        ensure!(
            self.lengths.contains(&self.headline),
            "language.interp.headline = {} is not one of lengths = {:?}",
            self.headline,
            self.lengths
        );
        ensure!(
            self.lengths.iter().all(|length| *length <= self.patterns.max_patterns),
            "language.interp.lengths = {:?}: at most patterns.max_patterns = {}",
            self.lengths,
            self.patterns.max_patterns
        );
        ensure!(
            cases.contains(&(self.ratio, self.alpha)),
            "language.interp.ratio = {} and alpha = {} are not among the autoencoders that are trained",
            self.ratio,
            self.alpha
        );
        if let Some(random) = &self.random_model {
            ensure!(
                random.tokens > 0 && random.steps > 0,
                "language.interp.random_model: tokens and steps of at least 1"
            );
        }
        Ok(())
    }
}

/// Refuses a list that names something twice: its results would be there twice.
pub(super) fn distinct<T: PartialEq + Debug>(key: &str, list: &[T]) -> Result<()> {
    match list.iter().enumerate().find(|(i, item)| list[..*i].contains(item)) {
        Some((_, item)) => bail!("{key} names {item:?} twice"),
        None => Ok(()),
    }
}

/// Documents of the toy language whose tokens are labelled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Properties {
    /// Number of documents, half to choose latents on and half to report.
    pub documents: u32,
    /// Draws them; another seed than that of the text.
    pub seed: u64,
}

impl Properties {
    pub(super) fn validate(&self) -> Result<()> {
        ensure!(self.documents >= 2, "language.properties.documents = {}: at least 2", self.documents);
        Ok(())
    }
}
