/// Why a decomposition could not be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DecomposeError {
    /// An activation is NaN or infinite.
    #[error("activation row {row}, column {column} is {value}: every value must be finite")]
    NonFinite {
        /// Row, counted over everything that was added.
        row: usize,
        /// Column.
        column: usize,
        /// The value there.
        value: f32,
    },
    /// Not enough rows to estimate what was asked for.
    #[error("{rows} rows of activations, at least {needed} are needed")]
    TooFewRows {
        /// Rows there were.
        rows: usize,
        /// Rows there must be.
        needed: usize,
    },
    /// Every column is constant, so there is nothing to decompose.
    #[error("every one of the {columns} columns is constant: nothing varies that could be decomposed")]
    NoVariance {
        /// Number of columns.
        columns: usize,
    },
    /// A setting is out of its range.
    #[error("{key} = {value}: {expected}")]
    Config {
        /// Name of the field.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be valid.
        expected: String,
    },
    /// Labels do not fit the rows, or a class has none.
    #[error("labels of classes: {0}")]
    Labels(String),
    /// LAPACK could not factorise a matrix.
    #[error("cannot factorise {matrix}: {problem}")]
    Factorisation {
        /// Which matrix.
        matrix: &'static str,
        /// What LAPACK said.
        problem: String,
    },
}

impl DecomposeError {
    pub(crate) fn config(key: &'static str, value: impl ToString, expected: &str) -> Self {
        Self::Config { key, value: value.to_string(), expected: expected.into() }
    }
}

/// Whether an iteration of at most `max_iter` steps to a tolerance can begin and end.
pub(crate) fn validate_iteration(max_iter: usize, tol: f64) -> Result<(), DecomposeError> {
    if max_iter == 0 {
        return Err(DecomposeError::config("max_iter", max_iter, "expected at least 1"));
    }
    if !(tol.is_finite() && tol > 0.0) {
        return Err(DecomposeError::config("tol", tol, "expected a positive number, such as 1e-4"));
    }
    Ok(())
}
