//! What is a good graph, and how inputs are hashed.

mod common;

use std::{fs, path::Path};

use common::plain;
use monosem_graph::{Graph, Node};

fn error(nodes: Vec<Node<'_>>) -> String {
    Graph::new(nodes, String::new()).unwrap_err().to_string()
}

#[test]
fn bad_graphs_are_refused_with_what_is_wrong() {
    assert_eq!(error(vec![plain("a", &[]), plain("a", &[])]), "two nodes are named `a`");
    assert_eq!(
        error(vec![plain("a", &[]), plain("b", &["a", "z"])]),
        "node `b` depends on `z`, which is not a node; the nodes are: a, b"
    );
    assert_eq!(
        error(vec![plain("tail", &["a"]), plain("a", &["b"]), plain("b", &["c"]), plain("c", &["a"])]),
        "the nodes depend on each other in a circle: a -> b -> c -> a"
    );
    assert_eq!(error(vec![plain("a", &["a"])]), "the nodes depend on each other in a circle: a -> a");
    for name in ["", "A", "a/b", "a b", "\u{e4}", &"a".repeat(101)] {
        assert!(error(vec![plain(name, &[])]).contains("must be 1 to 100 characters"), "{name}");
    }
    let mut heavy = plain("a", &[]);
    heavy.weight = f64::NAN;
    assert!(error(vec![heavy]).contains("weight NaN"));
}

#[test]
fn a_missing_input_names_the_node() {
    let mut node = plain("train", &[]);
    node.inputs = vec!["/no/such/file".into()];
    let error = Graph::new(vec![node], String::new()).unwrap_err();
    assert_eq!(error.to_string(), "node `train` needs the input /no/such/file");
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "cannot open /no/such/file");
    assert!(cause.source().unwrap().to_string().to_lowercase().contains("no such file"));
}

fn key(inputs: &[&Path]) -> String {
    let mut node = plain("a", &[]);
    node.inputs = inputs.iter().map(Into::into).collect();
    Graph::new(vec![node], String::new()).unwrap().key("a").unwrap().to_owned()
}

#[test]
fn inputs_count_by_content_and_relative_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    };
    let one = write("one/sub/a.txt", "1");
    write("one/b.txt", "2");
    write("two/sub/a.txt", "1");
    write("two/b.txt", "2");
    let (first, second) = (folder.path().join("one"), folder.path().join("two"));
    let before = key(&[&first]);
    assert_eq!(before, key(&[&second]), "where a folder lies and how it is called does not count");
    fs::create_dir(second.join("empty")).unwrap();
    assert_eq!(before, key(&[&second]));
    assert_eq!(key(&[&one]), key(&[&second.join("sub/a.txt")]));

    assert_ne!(key(&[&first, &one]), key(&[&one, &first]), "order counts");
    assert_ne!(key(&[&one]), key(&[&one, &one]));
    assert_ne!(key(&[&one]), key(&[one.parent().unwrap()]), "a file is not a folder with this file");
    fs::rename(second.join("b.txt"), second.join("c.txt")).unwrap();
    assert_ne!(before, key(&[&second]), "names count");
    fs::rename(second.join("c.txt"), second.join("b.txt")).unwrap();
    fs::write(second.join("b.txt"), "3").unwrap();
    assert_ne!(before, key(&[&second]), "content counts");
}

#[cfg(unix)]
#[test]
fn links_among_the_inputs_are_followed_and_circles_found() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let (plain_folder, linked) = (folder.path().join("plain"), folder.path().join("linked"));
    for path in [plain_folder.join("sub"), linked.clone()] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(plain_folder.join("sub/a"), "1").unwrap();
    symlink(plain_folder.join("sub"), linked.join("sub")).unwrap();
    assert_eq!(key(&[&plain_folder]), key(&[&linked]));

    symlink(&linked, linked.join("again")).unwrap();
    let mut node = plain("a", &[]);
    node.inputs = vec![linked];
    let error = Graph::new(vec![node], String::new()).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("a folder that it lies in"));
}
