//! `cargo xtask test`: what the golden tests read is fetched first, then cargo runs all tests.

use std::process::{Command, ExitCode};

use anyhow::Context as _;
use xshell::{Shell, cmd};

use crate::setup::openblas;
use crate::{llm_server, places, setup, status};

/// The model and the text that golden and end-to-end tests use, by the names that `monosem assets fetch` knows.
const ASSETS: [&str; 2] = ["smollm2-135m", "brown"];

/// Runs the tests that need a language-model server.
const WITH_SERVER: &str = "--with-llm-server";

/// Options of `cargo test` that say which kinds of targets run; with one of them, our own choice would contradict it.
const KINDS: [&str; 11] = [
    "--lib",
    "--bin",
    "--bins",
    "--test",
    "--tests",
    "--bench",
    "--benches",
    "--example",
    "--examples",
    "--doc",
    "--all-targets",
];

pub(crate) fn test(sh: &Shell, args: &[String]) -> anyhow::Result<ExitCode> {
    let library = setup::for_tests(sh)?;
    if args.first().is_some_and(|arg| arg == WITH_SERVER) {
        anyhow::ensure!(args.len() == 1, "{WITH_SERVER} takes no further arguments");
        cmd!(sh, "cargo build --workspace --all-targets").run()?;
        return llm_server::test(sh, ASSETS[0]);
    }
    let split = args.iter().position(|a| a == "--").unwrap_or(args.len());
    let (own, harness) = args.split_at(split);

    // Everything at once and before the fetch: a build of the binary alone would unify features differently, and compile
    // some dependencies a second time.
    cmd!(sh, "cargo build --workspace --all-targets").run()?;
    let mut fetch = Command::new(places::dev_binary("monosem"));
    fetch.args(["assets", "fetch"]).args(ASSETS);
    if let Some(folder) = &library.folder {
        fetch.envs(openblas::library_path(folder));
    }
    let fetched = fetch.status().with_context(|| format!("{} does not start", fetch.get_program().display()))?;
    anyhow::ensure!(
        fetched.success(),
        "the golden tests need {}; without a network, `cargo test -p CRATE` still runs whatever needs no model",
        ASSETS.join(" and ")
    );

    let keep_going: &[&str] = if has(own, &["--no-fail-fast"]) { &[] } else { &["--no-fail-fast"] };
    if has(own, &["-p", "--package"]) {
        return status(cmd!(sh, "cargo test {keep_going...} {own...} {harness...}").into());
    }
    let workspace = || cmd!(sh, "cargo test --workspace {keep_going...}");
    if has(own, &KINDS) {
        return status(workspace().args(own).args(harness).into());
    }
    // Documentation tests are no target: cargo runs them only by themselves or where no targets are chosen.
    let code = status(workspace().arg("--all-targets").args(own).args(harness).into())?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    status(workspace().arg("--doc").args(own).args(harness).into())
}

/// Whether an option is given, as `--option`, `--option value`, `--option=value` or (short ones) `-ovalue`.
fn has(args: &[String], options: &[&str]) -> bool {
    args.iter().any(|arg| {
        options.iter().any(|option| match arg.strip_prefix(option) {
            Some("") => true,
            Some(rest) => rest.starts_with('=') || !option.starts_with("--"),
            None => false,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_in_each_spelling() {
        let args = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(has(&args("-p monosem-lm"), &["-p", "--package"]));
        assert!(has(&args("--package=monosem-lm"), &["-p", "--package"]));
        assert!(has(&args("-pmonosem-lm"), &["-p", "--package"]));
        assert!(has(&args("--test=tidy"), &KINDS));
        assert!(!has(&args("--tester tidy some_filter"), &KINDS));
    }
}
