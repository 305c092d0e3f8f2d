//! Where the model of a run comes from: an asset, or the toy model, which is part of the program.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use monosem_assets::{AssetError, Assets, Events, ModelSource};
use serde::{Deserialize, Serialize};

const TOY: &str = "toy";

/// The toy model's files: Llama layout, half a megabyte.
const TOY_FILES: [(&str, &[u8]); 4] = [
    ("config.json", include_bytes!("../toy-model/config.json")),
    ("tokenizer.json", include_bytes!("../toy-model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../toy-model/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../toy-model/model.safetensors")),
];

/// The source of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Model {
    /// `toy`: a small Llama trained on the toy language; nothing is downloaded.
    Toy,
    /// An asset's name, `hf:owner/name[@revision]`, or a path.
    Asset(ModelSource),
}

impl FromStr for Model {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        if given == TOY { Ok(Self::Toy) } else { given.parse().map(Self::Asset).map_err(|error| naming(TOY, &error)) }
    }
}

/// What is wrong with a name; where nothing has it, with the name that this program adds to those there are.
pub(crate) fn naming(added: &str, error: &AssetError) -> String {
    match error {
        AssetError::Source { .. } => format!("{error}, or `{added}`"),
        _ => error.to_string(),
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Toy => f.write_str(TOY),
            Self::Asset(source) => source.fmt(f),
        }
    }
}

impl TryFrom<String> for Model {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Model> for String {
    fn from(model: Model) -> Self {
        model.to_string()
    }
}

impl Model {
    /// The local folder or file.
    ///
    /// # Errors
    /// If the asset cannot be fetched or the toy model cannot be written to the cache.
    pub(crate) fn obtain(&self, assets: &Assets, events: &mut Events<'_>) -> Result<PathBuf> {
        match self {
            Self::Toy => unpack_toy(assets.cache()),
            Self::Asset(source) => Ok(assets.model(source, events)?),
        }
    }

    /// The path, where a path is all that names the model: its content then belongs to a key.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Asset(ModelSource::Path(path)) => Some(path),
            _ => None,
        }
    }

    /// What identifies the model in a key.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Toy => format!("{TOY} {}", toy_hash()),
            Self::Asset(source) => source.to_string(),
        }
    }
}

fn toy_hash() -> String {
    let mut hasher = blake3::Hasher::new();
    for (_, bytes) in TOY_FILES {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    hasher.finalize().to_hex()[..12].to_owned()
}

/// Writes the toy model to the cache, once for each version of it. A file appears whole.
fn unpack_toy(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("generated").join(format!("toy-model-{}", toy_hash()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, bytes) in TOY_FILES {
        let file = folder.join(name);
        if fs::metadata(&file).is_ok_and(|found| found.len() == bytes.len() as u64) {
            continue;
        }
        let temporary = folder.join(format!("{name}.{}.tmp", std::process::id()));
        fs::write(&temporary, bytes).with_context(|| format!("cannot write {}", temporary.display()))?;
        fs::rename(&temporary, &file).with_context(|| format!("cannot rename to {}", file.display()))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_toy_model_is_unpacked_once_and_mended() {
        let cache = tempfile::tempdir().unwrap();
        let folder = unpack_toy(cache.path()).unwrap();
        fs::write(folder.join("config.json"), "cut").unwrap();
        assert_eq!(unpack_toy(cache.path()).unwrap(), folder);
        assert_eq!(fs::read(folder.join("config.json")).unwrap(), TOY_FILES[0].1);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), TOY_FILES.len());
    }

    #[test]
    fn models_print_as_they_parse() {
        for name in ["toy", "smollm2-135m", "hf:a/b"] {
            assert_eq!(name.parse::<Model>().unwrap().to_string(), name);
        }
        assert!("tiny".parse::<Model>().is_err());
    }
}
