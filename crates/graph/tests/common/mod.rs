//! What the tests of this crate share.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, atomic::AtomicBool},
};

use monosem_graph::{Ctx, Event, Graph, Node, NodeError, NodeRecord, RECORD_FILE, RunOptions, Store, Summary};

/// A node without inputs that runs `run`.
pub fn node<'a>(
    name: &str,
    deps: &[&str],
    run: impl Fn(&Ctx<'_>) -> Result<(), NodeError> + Send + Sync + 'a,
) -> Node<'a> {
    Node {
        name: name.into(),
        deps: deps.iter().map(ToString::to_string).collect(),
        params: serde_json::json!({}),
        inputs: vec![],
        sources: BTreeMap::new(),
        weight: 1.0,
        run: Box::new(run),
    }
}

/// A node's work: one file with the node's name and the content of that file of each dependency.
pub fn write_result(ctx: &Ctx<'_>, deps: &[&str]) -> Result<(), NodeError> {
    let mut text = format!("{}\n", ctx.name());
    for dep in deps {
        text += &fs::read_to_string(ctx.dep(dep)?.join("sub/result.txt"))?;
    }
    fs::create_dir(ctx.out().join("sub"))?;
    Ok(fs::write(ctx.out().join("sub/result.txt"), text)?)
}

/// A node that does [`write_result`].
pub fn plain<'a>(name: &str, deps: &'a [&'a str]) -> Node<'a> {
    node(name, deps, move |ctx| write_result(ctx, deps))
}

pub fn graph(nodes: Vec<Node<'_>>) -> Graph<'_> {
    Graph::new(nodes, "lock".into()).unwrap()
}

/// Runs all and returns the events too.
pub fn run_with(graph: &Graph<'_>, store: &Store, options: &RunOptions, cancel: &AtomicBool) -> (Summary, Vec<Event>) {
    let events = Mutex::new(Vec::new());
    let summary = graph.run(store, options, cancel, &|event| events.lock().unwrap().push(event)).unwrap();
    (summary, events.into_inner().unwrap())
}

pub fn run(graph: &Graph<'_>, store: &Store) -> (Summary, Vec<Event>) {
    run_with(graph, store, &RunOptions::default(), &AtomicBool::new(false))
}

/// Every file below `nodes/` with its content; of the records, all but the times.
pub fn content(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, root: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.ends_with(RECORD_FILE) {
                let mut record = NodeRecord::read(path.parent().unwrap()).unwrap();
                (record.started, record.finished, record.seconds) = (String::new(), String::new(), 0.0);
                found.insert(name, serde_json::to_vec(&record).unwrap());
            } else {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&root.join("nodes"), root, &mut found);
    found
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
