//! `cargo xtask ci`: what continuous integration checks beyond the tests.

use std::process::ExitCode;
use std::time::Instant;

use xshell::{Shell, cmd};

use crate::{bench, package, ptx, setup};

type Step = (&'static str, fn(&Shell) -> anyhow::Result<()>);

const STEPS: [Step; 6] = [
    ("format", format),
    ("clippy", clippy),
    ("docs", docs),
    ("benches in test mode", benches),
    ("kernels", ptx::check),
    ("packaging", package::package),
];

/// Runs every step, also after a failure: one run shows all there is to mend.
pub(crate) fn ci(sh: &Shell) -> anyhow::Result<ExitCode> {
    setup::setup(sh)?;
    let mut failures = Vec::new();
    for (name, step) in STEPS {
        eprintln!("ci: {name}");
        let started = Instant::now();
        let result = step(sh);
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => eprintln!("ci: {name}: ok, {seconds:.1} s"),
            Err(error) => {
                eprintln!("ci: {name}: failed, {seconds:.1} s: {error:#}");
                failures.push(name);
            }
        }
    }
    if failures.is_empty() {
        eprintln!("ci: all {} steps passed", STEPS.len());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("ci: failed: {}", failures.join(", "));
    Ok(ExitCode::FAILURE)
}

fn format(sh: &Shell) -> anyhow::Result<()> {
    Ok(cmd!(sh, "cargo fmt --all --check").run()?)
}

fn clippy(sh: &Shell) -> anyhow::Result<()> {
    Ok(cmd!(sh, "cargo clippy --quiet --workspace --all-targets -- -D warnings").run()?)
}

fn docs(sh: &Shell) -> anyhow::Result<()> {
    Ok(cmd!(sh, "cargo doc --quiet --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings").run()?)
}

/// Each benchmark once, on its smallest sizes: the programs are those that `cargo xtask test` has built.
fn benches(sh: &Shell) -> anyhow::Result<()> {
    let names = bench::list(sh)?;
    let choice = names.iter().flat_map(|(name, _)| ["--bench", name]);
    if names.is_empty() {
        eprintln!("ci: there are no benches");
        return Ok(());
    }
    Ok(cmd!(sh, "cargo test --quiet --workspace {choice...}").run()?)
}
