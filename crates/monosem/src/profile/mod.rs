//! Profiles: every number of a run, in TOML. A profile may name a base, whose values it overrides key by key.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use monosem_activations::Dtype;
use monosem_hooks::HookPoint;
use monosem_lm::Precision;
use monosem_sae::{AdamMode, TrainConfig};
use serde::{Deserialize, Serialize};

use crate::model::Model;
use crate::text::Texts;

mod claims;

use claims::distinct;
pub(crate) use claims::thresholds;
pub use claims::{Interp, Ioi, Properties, RandomModel};

/// The profiles that come with the program, by name.
const EMBEDDED: &[(&str, &str)] = &[
    ("smollm2", include_str!("../../profiles/smollm2.toml")),
    ("smollm2-ioi", include_str!("../../profiles/smollm2-ioi.toml")),
    ("smollm2-full", include_str!("../../profiles/smollm2-full.toml")),
    ("toy", include_str!("../../profiles/toy.toml")),
    ("pythia-70m", include_str!("../../profiles/pythia-70m.toml")),
    ("pythia-410m", include_str!("../../profiles/pythia-410m.toml")),
];

/// Bases on bases deeper than this are taken for a circle.
const MAX_DEPTH: usize = 8;

/// Every setting of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What the run is for, in a sentence or two.
    pub description: String,
    /// Plain sentences shown at the top of the report: what differs from the paper, what to be careful with.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Dictionaries of a language model's activations.
    pub language: Option<Language>,
    /// Dictionaries of synthetic data whose true features are known.
    pub planted: Option<Planted>,
}

/// A language model, a text, and what is done with them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// The model: `toy` (part of the program), an asset's name, `hf:owner/name[@revision]`, or a path.
    pub model: Model,
    /// The text, or a list of texts that are read as one: an asset's name, `toy-language` (generated),
    /// `hf:datasets/owner/name[@revision]:file`, or a path.
    pub text: Texts,
    /// The field of a JSON line that holds the text.
    #[serde(default = "default_field")]
    pub text_field: String,
    /// Subtract their mean over `d_model` from all weights that write to the residual stream, as TransformerLens does (LayerNorm
    /// models only).
    #[serde(default)]
    pub center_writing_weights: bool,
    /// Rows whose norm is over this multiple of the median norm at their hook point (attention sinks beyond the first position) are left
    /// out of training, scaling and metrics, and no reconstruction takes their place; `inf` keeps all.
    pub max_norm: f64,
    /// How the text becomes contexts.
    pub corpus: Corpus,
    /// Which activations are kept, and how.
    pub capture: Capture,
    /// The sparse autoencoders: every ratio with every alpha, at every hook point.
    pub sae: Sae,
    /// What the autoencoders are compared with.
    pub baselines: Baselines,
    /// How dictionaries are measured on held-out rows.
    pub evaluate: Evaluate,
    /// The model's loss with reconstructions put in place of activations.
    pub splice: Splice,
    /// Explanations of features and their scores.
    pub interp: Option<Interp>,
    /// Causes of indirect object identification.
    pub ioi: Option<Ioi>,
    /// Known properties of the toy language, told by single latents.
    pub properties: Option<Properties>,
}

fn default_field() -> String {
    "text".into()
}

/// Text to contexts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corpus {
    /// Tokens in a context.
    pub context: usize,
    /// Stop reading once the splits together hold this many tokens.
    pub max_tokens: usize,
    /// Share of the documents held out for measuring.
    pub held_out: f64,
    /// Share of the documents kept for interpretation.
    pub interpretation: f64,
    /// Draws the split and the order of contexts.
    pub seed: u64,
}

/// Which activations are kept, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// Where in the model.
    pub hooks: Vec<HookPoint>,
    /// Stored number format.
    pub dtype: Dtype,
    /// What the model's maps are computed in: `bf16` takes about half the time where the processor has AVX512-BF16, and moves activations by half a
    /// percent.
    pub precision: Precision,
    /// Positions of a context left out of training, scaling and metrics: position 0 is an attention sink whose norm is far above the
    /// rest.
    pub drop_positions: Vec<usize>,
    /// Contexts in one forward pass.
    pub batch_contexts: usize,
    /// Rows in one file of the store.
    pub rows_per_shard: usize,
}

