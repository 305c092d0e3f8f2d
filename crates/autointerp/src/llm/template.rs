use std::path::{Path, PathBuf};

use monosem_llm::{Message, Role};
use serde::Deserialize;

/// Why a prompt template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source_name}: {why}")]
pub struct TemplateError {
    /// File or name of the template.
    pub source_name: String,
    /// What is wrong with it.
    pub why: String,
}

/// What a template asks a model with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Chat(Vec<Message>),
    Text(String),
}

/// A prompt with places for what differs from feature to feature: `{{explanation}}`.
///
/// The hash of its file goes into every request that is made from it, so that a reply to another wording is never taken from a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    name: String,
    hash: String,
    body: Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    version: u32,
    needs: Vec<String>,
    message: Option<Vec<FileMessage>>,
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMessage {
    role: Role,
    content: String,
}

impl Template {
    /// Reads a template; `needs` are the places that it has to have, no more and no fewer.
    fn parse(source_name: &str, file: &str, needs: &[&str], chat: bool) -> Result<Self, TemplateError> {
        let fail = |why: String| TemplateError { source_name: source_name.to_owned(), why };
        let parsed: File = toml::from_str(file).map_err(|e| fail(e.to_string()))?;
        let body = match (parsed.message, parsed.text, chat) {
            (Some(messages), None, true) => {
                let message = |m: FileMessage| Message { role: m.role, content: m.content };
                Body::Chat(messages.into_iter().map(message).collect())
            }
            (None, Some(text), false) => Body::Text(text),
            (_, _, true) => return Err(fail("expected [[message]] tables and no `text`: it is a conversation".into())),
            (_, _, false) => return Err(fail("expected `text` and no [[message]]: it is a text to be scored".into())),
        };
        let mut found: Vec<&str> = parsed.needs.iter().map(String::as_str).collect();
        let mut wanted = needs.to_vec();
        found.sort_unstable();
        wanted.sort_unstable();
        if found != wanted {
            return Err(fail(format!("needs = {found:?}, expected {wanted:?}")));
        }
        let whole = match &body {
            Body::Chat(messages) => messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n"),
            Body::Text(text) => text.clone(),
        };
        for place in needs {
            let count = whole.matches(&format!("{{{{{place}}}}}")).count();
            if count != 1 {
                return Err(fail(format!("{{{{{place}}}}} stands there {count} times, expected once")));
            }
        }
        // Scores are read from where the last place begins to the end of the text.
        if let (Body::Text(text), Some(last)) = (&body, needs.last())
            && !text.ends_with(&format!("{{{{{last}}}}}"))
        {
            return Err(fail(format!("the text has to end with {{{{{last}}}}}: what follows it would be scored too")));
        }
        let hash = blake3::hash(file.as_bytes()).to_hex();
        Ok(Self { name: format!("{}-{}", parsed.name, parsed.version), hash: hash[..16].to_owned(), body })
    }

    /// Name and version: `detection-1`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first 16 hexadecimal digits of the file's BLAKE3 hash.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// What a request made from it says of its source.
    pub(crate) fn source(&self) -> String {
        format!("{} {}", self.name, self.hash)
    }

    /// The conversation with its places filled.
    ///
    /// # Panics
    /// If it is a text.
    pub(crate) fn messages(&self, values: &[(&str, &str)]) -> Vec<Message> {
        let Body::Chat(messages) = &self.body else { panic!("{} is no conversation", self.name) };
        messages.iter().map(|m| Message { role: m.role, content: fill(&m.content, values) }).collect()
    }

    /// The text with its places filled.
    ///
    /// # Panics
    /// If it is a conversation.
    pub(crate) fn text(&self, values: &[(&str, &str)]) -> String {
        let Body::Text(text) = &self.body else { panic!("{} is a conversation", self.name) };
        fill(text, values)
    }
}

/// Puts values in their places, in one go: what a value says of places is text like any other.
fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let place = after.split_once("}}").and_then(|(name, tail)| {
            let (_, value) = values.iter().find(|(key, _)| *key == name)?;
            Some((value, tail))
        });
        if let Some((value, tail)) = place {
            filled.push_str(value);
            rest = tail;
        } else {
            filled.push_str("{{");
            rest = after;
        }
    }
    filled + rest
}

