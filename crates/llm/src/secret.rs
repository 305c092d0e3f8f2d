use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::LlmError;

/// A text that no message, log or serialised setting shows.
///
/// `env:NAME` stands for the value of that environment variable; this form is no secret and is shown as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text; white space around it is dropped.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text itself, or the variable that it names.
    pub(crate) fn reveal(&self, key: &'static str) -> Result<String, LlmError> {
        match self.variable() {
            Some(name) => {
                from_environment(name).map_err(|why| LlmError::Config { key, why: format!("names {name}, but {why}") })
            }
            None => Ok(self.0.clone()),
        }
    }

    pub(crate) fn variable(&self) -> Option<&str> {
        self.0.strip_prefix("env:").map(str::trim)
    }

    /// For what is checked before any variable is looked up.
    pub(crate) fn as_written(&self) -> &str {
        &self.0
    }

    fn shown(&self) -> &str {
        if self.variable().is_some() { &self.0 } else { "(hidden)" }
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::new(&text))
    }
}

/// An environment variable's value, trimmed; why there is none otherwise.
pub(crate) fn from_environment(name: &str) -> Result<String, String> {
    match std::env::var(name) {
        Ok(value) if value.trim().is_empty() => Err(format!("the environment variable `{name}` is empty")),
        Ok(value) => Ok(value.trim().to_owned()),
        Err(std::env::VarError::NotPresent) => Err(format!("the environment variable `{name}` is not set")),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("the environment variable `{name}` is not text")),
    }
}

/// Takes secrets out of what a server or a library says, and cuts it to what a person reads.
#[derive(Clone, Default)]
pub(crate) struct Scrubber(Vec<String>);

const LONGEST_MESSAGE: usize = 300;

impl Scrubber {
    pub(crate) fn new(mut secrets: Vec<String>) -> Self {
        secrets.retain(|secret| !secret.is_empty());
        // The longest first: one may be part of another.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(secrets)
    }

    pub(crate) fn clean(&self, text: &str) -> String {
        // Secrets go before the cut, which might leave a part of one.
        let mut text = text.to_owned();
        for secret in &self.0 {
            text = text.replace(secret.as_str(), "(hidden)");
        }
        let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
        let mut text = words.collect::<Vec<_>>().join(" ");
        if text.chars().count() > LONGEST_MESSAGE {
            text = text.chars().take(LONGEST_MESSAGE).chain("...".chars()).collect();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("  sk-123\n");
        assert_eq!(format!("{secret:?}"), "(hidden)");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"(hidden)\"");
        assert_eq!(secret.reveal("headers").unwrap(), "sk-123");
        assert_eq!(format!("{:?}", Secret::new("env:HOME")), "env:HOME");
    }

    #[test]
    fn messages_are_cleaned_before_they_are_cut() {
        let scrubber = Scrubber::new(vec!["abc".into(), "abcdef".into(), String::new()]);
        assert_eq!(scrubber.clean("x abcdef\n\tabc\u{1}y"), "x (hidden) (hidden) y");
        let long = scrubber.clean(&format!("{}abcdef", "z".repeat(298)));
        assert_eq!(long, format!("{}(h...", "z".repeat(298)));
    }
}
