//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use monosem_activations::Dtype;
use monosem_hooks::HookPoint;
use monosem_lm::Precision;

use crate::model::Model;
use crate::output::{Closed, note};
use crate::text::Text;
use crate::{commands, exit, interrupt};

mod claims;
mod interp;
mod training;

pub(crate) use claims::{Ioi, Patch, PatchRun, Where};
pub(crate) use interp::{ExplainerName, Interp, InterpCache, Scoring};
pub(crate) use training::{Export, ExportFormat, FamilyName, Train};

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, the message says what and where; 2 wrong command line; 3 some nodes of a \
    run failed and the rest is kept; 130 stopped by ctrl-C, and the same command goes on from there.\n\n\
    Environment: MONOSEM_CACHE (folder for models and texts), HF_ENDPOINT and HF_TOKEN (the hub), MONOSEM_LLM_KEY (a server asked by `interp`), \
    RAYON_NUM_THREADS.";

/// Find, score and causally test interpretable features of language models.
#[derive(Debug, Parser)]
#[command(name = "monosem", version, after_help = EXIT_CODES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a profile's whole experiment graph and write its report.
    Reproduce(Reproduce),
    /// Run one node of a profile's graph, and what it needs.
    Node(NodeArgs),
    /// Show a profile's experiment graph.
    Graph(GraphArgs),
    /// Write the report of a run again from what its nodes left.
    Report(RunArgs),
    /// List the profiles that come with the program.
    Profiles,
    /// Keep the activations of a model on a text.
    Capture(Capture),
    /// Take activations made elsewhere (.npy, .safetensors) into a store.
    Import(Import),
    /// Train a sparse autoencoder on a store of activations.
    Train(Train),
    /// Write a dictionary in the format of another package.
    Export(Export),
    /// Measure a dictionary on a store of activations and, with a model, in the model.
    Eval(Eval),
    /// Explain features of a dictionary and score the explanations.
    Interp(Interp),
    /// Explain and score the latents of a cache that delphi wrote.
    InterpCache(InterpCache),
    /// Patch features into a model's runs: what causes indirect object identification, and what features do to a text.
    #[command(subcommand)]
    Patch(Patch),
    /// Fetch models and texts by name.
    #[command(subcommand)]
    Assets(AssetsCommand),
}

/// Which run: the profile and where its results are.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Profile: a name (see `monosem profiles`) or the path of a .toml file.
    #[arg(long, default_value = "smollm2")]
    pub(crate) profile: String,
    /// Folder for results; the run goes into OUT/PROFILE.
    #[arg(long, default_value = "out")]
    pub(crate) out: PathBuf,
}

/// How a graph is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct HowArgs {
    /// Nodes that run at once; each uses all cores where it can.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: u16,
    /// Where autoencoders are trained.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub(crate) device: Device,
    /// Hash the outputs of finished nodes again; what does not match is made again.
    #[arg(long)]
    pub(crate) verify: bool,
}

/// Where autoencoders are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// The fastest there is.
    Auto,
    /// This machine's processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

#[derive(Debug, Args)]
pub(crate) struct Reproduce {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) how: HowArgs,
    /// Only this node and what it needs; may be given several times.
    #[arg(long, value_name = "NODE")]
    pub(crate) only: Vec<String>,
    /// Show what would run, and run nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The node, as `monosem graph` lists it.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// text: a line a node; json; dot: for Graphviz; snakemake: a workflow that runs the nodes on a cluster.
    #[arg(long, value_enum, default_value_t = GraphFormat::Text)]
    pub(crate) format: GraphFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    Text,
    Json,
    Dot,
    Snakemake,
}