/// The autoencoders of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sae {
    /// Dictionary sizes as multiples of the width of the activations.
    pub ratios: Vec<f64>,
    /// L1 coefficients, on the scale of the paper's code: squared errors are means over dimensions.
    pub alphas: Vec<f32>,
    /// Scale activations to unit mean square for training (folded back afterwards), so that an alpha means the same at every layer;
    /// the paper trained on activations as they are.
    pub scale_inputs: bool,
    /// Adam's learning rate.
    pub lr: f32,
    /// Rows in a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
    /// Adam as published, or as the paper's code ran it.
    pub adam: AdamMode,
    /// What the encoder is computed in: with `bf16` it finds the active latents in half the time, and `f32` computes their codes.
    pub precision: Precision,
    /// Steps over which the learning rate rises from 0.
    pub lr_warmup_steps: u64,
    /// Steps at the end over which the learning rate falls to 0.
    pub lr_decay_steps: u64,
    /// Draws the initial weights and the order of the rows.
    pub seed: u64,
    /// Steps between two points of the training curves.
    pub curve_every: u64,
    /// Held-out rows behind a point of the curves.
    pub curve_rows: usize,
}

/// What the autoencoders are compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baselines {
    /// Numbers of codes kept by the top-k baselines; the paper's choice (the mean L0 of the autoencoder of ratio 1 nearest
    /// `match_alpha`) is added.
    pub top_k: Vec<usize>,
    /// The alpha whose autoencoder sets the paper's k.
    pub match_alpha: f32,
    /// Rows that FastICA is fitted on.
    pub ica_rows: usize,
    /// Most iterations of FastICA.
    pub ica_max_iter: usize,
    /// FastICA has converged when no component turned by more than this.
    pub ica_tol: f64,
    /// Number of random directions, as a multiple of the width.
    pub random_ratio: f64,
    /// Draws FastICA's start and the random directions.
    pub seed: u64,
}

/// How dictionaries are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// At most this many held-out rows.
    pub rows: usize,
}

/// The model's loss with reconstructions put in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Splice {
    /// Held-out contexts.
    pub contexts: usize,
    /// Contexts in one forward pass.
    pub batch_contexts: usize,
    /// Numbers of codes of the top-k baselines that are spliced in.
    pub top_k: Vec<usize>,
}

/// Synthetic data with known features (the paper's toy model).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planted {
    /// Width of the data.
    pub d_in: usize,
    /// Number of true features.
    pub n_features: usize,
    /// Mean number of features active in a row, before the decay.
    pub mean_active: f64,
    /// Feature i is active with probability proportional to this to the power i.
    pub decay: f64,
    /// `uncorrelated`, `correlated`.
    pub generators: Vec<Generator>,
    /// Multiply each strength by a second uniform draw.
    pub second_strength: bool,
    /// Standard deviation of the Gaussian noise added.
    pub noise: f32,
    /// Dictionary sizes as multiples of the width.
    pub ratios: Vec<f64>,
    /// L1 coefficients on the scale of the paper's code.
    pub alphas: Vec<f32>,
    /// Adam's learning rate.
    pub lr: f32,
    /// Fresh rows in a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
    /// Adam as published, or as the paper's code ran it.
    pub adam: AdamMode,
    /// Fresh rows to measure on.
    pub evaluate_rows: usize,
    /// Draws features, data and initial weights.
    pub seed: u64,
}

/// How the active features of a row are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Generator {
    /// Each on its own.
    Uncorrelated,
    /// Through one multivariate normal draw per batch.
    Correlated,
}

impl Generator {
    /// The word used in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uncorrelated => "uncorrelated",
            Self::Correlated => "correlated",
        }
    }
}

/// A profile that was read, with its name and its full text after layering.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Name (of an embedded profile) or file stem.
    pub name: String,
    /// The settings.
    pub profile: Profile,
    /// All settings as TOML, bases applied.
    pub toml: String,
}

/// The names of the profiles that come with the program, with the first line of their descriptions.
#[must_use]
pub fn embedded() -> Vec<(&'static str, String)> {
    let describe = |text: &str| {
        let table: Option<toml::Table> = text.parse().ok();
        table.and_then(|t| t.get("description")?.as_str().map(str::to_owned)).unwrap_or_default()
    };
    EMBEDDED.iter().map(|(name, text)| (*name, describe(text))).collect()
}

/// Reads the profile called `name`: one that comes with the program, or a path to a TOML file.
///
/// # Errors
/// If there is no such profile (the message lists those there are), a key is unknown, missing or out of range, or bases go in circles.
pub fn load(name: &str) -> Result<Loaded> {
    let table = layered(name, 0)?;
    let toml = toml::to_string(&table).context("a profile that cannot be printed")?;
    // From the table, not from its text: line numbers of what was merged would mean nothing to a reader.
    let profile: Profile = table.try_into().with_context(|| format!("profile {name:?}"))?;
    profile.validate().with_context(|| format!("profile {name:?}"))?;
    let stem = Path::new(name).file_stem().map_or_else(|| name.to_owned(), |s| s.to_string_lossy().into_owned());
    Ok(Loaded { name: stem, profile, toml })
}

