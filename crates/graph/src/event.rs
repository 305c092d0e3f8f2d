use serde::{Deserialize, Serialize};

/// What [`Graph::run`](crate::Graph::run) is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Run these nodes and what they need; empty: all.
    pub only: Vec<String>,
    /// Nodes that may run at once; 0 counts as 1.
    pub jobs: usize,
    /// Hash the files of finished nodes again; a difference makes the node run again and is told by [`Event::Invalid`].
    pub verify: bool,
}

/// How a node stands in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Finished: its folder is there and whole (sizes are checked, hashes are not).
    Hit,
    /// Nothing of it is there.
    Missing,
    /// A folder of it is there, but made from something else (another key), or damaged.
    Stale,
    /// Begun under this key: it has left checkpoints.
    Partial,
}

/// A node in a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its key: 64 hexadecimal digits.
    pub key: String,
    /// How it stands.
    pub state: State,
    /// Its dependencies, sorted.
    pub deps: Vec<String>,
    /// Its relative cost.
    pub weight: f64,
}

/// What happens during a run. As JSON: an object whose `event` is the variant's name in snake case.
///
/// With several nodes at once, events come from several threads; those of one node come in order, and a node's `Started`
/// comes after the `Finished` or `Hit` of each of its dependencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// First of all: the nodes of this run, in execution order.
    Planned {
        /// The nodes.
        nodes: Vec<Planned>,
    },
    /// A node begins.
    Started {
        /// The node.
        name: String,
    },
    /// A running node has come this far.
    Progress {
        /// The node.
        name: String,
        /// Units done, those of earlier interrupted runs included.
        done: u64,
        /// Units in all.
        total: u64,
        /// What is counted, as a plural: `tokens`.
        unit: String,
    },
    /// A running node has something to say.
    Message {
        /// The node.
        name: String,
        /// What it says.
        text: String,
    },
    /// A node was found finished.
    Hit {
        /// The node.
        name: String,
    },
    /// A node's folder with the right key is damaged and will be made again.
    Invalid {
        /// The node.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A node has ended well and is in the store.
    Finished {
        /// The node.
        name: String,
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// A node has failed.
    Failed {
        /// The node.
        name: String,
        /// The error with its causes.
        error: String,
    },
    /// A node will not run.
    Skipped {
        /// The node.
        name: String,
        /// Why: a dependency failed or was skipped, or the run was interrupted.
        because: String,
    },
    /// A running node has stopped because the run was cancelled; it will go on from what it left under `partial`.
    Interrupted {
        /// The node.
        name: String,
    },
}

/// How a run ended: each node of the run is in one of the five lists, in execution order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Nodes that ran and ended well.
    pub finished: Vec<String>,
    /// Nodes that were found finished.
    pub hits: Vec<String>,
    /// Nodes that failed, each with its error.
    pub failed: Vec<(String, String)>,
    /// Nodes that did not start, because a dependency did not end well or the run was cancelled.
    pub skipped: Vec<String>,
    /// Nodes that stopped because the run was cancelled.
    pub interrupted: Vec<String>,
    /// How long the run took, in seconds.
    pub seconds: f64,
}

impl Summary {
    /// Whether every node of the run is now in the store.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.skipped.is_empty() && self.interrupted.is_empty()
    }
}
