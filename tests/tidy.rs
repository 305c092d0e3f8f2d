//! Rules of the house that a compiler does not check. CONTRIBUTING.md lists them in words.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const MAX_LINES: usize = 600;

/// The arrows of ARCHITECTURE.md: a crate's folder, and the folders of what it may depend on. `monosem` may use all.
const ARROWS: [(&str, &[&str]); 15] = [
    ("hooks", &[]),
    ("bf16", &[]),
    ("lm", &["hooks", "bf16"]),
    ("assets", &[]),
    ("corpus", &[]),
    ("activations", &["hooks"]),
    ("dictionary", &[]),
    ("decompose", &["dictionary"]),
    ("sae", &["bf16", "dictionary"]),
    ("sae-cuda", &["bf16", "dictionary", "sae"]),
    ("llm", &[]),
    ("autointerp", &["llm"]),
    ("patching", &["hooks", "dictionary", "lm"]),
    ("graph", &[]),
    ("report", &[]),
];

/// Crates with matrix products on raw slices, SIMD kernels, memory maps, or memory of a GPU.
const MAY_BE_UNSAFE: [&str; 8] = ["bf16", "lm", "activations", "corpus", "dictionary", "decompose", "sae", "sae-cuda"];

/// Packages that are the end of the line: a program, not a library that others build on.
const MAY_USE_ANYHOW: [&str; 2] = ["monosem", "xtask"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Fails with one line per fault.
fn none_of(faults: &[String], what: &str) {
    assert!(faults.is_empty(), "{what}:\n  {}", faults.join("\n  "));
}

fn rust_files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.expect("a readable folder entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files_below(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Every Rust file, as its path from the root and its text.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "tests", "benches"] {
        if root().join(folder).is_dir() {
            rust_files_below(&root().join(folder), &mut files);
        }
    }
    files.sort();
    assert!(files.len() > 10, "the search for source files found only {}", files.len());
    let short = |path: &Path| path.strip_prefix(root()).unwrap_or(path).display().to_string();
    files.iter().map(|path| (short(path), read(path))).collect()
}

struct Dependency {
    name: String,
    in_workspace: bool,
}

struct Package {
    name: String,
    folder: PathBuf,
    dependencies: Vec<Dependency>,
    description: Option<String>,
    readme: Option<String>,
}

impl Package {
    /// `sae` for `crates/sae`; nothing for the root and for xtask.
    fn crate_folder(&self) -> Option<String> {
        let inside = self.folder.strip_prefix(root().join("crates")).ok()?;
        Some(inside.display().to_string())
    }
}

/// All members, as cargo itself reads their manifests.
fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let dependency = |d: &Value| Dependency {
        name: text(&d["name"]).expect("a dependency has a name"),
        in_workspace: d["path"].is_string(),
    };
    let package = |p: &Value| Package {
        name: text(&p["name"]).expect("a package has a name"),
        folder: Path::new(p["manifest_path"].as_str().expect("a package has a manifest"))
            .parent()
            .expect("a manifest lies in a folder")
            .to_owned(),
        dependencies: p["dependencies"].as_array().expect("a list").iter().map(dependency).collect(),
        description: text(&p["description"]),
        readme: text(&p["readme"]),
    };
    metadata["packages"].as_array().expect("a list").iter().map(package).collect()
}

/// Names in `[workspace.dependencies]`.
fn declared() -> Vec<String> {
    let manifest = read(&root().join("Cargo.toml"));
    let lines = manifest.lines().skip_while(|line| line.trim() != "[workspace.dependencies]").skip(1);
    let section = lines.take_while(|line| !line.starts_with('['));
    let names: Vec<String> = section
        .filter(|line| !line.starts_with([' ', '#', ']', '}']))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()))
        .collect();
    assert!(!names.is_empty(), "Cargo.toml has no [workspace.dependencies]");
    names
}

#[test]
fn no_file_grows_past_what_one_sitting_reads() {
    let long = sources().into_iter().filter_map(|(path, text)| {
        let lines = text.lines().count();
        (lines > MAX_LINES).then(|| format!("{path}: {lines} lines"))
    });
    none_of(&long.collect::<Vec<_>>(), &format!("over {MAX_LINES} lines"));
}

#[test]
fn nothing_is_left_for_later() {
    let words = ["TODO", "FIXME", "todo!", "unimplemented!"];
    let mut found = Vec::new();
    for (path, text) in sources().into_iter().filter(|(path, _)| path != "tests/tidy.rs") {
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                found.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    none_of(&found, "unfinished");
}

#[test]
fn unsafe_blocks_are_where_they_may_be_and_say_why() {
    let mut faults = Vec::new();
    for (path, text) in sources().into_iter().filter(|(path, _)| path != "tests/tidy.rs") {
        let allowed = MAY_BE_UNSAFE.iter().any(|folder| path.starts_with(&format!("crates/{folder}/")));
        // A bench calls the kernel that it compares with.
        let allowed = allowed || path.starts_with("benches/");
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            if !is_unsafe(line) {
                continue;
            }
            let place = format!("{path}:{}", index + 1);
            if !allowed {
                faults.push(format!("{place}: this crate has no `unsafe`"));
            }
            if !line.contains("unsafe fn") && !has_reason(&lines[..index]) {
                faults.push(format!("{place}: no `// SAFETY:` comment above"));
            }
        }
    }
    none_of(&faults, "unsafe code");
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| code.contains(form))
}