fn layered(name: &str, depth: usize) -> Result<toml::Table> {
    if depth > MAX_DEPTH {
        bail!("profile {name:?}: bases go in a circle");
    }
    let (text, folder) = text_of(name)?;
    let mut table: toml::Table = text.parse().with_context(|| format!("profile {name:?} is not TOML"))?;
    let Some(base) = table.remove("base") else { return Ok(table) };
    let Some(base) = base.as_str() else { bail!("profile {name:?}: base is a name or a path") };
    // A relative path is relative to the file that names it.
    let beside = folder.map(|folder| folder.join(base)).filter(|path| path.is_file());
    let base = beside.map_or_else(|| base.to_owned(), |path| path.to_string_lossy().into_owned());
    let mut merged = layered(&base, depth + 1)?;
    overlay(&mut merged, table);
    Ok(merged)
}

fn text_of(name: &str) -> Result<(String, Option<PathBuf>)> {
    if let Some((_, text)) = EMBEDDED.iter().find(|(known, _)| *known == name) {
        return Ok(((*text).to_owned(), None));
    }
    let path = Path::new(name);
    if path.extension().is_some_and(|e| e == "toml") {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the profile {name}"))?;
        return Ok((text, path.parent().map(Path::to_owned)));
    }
    let known: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
    bail!("unknown profile {name:?}: choose one of {}, or give the path of a .toml file", known.join(", "))
}

fn overlay(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

impl Profile {
    fn validate(&self) -> Result<()> {
        if self.language.is_none() && self.planted.is_none() {
            bail!("it has neither [language] nor [planted]: nothing to do");
        }
        if let Some(language) = &self.language {
            language.validate()?;
        }
        if let Some(planted) = &self.planted {
            positive("planted.ratios", &planted.ratios)?;
            not_negative("planted.alphas", &planted.alphas)?;
            if planted.generators.is_empty()
                || planted.evaluate_rows == 0
                || planted.d_in == 0
                || planted.n_features == 0
            {
                bail!("planted: generators, evaluate_rows, d_in and n_features must not be empty or zero");
            }
            for (ratio, alpha) in planted.cases() {
                planted.train_config(ratio, alpha).validate(planted.d_in).context("[planted]")?;
            }
        }
        Ok(())
    }
}

impl Language {
    fn validate(&self) -> Result<()> {
        positive("language.sae.ratios", &self.sae.ratios)?;
        not_negative("language.sae.alphas", &self.sae.alphas)?;
        if self.max_norm.is_nan() || self.max_norm < 1.0 {
            bail!("language.max_norm = {}: a multiple of the median norm, at least 1, or inf", self.max_norm);
        }
        if self.capture.hooks.is_empty() {
            bail!("language.capture.hooks is empty: name at least one hook point, such as blocks.3.hook_resid_post");
        }
        let shares = [("held_out", self.corpus.held_out), ("interpretation", self.corpus.interpretation)];
        if let Some((key, share)) = shares.iter().find(|(_, share)| !(0.0..1.0).contains(share)) {
            bail!("language.corpus.{key} = {share}: a share of the documents, from 0 to below 1");
        }
        if self.corpus.held_out + self.corpus.interpretation >= 1.0 {
            bail!("language.corpus: held_out and interpretation leave nothing to train on");
        }
        if self.corpus.context < 2 {
            bail!("language.corpus.context = {}: a context has at least 2 tokens", self.corpus.context);
        }
        let zero = [
            ("corpus.max_tokens", self.corpus.max_tokens),
            ("capture.batch_contexts", self.capture.batch_contexts),
            ("capture.rows_per_shard", self.capture.rows_per_shard),
            ("sae.curve_rows", self.sae.curve_rows),
            ("sae.curve_every", usize::try_from(self.sae.curve_every).unwrap_or(usize::MAX)),
            ("baselines.ica_rows", self.baselines.ica_rows),
            ("baselines.ica_max_iter", self.baselines.ica_max_iter),
            ("evaluate.rows", self.evaluate.rows),
            ("splice.contexts", self.splice.contexts),
            ("splice.batch_contexts", self.splice.batch_contexts),
        ];
        if let Some((key, _)) = zero.iter().find(|(_, value)| *value == 0) {
            bail!("language.{key} must be at least 1");
        }
        positive("language.baselines.random_ratio", &[self.baselines.random_ratio])?;
        distinct("language.capture.hooks", &self.capture.hooks)?;
        distinct("language.sae.ratios", &self.sae.ratios)?;
        distinct("language.sae.alphas", &self.sae.alphas)?;
        let cases = self.cases();
        if let Some(interp) = &self.interp {
            if self.corpus.interpretation == 0.0 {
                bail!(
                    "language.corpus.interpretation = 0: [language.interp] needs a share of the text to interpret features on"
                );
            }
            interp.validate(self.corpus.context, &cases)?;
        }
        if let Some(ioi) = &self.ioi {
            ioi.validate(&self.capture.hooks, &cases)?;
        }
        if let Some(properties) = &self.properties {
            properties.validate()?;
        }
        Ok(())
    }

    /// The training settings of one autoencoder on activations `d_in` wide.
    #[must_use]
    pub fn train_config(&self, ratio: f64, alpha: f32, d_in: usize) -> TrainConfig {
        let sae = &self.sae;
        TrainConfig {
            n_latents: latents(ratio, d_in),
            alpha,
            lr: sae.lr,
            batch: sae.batch,
            steps: sae.steps,
            adam: sae.adam,
            precision: sae.precision,
            lr_warmup_steps: sae.lr_warmup_steps,
            lr_decay_steps: sae.lr_decay_steps,
            seed: sae.seed,
            ..TrainConfig::default()
        }
    }

    /// Every ratio with every alpha.
    #[must_use]
    pub fn cases(&self) -> Vec<(f64, f32)> {
        cases(&self.sae.ratios, &self.sae.alphas)
    }
}

impl Planted {
    /// Every ratio with every alpha.
    #[must_use]
    pub fn cases(&self) -> Vec<(f64, f32)> {
        cases(&self.ratios, &self.alphas)
    }

    /// The training settings of one autoencoder.
    #[must_use]
    pub fn train_config(&self, ratio: f64, alpha: f32) -> TrainConfig {
        TrainConfig {
            n_latents: latents(ratio, self.d_in),
            alpha,
            lr: self.lr,
            batch: self.batch,
            steps: self.steps,
            adam: self.adam,
            seed: self.seed,
            ..TrainConfig::default()
        }
    }
}

fn cases(ratios: &[f64], alphas: &[f32]) -> Vec<(f64, f32)> {
    ratios.iter().flat_map(|ratio| alphas.iter().map(|alpha| (*ratio, *alpha))).collect()
}

fn latents(ratio: f64, d_in: usize) -> usize {
    ((ratio * d_in as f64).round() as usize).max(1)
}

fn positive(key: &str, values: &[f64]) -> Result<()> {
    match values.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
        Some(value) => bail!("{key} has {value}: it must be above 0"),
        None if values.is_empty() => bail!("{key} is empty"),
        None => Ok(()),
    }
}

