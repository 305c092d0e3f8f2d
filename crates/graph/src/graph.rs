use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::PathBuf,
    sync::atomic::AtomicBool,
};

use crate::{
    Event, GraphError, InputRecord, Node, Planned, RunOptions, State, Store, Summary,
    error::io_error,
    files::remove_all,
    key::{KeyParts, canonical, node_key},
    record::hash_input,
    run,
    store::Found,
};

/// Nodes in execution order with their keys.
#[derive(Debug)]
pub struct Graph<'a> {
    pub(crate) entries: Vec<Entry<'a>>,
    pub(crate) lock_hash: String,
}

/// A node and what the graph has found out about it.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) node: Node<'a>,
    /// Positions of its dependencies in the graph: all below its own.
    pub(crate) deps: Vec<usize>,
    pub(crate) dep_keys: BTreeMap<String, String>,
    pub(crate) inputs: Vec<InputRecord>,
    pub(crate) key: String,
    /// `<name>-<key12>`
    pub(crate) folder_name: String,
}

impl<'a> Graph<'a> {
    /// Checks and orders the nodes, hashes their input files and computes their keys.
    ///
    /// `lock_hash` stands for all code that is in no node's `sources`: a hash of `Cargo.lock`. Nodes that could run at the
    /// same time keep the order in which they are given.
    ///
    /// # Errors
    /// Bad, repeated or unknown names, cycles, and inputs that cannot be read: see [`GraphError`].
    pub fn new(nodes: Vec<Node<'a>>, lock_hash: String) -> Result<Self, GraphError> {
        check_nodes(&nodes)?;
        let nodes = in_order(nodes)?;
        let index: BTreeMap<String, usize> = nodes.iter().enumerate().map(|(i, node)| (node.name.clone(), i)).collect();
        // Several nodes may read one big file.
        let mut hashed: BTreeMap<PathBuf, InputRecord> = BTreeMap::new();
        let mut entries: Vec<Entry<'a>> = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for path in &node.inputs {
                if !hashed.contains_key(path) {
                    let found = hash_input(path).map_err(|source| GraphError::Input {
                        node: node.name.clone(),
                        path: path.clone(),
                        source: Box::new(source),
                    })?;
                    hashed.insert(path.clone(), found);
                }
            }
            let inputs: Vec<InputRecord> = node.inputs.iter().map(|path| hashed[path].clone()).collect();
            node.params = canonical(std::mem::take(&mut node.params));
            let deps: Vec<usize> = node.deps.iter().map(|dep| index[dep]).collect();
            let dep_keys = deps.iter().map(|&d| (entries[d].node.name.clone(), entries[d].key.clone())).collect();
            let key = node_key(&KeyParts {
                name: &node.name,
                params: &node.params,
                deps: &dep_keys,
                inputs: &inputs,
                sources: &node.sources,
                lock_hash: &lock_hash,
            });
            let folder_name = format!("{}-{}", node.name, &key[..12]);
            entries.push(Entry { node, deps, dep_keys, inputs, key, folder_name });
        }
        Ok(Self { entries, lock_hash })
    }

    /// What a run would find, in execution order: the nodes of `only` and all that they need; with an empty `only`, all.
    ///
    /// # Errors
    /// [`GraphError::UnknownNode`].
    pub fn plan(&self, store: &Store, only: &[String]) -> Result<Vec<Planned>, GraphError> {
        let selected = self.select(only)?;
        Ok(selected.into_iter().map(|i| self.planned(store, &self.entries[i])).collect())
    }

    fn planned(&self, store: &Store, entry: &Entry<'_>) -> Planned {
        let Node { name, weight, .. } = &entry.node;
        let state = match store.find(&entry.folder_name, name, &entry.key, false) {
            Found::Hit => State::Hit,
            _ if store.has_partial(&entry.key) => State::Partial,
            Found::Damaged(_) => State::Stale,
            Found::Absent if store.has_any(name) => State::Stale,
            Found::Absent => State::Missing,
        };
        let deps = entry.dep_keys.keys().cloned().collect();
        Planned { name: name.clone(), key: entry.key.clone(), state, deps, weight: *weight }
    }

    /// Runs what is not finished yet, up to [`RunOptions::jobs`] nodes at once.
    ///
    /// A node that fails, by an error or a panic, keeps the nodes that need it from running; all others do run. Once
    /// `cancel` is true nothing new starts, and running nodes are asked to stop. Neither is an error of the run: see the
    /// [`Summary`]. Folders of earlier versions of a node are left alone.
    ///
    /// # Errors
    /// [`GraphError::UnknownNode`] and [`GraphError::ReadOnly`], before anything starts.
    pub fn run(
        &self,
        store: &Store,
        options: &RunOptions,
        cancel: &AtomicBool,
        events: &(dyn Fn(Event) + Sync),
    ) -> Result<Summary, GraphError> {
        store.require_write()?;
        let selected = self.select(&options.only)?;
        events(Event::Planned { nodes: self.plan(store, &options.only)? });
        Ok(run::Run { graph: self, store, options, cancel, events }.run(selected))
    }

    /// The folder of a node if it is finished.
    #[must_use]
    pub fn node_dir(&self, store: &Store, name: &str) -> Option<PathBuf> {
        let entry = self.entry(name)?;
        let found = store.find(&entry.folder_name, name, &entry.key, false);
        matches!(found, Found::Hit).then(|| store.node(&entry.folder_name))
    }

    /// A node's key: 64 hexadecimal digits.
    #[must_use]
    pub fn key(&self, name: &str) -> Option<&str> {
        self.entry(name).map(|entry| entry.key.as_str())
    }

    /// The name that a node's folder has, or will have, below `nodes/` in a store.
    #[must_use]
    pub fn folder_name(&self, name: &str) -> Option<&str> {
        self.entry(name).map(|entry| entry.folder_name.as_str())
    }

    /// Every node with its dependencies (sorted), in execution order.
    #[must_use]
    pub fn edges(&self) -> Vec<(&str, Vec<&str>)> {
        let edge = |entry| {
            let Entry { node, dep_keys, .. }: &Entry<'a> = entry;
            (node.name.as_str(), dep_keys.keys().map(String::as_str).collect())
        };
        self.entries.iter().map(edge).collect()
    }

    /// The graph in the language of Graphviz, arrows from a node to those that need it.
    #[must_use]
    pub fn to_dot(&self) -> String {
        let mut dot = String::from("digraph {\n  rankdir = LR;\n  node [shape = box];\n");
        for (name, deps) in self.edges() {
            // Writing to a string does not fail.
            let _ = writeln!(dot, "  \"{name}\";");
            for dep in deps {
                let _ = writeln!(dot, "  \"{dep}\" -> \"{name}\";");
            }
        }
        dot + "}\n"
    }

    /// Removes from a store whatever is not of this graph: finished nodes and checkpoints of other keys. Returns the
    /// removed folders.
    ///
    /// # Errors
    /// [`GraphError::Locked`] or [`GraphError::ReadOnly`] unless the store was opened by [`Store::open`];
    /// [`GraphError::Io`].
    pub fn prune(&self, store: &Store) -> Result<Vec<PathBuf>, GraphError> {
        store.require_exclusive()?;
        let keep: BTreeSet<PathBuf> =
            self.entries.iter().flat_map(|e| [store.node(&e.folder_name), store.partial(&e.key)]).collect();
        let mut removed = Vec::new();
        for folder in [store.nodes(), store.partials()] {
            for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
                let path = entry.map_err(io_error("list", &folder))?.path();
                if !keep.contains(&path) {
                    remove_all(&path)?;
                    removed.push(path);
                }
            }
        }
        removed.sort();
        Ok(removed)
    }

    fn entry(&self, name: &str) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.node.name == name)
    }

    /// Positions of the named nodes and of all that they need, in execution order.
    fn select(&self, only: &[String]) -> Result<Vec<usize>, GraphError> {
        let mut wanted = vec![only.is_empty(); self.entries.len()];
        for name in only {
            let position = self.entries.iter().position(|entry| &entry.node.name == name);
            let known = || self.entries.iter().map(|entry| entry.node.name.clone()).collect();
            wanted[position.ok_or_else(|| GraphError::UnknownNode { name: name.clone(), known: known() })?] = true;
        }
        // Dependencies come first, so one pass from the end sees every node after all that need it.
        for i in (0..wanted.len()).rev().collect::<Vec<_>>() {
            if wanted[i] {
                self.entries[i].deps.iter().for_each(|&dep| wanted[dep] = true);
            }
        }
        Ok((0..wanted.len()).filter(|&i| wanted[i]).collect())
    }
}

