//! Laws: when a key changes, who is skipped, and that interruptions leave no trace.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{content, graph, names, node, run_with, write_result};
use monosem_graph::{Graph, Interrupted, Node, RunOptions, Store};
use proptest::prelude::*;
use serde_json::Value;

/// All that a key depends on, as plain data.
#[derive(Debug, Clone, PartialEq)]
struct Parts {
    name: String,
    deps: BTreeMap<String, u64>,
    params: BTreeMap<String, Value>,
    inputs: Vec<(String, Vec<u8>)>,
    sources: BTreeMap<String, String>,
    lock_hash: String,
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        "[a-c\"\\\\,:]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-c]", inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        "[a-c._-]{1,3}",
        prop::collection::btree_map("dep[0-9]", 0u64..3, 0..4),
        prop::collection::btree_map("[a-c]{0,2}", value(), 0..3),
        prop::collection::vec(("[ab]", prop::collection::vec(0u8..3, 0..3)), 0..3),
        prop::collection::btree_map("[a-c]{0,2}", "[a-c]{0,2}", 0..3),
        "[a-c]{0,2}",
    )
        .prop_map(|(name, deps, params, inputs, sources, lock_hash)| Parts {
            name,
            deps,
            params,
            inputs,
            sources,
            lock_hash,
        })
}

/// The key, with everything of no meaning turned round if `reversed`.
fn key(parts: &Parts, reversed: bool) -> String {
    fn turn(value: &Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(map.iter().rev().map(|(k, v)| (k.clone(), turn(v))).collect()),
            Value::Array(items) => Value::Array(items.iter().map(turn).collect()),
            other => other.clone(),
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut inputs = Vec::new();
    for (i, (name, bytes)) in parts.inputs.iter().enumerate() {
        let path = folder.path().join(i.to_string()).join(name);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        inputs.push(path);
    }
    let dep = |(name, seed): (&String, &u64)| Node { params: Value::from(*seed), ..node(name, &[], |_| Ok(())) };
    let mut nodes: Vec<Node<'_>> = parts.deps.iter().map(dep).collect();
    let mut dep_names: Vec<String> = parts.deps.keys().cloned().collect();
    let mut params = Value::Object(parts.params.clone().into_iter().collect());
    let mut weight = 1.0;
    if reversed {
        dep_names.reverse();
        dep_names.extend(dep_names.clone());
        params = turn(&params);
        nodes.reverse();
        weight = 2.0;
    }
    let sources = parts.sources.clone();
    nodes.push(Node { deps: dep_names, params, inputs, sources, weight, ..node(&parts.name, &[], |_| Ok(())) });
    if reversed {
        nodes.rotate_right(1);
    }
    Graph::new(nodes, parts.lock_hash.clone()).unwrap().key(&parts.name).unwrap().to_owned()
}

/// For each node, those of the earlier ones that it needs.
fn dag(max: usize) -> impl Strategy<Value = Vec<BTreeSet<usize>>> {
    prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..3), 1..max).prop_map(|nodes| {
        let below = |(i, picks): (usize, Vec<prop::sample::Index>)| {
            picks.iter().filter(|_| i > 0).map(|pick| pick.index(i)).collect()
        };
        nodes.into_iter().enumerate().map(below).collect()
    })
}

fn name(i: usize) -> String {
    format!("n{i}")
}

