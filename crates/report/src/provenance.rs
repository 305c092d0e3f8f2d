//! What a run was: shown at the top and the bottom of the report.

use serde::{Deserialize, Serialize};

/// Everything about a run that is not a number in its results.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Heading of the page.
    pub title: String,
    /// Name of the profile that was run.
    pub profile: String,
    /// The resolved profile, as TOML; shown folded.
    pub profile_toml: String,
    /// The language model the activations come from, for people.
    pub model: String,
    /// The text the model read, for people.
    pub text: String,
    /// The nodes of the experiment graph, in the order they should be listed.
    pub nodes: Vec<NodeInfo>,
    /// Version of the program.
    pub version: String,
    /// Plain sentences shown at the top: what differs from the paper, honest caveats.
    pub notes: Vec<String>,
}

/// One node of the experiment graph.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct NodeInfo {
    /// Name of the node.
    pub name: String,
    /// Its content address.
    pub key: String,
    /// Seconds it took when it ran (also where this run took it from the store).
    pub seconds: f64,
    /// Whether this run found it in the store.
    pub cached: bool,
    /// The folder that holds its outputs.
    pub folder: String,
    /// What its numbers were made from: files, models, other nodes, crates.
    pub sources: Vec<String>,
    /// The [`ResultRow::experiment`](crate::ResultRow::experiment) values it wrote; a section names the nodes that list its experiment.
    #[serde(default)]
    pub experiments: Vec<String>,
}
