//! The `monosem` program: profiles, the nodes of the experiment graph, and the command line. It is the only crate that knows all the
//! others; each of them stands alone.
//!
//! As a library it gives what the program is made of to tests and benchmarks: [`profile`] and [`nodes`].

mod asking;
mod causal;
mod claims;
pub mod cli;
mod commands;
mod console;
mod device;
pub mod endpoint;
mod evaluation;
pub mod exit;
mod fetch;
mod interpretation;
mod interrupt;
mod local;
mod metrics;
pub mod model;
pub mod nodes;
mod output;
pub mod profile;
mod sources;
mod splicing;
pub mod text;
