//! The PTX beside the kernels is that of their source: `cargo xtask ptx` makes it anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

fn files(extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let mut files: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

fn text(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn hash(source: &Path) -> String {
    let mut hash = Sha256::new();
    hash.update(text(source));
    files("cuh").iter().for_each(|header| hash.update(text(header)));
    hash.finalize().iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").unwrap();
        digits
    })
}

#[test]
fn ptx_is_of_its_source() {
    let sources = files("cu");
    assert!(!sources.is_empty() && sources.len() == files("ptx").len());
    for source in sources {
        let ptx = text(&source.with_extension("ptx"));
        let first = ptx.lines().next().unwrap();
        let file = source.display();
        assert!(first.ends_with(&format!("SHA-256: {}", hash(&source))), "{file} has changed; run `cargo xtask ptx`");
        assert!(ptx.contains("\n.target sm_80\n"), "{file}: for which architecture?");
    }
}

/// A sum of floats whose order is that in which threads come differs from run to run.
#[test]
fn nothing_adds_floats_atomically() {
    for file in files("ptx") {
        let ptx = text(&file);
        let atomic = |line: &&str| line.trim_start().starts_with("atom.") || line.trim_start().starts_with("red.");
        let found: Vec<&str> = ptx.lines().filter(atomic).filter(|line| line.contains(".f")).collect();
        assert!(found.is_empty(), "{}: {found:?}", file.display());
    }
}
