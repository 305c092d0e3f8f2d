use std::io;
use std::path::{Path, PathBuf};

use crate::ConfigError;

/// Why a latent cache of delphi cannot be read. Each message names the file, the key and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DelphiError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or the folder is not what it should be.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// The cache was saved without tokens, and none were given.
    #[error(
        "{}: the files hold no `tokens`, so there is no text to show; cache again with save_tokens=True, or give the tokens \
         (of another hook point of the same run, or of the dataset in config.json)",
        folder.display()
    )]
    NoTokens {
        /// The folder of the hook point.
        folder: PathBuf,
    },
    /// A latent was asked for that no file is of.
    #[error("{}: no file is of latent {latent}, only of {held}", folder.display())]
    NoLatent {
        /// The folder of the hook point.
        folder: PathBuf,
        /// What was asked for.
        latent: usize,
        /// The ranges that are there.
        held: String,
    },
    /// Contexts cannot be cut into fragments of this length.
    #[error("{}: fragments of {fragment} tokens: {problem}", folder.display())]
    Fragment {
        /// The folder of the hook point.
        folder: PathBuf,
        /// What was asked for.
        fragment: usize,
        /// Why not.
        problem: String,
    },
    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The caller's closure asked to stop. Nothing was kept.
    #[error("stopped after {done} of {fragments} fragments")]
    Stopped {
        /// Fragments gathered by then.
        done: usize,
        /// Fragments in the cache.
        fragments: usize,
    },
}

impl DelphiError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn invalid(path: &Path, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), problem: problem.into() }
    }
}
