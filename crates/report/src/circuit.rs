//! Circuits: the features of earlier hook points that a feature's activation depends on; and their file.

use std::cmp::Ordering;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ReportError;
use crate::entries::{self, Entry, finite};
use crate::row::natural_order;

/// A graph of features, of which each edge says how far one feature's activation falls without another.
///
/// Serialises in exactly this key order, in `circuits.json` beside `results.json`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Circuit {
    /// What made the dictionaries, as in result rows: `sae-tied`, ...
    pub method: String,
    /// Setting of the dictionaries and the target, as in result rows: `ratio=2,alpha=2e-3,target=17`.
    pub setting: String,
    /// The feature whose causes are shown: an index into `nodes`.
    pub target: usize,
    /// The features, the target among them; at least one.
    pub nodes: Vec<CircuitNode>,
    /// What was measured between them; from earlier to later hook points.
    pub edges: Vec<CircuitEdge>,
}

/// A feature in a circuit.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct CircuitNode {
    /// Hook point, as `blocks.3.hook_resid_post`.
    pub hook: String,
    /// Index of the feature in its dictionary, from 0.
    pub feature: usize,
    /// A sentence; may be empty.
    pub explanation: String,
    /// Mean activation on the contexts, in the unit of the codes.
    pub mean_activation: f64,
    /// Contexts on which the feature was active.
    pub n_contexts: u64,
}

/// How much of one feature's activation is there because of another.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct CircuitEdge {
    /// The feature that is ablated: an index into `nodes`.
    pub from: usize,
    /// The feature that is watched: an index into `nodes`, at a later hook point.
    pub to: usize,
    /// Mean relative fall of `to`'s activation when `from` is ablated: 0.3 means 30 %; below 0 it rises.
    pub ablation: f64,
    /// Lower end of the 95 % interval of `ablation`.
    pub ablation_low: Option<f64>,
    /// Upper end of the 95 % interval of `ablation`.
    pub ablation_high: Option<f64>,
    /// The same fall as attributed by a gradient instead of measured by an ablation.
    pub attribution: Option<f64>,
}

/// The sites of a block in the order of the forward pass.
const SITES: [&str; 7] = [
    "hook_resid_pre",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
];

/// Hook points in the order of the forward pass; those of other sites by name.
pub(crate) fn hook_order(a: &str, b: &str) -> Ordering {
    let place = |hook: &str| {
        let (layer, site) = hook.strip_prefix("blocks.")?.split_once('.')?;
        Some((layer.parse::<u32>().ok()?, SITES.iter().position(|known| *known == site)?))
    };
    match (place(a), place(b)) {
        (Some(x), Some(y)) => x.cmp(&y),
        _ => natural_order(a, b),
    }
}

impl Entry for Circuit {
    const FILE: &'static str = "circuits";
    const ONE: &'static str = "circuit";
    const KEYS: &'static str = "method, setting, target, nodes: [{hook, feature, explanation, mean_activation, n_contexts}], \
                                edges: [{from, to, ablation, ablation_low, ablation_high, attribution}]";

    fn describe(&self) -> String {
        format!("{:?}", (&self.method, &self.setting))
    }

    fn fault(&self) -> Option<String> {
        let nodes = self.nodes.len();
        if self.target >= nodes {
            return Some(format!("its target is node {} of {nodes}, expected an index from 0", self.target));
        }
        let of_node = |(i, node): (usize, &CircuitNode)| {
            Some(format!("node {i}: {}", finite("mean_activation", Some(node.mean_activation))?))
        };
        let of_edge = |(i, edge): (usize, &CircuitEdge)| Some(format!("edge {i}: {}", edge.fault(&self.nodes)?));
        let mut faults = self.nodes.iter().enumerate().filter_map(of_node);
        faults.next().or_else(|| self.edges.iter().enumerate().find_map(of_edge))
    }
}

impl CircuitEdge {
    fn fault(&self, nodes: &[CircuitNode]) -> Option<String> {
        for (field, index) in [("from", self.from), ("to", self.to)] {
            if index >= nodes.len() {
                return Some(format!("{field} is node {index} of {}, expected an index from 0", nodes.len()));
            }
        }
        let (from, to) = (&nodes[self.from].hook, &nodes[self.to].hook);
        if hook_order(from, to) != Ordering::Less {
            return Some(format!("runs from {from:?} to {to:?}, expected an earlier hook point before a later one"));
        }
        let numbers = [
            ("ablation", Some(self.ablation)),
            ("ablation_low", self.ablation_low),
            ("ablation_high", self.ablation_high),
            ("attribution", self.attribution),
        ];
        numbers.into_iter().find_map(|(field, number)| finite(field, number))
    }
}

/// Reads a circuits file: a JSON array of circuits.
///
/// # Errors
/// The file cannot be read, is not an array of circuits with exactly the keys of [`Circuit`], or one of them has an index out of
/// range, a number that is not finite or an edge that does not run from an earlier to a later hook point; file, circuit, and node
/// or edge are named.
pub fn read_circuits(path: &Path) -> Result<Vec<Circuit>, ReportError> {
    entries::read(path)
}

/// Writes a circuits file: a JSON array with one circuit per line, in the order given, which the report keeps.
///
/// The file appears whole or not at all: it is written beside its place and renamed.
///
/// # Errors
/// As for [`read_circuits`], and nothing is written; or the file cannot be written.
pub fn write_circuits(path: &Path, circuits: &[Circuit]) -> Result<(), ReportError> {
    entries::write(path, circuits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hook_points_are_ordered_as_the_model_runs_through_them() {
        let mut hooks = vec!["blocks.3.hook_resid_post", "blocks.11.hook_resid_pre"];
        hooks.extend(["blocks.3.hook_mlp_out", "blocks.3.hook_attn_out", "blocks.3.hook_resid_mid"]);
        hooks.sort_by(|a, b| hook_order(a, b));
        let expected =
            ["3.hook_attn_out", "3.hook_resid_mid", "3.hook_mlp_out", "3.hook_resid_post", "11.hook_resid_pre"];
        assert_eq!(hooks, expected.map(|hook| format!("blocks.{hook}")));
        assert_eq!(hook_order("layer 2", "layer 10"), Ordering::Less);
    }
}