fn dep_names(deps: &BTreeSet<usize>) -> Vec<String> {
    deps.iter().map(|&dep| name(dep)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_key_changes_if_and_only_if_an_input_does(one in parts(), other in parts(), field in 0usize..6) {
        let before = key(&one, false);
        prop_assert_eq!(&before, &key(&one, true), "order means nothing");
        // One field of another node, so that also near misses are seen.
        let mut changed = one.clone();
        match field {
            0 => changed.name = other.name,
            1 => changed.deps = other.deps,
            2 => changed.params = other.params,
            3 => changed.inputs = other.inputs,
            4 => changed.sources = other.sources,
            _ => changed.lock_hash = other.lock_hash,
        }
        prop_assert_eq!(before == key(&changed, true), one == changed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_failure_stops_its_descendants_and_nobody_else(
        (dag, bad) in dag(8).prop_flat_map(|dag| { let n = dag.len(); (Just(dag), prop::collection::vec(0u8..5, n)) }),
        jobs in 1usize..4,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let names: Vec<Vec<String>> = dag.iter().map(dep_names).collect();
        let build = |healed: bool| {
            let make = |i: usize| {
                let deps: Vec<&str> = names[i].iter().map(String::as_str).collect();
                let (bad, kept) = (bad[i], deps.clone());
                node(&name(i), &deps, move |ctx| match bad {
                    0 if !healed => Err("bad luck".into()),
                    1 if !healed => std::panic::resume_unwind(Box::new("worse luck")),
                    _ => write_result(ctx, &kept),
                })
            };
            graph((0..dag.len()).rev().map(make).collect())
        };
        let options = RunOptions { jobs, ..RunOptions::default() };
        let cancel = AtomicBool::new(false);
        let (summary, _) = run_with(&build(false), &store, &options, &cancel);

        let mut skipped = BTreeSet::new();
        for (i, deps) in dag.iter().enumerate() {
            if deps.iter().any(|dep| skipped.contains(dep) || bad[*dep] < 2) {
                skipped.insert(i);
            }
        }
        let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
        let expect = |wanted: &dyn Fn(usize) -> bool| (0..dag.len()).filter(|&i| wanted(i)).map(name).collect::<BTreeSet<_>>();
        let failed: Vec<String> = summary.failed.iter().map(|(name, _)| name.clone()).collect();
        prop_assert_eq!(set(&summary.skipped), expect(&|i| skipped.contains(&i)));
        prop_assert_eq!(set(&failed), expect(&|i| !skipped.contains(&i) && bad[i] < 2));
        prop_assert_eq!(set(&summary.finished), expect(&|i| !skipped.contains(&i) && bad[i] >= 2));

        // Mended, the rest runs, and only the rest.
        let (again, _) = run_with(&build(true), &store, &options, &cancel);
        prop_assert_eq!(set(&again.hits), set(&summary.finished));
        prop_assert!(again.is_complete());
    }

    #[test]
    fn interruptions_leave_no_trace(
        dag in dag(6),
        stops in prop::collection::vec(0usize..12, 0..6),
        jobs in 1usize..4,
    ) {
        const STEPS: usize = 4;
        let folder = tempfile::tempdir().unwrap();
        let dep_names: Vec<Vec<String>> = dag.iter().map(dep_names).collect();
        let cancel = AtomicBool::new(false);
        // How many more steps of all nodes together until ctrl-C.
        let until: Mutex<Option<usize>> = Mutex::new(None);
        let make = |i: usize| {
            let deps: Vec<&str> = dep_names[i].iter().map(String::as_str).collect();
            let kept = deps.clone();
            let (cancel, until) = (&cancel, &until);
            node(&name(i), &deps, move |ctx| {
                let checkpoint = ctx.partial().join("log");
                let mut log = fs::read_to_string(&checkpoint).unwrap_or_default();
                while log.len() < STEPS {
                    if let Some(left) = &mut *until.lock().unwrap() {
                        cancel.fetch_or(*left == 0, Ordering::Relaxed);
                        *left = left.saturating_sub(1);
                    }
                    if ctx.cancelled() {
                        return Err(Interrupted.into());
                    }
                    log.push('x');
                    fs::write(&checkpoint, &log)?;
                }
                fs::write(ctx.out().join("log"), log)?;
                write_result(ctx, &kept)
            })
        };
        let graph = graph((0..dag.len()).map(make).collect());
        let options = RunOptions { jobs, ..RunOptions::default() };

        let store = Store::open(folder.path().join("interrupted")).unwrap();
        let mut done = 0;
        for stop in stops {
            cancel.store(false, Ordering::Relaxed);
            *until.lock().unwrap() = Some(stop);
            let (summary, _) = run_with(&graph, &store, &options, &cancel);
            prop_assert!(summary.failed.is_empty());
            prop_assert!(summary.hits.len() <= done);
            done = names(&store.root().join("nodes")).len();
        }
        cancel.store(false, Ordering::Relaxed);
        *until.lock().unwrap() = None;
        let (summary, _) = run_with(&graph, &store, &options, &cancel);
        prop_assert!(summary.is_complete());
        prop_assert_eq!(summary.hits.len(), done, "nothing finished is done again");

        let whole = Store::open(folder.path().join("whole")).unwrap();
        run_with(&graph, &whole, &options, &cancel);
        prop_assert_eq!(content(store.root()), content(whole.root()));
        prop_assert!(names(&store.root().join("partial")).is_empty() && names(&store.root().join("tmp")).is_empty());
    }
}
