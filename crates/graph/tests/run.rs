//! What a run does with hits, damage, failures, panics and cancellation.

mod common;

use std::{
    fs,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::{content, graph, names, node, plain, run, run_with};
use monosem_graph::{Event, GraphError, Interrupted, NodeRecord, RunOptions, State, Store};

fn states(graph: &monosem_graph::Graph<'_>, store: &Store) -> Vec<State> {
    graph.plan(store, &[]).unwrap().into_iter().map(|planned| planned.state).collect()
}

#[test]
fn a_second_run_does_nothing_and_a_changed_setting_only_what_follows_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let build = |seed: u64| {
        let mut nodes = vec![plain("c", &["a", "b"]), plain("a", &[]), plain("b", &[]), plain("d", &["b"])];
        nodes[1].params = serde_json::json!({ "seed": seed });
        graph(nodes)
    };
    let first = build(1);
    assert_eq!(states(&first, &store), [State::Missing; 4]);
    let (summary, events) = run(&first, &store);
    assert_eq!(summary.finished, ["a", "b", "c", "d"]);
    assert!(summary.is_complete());
    assert!(matches!(&events[0], Event::Planned { nodes } if nodes.len() == 4));
    assert_eq!(events[1], Event::Started { name: "a".into() });
    assert_eq!(serde_json::to_string(&events[1]).unwrap(), r#"{"event":"started","name":"a"}"#);
    let before = content(folder.path());

    let (summary, events) = run(&first, &store);
    assert_eq!((summary.finished.len(), summary.hits.len(), events.len()), (0, 4, 5));

    let second = build(2);
    assert_eq!(states(&second, &store), [State::Stale, State::Hit, State::Stale, State::Hit]);
    let (summary, _) = run(&second, &store);
    assert_eq!((summary.finished, summary.hits), (vec!["a".into(), "c".into()], vec!["b".into(), "d".into()]));
    assert_eq!(states(&first, &store), [State::Hit; 4], "what was made with the old setting is still there");
    assert!(before.iter().all(|(name, bytes)| content(folder.path())[name] == *bytes));

    let removed = second.prune(&store).unwrap();
    assert_eq!(removed.len(), 2);
    assert_eq!(states(&second, &store), [State::Hit; 4]);
    assert!(first.node_dir(&store, "a").is_none() && first.node_dir(&store, "b").is_some());
}

#[test]
fn the_record_says_where_a_result_came_from() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    let input = folder.path().join("text.txt");
    fs::write(&input, "abc").unwrap();
    let mut nodes = vec![plain("a", &[]), plain("b", &["a"])];
    nodes[1].inputs = vec![input];
    nodes[1].sources = [("sae".to_owned(), "00ff".to_owned())].into();
    nodes[1].params = serde_json::json!({"z": 1, "a": {"y": 2, "b": 3}});
    let graph = graph(nodes);
    run(&graph, &store);
    let dir = graph.node_dir(&store, "b").unwrap();
    assert_eq!(dir, store.root().join("nodes").join(format!("b-{}", &graph.key("b").unwrap()[..12])));
    let record = NodeRecord::read(&dir).unwrap();
    assert_eq!(record.params.to_string(), r#"{"a":{"b":3,"y":2},"z":1}"#);
    assert_eq!(record.deps["a"], graph.key("a").unwrap());
    assert_eq!(record.inputs[0].files[0].path, "text.txt");
    // From `b3sum`.
    assert_eq!(record.inputs[0].files[0].blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85");
    assert_eq!(record.outputs[0].path, "sub/result.txt");
    assert_eq!(record.outputs[0].bytes, 4);
    assert_eq!((record.sources["sae"].as_str(), record.lock_hash.as_str()), ("00ff", "lock"));
}

#[test]
fn damage_is_found_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let graph = graph(vec![plain("a", &[]), plain("b", &["a"])]);
    run(&graph, &store);
    let good = content(folder.path());
    let dir = graph.node_dir(&store, "a").unwrap();
    let (file, record) = (dir.join("sub/result.txt"), dir.join("node.json"));
    let verify = RunOptions { verify: true, ..RunOptions::default() };
    let cancel = AtomicBool::new(false);

    // The same size: only verification sees it.
    fs::write(&file, "X\n").unwrap();
    assert_eq!(states(&graph, &store), [State::Hit; 2]);
    let (summary, events) = run_with(&graph, &store, &verify, &cancel);
    assert_eq!((summary.finished, summary.hits), (vec!["a".into()], vec!["b".into()]));
    assert!(
        events
            .iter()
            .any(|e| matches!(e, Event::Invalid { name, reason } if name == "a" && reason.contains("content")))
    );
    assert_eq!(content(folder.path()), good);

    let damages: [&dyn Fn(); 5] = [
        &|| fs::write(&file, "longer than it was").unwrap(),
        &|| fs::remove_file(&file).unwrap(),
        &|| fs::write(&record, "{\"version\": 1, \"name\"").unwrap(),
        &|| fs::remove_file(&record).unwrap(),
        &|| _ = fs::copy(graph.node_dir(&store, "b").unwrap().join("node.json"), &record).unwrap(),
    ];
    for damage in damages {
        damage();
        assert_eq!(states(&graph, &store), [State::Stale, State::Hit]);
        assert_eq!(graph.node_dir(&store, "a"), None);
        let (summary, events) = run(&graph, &store);
        assert_eq!((summary.finished, summary.hits), (vec!["a".into()], vec!["b".into()]));
        assert!(events.iter().any(|event| matches!(event, Event::Invalid { .. })));
        assert_eq!(content(folder.path()), good);
        assert!(names(&folder.path().join("tmp")).is_empty());
    }
}

#[test]
fn a_failure_skips_what_needs_it_and_keeps_the_partial_folder() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let broken = AtomicBool::new(true);
    let graph = graph(vec![
        node("fails", &[], |ctx| {
            fs::write(ctx.partial().join("step"), "1")?;
            fs::write(ctx.out().join("half"), "x")?;
            let io = std::io::Error::other("the disk is tired");
            if broken.load(Ordering::Relaxed) {
                return Err(Box::new(GraphError::Io { action: "read", path: "x.txt".into(), source: io }));
            }
            assert_eq!(fs::read_to_string(ctx.partial().join("step"))?, "1");
            Ok(())
        }),
        node("panics", &[], |_| panic!("row {} is not finite", 3)),
        plain("child", &["fails"]),
        plain("grandchild", &["child", "other"]),
        plain("other", &[]),
    ]);
    let (summary, events) = run(&graph, &store);
    assert_eq!(summary.finished, ["other"]);
    assert_eq!(
        summary.failed,
        [
            ("fails".to_owned(), "cannot read x.txt: the disk is tired".to_owned()),
            ("panics".to_owned(), "panicked: row 3 is not finite".to_owned())
        ]
    );
    assert_eq!(summary.skipped, ["child", "grandchild"]);
    assert!(!summary.is_complete());
    assert!(events.contains(&Event::Skipped { name: "child".into(), because: "`fails` failed".into() }));
    assert!(events.contains(&Event::Skipped { name: "grandchild".into(), because: "`child` was skipped".into() }));
    let mut fewer_words = states(&graph, &store);
    fewer_words.sort_by_key(|state| format!("{state:?}"));
    assert_eq!(fewer_words, [State::Hit, State::Missing, State::Missing, State::Missing, State::Partial]);
    assert_eq!(names(&folder.path().join("partial")), [graph.key("fails").unwrap()], "empty ones are gone");
    assert!(names(&folder.path().join("tmp")).is_empty());

    broken.store(false, Ordering::Relaxed);
    run(&graph, &store);
    assert!(names(&folder.path().join("partial")).is_empty());
}

