use std::{io, path::PathBuf};

/// What a node's work may return: any error.
pub type NodeError = Box<dyn std::error::Error + Send + Sync>;

/// The error with which a node says that it stopped because it was asked to, and not because something is wrong.
///
/// It may sit anywhere in the chain of sources of what the node returns. Where an error type hides it there
/// (a boxed `anyhow::Error` does), its text is enough once the run is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// What can be wrong with a graph or its store. A failing node is not among these: see [`Summary`](crate::Summary).
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// A node's name has a forbidden character or length.
    #[error("the node name {name:?} must be 1 to 100 characters of a-z, 0-9, '.', '_' and '-'")]
    BadName {
        /// The name.
        name: String,
    },
    /// A node's weight is not a finite number of at least zero.
    #[error("node `{node}` has the weight {weight}; expected a finite number of at least 0")]
    BadWeight {
        /// The node.
        node: String,
        /// Its weight.
        weight: f64,
    },
    /// Two nodes have one name.
    #[error("two nodes are named `{name}`")]
    DuplicateNode {
        /// The name.
        name: String,
    },
    /// A dependency is not in the graph.
    #[error("node `{node}` depends on `{dep}`, which is not a node; the nodes are: {}", .known.join(", "))]
    UnknownDep {
        /// The node that names it.
        node: String,
        /// The unknown name.
        dep: String,
        /// All nodes of the graph.
        known: Vec<String>,
    },
    /// Nodes depend on each other in a circle.
    #[error("the nodes depend on each other in a circle: {}", .path.join(" -> "))]
    Cycle {
        /// The circle, each name followed by a dependency of it; the first name comes again at the end.
        path: Vec<String>,
    },
    /// A node was asked for that is not in the graph.
    #[error("there is no node `{name}`; the nodes are: {}", .known.join(", "))]
    UnknownNode {
        /// The unknown name.
        name: String,
        /// All nodes of the graph.
        known: Vec<String>,
    },
    /// A node asked for the folder of a node that is not among its dependencies.
    #[error("node `{node}` asked for `{dep}`, which is not among its dependencies: {}", list_or_none(.declared))]
    UndeclaredDep {
        /// The node that asked.
        node: String,
        /// What it asked for.
        dep: String,
        /// What it may ask for.
        declared: Vec<String>,
    },
    /// An input of a node is missing or cannot be read.
    #[error("node `{node}` needs the input {}", path.display())]
    Input {
        /// The node.
        node: String,
        /// The input, as the node names it.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<GraphError>,
    },
    /// A file or folder is not of the kind that can be hashed and kept.
    #[error("{} {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The record of a finished node cannot be used.
    #[error("{} is not a valid record of a node: {reason}", path.display())]
    BadRecord {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another run holds the store.
    #[error("the store {} is in use by {}; wait for it to end, or choose another folder", root.display(), holder(*pid))]
    Locked {
        /// The store.
        root: PathBuf,
        /// The process that holds it, where known.
        pid: Option<u32>,
    },
    /// The store was opened for reading.
    #[error("the store {} is open for reading only", root.display())]
    ReadOnly {
        /// The store.
        root: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn list_or_none(names: &[String]) -> String {
    if names.is_empty() { "it has none".into() } else { names.join(", ") }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

/// For `map_err`: an operating system's error with what was tried on which path.
pub(crate) fn io_error(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> GraphError {
    let path = path.into();
    move |source| GraphError::Io { action, path, source }
}

/// An error and its sources, the nearest first.
pub(crate) fn chain<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The chain as one line. Some libraries repeat a source's text in their own; it is not said twice.
pub(crate) fn chain_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in chain(error).skip(1).map(ToString::to_string) {
        if !text.ends_with(&source) {
            text = format!("{text}: {source}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_told_once() {
        let inner =
            GraphError::Io { action: "read", path: "a.txt".into(), source: io::Error::other("the disk is tired") };
        let outer = GraphError::Input { node: "n".into(), path: "a.txt".into(), source: Box::new(inner) };
        assert_eq!(chain_text(&outer), "node `n` needs the input a.txt: cannot read a.txt: the disk is tired");
        let wrapped = io::Error::other(outer);
        assert!(!chain_text(&wrapped).contains("needs the input a.txt: node"));
    }
}