/// Where tokens come from.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TokenSource {
    /// Text: a name, hf:datasets/owner/name[@revision]:file, a .txt or .jsonl file, or a folder; may be given several times.
    #[arg(long)]
    pub(crate) text: Vec<Text>,
    /// Token ids: a safetensors file with input_ids [n, context].
    #[arg(long)]
    pub(crate) ids: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// Model: a name, hf:owner/name[@revision], a folder in Hugging Face layout, or a .gguf file.
    #[arg(long)]
    pub(crate) model: Model,
    #[command(flatten)]
    pub(crate) tokens_from: TokenSource,
    /// The field of a JSON line that holds the text.
    #[arg(long, default_value = "text")]
    pub(crate) text_field: String,
    /// Hook point, such as blocks.3.hook_resid_post; may be given several times.
    #[arg(long = "hook", required = true)]
    pub(crate) hooks: Vec<HookPoint>,
    /// Stop after this many tokens.
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<usize>,
    /// Tokens in a context.
    #[arg(long, default_value_t = 128)]
    pub(crate) context: usize,
    /// Positions of a context that are not kept: none, or a list such as 0 or 0,1.
    #[arg(long, default_value = "0", value_name = "LIST", value_parser = commands::positions)]
    pub(crate) drop_positions: commands::Positions,
    /// Stored number format: f32, f16 or bf16.
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: Dtype,
    /// What the model's maps are computed in: f32 or bf16 (about half the time where the processor has AVX512-BF16).
    #[arg(long, default_value = "f32")]
    pub(crate) precision: Precision,
    /// Contexts in one forward pass.
    #[arg(long, default_value_t = 16)]
    pub(crate) batch: usize,
    /// Subtract their mean from all weights that write to the residual stream, as TransformerLens does.
    #[arg(long)]
    pub(crate) centered: bool,
    /// Draws the order of contexts.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Folder of the store. If it holds an interrupted capture of the same thing, that goes on.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Files of activations [n, d]: .npy, or .safetensors with a tensor `activations`.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The hook point they come from.
    #[arg(long)]
    pub(crate) hook: HookPoint,
    /// The model they come from, for the record.
    #[arg(long, default_value = "unknown")]
    pub(crate) model: String,
    /// Stored number format: f32, f16 or bf16.
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: Dtype,
    /// Folder of the store.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// A dictionary: a folder that `monosem train` wrote, or one of SAELens, sparsify, dictionary_learning (ae.pt) or Gemma Scope (params.npz).
    #[arg(long)]
    pub(crate) dictionary: PathBuf,
    /// Folder of a store of activations that the dictionary was not trained on.
    #[arg(long)]
    pub(crate) activations: PathBuf,
    /// Hook point; may be left out where the store has only one.
    #[arg(long)]
    pub(crate) hook: Option<HookPoint>,
    /// Leave out rows whose norm is over this multiple of the median norm (attention sinks); inf keeps all.
    #[arg(long, default_value_t = 20.0)]
    pub(crate) max_norm: f64,
    /// At most this many rows.
    #[arg(long, default_value_t = 50_000, value_parser = commands::count::<100_000_000>)]
    pub(crate) rows: usize,
    /// Also measure the loss of this model with the reconstruction in place; needs --text.
    #[arg(long, requires = "text")]
    pub(crate) model: Option<Model>,
    /// The text for that; may be given several times.
    #[arg(long)]
    pub(crate) text: Vec<Text>,
    /// Contexts of that text.
    #[arg(long, default_value_t = 32)]
    pub(crate) contexts: usize,
    /// Tokens in a context; the store's own by default.
    #[arg(long)]
    pub(crate) context: Option<usize>,
    /// Print the results as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AssetsCommand {
    /// Fetch models and texts and print where they are.
    Fetch {
        /// Names, or addresses on the hub: hf:owner/name, hf:datasets/owner/name:file.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs the command line of this process and returns its exit code.
#[must_use]
pub fn main() -> u8 {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) if error.is::<Closed>() => exit::OK,
        Err(_) if interrupt::requested() => {
            note!("stopped; the same command goes on from there");
            exit::INTERRUPTED
        }
        Err(error) => {
            note!("error: {}", commands::chain(&error));
            exit::FAILED
        }
    }
}

fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Reproduce(args) => commands::reproduce::reproduce(&args),
        Command::Node(args) => commands::reproduce::node(&args),
        Command::Graph(args) => commands::graph::graph(&args),
        Command::Report(args) => commands::reproduce::report(&args),
        Command::Profiles => commands::graph::profiles(),
        Command::Capture(args) => commands::capture::capture(args),
        Command::Import(args) => commands::capture::import(&args),
        Command::Train(args) => commands::train::train(&args),
        Command::Export(args) => commands::export::export(&args),
        Command::Eval(args) => commands::eval::eval(&args),
        Command::Interp(args) => commands::interp::interp(&args),
        Command::InterpCache(args) => commands::interp_cache::interp_cache(&args),
        Command::Patch(Patch::Ioi(args)) => commands::patch::ioi(&args),
        Command::Patch(Patch::Run(args)) => commands::patch::run(&args),
        Command::Assets(AssetsCommand::Fetch { names }) => commands::assets::fetch(&names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
