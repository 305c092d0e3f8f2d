use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use ndarray::Array2;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::{CorpusError, Split};

/// Contexts of one length. The position of a token is its column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contexts {
    /// Token ids `[n, context]`.
    pub tokens: Array2<u32>,
    /// The index of the document that each token belongs to `[n, context]`, counted in the order of the source; an
    /// end-of-text token belongs to the document it ends.
    pub documents: Array2<u32>,
}

impl Contexts {
    /// Writes a safetensors file with `tokens` and `documents`, both u32 `[n, context]`. It appears when it is whole.
    ///
    /// # Errors
    /// [`CorpusError::Write`].
    pub fn save(&self, path: &Path) -> Result<(), CorpusError> {
        let bytes = |array: &Array2<u32>| -> Vec<u8> { array.iter().flat_map(|value| value.to_le_bytes()).collect() };
        let shape = self.tokens.shape().to_vec();
        let (tokens, documents) = (bytes(&self.tokens), bytes(&self.documents));
        let serialise = || {
            let tokens = TensorView::new(Dtype::U32, shape.clone(), &tokens).map_err(std::io::Error::other)?;
            let documents = TensorView::new(Dtype::U32, shape.clone(), &documents).map_err(std::io::Error::other)?;
            let tensors = [("tokens", tokens), ("documents", documents)];
            safetensors::serialize(tensors, None).map_err(std::io::Error::other)
        };
        let whole = serialise().map_err(CorpusError::write(path))?;
        let name = path.file_name().unwrap_or_default().display();
        let temporary = path.with_file_name(format!("{name}.{}.tmp", std::process::id()));
        let mut file = File::create(&temporary).map_err(CorpusError::write(&temporary))?;
        file.write_all(&whole).and_then(|()| file.sync_all()).map_err(CorpusError::write(&temporary))?;
        fs::rename(&temporary, path).map_err(CorpusError::write(path))
    }

    /// Reads what [`Contexts::save`] wrote.
    ///
    /// # Errors
    /// [`CorpusError::Read`], or [`CorpusError::Format`] if the file is truncated or holds something else.
    pub fn load(path: &Path) -> Result<Self, CorpusError> {
        let bad = |why: String| CorpusError::Format { file: path.into(), why };
        let mut bytes = Vec::new();
        File::open(path).and_then(|mut f| f.read_to_end(&mut bytes)).map_err(CorpusError::read(path))?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|error| bad(format!("not a whole safetensors file: {error}")))?;
        let read = |name: &str| {
            let tensor = file.tensor(name).map_err(|_| bad(format!("there is no tensor `{name}`")))?;
            let &[rows, columns] = tensor.shape() else {
                return Err(bad(format!("`{name}` has the shape {:?}, expected [n, context]", tensor.shape())));
            };
            if tensor.dtype() != Dtype::U32 {
                return Err(bad(format!("`{name}` is {:?}, expected U32", tensor.dtype())));
            }
            let (words, _) = tensor.data().as_chunks::<4>();
            let values = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
            Array2::from_shape_vec((rows, columns), values).map_err(|error| bad(format!("`{name}`: {error}")))
        };
        let (tokens, documents) = (read("tokens")?, read("documents")?);
        if tokens.shape() != documents.shape() {
            return Err(bad(format!("`tokens` is {:?}, `documents` {:?}", tokens.shape(), documents.shape())));
        }
        Ok(Self { tokens, documents })
    }

    /// The contexts in an order drawn from the seed, another one for each split.
    pub(crate) fn shuffled(self, seed: u64, split: Split) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(split as u64);
        let mut order: Vec<usize> = (0..self.tokens.nrows()).collect();
        order.shuffle(&mut rng);
        let pick = |array: &Array2<u32>| array.select(ndarray::Axis(0), &order);
        Self { tokens: pick(&self.tokens), documents: pick(&self.documents) }
    }
}

/// A split that is being filled: its documents' tokens one after the other.
pub(crate) struct Stream {
    split: Split,
    context: usize,
    /// The most tokens, a multiple of `context`.
    limit: usize,
    tokens: Vec<u32>,
    documents: Vec<u32>,
    n_documents: usize,
}

impl Stream {
    pub(crate) fn new(split: Split, context: usize, quota: usize) -> Self {
        let limit = quota.saturating_mul(context);
        Self { split, context, limit, tokens: Vec::new(), documents: Vec::new(), n_documents: 0 }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.tokens.len() >= self.limit
    }

    pub(crate) fn push(&mut self, document: u32, tokens: impl IntoIterator<Item = u32>) {
        self.tokens.extend(tokens);
        self.tokens.truncate(self.limit);
        self.documents.resize(self.tokens.len(), document);
        self.n_documents += 1;
    }

    /// Cuts the stream into contexts; a shorter last piece is dropped.
    ///
    /// `wanted` says that the split has a share, so that it must not be empty.
    pub(crate) fn cut(self, wanted: bool) -> Result<Contexts, CorpusError> {
        let Self { split, context, tokens, documents, n_documents, .. } = self;
        let rows = tokens.len() / context;
        if rows == 0 && wanted {
            return Err(CorpusError::Short { split, tokens: tokens.len(), documents: n_documents, context });
        }
        let whole = |mut values: Vec<u32>| {
            values.truncate(rows * context);
            Array2::from_shape_vec((rows, context), values).expect("rows * context values")
        };
        Ok(Contexts { tokens: whole(tokens), documents: whole(documents) })
    }
}