#[test]
fn what_cannot_be_kept_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut nodes = vec![
        node("record", &[], |ctx| Ok(fs::write(ctx.out().join("node.json"), "{}")?)),
        node("stranger", &[], |ctx| Ok(ctx.dep("record").map(|_| ())?)),
    ];
    if cfg!(target_os = "linux") {
        nodes.push(node("full", &[], |_| Ok(fs::write("/dev/full", "x")?)));
    }
    #[cfg(unix)]
    nodes.push(node("link", &[], |ctx| Ok(std::os::unix::fs::symlink("/etc/hosts", ctx.out().join("l"))?)));
    let count = nodes.len();
    let (summary, _) = run(&graph(nodes), &store);
    assert_eq!(summary.failed.len(), count);
    for (name, error) in &summary.failed {
        let expected = match name.as_str() {
            "record" => "node.json has the name of the graph's own record",
            "stranger" => "asked for `record`, which is not among its dependencies: it has none",
            "full" => "while writing below",
            _ => "is a link",
        };
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert!(names(&folder.path().join("nodes")).is_empty() && names(&folder.path().join("tmp")).is_empty());
}

#[test]
fn cancelling_stops_running_nodes_and_starts_no_new_ones() {
    #[derive(Debug, thiserror::Error)]
    #[error("training stopped early")]
    struct Opaque;

    /// What `anyhow` makes of [`Interrupted`] when it is boxed.
    #[derive(Debug, thiserror::Error)]
    #[error("interrupted")]
    struct Erased;

    for way in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let cancel = AtomicBool::new(false);
        let graph = graph(vec![
            node("long", &[], |ctx| {
                let step = ctx.partial().join("step");
                let done = fs::read_to_string(&step).ok().map_or(Ok(0), |text| text.parse::<u64>())?;
                for i in done..10 {
                    fs::write(&step, i.to_string())?;
                    ctx.progress(i, 10, "steps");
                    if i == 5 && done == 0 {
                        cancel.store(true, Ordering::Relaxed);
                    }
                    match way {
                        0 => ctx.check().map_err(|_| Opaque)?,
                        1 if ctx.cancelled() => return Err(Interrupted.into()),
                        2 if ctx.cancelled() => return Err(std::io::Error::other(Interrupted).into()),
                        3 if ctx.cancelled() => return Err(Erased.into()),
                        _ => {}
                    }
                }
                Ok(fs::write(ctx.out().join("began-at"), done.to_string())?)
            }),
            plain("after", &["long"]),
            plain("aside", &[]),
        ]);
        let (summary, events) = run_with(&graph, &store, &RunOptions::default(), &cancel);
        assert_eq!((summary.interrupted, summary.skipped), (vec!["long".into()], vec!["after".into(), "aside".into()]));
        assert!(summary.failed.is_empty() && summary.finished.is_empty());
        assert!(events.contains(&Event::Interrupted { name: "long".into() }));
        assert!(names(&folder.path().join("tmp")).is_empty());
        assert_eq!(states(&graph, &store), [State::Partial, State::Missing, State::Missing]);

        cancel.store(false, Ordering::Relaxed);
        let (summary, _) = run_with(&graph, &store, &RunOptions::default(), &cancel);
        assert!(summary.finished.contains(&"aside".into()) && !summary.finished.contains(&"after".into()));
        let dir = graph.node_dir(&store, "long").unwrap();
        assert_eq!(fs::read_to_string(dir.join("began-at")).unwrap(), "5");
    }
}

