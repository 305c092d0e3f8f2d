//! The `monosem` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(monosem::cli::main())
}
