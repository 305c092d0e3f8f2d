//! A run that is killed in the middle of a node, and the run after it.

mod common;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{content, graph, names, node, plain, run};
use monosem_graph::{Event, Graph, GraphError, State, Store};

const ROOT: &str = "MONOSEM_GRAPH_KILL_TEST_ROOT";

/// `first`, then `long`, which takes 200 steps from wherever it was left, then `last`.
fn steps<'a>(slow: bool) -> Graph<'a> {
    let long = node("long", &["first"], move |ctx| {
        let checkpoint = ctx.partial().join("steps");
        let mut done: u64 = fs::read_to_string(&checkpoint).map_or(0, |text| text.parse().unwrap());
        ctx.message(&format!("goes on at {done}"));
        let mut text = fs::read_to_string(ctx.dep("first")?.join("sub/result.txt"))?;
        while done < 200 {
            done += 1;
            fs::write(ctx.partial().join("new"), done.to_string())?;
            fs::rename(ctx.partial().join("new"), &checkpoint)?;
            fs::write(ctx.out().join("half"), "written")?;
            if slow {
                thread::sleep(Duration::from_millis(20));
            }
        }
        text += &done.to_string();
        fs::create_dir(ctx.out().join("sub"))?;
        fs::write(ctx.out().join("half"), "whole")?;
        Ok(fs::write(ctx.out().join("sub/result.txt"), text)?)
    });
    graph(vec![plain("first", &[]), long, plain("last", &["long"])])
}

/// Does nothing unless [`a_killed_run_goes_on_where_it_was`] starts it in a process of its own.
#[test]
fn child() {
    if let Some(root) = env::var_os(ROOT) {
        let store = Store::open(PathBuf::from(root)).unwrap();
        run(&steps(true), &store);
    }
}

fn wait_for(what: &str, is_there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn steps_done(checkpoint: &Path) -> u64 {
    fs::read_to_string(checkpoint).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("killed");
    let graph = steps(false);
    let checkpoint = root.join("partial").join(graph.key("long").unwrap()).join("steps");
    let mut done = 0;
    for _ in 0..3 {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "child"]).env(ROOT, &root).stdout(Stdio::null());
        let mut process = command.spawn().unwrap();
        wait_for("more steps", || steps_done(&checkpoint) >= done + 5);
        match Store::open(&root) {
            Err(GraphError::Locked { pid, .. }) if cfg!(unix) => assert_eq!(pid, Some(process.id())),
            Err(GraphError::Locked { .. }) => {}
            other => panic!("the store should be locked: {other:?}"),
        }
        // On Unix this is SIGKILL.
        process.kill().unwrap();
        process.wait().unwrap();
        done = steps_done(&checkpoint);
        assert_eq!(names(&root.join("nodes")), [graph.folder_name("first").unwrap()], "nothing half done is in nodes");
        assert_eq!(names(&root.join("tmp")).len(), 1);
    }
    assert!((15..200).contains(&done), "{done}");

    let store = Store::open(&root).unwrap();
    assert!(names(&root.join("tmp")).is_empty());
    let plan = graph.plan(&store, &[]).unwrap();
    assert_eq!(plan.iter().map(|p| p.state).collect::<Vec<_>>(), [State::Hit, State::Partial, State::Missing]);
    let (summary, events) = run(&graph, &store);
    assert_eq!((summary.hits, summary.finished), (vec!["first".into()], vec!["long".into(), "last".into()]));
    assert!(events.contains(&Event::Message { name: "long".into(), text: format!("goes on at {done}") }));
    assert!(names(&root.join("partial")).is_empty());

    let whole = Store::open(folder.path().join("whole")).unwrap();
    run(&graph, &whole);
    assert_eq!(content(store.root()), content(whole.root()));
}