macro_rules! prompts {
    ($($(#[$doc:meta])* $field:ident: $file:literal, $chat:literal, [$($need:literal),*];)*) => {
        /// The prompts that models are asked with, one file each.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Prompts {
            $($(#[$doc])* pub $field: Template,)*
        }

        impl Prompts {
            /// Those that come with the crate, except where `folder` holds a file of the same name.
            ///
            /// # Errors
            /// If a file cannot be read, is not of the form, or has other places than the one it stands for.
            pub fn load(folder: Option<&Path>) -> Result<Self, TemplateError> {
                Ok(Self {
                    $($field: {
                        let (name, text) = text_of(folder, $file, include_str!(concat!("../../prompts/", $file)))?;
                        Template::parse(&name, &text, &[$($need),*], $chat)?
                    },)*
                })
            }

            /// Name, version and hash of each.
            #[must_use]
            pub fn hashes(&self) -> Vec<String> {
                vec![$(self.$field.source(),)*]
            }
        }
    };
}

prompts! {
    /// Explains from tokens with integers.
    explain_integers: "explain-integers.toml", true, ["fragments"];
    /// Explains from windows with marked tokens.
    explain_windows: "explain-windows.toml", true, ["windows"];
    /// Simulates by the probabilities of digits.
    simulate_scored: "simulate-scored.toml", false, ["explanation", "tokens"];
    /// Simulates a whole fragment in one reply.
    simulate_chat: "simulate-chat.toml", true, ["explanation", "tokens", "count"];
    /// Tells active from quiet windows.
    detection: "detection.toml", true, ["explanation", "windows", "count"];
    /// Tells right from wrong marks.
    fuzzing: "fuzzing.toml", true, ["explanation", "windows", "count"];
    /// Finds the window that does not belong.
    intruder: "intruder.toml", true, ["windows", "count"];
    /// How much likelier a description makes a window.
    surprisal: "surprisal.toml", false, ["explanation", "window"];
}

impl Default for Prompts {
    fn default() -> Self {
        Self::load(None).expect("the prompts that come with the crate are tested")
    }
}

fn text_of(folder: Option<&Path>, file: &str, own: &str) -> Result<(String, String), TemplateError> {
    let path: Option<PathBuf> = folder.map(|folder| folder.join(file)).filter(|path| path.exists());
    let Some(path) = path else { return Ok((file.to_owned(), own.to_owned())) };
    let name = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((name, text)),
        Err(e) => Err(TemplateError { source_name: name, why: e.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompts_that_come_with_the_crate_are_of_the_form() {
        let prompts = Prompts::load(None).unwrap();
        assert_eq!(prompts.detection.name(), "detection-1");
        assert_eq!(prompts.detection.hash().len(), 16);
        assert_ne!(prompts.detection.hash(), prompts.fuzzing.hash());
    }

    #[test]
    fn a_value_that_names_a_place_is_not_filled_again() {
        let values = [("explanation", "{{window}} {{explanation}}"), ("window", " x }} {{")];
        let filled = fill("a {{explanation}} b {{window}} c {{other}} {{", &values);
        assert_eq!(filled, "a {{window}} {{explanation}} b  x }} {{ c {{other}} {{");
    }

    #[test]
    fn a_folder_replaces_single_prompts_and_faults_are_named() {
        let folder = std::env::temp_dir().join(format!("monosem-prompts-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("intruder.toml");
        let file = |content: &str| {
            format!(
                "name = 'mine'\nversion = 3\nneeds = ['windows', 'count']\n[[message]]\nrole = 'user'\ncontent = '{content}'\n"
            )
        };
        std::fs::write(&path, file("{{count}} {{windows}}")).unwrap();
        let prompts = Prompts::load(Some(&folder)).unwrap();
        assert_eq!((prompts.intruder.name(), prompts.detection.name()), ("mine-3", "detection-1"));
        std::fs::write(&path, file("{{count}}")).unwrap();
        let error = Prompts::load(Some(&folder)).unwrap_err().to_string();
        assert!(error.contains("intruder.toml: {{windows}} stands there 0 times"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
