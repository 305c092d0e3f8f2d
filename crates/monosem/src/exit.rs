//! Exit codes of the command line.

/// All went well.
pub const OK: u8 = 0;
/// Something failed; the message says what and where.
pub const FAILED: u8 = 1;
/// The command line was wrong (clap's own code).
pub const USAGE: u8 = 2;
/// Some nodes of a run failed; the rest finished and is kept.
pub const NODES_FAILED: u8 = 3;
/// Stopped by ctrl-C; the same command goes on from there.
pub const INTERRUPTED: u8 = 130;
