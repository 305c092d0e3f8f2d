//! A content-addressed experiment graph: keys, store, resume, events.
//!
//! A [`Node`] is a named piece of work with parameters, input files and dependencies. A [`Graph`] gives each node a key,
//! the hash of everything that its result depends on; a [`Store`] keeps one finished folder per key. [`Graph::run`] does
//! only the work whose folder is not there yet, goes on after an interruption, a kill or a failure, and tells what happens
//! as a stream of [`Event`]s. The crate knows nothing of what the nodes compute, and draws nothing on the terminal.
//!
//! ```
//! use std::{collections::BTreeMap, fs, sync::atomic::AtomicBool};
//! use monosem_graph::{Graph, Node, RunOptions, Store};
//!
//! let node = |name: &str, deps: &[&str], run: monosem_graph::RunFn<'static>| Node {
//!     name: name.into(),
//!     deps: deps.iter().map(|dep| dep.to_string()).collect(),
//!     params: serde_json::json!({ "seed": 7 }),
//!     inputs: vec![],
//!     sources: BTreeMap::new(),
//!     weight: 1.0,
//!     run,
//! };
//! let nodes = || vec![
//!     node("numbers", &[], Box::new(|ctx| Ok(fs::write(ctx.out().join("n.txt"), "1 2 3")?))),
//!     node("sum", &["numbers"], Box::new(|ctx| {
//!         let text = fs::read_to_string(ctx.dep("numbers")?.join("n.txt"))?;
//!         let sum: u32 = text.split(' ').map(str::parse::<u32>).sum::<Result<_, _>>()?;
//!         Ok(fs::write(ctx.out().join("sum.txt"), sum.to_string())?)
//!     })),
//! ];
//!
//! let folder = tempfile::tempdir()?;
//! let store = Store::open(folder.path())?;
//! let graph = Graph::new(nodes(), "hash of Cargo.lock".into())?;
//! let cancel = AtomicBool::new(false);
//! let first = graph.run(&store, &RunOptions::default(), &cancel, &|event| println!("{event:?}"))?;
//! assert_eq!(first.finished, ["numbers", "sum"]);
//!
//! let again = graph.run(&store, &RunOptions::default(), &cancel, &|_| ())?;
//! assert_eq!(again.hits, ["numbers", "sum"]);
//! assert_eq!(fs::read_to_string(graph.node_dir(&store, "sum").unwrap().join("sum.txt"))?, "6");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a key holds
//!
//! The node's name, its parameters with sorted keys, the keys of its dependencies, the content and relative names of its
//! input files, the source hashes and the lock hash that the caller gives, and this crate's format version. Neither where
//! the store and the inputs lie, nor a node's `weight`, nor the order of `deps` is part of it. What a node reads besides
//! these (the environment, the network, the clock) is invisible here and is the caller's to keep out.
//!
//! # The store on disk
//!
//! ```text
//! <root>/nodes/<name>-<key12>/    finished: the node's files and node.json (a NodeRecord)
//! <root>/tmp/                     being written; emptied by Store::open
//! <root>/partial/<key>/           checkpoints of unfinished nodes
//! <root>/lock                     locked while a Store is open
//! ```
//!
//! A node's files are written under `tmp/`, synced to disk, and renamed into `nodes/` in one step, so whatever is in
//! `nodes/` with a valid `node.json` is whole, after a power cut too.

#![warn(missing_docs)]

mod ctx;
mod error;
mod eta;
mod event;
mod files;
mod graph;
mod key;
mod node;
mod record;
mod run;
mod store;

pub use ctx::Ctx;
pub use error::{GraphError, Interrupted, NodeError};
pub use eta::Eta;
pub use event::{Event, Planned, RunOptions, State, Summary};
pub use files::FileRecord;
pub use graph::Graph;
pub use node::{Node, RunFn};
pub use record::{InputRecord, NodeRecord, RECORD_FILE};
pub use store::Store;
