//! `cargo xtask bench`.

use std::process::ExitCode;

use anyhow::bail;
use xshell::{Shell, cmd};

use crate::{places, setup, status};

/// Runs the benchmark `name`, or lists what there is.
pub(crate) fn bench(sh: &Shell, name: Option<&str>, json: bool, args: &[String]) -> anyhow::Result<ExitCode> {
    let benches = list(sh)?;
    let table = || {
        let width = benches.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        benches.iter().map(|(name, about)| format!("  {name:width$}  {about}\n")).collect::<String>()
    };
    let Some(name) = name else {
        print!("cargo xtask bench NAME [--json] [-- ARGS]\n\n{}", table());
        return Ok(ExitCode::SUCCESS);
    };
    let name = &name.replace('-', "_");
    if !benches.iter().any(|(known, _)| known == name) {
        bail!("no benchmark is called {name}; there are:\n{}", table());
    }
    setup::setup(sh)?;
    let json: &[&str] = if json { &["--json"] } else { &[] };
    status(cmd!(sh, "cargo bench --package monosem-workspace --bench {name} -- {json...} {args...}").into())
}

/// Name and first line of documentation of each benchmark.
pub(crate) fn list(sh: &Shell) -> anyhow::Result<Vec<(String, String)>> {
    let folder = places::workspace().join("benches");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for file in sh.read_dir(folder)? {
        let Some(name) = file.file_stem().map(|s| s.to_string_lossy().into_owned()) else { continue };
        if file.extension().is_some_and(|e| e == "rs") {
            found.push((name, first_line(&sh.read_file(&file)?)));
        }
    }
    found.sort();
    Ok(found)
}

fn first_line(source: &str) -> String {
    source.lines().find_map(|line| line.strip_prefix("//! ")).unwrap_or("(no description)").to_owned()
}
