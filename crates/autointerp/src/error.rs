/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is out of its range.
    #[error("`{key}` {why}")]
    Value {
        /// The name of the field.
        key: &'static str,
        /// Its value and what was expected.
        why: String,
    },
}

impl ConfigError {
    pub(crate) fn value(key: &'static str, why: String) -> Self {
        Self::Value { key, why }
    }
}
