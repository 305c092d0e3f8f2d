//! `cargo xtask gpu`: what a machine with a GPU and without Rust needs to test and measure the kernels, in one folder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use xshell::{Shell, cmd};

use crate::{places, setup, status};

/// Builds the tests and the benchmark, puts them beside their scripts, and runs them if asked to.
pub(crate) fn gpu(sh: &Shell, run: bool) -> anyhow::Result<ExitCode> {
    setup::setup(sh)?;
    let folder = places::target().join("gpu");
    sh.create_dir(&folder)?;
    let tests = executable(cmd!(sh, "cargo test --release --package monosem-sae-cuda --test training --no-run"))?;
    let bench = executable(cmd!(sh, "cargo bench --package monosem-workspace --bench gpu_step --no-run"))?;
    for (from, name) in [(tests, "training"), (bench, "gpu_step")] {
        sh.copy_file(from, folder.join(name))?;
    }
    for script in ["gpu.sh", "peers/gpu_step_peers.py"] {
        sh.copy_file(places::workspace().join("benches").join(script), &folder)?;
    }
    let script = folder.join("gpu.sh");
    eprintln!("gpu: carry {} to a machine with a GPU and run gpu.sh there", folder.display());
    if run { status(cmd!(sh, "bash {script}").into()) } else { Ok(ExitCode::SUCCESS) }
}

/// Runs a build of one executable, which cargo names on its last lines.
fn executable(build: xshell::Cmd) -> anyhow::Result<PathBuf> {
    let output = build.quiet().ignore_status().output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let named = text.lines().rev().find_map(|line| {
        let (_, path) = line.trim().strip_prefix("Executable ")?.rsplit_once('(')?;
        Some(places::workspace().join(path.trim_end_matches(')')))
    });
    named.filter(|_| output.status.success()).with_context(|| text.trim().to_owned())
}
