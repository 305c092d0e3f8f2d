//! Set-up, tests, experiments and continuous integration: `cargo xtask --help`.
//!
//! No numerics and no machine learning in here: it builds in seconds and then runs cargo, or the binary that cargo built.

mod bench;
mod ci;
mod gpu;
mod llm_server;
mod package;
mod places;
mod ptx;
mod setup;
mod test;
mod unpack;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xshell::{Shell, cmd};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Set-up, tests, experiments and continuous integration of monosem",
    after_help = "Exit codes: 0 success; 1 a step failed, with the reason in the last lines; 2 a wrong command line. \
                  `reproduce` and `test` pass on the exit code of what they run."
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Finds or installs what a build and the tests need: a C and a C++ compiler and OpenBLAS
    Setup,
    /// Runs every experiment of a profile and writes the report; arguments go to `monosem reproduce`
    ///
    /// Examples: `cargo xtask reproduce`, `cargo xtask reproduce --profile toy`, `cargo xtask reproduce --help`.
    /// ctrl-C stops it; the same command then goes on where it stopped.
    #[command(disable_help_flag = true)]
    Reproduce {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Fetches the model and the text of the golden tests, then runs all tests; arguments go to `cargo test`
    ///
    /// Examples: `cargo xtask test`, `cargo xtask test -p monosem-graph`, `cargo xtask test --test tidy -- --nocapture`.
    /// With `--with-llm-server` first, the tests that need a language-model server run instead: llama.cpp's is built by pip, started and stopped for them.
    #[command(disable_help_flag = true)]
    Test {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs a benchmark, or lists the benchmarks there are
    Bench {
        /// A file of benches/, without `.rs`
        name: Option<String>,
        /// One JSON object per line instead of text
        #[arg(long)]
        json: bool,
        /// Further arguments for the benchmark, such as a filter
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Makes the PTX of the CUDA kernels anew after a change of their source, with a compiler that pip brings: no CUDA installation, no GPU
    Ptx,
    /// Builds a folder with the tests and the benchmark of the CUDA kernels, to be run on a machine with a GPU, Rust or not
    Gpu {
        /// Runs them here
        #[arg(long)]
        run: bool,
    },
    /// Everything continuous integration checks beyond the tests: format, clippy, docs, benches in test mode, CUDA kernels, packaging
    Ci,
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(places::workspace());
    match task {
        Task::Setup => setup::for_tests(&sh).map(|_| ExitCode::SUCCESS),
        Task::Reproduce { args } => {
            setup::setup(&sh)?;
            let command = cmd!(sh, "cargo run --release --package monosem -- reproduce {args...}");
            replace_process(command.into())
        }
        Task::Test { args } => test::test(&sh, &args),
        Task::Bench { name, json, args } => bench::bench(&sh, name.as_deref(), json, &args),
        Task::Ptx => ptx::ptx(&sh).map(|()| ExitCode::SUCCESS),
        Task::Gpu { run } => gpu::gpu(&sh, run),
        Task::Ci => ci::ci(&sh),
    }
}

/// Becomes `command`.
///
/// ctrl-C reaches every process of the terminal's group. A parent that dies of it gives the prompt back while the experiment is
/// still writing its checkpoint, and one that ignores it would have to be taught so for every signal. So there is no parent:
/// this process turns into cargo, cargo turns into monosem, and exit codes and signals are monosem's own.
#[cfg(unix)]
fn replace_process(mut command: std::process::Command) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    let error = command.exec();
    Err(anyhow::Error::new(error).context("cargo does not start"))
}

#[cfg(not(unix))]
fn replace_process(command: std::process::Command) -> anyhow::Result<ExitCode> {
    status(command)
}

/// Runs a command to its end and passes its exit code on, without a word of our own: its last lines stay the last.
fn status(mut command: std::process::Command) -> anyhow::Result<ExitCode> {
    use anyhow::Context as _;
    let status = command.status().with_context(|| format!("{} does not start", command.get_program().display()))?;
    Ok(match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    })
}
