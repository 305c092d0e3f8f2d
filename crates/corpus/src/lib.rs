//! Text to fixed-length token contexts, split by document.
//!
//! [`build`] reads documents from files, tokenises each once, and packs the documents of each split into contexts of one
//! length without padding: joined, each followed by the end-of-text token, cut, the shorter last piece dropped, and the contexts
//! shuffled (as in Cunningham et al., "Sparse Autoencoders Find Highly Interpretable Features in Language Models"). Which split a
//! document belongs to depends on the seed and the document's index alone. [`from_token_ids`] takes contexts that were
//! tokenised elsewhere. [`toy`] generates a language whose tokens carry known properties.
//!
//! ```
//! use monosem_corpus::{CorpusConfig, FileOrder, SplitFractions, build};
//!
//! let folder = tempfile::tempdir()?;
//! for i in 0..40 {
//!     std::fs::write(folder.path().join(format!("{i:02}.txt")), "to be or not to be")?;
//! }
//! let config = CorpusConfig {
//!     context: 8,
//!     max_tokens: None,
//!     file_order: FileOrder::Sorted,
//!     field: "text".into(),
//!     seed: 0,
//!     splits: SplitFractions { held_out: 0.2, interpretation: 0.1 },
//! };
//! let bytes = |text: &str| Ok(text.bytes().map(u32::from).collect());
//! let corpus = build(&[folder.path()], &config, 256, &bytes)?;
//! assert_eq!(corpus.train.tokens.ncols(), 8);
//! assert_eq!(corpus.n_documents, 40);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod contexts;
mod documents;
mod error;
mod ids;
pub mod toy;

#[cfg(test)]
mod tests;

use std::path::Path;

pub use config::{CorpusConfig, FileOrder, Split, SplitFractions};
pub use contexts::Contexts;
pub use documents::{Document, DocumentIter, documents};
pub use error::{CorpusError, EncodeError};

use contexts::Stream;

/// A text as contexts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// For fitting.
    pub train: Contexts,
    /// For measuring.
    pub held_out: Contexts,
    /// For explaining latents.
    pub interpretation: Contexts,
    /// Documents that were read, also those of which nothing was needed any more.
    pub n_documents: usize,
    /// Tokens in the contexts of all splits together.
    pub n_tokens: usize,
}

/// Reads, tokenises, splits, packs and shuffles the documents under `paths` (see [`documents`] for what is read), one path after the
/// other unless `config.file_order` mixes them.
///
/// `encode` turns a document into token ids; `eos` is put after each document. Documents without a token are left out. With
/// `max_tokens` the result before shuffling is the beginning of what it would be without, and documents of a split that has its
/// share are not tokenised. In memory are the ids and one document.
///
/// # Errors
/// [`CorpusError`]: bad settings, files that cannot be read, a document that cannot be tokenised, or a split with a share but
/// less than one context.
pub fn build(
    paths: &[&Path],
    config: &CorpusConfig,
    eos: u32,
    encode: &dyn Fn(&str) -> Result<Vec<u32>, EncodeError>,
) -> Result<Corpus, CorpusError> {
    config.validate()?;
    let (streams, n_documents) = tokenise(paths, config, eos, encode)?;
    if n_documents == 0 {
        return Err(CorpusError::Empty { path: paths.iter().collect(), why: "there is no document in it".into() });
    }
    finish(streams, n_documents, config)
}

/// The tokens of every split in the order of the source, and the number of documents read.
fn tokenise(
    paths: &[&Path],
    config: &CorpusConfig,
    eos: u32,
    encode: &dyn Fn(&str) -> Result<Vec<u32>, EncodeError>,
) -> Result<([Stream; 3], usize), CorpusError> {
    let mut streams = empty_streams(config);
    let mut n_documents = 0;
    let mut source = documents(paths, &config.field)?;
    if config.file_order == FileOrder::Seeded {
        source.shuffle_files(config.seed);
    }
    for document in source {
        let document = document?;
        let index = document_index(&document.file, n_documents)?;
        n_documents += 1;
        let stream = &mut streams[Split::of_document(index, config.seed, &config.splits) as usize];
        if !stream.is_full() {
            let tokens = encode(&document.text).map_err(|source| {
                let place = document.place().to_string();
                CorpusError::Encode { document: index, place, source }
            })?;
            if !tokens.is_empty() {
                stream.push(index, tokens.into_iter().chain([eos]));
            }
        }
        if streams.iter().all(Stream::is_full) {
            break;
        }
    }
    Ok((streams, n_documents))
}

/// Contexts from the tensor `input_ids` `[n, context]` (i64, i32, u32 or u16) of a safetensors file.
///
/// Rows stay as they are; each counts as a document for the split, and they are shuffled like the contexts of a text. With
/// `vocabulary`, an id from there on is an error.
///
/// # Errors
/// [`CorpusError::Format`] if the file is damaged or its rows are not `config.context` long, [`CorpusError::Token`] for an id out
/// of range, [`CorpusError::Short`] for a split with a share but without a row.
pub fn from_token_ids(path: &Path, config: &CorpusConfig, vocabulary: Option<usize>) -> Result<Corpus, CorpusError> {
    config.validate()?;
    let rows = ids::Rows::open(path, vocabulary)?;
    if rows.columns != config.context {
        let why = format!("the rows of `input_ids` have {} tokens, the context has {}", rows.columns, config.context);
        return Err(CorpusError::Format { file: path.into(), why });
    }
    if rows.rows == 0 {
        return Err(CorpusError::Empty { path: path.into(), why: "`input_ids` has no row".into() });
    }
    let mut streams = empty_streams(config);
    let mut n_documents = 0;
    for row in rows {
        let row = row?;
        let index = document_index(path, n_documents)?;
        n_documents += 1;
        let stream = &mut streams[Split::of_document(index, config.seed, &config.splits) as usize];
        if !stream.is_full() {
            stream.push(index, row);
        }
        if streams.iter().all(Stream::is_full) {
            break;
        }
    }
    finish(streams, n_documents, config)
}

fn empty_streams(config: &CorpusConfig) -> [Stream; 3] {
    Split::ALL.map(|split| Stream::new(split, config.context, config.quota(split)))
}

fn document_index(path: &Path, index: usize) -> Result<u32, CorpusError> {
    u32::try_from(index).map_err(|_| CorpusError::Format {
        file: path.into(),
        why: format!("more than {} documents; set `max_tokens`", u32::MAX),
    })
}

fn finish(streams: [Stream; 3], n_documents: usize, config: &CorpusConfig) -> Result<Corpus, CorpusError> {
    let [train, held_out, interpretation] = streams;
    let pack = |stream: Stream, split: Split| {
        let contexts = stream.cut(config.splits.share(split) > 0.0)?;
        Ok::<_, CorpusError>(contexts.shuffled(config.seed, split))
    };
    let train = pack(train, Split::Train)?;
    let held_out = pack(held_out, Split::HeldOut)?;
    let interpretation = pack(interpretation, Split::Interpretation)?;
    let n_tokens = train.tokens.len() + held_out.tokens.len() + interpretation.tokens.len();
    Ok(Corpus { train, held_out, interpretation, n_documents, n_tokens })
}
