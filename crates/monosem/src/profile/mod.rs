//! Profiles: every number of a run, in TOML. A profile may name a base, whose values it overrides key by key.

use anyhow::{Context as _, Result, bail};
use monosem_activations::Dtype;
use monosem_decompose::NmfConfig;
use monosem_hooks::HookPoint;
use monosem_lm::Precision;
use monosem_sae::{AdamMode, AuxK, BatchTopK, Family, Matryoshka, TopK, TrainConfig};
use serde::{Deserialize, Serialize};

use crate::causal::task_name;
use crate::model::Model;
use crate::text::Texts;

mod causal;
mod claims;
mod layers;
mod planted;
mod studies;
mod sweep;

pub(crate) use causal::thresholds;
pub use causal::{Circuits, Ioi, Screen};
use claims::distinct;
pub use claims::{Asked, Interp, Properties, RandomModel};
pub use layers::{Loaded, embedded, load};
pub use planted::{Anchor, Generator, Grid, Planted};
pub use studies::{CaseStudies, Erasure, NamedFeature};
pub use sweep::{Sweep, SweptFamily};

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
    /// Autoencoders of other families, trained at every hook point in one pass and compared with the others.
    #[serde(default)]
    pub families: Vec<FamilyCase>,
    /// Many autoencoders at many places, measured but not interpreted.
    #[serde(default)]
    pub sweep: Vec<Sweep>,
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
    /// Causes of other behaviour, each as `[language.ioi]` with another task.
    #[serde(default)]
    pub tasks: Vec<Ioi>,
    /// What features are made of earlier ones.
    pub circuits: Option<Circuits>,
    /// The tokens behind single features and dimensions, and what they do.
    pub case_studies: Option<CaseStudies>,
    /// A concept erased in several ways.
    pub erasure: Option<Erasure>,
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

/// An autoencoder of another family than the paper's; what is not said here is as in `[language.sae]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FamilyCase {
    /// Which family, with its own settings.
    pub family: Family,
    /// Dictionary size as a multiple of the width of the activations.
    pub ratio: f64,
    /// Sparsity coefficient, 0 for families without a penalty.
    #[serde(default)]
    pub alpha: f32,
    /// Steps over which `alpha` rises from 0.
    #[serde(default)]
    pub sparsity_warmup_steps: u64,
    /// The auxiliary loss for dead latents of the families that choose the largest codes.
    #[serde(default)]
    pub aux_k: Option<AuxK>,
}

impl FamilyCase {
    /// The word for it in results: `sae-top-k`.
    #[must_use]
    pub fn method(&self) -> String {
        format!("sae-{}", self.family.name())
    }

    /// What tells it from others of the family: `ratio=2,k=32`, `ratio=2,alpha=0.001`.
    #[must_use]
    pub fn setting(&self) -> String {
        let own = match &self.family {
            Family::TopK(TopK { k })
            | Family::BatchTopK(BatchTopK { k })
            | Family::Matryoshka(Matryoshka { k, .. }) => {
                format!("k={k}")
            }
            _ => format!("alpha={}", self.alpha),
        };
        format!("ratio={},{own}", self.ratio)
    }
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
    /// Draws the starts of FastICA and NMF and the random directions.
    pub seed: u64,
    /// Non-negative matrix factorisation of the activations above their minimum; none to go without, as the paper did.
    #[serde(default)]
    pub nmf: Option<Nmf>,
}

/// How non-negative matrix factorisation is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nmf {
    /// Rows that it is fitted on.
    pub rows: usize,
    /// Number of components as a multiple of the width.
    pub ratio: f64,
    /// Most iterations.
    pub max_iter: usize,
    /// It has converged when the projected gradient is below this part of what it was in the first iteration.
    pub tol: f64,
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

impl Nmf {
    /// What it is fitted with to activations `d_in` wide.
    #[must_use]
    pub fn config(&self, d_in: usize, seed: u64) -> NmfConfig {
        NmfConfig { n_components: latents(self.ratio, d_in), max_iter: self.max_iter, tol: self.tol, seed }
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
            planted.validate()?;
        }
        Ok(())
    }
}

/// More tokens than this in a context are a slip of the pen: no model reads as many.
const MOST_TOKENS: usize = 1 << 20;

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
        if !(2..=MOST_TOKENS).contains(&self.corpus.context) {
            bail!("language.corpus.context = {}: a context has 2 to {MOST_TOKENS} tokens", self.corpus.context);
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
        let names: Vec<_> = self.families.iter().map(|case| (case.method(), case.setting())).collect();
        distinct("language.families", &names)?;
        for case in &self.families {
            positive("language.families.ratio", &[case.ratio])?;
            not_negative("language.families.alpha", &[case.alpha])?;
        }
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
            ioi.validate("language.ioi", &cases)?;
        }
        let tasks: Vec<_> = self.tasks.iter().map(|task| task_name(&task.task)).collect();
        distinct("language.tasks", &tasks)?;
        for task in &self.tasks {
            task.validate("language.tasks", &cases)?;
        }
        if let Some(circuits) = &self.circuits {
            if self.interp.is_none() {
                bail!(
                    "[language.circuits] needs [language.interp]: it explains features, and reads the text kept for that"
                );
            }
            circuits.validate(&cases)?;
        }
        if let Some(studies) = &self.case_studies {
            if self.corpus.interpretation == 0.0 {
                bail!("language.corpus.interpretation = 0: [language.case_studies] needs a share of the text");
            }
            studies.validate(&self.capture.hooks, &cases)?;
        }
        if let Some(erasure) = &self.erasure {
            if self.corpus.held_out == 0.0 {
                bail!("language.corpus.held_out = 0: [language.erasure] needs a share of the text");
            }
            erasure.validate(&self.capture.hooks, &cases)?;
        }
        if let Some(properties) = &self.properties {
            properties.validate()?;
        }
        if let Some(nmf) = &self.baselines.nmf {
            positive("language.baselines.nmf.ratio", &[nmf.ratio])?;
            if nmf.rows == 0 {
                bail!("language.baselines.nmf.rows must be at least 1");
            }
            nmf.config(1, self.baselines.seed).validate().context("language.baselines.nmf")?;
        }
        self.validate_sweeps()?;
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

    /// The training settings of an autoencoder of another family.
    #[must_use]
    pub fn family_config(&self, case: &FamilyCase, d_in: usize) -> TrainConfig {
        TrainConfig {
            family: case.family.clone(),
            aux_k: case.aux_k,
            sparsity_warmup_steps: case.sparsity_warmup_steps,
            ..self.train_config(case.ratio, case.alpha, d_in)
        }
    }

    /// Every ratio with every alpha.
    #[must_use]
    pub fn cases(&self) -> Vec<(f64, f32)> {
        cases(&self.sae.ratios, &self.sae.alphas)
    }
}

fn cases(ratios: &[f64], alphas: &[f32]) -> Vec<(f64, f32)> {
    ratios.iter().flat_map(|ratio| alphas.iter().map(|alpha| (*ratio, *alpha))).collect()
}

/// The number of latents of a dictionary `ratio` times as large as what it reads is wide.
pub(crate) fn latents(ratio: f64, d_in: usize) -> usize {
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