#[test]
fn independent_nodes_run_at_once_and_no_more_than_asked() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (meeting, now, most) = (Barrier::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
    let count = |meet: bool| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        if meet {
            meeting.wait();
        }
        std::thread::sleep(Duration::from_millis(5));
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    };
    let mut nodes = vec![node("left", &[], |_| count(true)), node("right", &[], |_| count(true))];
    nodes.extend((0..6).map(|i| node(&format!("after{i}"), &["left", "right"], |_| count(false))));
    let options = RunOptions { jobs: 2, ..RunOptions::default() };
    let (summary, _) = run_with(&graph(nodes), &store, &options, &AtomicBool::new(false));
    assert_eq!(summary.finished.len(), 8);
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[test]
fn a_panic_in_the_callers_events_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let graph = graph(vec![plain("a", &[]), plain("b", &["a"]), plain("c", &["a"])]);
    let options = RunOptions { jobs: 3, ..RunOptions::default() };
    let run =
        || graph.run(&store, &options, &AtomicBool::new(false), &|e| assert!(!matches!(e, Event::Started { .. })));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
}

#[test]
fn only_takes_a_node_and_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let graph = graph(vec![plain("a", &[]), plain("b", &["a"]), plain("c", &["b"]), plain("d", &["a"])]);
    let options = RunOptions { only: vec!["b".into()], ..RunOptions::default() };
    let (summary, _) = run_with(&graph, &store, &options, &AtomicBool::new(false));
    assert_eq!(summary.finished, ["a", "b"]);
    assert_eq!(graph.edges()[2], ("c", vec!["b"]));
    assert!(graph.to_dot().contains("\"a\" -> \"d\";"));
    let error = graph.plan(&store, &["x".into()]).unwrap_err().to_string();
    assert_eq!(error, "there is no node `x`; the nodes are: a, b, c, d");
    let looking = Store::open_read_only(folder.path());
    assert_eq!(states(&graph, &looking), [State::Hit, State::Hit, State::Missing, State::Missing]);
    let run = graph.run(&looking, &options, &AtomicBool::new(false), &|_| ());
    assert!(matches!(run, Err(GraphError::ReadOnly { .. })));
}

#[test]
fn processes_that_share_a_store_do_not_repeat_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let runs = AtomicUsize::new(0);
    let build = || {
        graph(vec![node("slow", &[], |ctx| {
            runs.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
            Ok(fs::write(ctx.out().join("x"), "x")?)
        })])
    };
    let one = || {
        let store = Store::open_shared(folder.path()).unwrap();
        run(&build(), &store).0
    };
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(one);
        (one(), other.join().unwrap())
    });
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert_eq!(first.finished.len() + second.finished.len(), 1);
    assert_eq!(first.hits.len() + second.hits.len(), 1);
}
