//! Arguments of `monosem interp`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use monosem_autointerp::ScorerKind;

use super::Where;
use crate::commands;
use crate::endpoint::LlmName;
use crate::model::Model;
use crate::text::Text;

/// Who explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExplainerName {
    /// A list of patterns, found without a model.
    Patterns,
    /// A model that is shown tokens with integers.
    Integers,
    /// A model that is shown windows with marked tokens.
    Windows,
}

#[derive(Debug, Args)]
pub(crate) struct Interp {
    #[command(flatten)]
    pub(crate) at: Where,
    /// Text: a name, hf:datasets/owner/name[@revision]:file, a .txt or .jsonl file, or a folder; may be given several times. Explanations are
    /// scored on documents that they were not made from; of a text of few documents, parts are told apart instead.
    #[arg(long, required = true)]
    pub(crate) text: Vec<Text>,
    /// The field of a JSON line that holds the text.
    #[arg(long, default_value = "text")]
    pub(crate) text_field: String,
    /// Read this many tokens of the text.
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    pub(crate) tokens: usize,
    /// Tokens in a context.
    #[arg(long, default_value_t = 128)]
    pub(crate) context: usize,
    /// Tokens in a fragment.
    #[arg(long, default_value_t = 64)]
    pub(crate) fragment: usize,
    /// Features to interpret, as a list such as 3,17; the first ones by default.
    #[arg(long, value_delimiter = ',', conflicts_with = "first")]
    pub(crate) features: Vec<usize>,
    /// Interpret the first N features.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub(crate) first: usize,
    /// Leave out rows whose norm is over this multiple of the median norm (attention sinks); inf keeps all.
    #[arg(long, default_value_t = 20.0)]
    pub(crate) max_norm: f64,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
}

/// How features are explained and scored, and where the results go.
#[derive(Debug, Args)]
pub(crate) struct Scoring {
    /// Patterns in an explanation.
    #[arg(long, default_value_t = 5)]
    pub(crate) patterns: usize,
    /// Draws fragments, the documents to score on, controls and whatever a scorer draws.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Also write results.json, features.json, explanations.jsonl and a report into this folder.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// Who explains: a list of patterns (no model is asked), or a model that is shown integers or marked windows.
    #[arg(long, value_enum, default_value_t = ExplainerName::Patterns, help_heading = "Language models")]
    pub(crate) explainer: ExplainerName,
    /// Score explanations made elsewhere: lines of JSON with `feature` and `explanation`.
    #[arg(long, value_name = "FILE", conflicts_with = "explainer", help_heading = "Language models")]
    pub(crate) explanations: Option<PathBuf>,
    /// How explanations are scored, a list: patterns, simulation, chat-simulation, detection, fuzzing, intruder, surprisal. All but patterns ask a model.
    #[arg(long, value_delimiter = ',', default_value = "patterns", help_heading = "Language models")]
    pub(crate) scorers: Vec<ScorerKind>,
    /// The model that is asked: local:MODEL (in this process), the address of an OpenAI-compatible server (its key in MONOSEM_LLM_KEY), or a .toml file with
    /// all settings (docs/LLM.md).
    #[arg(long, value_name = "WHO", help_heading = "Language models")]
    pub(crate) llm: Option<LlmName>,
    /// The name by which the server knows its model.
    #[arg(long, value_name = "NAME", requires = "llm", help_heading = "Language models")]
    pub(crate) llm_model: Option<String>,
    /// Where replies are kept: the same question is asked once. In the folder of models and texts by default.
    #[arg(long, value_name = "FOLDER", requires = "llm", help_heading = "Language models")]
    pub(crate) llm_cache: Option<PathBuf>,
    /// Prompts of your own: a folder with files named as those of data/prompts, of which it may hold a few.
    #[arg(long, value_name = "FOLDER", help_heading = "Language models")]
    pub(crate) prompts: Option<PathBuf>,
    /// Fragments to score on: so many of the strongest and as many random ones.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = commands::count::<10_000>)]
    pub(crate) score: usize,
    /// A fragment counts as quiet if the feature reaches at most this share of its maximum there: 0 for not active at all. Dense directions have no such fragments.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub(crate) quiet_below: f32,
    /// Features behind each control: explanations dealt to other features, and random directions in place of the dictionary.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = commands::count::<10_000>)]
    pub(crate) controls: usize,
}

#[derive(Debug, Args)]
pub(crate) struct InterpCache {
    /// The folder of one hook point in delphi's latent cache: config.json and files FIRST_LAST.safetensors.
    pub(crate) cache: PathBuf,
    /// The model whose tokens the cache holds, for their text: a name, hf:owner/name[@revision], a folder in Hugging Face layout, or a .gguf file.
    #[arg(long)]
    pub(crate) model: Model,
    /// Tokens in a fragment.
    #[arg(long, default_value_t = 64)]
    pub(crate) fragment: usize,
    /// Latents to interpret, as a list such as 3,17; the first ones of the cache by default.
    #[arg(long, value_delimiter = ',', conflicts_with = "first")]
    pub(crate) features: Vec<usize>,
    /// Interpret the first N latents of the cache.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub(crate) first: usize,
    /// Print results as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
}
