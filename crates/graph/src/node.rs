use std::{collections::BTreeMap, path::PathBuf};

use crate::{Ctx, NodeError};

/// What a node does: it writes its result into [`Ctx::out`].
pub type RunFn<'a> = Box<dyn Fn(&Ctx<'_>) -> Result<(), NodeError> + Send + Sync + 'a>;

/// One piece of work of a [`Graph`](crate::Graph).
pub struct Node<'a> {
    /// Unique in its graph; one to 100 characters of `a-z 0-9 . _ -`.
    pub name: String,
    /// Names of the nodes whose folders this one reads. Order and repetition mean nothing.
    pub deps: Vec<String>,
    /// Everything that the work depends on besides files and dependencies: settings, seed, device. The graph sorts the
    /// keys of its objects; `1` and `1.0` count as different numbers.
    pub params: serde_json::Value,
    /// Files and folders that the node reads, hashed by content. A file counts with its own name, a folder with the names
    /// below it and not its own, so both may move. Their order counts. Links are followed; empty folders are not seen.
    pub inputs: Vec<PathBuf>,
    /// Name of a piece of code (a crate) -> hash of its source, given by the caller.
    pub sources: BTreeMap<String, String>,
    /// Cost relative to the other nodes, for the overall time left; not part of the key. Finite, not negative.
    pub weight: f64,
    /// The work. It may be called again after a failure or an interruption, with [`Ctx::partial`] as it was left.
    pub run: RunFn<'a>,
}

impl std::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("name", &self.name).field("deps", &self.deps).finish_non_exhaustive()
    }
}