fn check_nodes(nodes: &[Node<'_>]) -> Result<(), GraphError> {
    let mut names = BTreeSet::new();
    for Node { name, weight, .. } in nodes {
        let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if !(1..=100).contains(&name.len()) || !name.bytes().all(is_fine) {
            return Err(GraphError::BadName { name: name.clone() });
        }
        if !weight.is_finite() || *weight < 0.0 {
            return Err(GraphError::BadWeight { node: name.clone(), weight: *weight });
        }
        if !names.insert(name) {
            return Err(GraphError::DuplicateNode { name: name.clone() });
        }
    }
    for node in nodes {
        if let Some(dep) = node.deps.iter().find(|dep| !names.contains(dep)) {
            let known = nodes.iter().map(|node| node.name.clone()).collect();
            return Err(GraphError::UnknownDep { node: node.name.clone(), dep: dep.clone(), known });
        }
    }
    Ok(())
}

/// Takes, again and again, the first node whose dependencies are all taken.
fn in_order(nodes: Vec<Node<'_>>) -> Result<Vec<Node<'_>>, GraphError> {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut ordered = Vec::with_capacity(nodes.len());
    let mut left = nodes;
    while !left.is_empty() {
        let is_ready = |node: &Node<'_>| node.deps.iter().all(|dep| taken.contains(dep));
        let Some(next) = left.iter().position(is_ready) else {
            return Err(GraphError::Cycle { path: find_cycle(&left) });
        };
        let node = left.remove(next);
        taken.insert(node.name.clone());
        ordered.push(node);
    }
    Ok(ordered)
}

/// Among nodes of which each waits for another: follows those waits until a name comes again.
fn find_cycle(stuck: &[Node<'_>]) -> Vec<String> {
    let mut path: Vec<&Node<'_>> = vec![&stuck[0]];
    loop {
        let last = path[path.len() - 1];
        let next = stuck.iter().find(|node| last.deps.contains(&node.name));
        let Some(next) = next else { return path.iter().map(|node| node.name.clone()).collect() };
        if let Some(start) = path.iter().position(|node| node.name == next.name) {
            return path[start..].iter().chain([&next]).map(|node| node.name.clone()).collect();
        }
        path.push(next);
    }
}
