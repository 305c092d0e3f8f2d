//! Arguments of the commands that interpret and patch features.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use monosem_hooks::HookPoint;
use monosem_lm::Precision;

use crate::commands;
use crate::model::Model;

/// A dictionary and the place in a model that it reads.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// Folder of the dictionary: dictionary.json and dictionary.safetensors.
    #[arg(long)]
    pub(crate) dictionary: PathBuf,
    /// Model: a name, hf:owner/name[@revision], a folder in Hugging Face layout, a .gguf file, or toy (part of the program).
    #[arg(long)]
    pub(crate) model: Model,
    /// The hook point that the dictionary reads; the one named in dictionary.json by default.
    #[arg(long)]
    pub(crate) hook: Option<HookPoint>,
    /// Positions of a text that are left alone: none, or a list such as 0 or 0,1. Position 0 is an attention sink in most models.
    #[arg(long, default_value = "0", value_name = "LIST", value_parser = commands::positions)]
    pub(crate) drop_positions: commands::Positions,
    /// Subtract their mean from all weights that write to the residual stream, as TransformerLens does.
    #[arg(long)]
    pub(crate) centered: bool,
    /// Print results as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Patch {
    /// Find the features that cause the answer of a task: indirect object identification, or another by --task.
    Ioi(Ioi),
    /// Change features while the model reads a text, and show what that does.
    Run(PatchRun),
}

#[derive(Debug, Args)]
pub(crate) struct Ioi {
    #[command(flatten)]
    pub(crate) at: Where,
    /// The task: english, toy or toy-held-out (indirect object identification), pronoun, gender, agreement, greater-than, closing, toy-pronoun, toy-gender,
    /// toy-agreement, or a TOML file of such a form (data/tasks/README.md). Prompts are of the half of its templates, and of its names or changed words, that
    /// results are reported on.
    #[arg(long, default_value = "english")]
    pub(crate) task: String,
    /// Draw the prompts from this many names; 0 for all. A sparse dictionary spends features on each name.
    #[arg(long, default_value_t = 0)]
    pub(crate) names: usize,
    /// Prompts.
    #[arg(long, default_value_t = 16, value_parser = commands::count::<10_000>)]
    pub(crate) prompts: usize,
    /// Number of thresholds on the rise of KL, in equal ratios.
    #[arg(long, default_value_t = 12, value_parser = commands::count::<10_000>)]
    pub(crate) thresholds: usize,
    /// The lowest threshold, in nats.
    #[arg(long, default_value_t = 1e-4, value_parser = commands::threshold)]
    pub(crate) low: f64,
    /// The highest threshold, in nats.
    #[arg(long, default_value_t = 1.0, value_parser = commands::threshold)]
    pub(crate) high: f64,
    /// Start with this many features instead of all, those to which gradients attribute the largest effects; 0 for all, which takes hours where thousands differ.
    #[arg(long, default_value_t = 0)]
    pub(crate) max_candidates: usize,
    /// What the model's maps are computed in: f32, or bf16 (about half the time where the processor has AVX512-BF16).
    #[arg(long, default_value = "f32")]
    pub(crate) precision: Precision,
    /// Draws prompts and the order of visiting.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct PatchRun {
    #[command(flatten)]
    pub(crate) at: Where,
    /// The text that the model reads.
    #[arg(long)]
    pub(crate) text: String,
    /// Features to change, as a list such as 3,17.
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) features: Vec<usize>,
    /// Multiply their codes by this; 0 ablates them.
    #[arg(
        long, allow_negative_numbers = true, required_unless_present = "set", conflicts_with = "set",
        value_parser = commands::finite::<f32>,
    )]
    pub(crate) scale: Option<f32>,
    /// Give their codes this value everywhere, also where they are not active.
    #[arg(long, allow_negative_numbers = true, value_parser = commands::finite::<f32>)]
    pub(crate) set: Option<f32>,
    /// Tokens to continue the text by; fewer where the model's context ends.
    #[arg(long, default_value_t = 20)]
    pub(crate) tokens: usize,
    /// Next tokens to show, those whose probability changes most.
    #[arg(long, default_value_t = 10)]
    pub(crate) changes: usize,
}
