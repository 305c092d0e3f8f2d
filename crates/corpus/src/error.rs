use std::path::PathBuf;

use thiserror::Error;

use crate::Split;

/// What [`encode`](crate::build) may return as an error.
pub type EncodeError = Box<dyn std::error::Error + Send + Sync>;

/// Why a text did not become contexts.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// A field of [`CorpusConfig`](crate::CorpusConfig) that cannot be used.
    #[error("corpus.{key}: {why}")]
    Config {
        /// The field.
        key: &'static str,
        /// What was found and what is expected.
        why: String,
    },
    /// A file or folder that cannot be read: missing, truncated or damaged.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// The system's or the decompressor's answer.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {file}: {source}")]
    Write {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of a kind that is not read, or whose structure is not the one expected.
    #[error("{file}: {why}")]
    Format {
        /// The file.
        file: PathBuf,
        /// What was found and what is expected.
        why: String,
    },
    /// Bytes that are not UTF-8.
    #[error("{file}: byte {offset} (after decompression) is not valid UTF-8; convert the file to UTF-8")]
    Utf8 {
        /// The file.
        file: PathBuf,
        /// The first bad byte, counted from 0 in the decompressed file.
        offset: u64,
    },
    /// A line of a `.jsonl` file that is not a JSON object.
    #[error("{file}:{line}: not a JSON object on one line: {why}")]
    Json {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What the parser said.
        why: String,
    },
    /// A line without the text's field.
    #[error("{file}:{line}: {why}; fields present: {present}")]
    Field {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with the field.
        why: String,
        /// The names of the fields that the line has.
        present: String,
    },
    /// There is no document in the source.
    #[error("{path} holds no text: {why}")]
    Empty {
        /// The file or folder.
        path: PathBuf,
        /// What was looked for.
        why: String,
    },
    /// The tokenizer refused a document.
    #[error("document {document} ({place}) could not be tokenised: {source}")]
    Encode {
        /// The document's index.
        document: u32,
        /// Its file and line.
        place: String,
        /// The tokenizer's answer.
        source: EncodeError,
    },
    /// A split that was asked for has less than one context.
    #[error(
        "the {split} split got {tokens} tokens from {documents} documents, less than one context of {context}: use more text, \
         shorter contexts, a larger `max_tokens` or share, another seed, or a share of 0"
    )]
    Short {
        /// The split.
        split: Split,
        /// Tokens that the split got.
        tokens: usize,
        /// Documents that the split got.
        documents: usize,
        /// Tokens in a context.
        context: usize,
    },
    /// A token id that the model has no embedding for.
    #[error("{file}: `input_ids` row {row}, column {column}: {id} is not a token id (expected 0 to {largest})")]
    Token {
        /// The file.
        file: PathBuf,
        /// The row, counted from 0.
        row: usize,
        /// The column, counted from 0.
        column: usize,
        /// What is there.
        id: i64,
        /// The largest valid id.
        largest: u64,
    },
}

impl CorpusError {
    pub(crate) fn read(file: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.into();
        move |source| Self::Read { file, source }
    }

    pub(crate) fn write(file: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let file = file.into();
        move |source| Self::Write { file, source }
    }
}
