//! What can go wrong with an activation store.

use std::io;
use std::path::{Path, PathBuf};

use monosem_hooks::HookPoint;

/// Everything that can go wrong while activations are captured, imported or read. Each message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// Reading, writing or mapping a file failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk, or the user's share of it, is full. Finished shards stay, so that the capture goes on after space is made.
    #[error("no space left on the disk for {}: finished shards are kept, make room and run again to go on", path.display())]
    DiskFull {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// A setting that cannot be met.
    #[error("capture setting `{key}`: {problem}")]
    Config {
        /// Name of the field.
        key: &'static str,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// The model has no activations at a hook point that was asked for.
    #[error("the model has no hook point {hook}: {problem}")]
    NoSuchHook {
        /// What was asked for.
        hook: HookPoint,
        /// Why there is none.
        problem: String,
    },
    /// Tokens that the model cannot take.
    #[error("the tokens do not suit the model: {problem}")]
    Tokens {
        /// Which, and what the model takes.
        problem: String,
    },
    /// The progress callback asked to stop. Calling again with the same arguments goes on.
    #[error("interrupted: {kept} of {rows} rows are safe in whole shards, run again to go on from there")]
    Interrupted {
        /// Rows in finished shards.
        kept: usize,
        /// Rows that the finished store will have.
        rows: usize,
    },
    /// The folder holds the whole or a part of a store made from something else.
    #[error("{} was begun with other arguments: {differs}; choose another folder or remove this one", path.display())]
    OtherCapture {
        /// Its manifest.
        path: PathBuf,
        /// The keys that differ, with both values.
        differs: String,
    },
    /// Somebody else is writing to the folder at this moment.
    #[error("another process is writing to {}: wait for it or choose another folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds a capture that has not finished.
    #[error("{} is an unfinished capture ({kept} of {rows} rows): run the capture again to go on", path.display())]
    Unfinished {
        /// The folder.
        path: PathBuf,
        /// Rows in finished shards.
        kept: usize,
        /// Rows that the finished store will have.
        rows: usize,
    },
    /// The manifest is missing, truncated, of another version, or contradicts itself.
    #[error("manifest {}: {problem}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A shard is truncated, or not what the manifest says.
    #[error("shard {}: {problem}", path.display())]
    Shard {
        /// The shard.
        path: PathBuf,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// The store has no such hook.
    #[error("{} has no activations of {hook}: it has {}", path.display(), list(available))]
    UnknownHook {
        /// The folder of the store.
        path: PathBuf,
        /// What was asked for.
        hook: HookPoint,
        /// What there is.
        available: Vec<HookPoint>,
    },
    /// A NaN or an infinity.
    #[error("{hook}: {value} in dimension {dimension} of row {row} of {}{place}: activations must be finite", file.display())]
    NonFinite {
        /// The hook point.
        hook: HookPoint,
        /// The shard that has, or was to get, the row.
        file: PathBuf,
        /// The row, counted within that file.
        row: usize,
        /// The first bad dimension.
        dimension: usize,
        /// The value there.
        value: f32,
        /// Context, position, token and document, where known.
        place: String,
    },
    /// A finite value that the chosen storage type cannot hold.
    #[error(
        "{hook}: {value} in dimension {dimension} of row {row} of {}{place}: too large for {dtype}, use bf16 or f32",
        file.display()
    )]
    Overflow {
        /// The hook point.
        hook: HookPoint,
        /// The shard that was to get the row.
        file: PathBuf,
        /// The row, counted within that file.
        row: usize,
        /// The first bad dimension.
        dimension: usize,
        /// The value there.
        value: f32,
        /// Context, position, token and document, where known.
        place: String,
        /// The storage type.
        dtype: crate::Dtype,
    },
    /// A file that cannot be imported.
    #[error("cannot import {}: {problem}", path.display())]
    Import {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        problem: String,
    },
}

impl ActivationError {
    /// Wraps a system error; a full disk gets its own variant, because then the caller can go on later.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { action, path, source },
        }
    }
}

fn list(hooks: &[HookPoint]) -> String {
    hooks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
