//! What can go wrong when a model or a tokenizer is read.

use std::path::{Path, PathBuf};

use crate::Family;

/// Why a model or a tokenizer could not be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// A file is absent or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is truncated, corrupt or not what its name says.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and where.
        problem: String,
    },
    /// A key of a configuration is absent or has a value that makes no sense.
    #[error("{}: key {key:?} {problem}", path.display())]
    Config {
        /// The file that holds the configuration.
        path: PathBuf,
        /// The key, as the file writes it.
        key: String,
        /// What was expected of it.
        problem: String,
    },
    /// The model belongs to no family that this crate knows.
    #[error("{}: {given:?} is not a model family that can be run: expected one of {}", path.display(), Family::names())]
    UnknownFamily {
        /// The file that names the family.
        path: PathBuf,
        /// The name it gives.
        given: String,
    },
    /// The file is well formed but asks for something that is not implemented.
    #[error("{}: {what} is not supported: expected {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for.
        what: String,
        /// What would have been fine.
        expected: String,
    },
    /// A weight tensor that the model needs is absent.
    #[error("{}: tensor {name:?} of shape {expected:?} is missing", path.display())]
    MissingTensor {
        /// The file, or the folder of a model in several files.
        path: PathBuf,
        /// The tensor's name in that file.
        name: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
    },
    /// A weight tensor does not have the shape that the configuration asks for.
    #[error("{}: tensor {name:?} has shape {found:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in that file.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
    },
    /// Centring was asked of a model whose function it would change.
    #[error(
        "weights that write to the residual stream cannot be centred in a {0} model: RMSNorm does not subtract the mean, so its output would change"
    )]
    CannotCentre(Family),
    /// The tokenizer refused a text or a list of ids.
    #[error("the tokenizer cannot {what}: {problem}")]
    Tokenize {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        problem: String,
    },
}

impl LmError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn config(path: &Path, key: &str, problem: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), key: key.to_owned(), problem: problem.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into(), expected: expected.into() }
    }
}
