//! Documents as a file, and as contexts with labels.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use ndarray::Array2;

use super::{ToyDocument, ToyLanguage};
use crate::{CorpusError, EncodeError};

/// Contexts of one length with the properties of every token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledContexts {
    /// Token ids `[n, context]`.
    pub tokens: Array2<u32>,
    /// Properties `[n, context]`: bit `i` stands for `Property::ALL[i]`. An end-of-text token has none.
    pub properties: Array2<u32>,
    /// The index of the document that each token belongs to `[n, context]`.
    pub documents: Array2<u32>,
}

/// Writes a JSON object with the field `text` per line and document, as [`build`](crate::build) reads it. The file, whose name should end in
/// `.jsonl`, appears when it is whole.
///
/// # Errors
/// [`CorpusError::Write`].
pub fn write_documents(path: &Path, n_documents: u32, seed: u64) -> Result<(), CorpusError> {
    let name = path.file_name().unwrap_or_default().display();
    let temporary = path.with_file_name(format!("{name}.{}.tmp", std::process::id()));
    let write = || {
        let mut file = BufWriter::new(File::create(&temporary)?);
        for document in ToyLanguage::new(seed).documents(n_documents.into()) {
            writeln!(file, "{}", serde_json::json!({ "text": document.text() }))?;
        }
        file.into_inner()?.sync_all()
    };
    write().map_err(CorpusError::write(&temporary))?;
    fs::rename(&temporary, path).map_err(CorpusError::write(path))
}

/// The first `n_documents` of a seed, tokenised, each followed by `eos`, joined, and cut into contexts; a shorter last piece is
/// dropped. Contexts stay in the order of the documents.
///
/// # Panics
/// If `context` is 0.
///
/// # Errors
/// [`CorpusError::Encode`] if `encode` refuses a document or does not give one token for each of its pieces, as the
/// tokenizer of the toy model does.
pub fn labelled_contexts(
    n_documents: u32,
    seed: u64,
    context: usize,
    eos: u32,
    encode: &dyn Fn(&str) -> Result<Vec<u32>, EncodeError>,
) -> Result<LabelledContexts, CorpusError> {
    assert!(context > 0, "a context has at least one token, not {context}");
    let (mut tokens, mut properties, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    for (index, document) in (0..n_documents).zip(ToyLanguage::new(seed).documents(n_documents.into())) {
        let ids = aligned(&document, encode).map_err(|source| {
            let place = format!("toy language, seed {seed}");
            CorpusError::Encode { document: index, place, source }
        })?;
        tokens.extend(ids.into_iter().chain([eos]));
        properties.extend(document.pieces.iter().map(|piece| piece.properties.bits()).chain([0]));
        documents.resize(tokens.len(), index);
    }
    let rows = tokens.len() / context;
    let cut = |mut values: Vec<u32>| {
        values.truncate(rows * context);
        Array2::from_shape_vec((rows, context), values).expect("rows * context values")
    };
    Ok(LabelledContexts { tokens: cut(tokens), properties: cut(properties), documents: cut(documents) })
}

fn aligned(
    document: &ToyDocument,
    encode: &dyn Fn(&str) -> Result<Vec<u32>, EncodeError>,
) -> Result<Vec<u32>, EncodeError> {
    let ids = encode(&document.text())?;
    let (found, expected) = (ids.len(), document.pieces.len());
    if found == expected {
        Ok(ids)
    } else {
        Err(format!("{found} tokens, expected one for each of {expected} pieces").into())
    }
}