fn not_negative(key: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !(v.is_finite() && **v >= 0.0)) {
        Some(value) => bail!("{key} has {value}: it must not be negative"),
        None if values.is_empty() => bail!("{key} is empty"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_profile_is_valid() {
        for (name, description) in embedded() {
            let loaded = load(name).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            assert!(!description.is_empty());
            // What is shown in a report reads back as the same settings.
            assert_eq!(toml::from_str::<Profile>(&loaded.toml).unwrap(), loaded.profile);
        }
    }

    #[test]
    fn an_unknown_profile_lists_those_there_are() {
        let error = format!("{:#}", load("smolm").unwrap_err());
        assert!(embedded().iter().all(|(name, _)| error.contains(name)), "{error}");
    }

    #[test]
    fn a_profile_overrides_its_base_key_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "base = \"smollm2\"\n[language.sae]\nsteps = 7\n").unwrap();
        let mine = load(path.to_str().unwrap()).unwrap();
        let base = load("smollm2").unwrap();
        assert_eq!(mine.name, "mine");
        let (mut mine, base) = (mine.profile.language.unwrap(), base.profile.language.unwrap());
        assert_eq!(mine.sae.steps, 7);
        mine.sae.steps = base.sae.steps;
        assert_eq!(mine, base);
    }

    #[test]
    fn an_unknown_key_and_a_circle_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "base = \"smollm2\"\n[language.sae]\nstep = 7\n").unwrap();
        let error = format!("{:#}", load(path.to_str().unwrap()).unwrap_err());
        assert!(error.contains("`step`") && error.contains("`steps`"), "{error}");
        std::fs::write(&path, "base = \"mine.toml\"\n").unwrap();
        let error = format!("{:#}", load(path.to_str().unwrap()).unwrap_err());
        assert!(error.contains("circle"), "{error}");
    }
}