/// Whether the statement that goes on below `above` has a comment with its reason: attributes and earlier lines of the same
/// statement may stand between.
fn has_reason(above: &[&str]) -> bool {
    let mut lines = above.iter().rev().map(|line| line.trim()).peekable();
    while let Some(line) = lines.next_if(|line| !line.starts_with("//")) {
        let ended = line.is_empty() || line.ends_with([';', '{', '}']);
        if ended && !line.starts_with("#[") {
            return false;
        }
    }
    lines.take_while(|line| line.starts_with("//")).any(|line| line.contains("SAFETY:"))
}

#[test]
fn the_search_for_reasons_sees_comments_above_a_statement_only() {
    assert!(has_reason(&["    // SAFETY: the file", "    // stays", "    #[allow(unsafe_code)]", "    let map ="]));
    assert!(!has_reason(&["// SAFETY: of another statement", "let a = 1;", "let map ="]));
    assert!(!has_reason(&["// a comment", "let map ="]));
    assert!(is_unsafe("let a = unsafe { b };") && !is_unsafe("// unsafe { }") && !is_unsafe("#[allow(unsafe_code)]"));
}

#[test]
fn every_crate_is_named_after_its_folder_and_ready_to_publish() {
    let mut faults = Vec::new();
    for package in packages() {
        let Some(folder) = package.crate_folder() else { continue };
        let expected = if folder == "monosem" { folder.clone() } else { format!("monosem-{folder}") };
        if package.name != expected {
            faults.push(format!("crates/{folder} holds package {}, not {expected}", package.name));
        }
        if package.description.is_none_or(|d| d.len() < 20) {
            faults.push(format!("crates/{folder}/Cargo.toml: no description worth the name"));
        }
        if package.readme.as_deref() != Some("README.md") {
            faults.push(format!("crates/{folder}/Cargo.toml: readme is not README.md"));
        }
        for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            if !package.folder.join(file).is_file() {
                faults.push(format!("crates/{folder}: no {file}"));
            }
        }
    }
    none_of(&faults, "crates");
}

#[test]
fn dependencies_within_the_workspace_follow_the_arrows() {
    let mut faults = Vec::new();
    for package in packages() {
        let used = package.dependencies.iter().filter(|d| d.in_workspace);
        let used: BTreeSet<&str> = used.map(|d| d.name.trim_start_matches("monosem-")).collect();
        let Some(folder) = package.crate_folder() else {
            if package.name == "xtask" && !used.is_empty() {
                faults.push(format!("xtask -> {used:?}: it spawns cargo and depends on no crate"));
            }
            continue;
        };
        if folder == "monosem" {
            continue;
        }
        match ARROWS.iter().find(|(name, _)| *name == folder) {
            Some((_, may_use)) => {
                let wrong = used.iter().filter(|name| !may_use.contains(name));
                faults.extend(wrong.map(|name| format!("{folder} -> {name}")));
            }
            None => faults.push(format!("crates/{folder} has no arrows yet: draw them in ARCHITECTURE.md and here")),
        }
    }
    none_of(&faults, "arrows that are not drawn");
}

#[test]
fn anyhow_stays_in_the_programs() {
    let users = packages().into_iter().filter(|p| p.dependencies.iter().any(|d| d.name == "anyhow"));
    let wrong = users.map(|p| p.name).filter(|name| !MAY_USE_ANYHOW.contains(&name.as_str()));
    none_of(&wrong.collect::<Vec<_>>(), "packages with anyhow");
}

#[test]
fn every_declared_dependency_is_used_and_explained() {
    let packages = packages();
    let members: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
    let used: BTreeSet<&str> = packages.iter().flat_map(|p| &p.dependencies).map(|d| d.name.as_str()).collect();
    let architecture = read(&root().join("ARCHITECTURE.md"));
    let words: BTreeSet<&str> = architecture.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_').collect();
    let declared = declared();
    let mut faults = Vec::new();
    for name in declared.iter().map(String::as_str) {
        if !used.contains(name) {
            faults.push(format!("{name}: declared in Cargo.toml and used by no crate"));
        }
    }
    let external = used.iter().filter(|name| !members.contains(**name));
    for name in external {
        if !declared.iter().any(|d| d == name) {
            faults.push(format!("{name}: used and not declared in [workspace.dependencies]"));
        }
        if !words.contains(name) {
            faults.push(format!("{name}: ARCHITECTURE.md does not say what it is there for"));
        }
    }
    none_of(&faults, "dependencies");
}
