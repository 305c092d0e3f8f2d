use std::path::PathBuf;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LlmError {
    /// A setting is out of its range or of its form.
    #[error("`{key}` {why}")]
    Config {
        /// Which setting.
        key: &'static str,
        /// What it is and what was expected. Never a secret.
        why: String,
    },
    /// The key for the server cannot be had.
    #[error("no key for the server: {why}")]
    Key {
        /// Where it was looked for, and what was found there; never the key.
        why: String,
    },
    /// The server will not answer this request, however often it is sent.
    #[error("{server} refused the request with status {status}: {message}")]
    Refused {
        /// Scheme, host and port.
        server: String,
        /// HTTP status.
        status: u16,
        /// What the server said, cut and cleaned of secrets.
        message: String,
    },
    /// No usable answer after all attempts.
    #[error("{server} gave no answer in {attempts} attempts; the last: {last}")]
    Unreachable {
        /// Scheme, host and port.
        server: String,
        /// How often the request was sent.
        attempts: u32,
        /// What went wrong last.
        last: String,
    },
    /// The answers were not of the protocol's form, in all attempts.
    #[error("{server} answered in another form than the protocol's: {why}")]
    Schema {
        /// Scheme, host and port.
        server: String,
        /// What was expected where.
        why: String,
    },
    /// The server, or the model in this process, cannot do this.
    #[error("{server} cannot be used for this: {why}")]
    Unsupported {
        /// Scheme, host and port, or the model.
        server: String,
        /// What is missing, and what to do.
        why: String,
    },
    /// The budget is spent. What was answered is in the cache, so a run with a larger one goes on from here.
    #[error("the budget of {limit} {what} is spent")]
    Budget {
        /// Requests, tokens or money.
        what: &'static str,
        /// What was allowed, in words.
        limit: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: {why}", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// Stopped from outside.
    #[error("stopped; what was answered is kept")]
    Stopped,
}

impl LlmError {
    /// Whether further requests would fail alike, so that a run should end; otherwise the fault is this request's or this reply's alone.
    #[must_use]
    pub fn ends_the_run(&self) -> bool {
        match self {
            // 400, 413, 422: this request. 401, 403, 404: the key, the model or the address, which all requests share; so are a redirect, and 429, which
            // is a refusal only where no money is left.
            Self::Refused { status, .. } => matches!(status, 300..=399 | 401..=407 | 429),
            Self::Schema { .. } => false,
            _ => true,
        }
    }
}
