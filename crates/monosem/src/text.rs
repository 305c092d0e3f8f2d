//! Where the text of a run comes from: one source or several, read as one, and the toy language, which is generated.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use monosem_assets::{Assets, Events, TextSource};
use serde::{Deserialize, Serialize};

use crate::model::naming;
use crate::sources;

const TOY: &str = "toy-language";

/// One source of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// `toy-language`: English-like sentences from a grammar whose latent properties are known; nothing is downloaded.
    ToyLanguage,
    /// An asset's name, `hf:datasets/owner/name[@revision]:file`, or a path.
    Asset(TextSource),
}

impl FromStr for Text {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        if given == TOY {
            Ok(Self::ToyLanguage)
        } else {
            given.parse().map(Self::Asset).map_err(|error| naming(TOY, &error))
        }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ToyLanguage => f.write_str(TOY),
            Self::Asset(source) => source.fmt(f),
        }
    }
}

impl Text {
    /// The local file or folder.
    ///
    /// # Errors
    /// If the asset cannot be fetched or the generated text cannot be written.
    pub(crate) fn obtain(&self, assets: &Assets, events: &mut Events<'_>) -> Result<PathBuf> {
        match self {
            Self::ToyLanguage => toy_language(assets.cache()),
            Self::Asset(source) => Ok(assets.text(source, events)?),
        }
    }

    /// The path, where a path is all that names the text: its content then belongs to a key.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Asset(TextSource::Path(path)) => Some(path),
            _ => None,
        }
    }
}

/// Documents of the toy language, generated once per version of the grammar.
fn toy_language(cache: &Path) -> Result<PathBuf> {
    const DOCUMENTS: u32 = 6000;
    const SEED: u64 = 1;
    let version = &sources::hash("corpus")[..12];
    let file = cache.join("generated").join(format!("{TOY}-{version}.jsonl"));
    if !file.is_file() {
        let folder = file.parent().context("a file in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        monosem_corpus::toy::write_documents(&file, DOCUMENTS, SEED)?;
    }
    Ok(file)
}

/// One or several texts; in a profile a string or a list of strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OneOrMany", into = "OneOrMany")]
pub struct Texts(pub Vec<Text>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl TryFrom<OneOrMany> for Texts {
    type Error = String;

    fn try_from(given: OneOrMany) -> Result<Self, String> {
        let names = match given {
            OneOrMany::One(name) => vec![name],
            OneOrMany::Many(names) => names,
        };
        if names.is_empty() {
            return Err("the list of texts is empty".into());
        }
        names.iter().map(|name| name.parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl From<Texts> for OneOrMany {
    fn from(texts: Texts) -> Self {
        let mut names: Vec<String> = texts.0.iter().map(ToString::to_string).collect();
        if names.len() == 1 { Self::One(names.remove(0)) } else { Self::Many(names) }
    }
}

impl fmt::Display for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&names.join(" + "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_as_one_or_many_and_print_the_same() {
        for json in ["\"brown\"", "[\"brown\",\"austen\",\"./texts\"]", "\"toy-language\""] {
            let texts: Texts = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&texts).unwrap(), json);
        }
        let error = serde_json::from_str::<Texts>("[\"browne\"]").unwrap_err().to_string();
        assert!(error.contains("browne") && error.contains("austen"), "{error}");
        assert!(serde_json::from_str::<Texts>("[]").is_err());
    }
}
