//! The one error type of the crate.

use std::path::PathBuf;

/// Why results could not be read, written or drawn.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A results file is not a JSON array of result rows.
    #[error("{}: not a results file (an array of {{experiment, method, hook, setting, metric, value, ci_low, ci_high, n, unit}}): {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// A features file is not a JSON array of features.
    #[error("{}: not a features file (an array of {{experiment, method, hook, setting, feature, explanation, score, skew, kurtosis, note, fragments}}): {source}", path.display())]
    FeatureJson {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// A feature holds a number that is not finite, or a fragment whose lists differ in length.
    #[error("feature {feature}: {reason}")]
    Feature {
        /// The feature: experiment, method, hook, setting and index.
        feature: String,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// A file of circuits or of case studies is not a JSON array of them.
    #[error("{}: not a {file} file (an array of {{{keys}}}): {source}", path.display())]
    EntryJson {
        /// The file.
        path: PathBuf,
        /// `circuits` or `case-studies`.
        file: &'static str,
        /// The keys that were expected.
        keys: &'static str,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// Parts of a circuit or of a case study do not fit together, or one of its numbers is not finite.
    #[error("{place}: {reason}")]
    Entry {
        /// The file where there is one, and the circuit or the study: its place in the list, method and setting.
        place: String,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// A row holds a number that is not finite, which JSON cannot hold and no figure can show.
    #[error("result row {row}: {field} is {value}, expected a finite number")]
    NonFinite {
        /// The row: experiment, method, hook, setting and metric.
        row: String,
        /// `value`, `ci_low` or `ci_high`.
        field: &'static str,
        /// The offending number.
        value: f64,
    },
    /// A figure could not be drawn.
    #[error("figure {figure}: {reason}")]
    Draw {
        /// The figure's name.
        figure: String,
        /// What the plotting library said.
        reason: String,
    },
}
