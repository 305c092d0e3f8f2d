//! Takes the hash of every workspace crate's sources at build time, so that an installed binary knows which code made a result.
//!
//! In a checkout the hash covers a crate's sources, its manifest, and the hashes of the workspace crates it depends on. In a package
//! from a registry the siblings are not there; a published version never changes, so its number says the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let crates = here.parent().unwrap_or(&here).to_owned();
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");

    let in_workspace = crates.join("hooks/Cargo.toml").is_file();
    let hashes = if in_workspace { workspace_hashes(&crates) } else { BTreeMap::new() };
    let lock = crates.parent().map(|root| root.join("Cargo.lock")).filter(|lock| in_workspace && lock.is_file());
    let lock_hash = lock.map_or(version.clone(), |lock| {
        println!("cargo:rerun-if-changed={}", lock.display());
        blake3::hash(&fs::read(lock).expect("a readable Cargo.lock")).to_hex().to_string()
    });

    let mut code = format!(
        "const VERSION_HASH: &str = {version:?};\n/// Hash of the lock file.\npub(crate) const LOCK_HASH: &str = {lock_hash:?};\n"
    );
    code += "const HASHES: &[(&str, &str)] = &[\n";
    for (name, hash) in hashes {
        code += &format!("    ({name:?}, {hash:?}),\n");
    }
    code += "];\n";
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("sources.rs"), code).expect("OUT_DIR is writable");
}

fn workspace_hashes(crates: &Path) -> BTreeMap<String, String> {
    let mut own = BTreeMap::new();
    let mut dependencies: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for folder in fs::read_dir(crates).expect("a readable crates folder").flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        let manifest = folder.path().join("Cargo.toml");
        if !manifest.is_file() {
            continue;
        }
        let mut files = vec![manifest.clone()];
        // Kernels are compiled into `sae-cuda`.
        let sources = ["src", "kernels"].map(|sources| folder.path().join(sources));
        for sources in sources.iter().filter(|sources| sources.is_dir()) {
            collect(sources, &mut files);
            println!("cargo:rerun-if-changed={}", sources.display());
        }
        files.sort();
        let mut hasher = blake3::Hasher::new();
        for file in &files {
            println!("cargo:rerun-if-changed={}", file.display());
            let content = fs::read(file).expect("a readable source file");
            let relative = file.strip_prefix(folder.path()).expect("it lies inside").to_string_lossy().into_owned();
            for part in [relative.as_bytes(), &content] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
        }
        own.insert(name.clone(), hasher.finalize().to_hex().to_string());
        let text = fs::read_to_string(&manifest).expect("a utf-8 manifest");
        let direct = text.split("[dev-dependencies]").next().unwrap_or_default();
        let of_workspace =
            direct.lines().filter_map(|line| line.strip_prefix("monosem-")?.split(['.', ' ', '=']).next());
        dependencies.insert(name, of_workspace.map(str::to_owned).collect());
    }
    let mut hashes: BTreeMap<String, String> =
        own.keys().map(|name| (name.clone(), with_dependencies(name, &own, &dependencies))).collect();
    // This crate depends on all others: the key of a node takes only the files that hold the node's work.
    let src = crates.join("monosem/src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    for file in files {
        let name = file.strip_prefix(&src).expect("it lies inside").with_extension("").to_string_lossy().into_owned();
        let content = fs::read(&file).expect("a readable source file");
        hashes.insert(format!("monosem/{name}"), blake3::hash(&content).to_hex().to_string());
    }
    hashes
}

fn with_dependencies(
    name: &str,
    own: &BTreeMap<String, String>,
    dependencies: &BTreeMap<String, Vec<String>>,
) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(own.get(name).map_or("", String::as_str).as_bytes());
    for dependency in dependencies.get(name).into_iter().flatten() {
        hasher.update(dependency.as_bytes()).update(with_dependencies(dependency, own, dependencies).as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}
