//! Packaging: what would be published is complete, and builds without the rest of the checkout.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use crate::places;

/// Files that every published crate carries.
const NEEDED: [&str; 4] = ["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// What crates.io accepts, in bytes.
const LARGEST: u64 = 10 * 1024 * 1024;

pub(crate) fn package(sh: &Shell) -> anyhow::Result<()> {
    let folder = places::target().join("package");
    for old in archives(sh, &folder)? {
        sh.remove_path(old)?;
    }
    let published = ["--workspace", "--exclude", "xtask", "--exclude", "monosem-workspace"];
    cmd!(sh, "cargo package --quiet --allow-dirty --no-verify {published...}").run()?;
    let archives = archives(sh, &folder)?;
    let crates =
        sh.read_dir(places::workspace().join("crates"))?.iter().filter(|f| f.join("Cargo.toml").is_file()).count();
    let mut faults = Vec::new();
    if archives.len() != crates {
        faults.push(format!("{crates} crates made {} packages", archives.len()));
    }
    for archive in &archives {
        faults.extend(check(sh, archive)?);
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n  "));
    }
    compile(sh, &folder.join("unpacked"), &archives)
}

/// Compiles the packages from their archives, away from the checkout: a file that a crate reads from outside its folder is
/// not there. `cargo package` can do that itself, but builds all dependencies again, in another profile; a workspace with the
/// profiles and the lock file of this one takes them from the earlier steps.
fn compile(sh: &Shell, folder: &Path, archives: &[PathBuf]) -> anyhow::Result<()> {
    sh.remove_path(folder)?;
    sh.create_dir(folder)?;
    let (mut members, mut patches) = (Vec::new(), String::new());
    for archive in archives {
        // Packages carry one date for all files; without `-m` cargo would take the sources for those it compiled last time.
        cmd!(sh, "tar -xzmf {archive} -C {folder}").quiet().run()?;
        let member = archive.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let package = member.rsplit_once('-').map_or(member.as_str(), |(package, _)| package);
        patches.push_str(&format!("{package} = {{ path = \"{member}\" }}\n"));
        members.push(member);
    }
    let profiles = profiles(&sh.read_file(places::workspace().join("Cargo.toml"))?);
    let head = format!("[workspace]\nmembers = {members:?}\nresolver = \"3\"\n");
    sh.write_file(folder.join("Cargo.toml"), format!("{head}\n[patch.crates-io]\n{patches}\n{profiles}"))?;
    sh.copy_file(places::workspace().join("Cargo.lock"), folder)?;
    let _inside = sh.push_dir(folder);
    // As `.cargo/config.toml` says, which is not above every target folder.
    let stub = places::workspace().join("crates/sae-cuda/stubs");
    let check = cmd!(sh, "cargo check --quiet --offline --workspace").env("CUDA_LIBRARY_PATH", stub);
    Ok(check.env("CARGO_TARGET_DIR", places::target()).run()?)
}

/// The `[profile...]` sections of a manifest.
fn profiles(manifest: &str) -> String {
    let mut inside = false;
    let lines = manifest.lines().filter(|line| {
        if line.starts_with('[') {
            inside = line.starts_with("[profile.");
        }
        inside
    });
    lines.fold(String::new(), |text, line| text + line + "\n")
}

fn archives(sh: &Shell, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = sh.read_dir(folder)?;
    files.retain(|file| file.extension().is_some_and(|e| e == "crate"));
    Ok(files)
}

/// Faults of one package.
fn check(sh: &Shell, archive: &Path) -> anyhow::Result<Vec<String>> {
    let name = archive.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let listing = cmd!(sh, "tar -tvzf {archive}").quiet().read()?;
    let bytes = archive.metadata().with_context(|| archive.display().to_string())?.len();
    let mut faults = faults_of_listing(&name, &listing);
    if bytes > LARGEST {
        faults.push(format!("{name}: {bytes} bytes, more than crates.io takes"));
    }
    Ok(faults)
}

/// Faults that the output of `tar -tv` shows: something missing, something that is not a plain file, something elsewhere.
fn faults_of_listing(name: &str, listing: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut files = Vec::new();
    for line in listing.lines() {
        let prefix = format!(" {name}/");
        match line.split_once(&prefix) {
            Some((_, file)) if line.starts_with('-') && !file.split('/').any(|part| part == "..") => files.push(file),
            _ => faults.push(format!("{name}: neither a plain file nor inside the package: {line}")),
        }
    }
    let missing = NEEDED.iter().filter(|file| !files.contains(file)).map(|file| format!("{name}: has no {file}"));
    faults.extend(missing);
    if !files.contains(&"src/lib.rs") && !files.contains(&"src/main.rs") {
        faults.push(format!("{name}: has no source"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::{faults_of_listing, profiles};

    #[test]
    fn a_complete_package_has_no_fault_and_each_fault_is_named() {
        let line = |file: &str| format!("-rw-r--r-- 0/0  10 2024-01-01 00:00 a-0.1.0/{file}\n");
        let files = ["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE", "src/lib.rs"];
        let whole: String = files.iter().map(|f| line(f)).collect();
        assert_eq!(faults_of_listing("a-0.1.0", &whole), Vec::<String>::new());

        let link = "lrwxrwxrwx 0/0 0 2024-01-01 00:00 a-0.1.0/LICENSE-MIT -> ../../LICENSE-MIT\n";
        let broken: String =
            files.iter().filter(|f| **f != "LICENSE-MIT").map(|f| line(f)).chain([link.to_owned()]).collect();
        let faults = faults_of_listing("a-0.1.0", &broken);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[1].ends_with("has no LICENSE-MIT"), "{faults:?}");
    }

    #[test]
    fn profiles_are_copied_and_nothing_else() {
        let manifest =
            "[package]\nname = \"a\"\n[profile.dev]\nopt-level = 1\n[lints]\nb = 2\n[profile.release]\nc = 3\n";
        assert_eq!(profiles(manifest), "[profile.dev]\nopt-level = 1\n[profile.release]\nc = 3\n");
    }
}
