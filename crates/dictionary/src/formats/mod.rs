//! Dictionaries as other packages write them.
//!
//! | format | files | read | written |
//! |---|---|---|---|
//! | [`saelens`] | `cfg.json`, `sae_weights.safetensors` | `standard`, `topk`, `jumprelu`, `gated`, and transcoders | the same |
//! | [`sparsify`] | `cfg.json`, `sae.safetensors` | top-k, also as transcoder | the same |
//! | [`dictionary_learning`] | `ae.pt`, `config.json` | all seven classes | |
//! | [`gemma_scope`] | `params.npz` | JumpReLU, also as transcoder | |
//!
//! Each has a `load` for files and a `parse` for bytes in memory. What a [`LinearDictionary`] has no place for (a bias subtracted from the input, a
//! gate, norms of the decoder) is folded into its arrays, so that codes and reconstructions are those of the package; what cannot be folded is
//! refused. No file is executed, and none can make a reader allocate more than in proportion to its own length, but for some megabytes
//! (`tests/fuzz_formats.rs`).
//!
//! ```no_run
//! use monosem_dictionary::LinearDictionary;
//! # fn main() -> Result<(), monosem_dictionary::DictionaryError> {
//! let dictionary = LinearDictionary::load_any("layer_20/width_16k/average_l0_71/params.npz".as_ref())?;
//! println!("{}", dictionary.describe());
//! # Ok(())
//! # }
//! ```
//!
//! [`Format::of`] recognises a format by the files that are there, and [`LinearDictionary::load_any`] reads whichever it is.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{DictionaryError, LinearDictionary};

mod arrays;
pub mod dictionary_learning;
pub mod gemma_scope;
mod npz;
mod pickle;
pub mod saelens;
pub mod sparsify;
mod torch_file;
mod zipped;

/// Who wrote a dictionary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// [`LinearDictionary::save`].
    Monosem,
    /// See [`saelens`].
    SaeLens,
    /// See [`sparsify`].
    Sparsify,
    /// See [`dictionary_learning`].
    DictionaryLearning,
    /// See [`gemma_scope`].
    GemmaScope,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] =
        [Self::Monosem, Self::SaeLens, Self::Sparsify, Self::DictionaryLearning, Self::GemmaScope];

    /// The file that no other format has.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Monosem => crate::storage::CONFIG,
            Self::SaeLens => saelens::WEIGHTS,
            Self::Sparsify => sparsify::WEIGHTS,
            Self::DictionaryLearning => dictionary_learning::WEIGHTS,
            Self::GemmaScope => gemma_scope::WEIGHTS,
        }
    }

    /// The format of the dictionary at `path`: a folder with the files of one format, or a file. A file may have another name than is usual if it
    /// ends in `.pt` or `.npz`.
    ///
    /// # Errors
    /// If there is nothing at `path`, no format's file is in the folder, or those of several are.
    pub fn of(path: &Path) -> Result<Self, DictionaryError> {
        let invalid = |problem: String| DictionaryError::Invalid { path: path.to_owned(), problem };
        let expected = || Self::ALL.map(Self::file_name).join(", ");
        if !path.is_dir() {
            let name = path.file_name().unwrap_or_default();
            let named = Self::ALL.into_iter().find(|format| name == format.file_name());
            let ending = path.extension().and_then(|ending| match ending.to_str()? {
                "pt" => Some(Self::DictionaryLearning),
                "npz" => Some(Self::GemmaScope),
                _ => None,
            });
            if !path.exists() {
                return Err(invalid("no such file or folder".into()));
            }
            return named
                .or(ending)
                .ok_or_else(|| invalid(format!("no known dictionary, expected one of {}", expected())));
        }
        let found: Vec<Self> = Self::ALL.into_iter().filter(|format| path.join(format.file_name()).is_file()).collect();
        match found[..] {
            [format] => Ok(format),
            [] => Err(invalid(format!("no dictionary in this folder, expected one of {}", expected()))),
            [..] => {
                let names: Vec<_> = found.iter().map(|format| format.file_name()).collect();
                Err(invalid(format!("several dictionaries in this folder; name one of {}", names.join(", "))))
            }
        }
    }

    /// Reads the dictionary of this format at `path`: its folder, or the file of [`Self::file_name`].
    ///
    /// # Errors
    /// If a file is missing or damaged, or holds what no [`LinearDictionary`] can be; the message names the file, the key and what was expected.
    pub fn load(self, path: &Path) -> Result<LinearDictionary, DictionaryError> {
        let is_folder = path.is_dir();
        let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
        let file = if is_folder { path.join(self.file_name()) } else { PathBuf::from(path) };
        match self {
            Self::Monosem => LinearDictionary::load(folder),
            Self::SaeLens => saelens::load(folder),
            Self::Sparsify => sparsify::load(folder),
            Self::DictionaryLearning => dictionary_learning::load(&file),
            Self::GemmaScope => gemma_scope::load(&file),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Monosem => "monosem",
            Self::SaeLens => "SAELens",
            Self::Sparsify => "sparsify",
            Self::DictionaryLearning => "dictionary_learning",
            Self::GemmaScope => "Gemma Scope",
        })
    }
}

impl LinearDictionary {
    /// Reads the dictionary at `path`, a folder or a file, in whichever of the [formats](crate::formats) it is.
    ///
    /// # Errors
    /// As [`Format::of`] and [`Format::load`].
    pub fn load_any(path: &Path) -> Result<Self, DictionaryError> {
        Format::of(path)?.load(path)
    }
}
