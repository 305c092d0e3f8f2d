//! The latent cache of delphi as an input: see [`DelphiCache`].

use std::collections::HashMap;
use std::io::Read as _;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ndarray::{Array2, Array3, s};
use serde::Deserialize;

mod error;
mod file;
#[cfg(test)]
mod tests;

pub use error::DelphiError;
use file::{Entries, SplitFile};

use crate::{FeatureExamples, Fragments, GatherConfig, Gatherer};

const CONFIG: &str = "config.json";

/// A longer `config.json` is something else.
const MAX_CONFIG: u64 = 1 << 20;

/// Bytes of activations gathered at once; at least one fragment is.
const BATCH: usize = 64 << 20;

/// What is read of a cache's `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DelphiConfig {
    /// The model whose activations these are, by its name on the hub or its path.
    pub model_name: String,
    /// Tokens in a context.
    #[serde(default, alias = "cache_ctx_len")]
    pub ctx_len: Option<usize>,
    /// The data set that the tokens are from.
    #[serde(default)]
    pub dataset_repo: Option<String>,
    /// Its subset; may be empty.
    #[serde(default)]
    pub dataset_name: Option<String>,
    /// Its split, such as `train[:1%]`.
    #[serde(default)]
    pub dataset_split: Option<String>,
    /// The column that holds the text.
    #[serde(default, alias = "dataset_row")]
    pub dataset_column: Option<String>,
}

/// A latent cache that delphi (EleutherAI; formerly sae-auto-interp) wrote for one hook point.
///
/// # Format
/// A folder per hook point, named after the module (`layers.3.mlp`), with `config.json` and files `FIRST_LAST.safetensors` in it. Each file is of the
/// latents FIRST to LAST and holds
///
/// | tensor | type | shape | |
/// |---|---|---|---|
/// | `locations` | U16; U32 where a row or a latent needs it | `[n, 3]` | row, position, latent less FIRST |
/// | `activations` | F16 | `[n]` | those above 1e-5 in absolute value |
/// | `tokens` | I64 | `[rows, ctx_len]` | the same in every file; none with `save_tokens=False` |
///
/// Entries are in order of rows, in a row of positions, at a position of latents, so that all files can be read side by side. As delphi's own
/// reader, this one takes integers of other widths (16 to 64 bits) too, and activations in F32 and BF16.
///
/// # Who writes what
/// By the sources and the packages; golden files are from the packages.
///
/// - `eai-delphi` 0.0.2 and 0.1.0 to 0.1.3, all that PyPI has, write the above, and the same bytes for the same activations. `config.json` names the
///   length of contexts `cache_ctx_len`.
/// - Earlier delphi, and late sae-auto-interp: the same, with `ctx_len`, and `dataset_row` for what is `dataset_column` now.
/// - sae-auto-interp before that: no `tokens`, see [`Self::with_tokens`].
/// - The first sae-auto-interp: neither `tokens` nor `config.json`; latents by their full number (I64), and without the last one of every file, which it left
///   out. Refused for want of a `config.json`.
///
/// # What the writer does
/// - It ends with an error at a range in which no latent is ever active; the files after that are missing, and `config.json`, which it writes last.
/// - The number of latents is that of the first hook point: higher ones of others are left out.
/// - Activations beyond 65504 become infinite; they are refused here.
/// - Negative activations are kept where an encoder gives them; they are refused here.
/// - Contexts run over the seams of documents (texts are joined before they are cut), so that "a row is a document" is an approximation.
#[derive(Debug)]
pub struct DelphiCache {
    folder: PathBuf,
    config: DelphiConfig,
    /// By the latents they are of; at least one.
    files: Vec<SplitFile>,
    /// Read when first asked for: they may be the larger part of the cache.
    tokens: OnceLock<Array2<u32>>,
}

impl DelphiCache {
    /// Opens the cache in the folder of one hook point. Reads `config.json` and the headers of the files.
    ///
    /// # Errors
    /// [`DelphiError::Io`] if a file cannot be read; [`DelphiError::Invalid`] if `config.json` is missing or damaged, a name, a type or a shape is not
    /// as the [format](Self#format) has it, a file is truncated, two files are of the same latent, or the files' tokens differ in shape.
    pub fn open(folder: &Path) -> Result<Self, DelphiError> {
        let mut files = list(folder)?.into_iter().map(SplitFile::open).collect::<Result<Vec<_>, _>>()?;
        let config = read_config(&folder.join(CONFIG))?;
        files.sort_by_key(|file| *file.latents.start());
        for pair in files.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            if after.latents.start() <= before.latents.end() {
                let (latent, other) = (after.latents.start(), before.path.display());
                let problem = format!("of latent {latent}, which {other} is of as well: files of different runs");
                return Err(DelphiError::invalid(&after.path, problem));
            }
            if after.tokens_shape() != before.tokens_shape() {
                let shape = |file: &SplitFile| file.tokens_shape().map_or("none".into(), |shape| format!("{shape:?}"));
                let (here, there, other) = (shape(after), shape(before), before.path.display());
                let problem = format!("shape of `tokens`: {here}, but {there} in {other}: files of different runs");
                return Err(DelphiError::invalid(&after.path, problem));
            }
        }
        let cache = Self { folder: folder.to_owned(), config, files, tokens: OnceLock::new() };
        if let Some([_, ctx_len]) = cache.files[0].tokens_shape() {
            cache.check_width(ctx_len)?;
        }
        Ok(cache)
    }

    /// The same cache with the tokens `[rows, ctx_len]` of its contexts, for caches saved without: of another hook point of the same run, or of the
    /// data set in [`Self::config`] tokenized as delphi does. Rows after those that were cached count as contexts in which nothing is active.
    ///
    /// # Errors
    /// [`DelphiError::Invalid`] if the cache has tokens of its own, there is no token, or `config.json` names another length of contexts.
    pub fn with_tokens(self, tokens: Array2<u32>) -> Result<Self, DelphiError> {
        if self.files[0].tokens_shape().is_some() {
            return Err(DelphiError::invalid(&self.folder, "the cache has tokens of its own; no others can be given"));
        }
        if tokens.is_empty() {
            let problem = format!("tokens of shape {:?} were given, expected at least one", tokens.shape());
            return Err(DelphiError::invalid(&self.folder, problem));
        }
        self.check_width(tokens.ncols())?;
        Ok(Self { tokens: OnceLock::from(tokens.as_standard_layout().into_owned()), ..self })
    }

    fn check_width(&self, found: usize) -> Result<(), DelphiError> {
        match self.config.ctx_len {
            Some(ctx_len) if ctx_len != found => {
                let problem = format!(
                    "contexts of {ctx_len} tokens, but the tokens have rows of {found}; correct it if they are those of the run"
                );
                Err(DelphiError::invalid(&self.folder.join(CONFIG), problem))
            }
            _ => Ok(()),
        }
    }

    /// What `config.json` says of the model and the text.
    #[must_use]
    pub fn config(&self) -> &DelphiConfig {
        &self.config
    }

    /// The latents that the files are of, rising. Those between two ranges were not cached; those in a range may never be active.
    pub fn latents(&self) -> impl Iterator<Item = RangeInclusive<usize>> + '_ {
        self.files.iter().map(|file| file.latents.clone())
    }

    /// The tokens of the contexts `[rows, ctx_len]`, read from the first file when first asked for.
    ///
    /// # Errors
    /// [`DelphiError::NoTokens`] if the cache holds none and none were given; [`DelphiError::Io`] or [`DelphiError::Invalid`] if they cannot be read.
    pub fn tokens(&self) -> Result<&Array2<u32>, DelphiError> {
        if let Some(tokens) = self.tokens.get() {
            return Ok(tokens);
        }
        let tokens = self.files[0].read_tokens()?;
        let tokens = tokens.ok_or_else(|| DelphiError::NoTokens { folder: self.folder.clone() })?;
        Ok(self.tokens.get_or_init(|| tokens))
    }

    /// The fragments, and what a [`Gatherer`] keeps of the latents `features`, in this order, in one pass over the files that are of them.
    ///
    /// A context is cut into as many fragments of `fragment` tokens as it has room for; the rest of it is dropped. Activations are those at all
    /// positions of a fragment, 0 where the cache has no entry. Each context counts as a document of its own, numbered from 0, unless `documents`
    /// `[rows]` says which document each is from: delphi does not keep them. Memory does not grow with the number of entries: there are
    /// the tokens twice, 64 MiB of activations (or one fragment, if that is more), and what a gatherer keeps.
    ///
    /// `step` is told how many fragments are done, after every batch; [`ControlFlow::Break`] ends it.
    ///
    /// # Errors
    /// - [`DelphiError::Config`] if `config` is not valid, [`DelphiError::Fragment`] if `fragment` is 0 or longer than a context.
    /// - [`DelphiError::NoLatent`] if no file is of a feature, [`DelphiError::NoTokens`] as for [`Self::tokens`].
    /// - [`DelphiError::Invalid`] if an entry of a file that is read is out of range, out of order or there twice, an activation is negative or not
    ///   finite, or the file's tokens are not those of the first. [`DelphiError::Io`] if a file cannot be read.
    /// - [`DelphiError::Stopped`] if `step` said so.
    ///
    /// # Panics
    /// If a feature is named twice, or `documents` is of another length than there are rows.
    pub fn gather(
        &self,
        features: &[usize],
        fragment: usize,
        documents: Option<&[u32]>,
        config: &GatherConfig,
        step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(Fragments, Vec<FeatureExamples>), DelphiError> {
        self.gather_in(BATCH, features, fragment, documents, config, step)
    }

    /// [`Self::gather`] with so many bytes of activations at once.
    fn gather_in(
        &self,
        batch: usize,
        features: &[usize],
        fragment: usize,
        documents: Option<&[u32]>,
        config: &GatherConfig,
        step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(Fragments, Vec<FeatureExamples>), DelphiError> {
        config.validate()?;
        let columns: HashMap<usize, usize> = features.iter().enumerate().map(|(at, feature)| (*feature, at)).collect();
        assert_eq!(columns.len(), features.len(), "a feature is named twice in {features:?}");
        for feature in features {
            self.check_held(*feature)?;
        }
        let tokens = self.tokens()?;
        let (rows, _) = tokens.dim();
        if let Some(documents) = documents {
            assert_eq!(documents.len(), rows, "documents of {} rows, tokens of {rows}", documents.len());
        }
        let fragments = self.cut(tokens, fragment, documents)?;
        let n = fragments.documents.len();
        let per_row = n / rows;

        let mut streams = Vec::new();
        for (i, file) in self.files.iter().enumerate() {
            if features.iter().any(|feature| file.latents.contains(feature)) {
                if i > 0 {
                    file.check_tokens(tokens, &self.files[0].path)?;
                }
                streams.push(file.entries(tokens.dim(), fragment)?);
            }
        }
        let mut gatherer = Gatherer::of(features, config);
        let bytes_per_fragment = (size_of::<f32>() * fragment).saturating_mul(features.len()).max(1);
        let per_batch = (batch / bytes_per_fragment).clamp(1, n);
        let mut block = Array3::zeros((per_batch, fragment, features.len()));
        for first in (0..n).step_by(per_batch) {
            let end = n.min(first + per_batch);
            block.fill(0.0);
            for stream in &mut streams {
                // The last batch goes on to the end of the files: what is there is dropped, but checked.
                let end = if end == n { usize::MAX } else { end };
                fill(&mut block, stream, first..end, (fragment, per_row), &columns)?;
            }
            gatherer.add(first as u32, &fragments.documents[first..end], block.slice(s![..end - first, .., ..]));
            if step(end).is_break() {
                return Err(DelphiError::Stopped { done: end, fragments: n });
            }
        }
        Ok((fragments, gatherer.finish()))
    }

    fn check_held(&self, latent: usize) -> Result<(), DelphiError> {
        if self.files.iter().any(|file| file.latents.contains(&latent)) {
            return Ok(());
        }
        let ranges = self.latents().map(|range| format!("{} to {}", range.start(), range.end()));
        let held = ranges.collect::<Vec<_>>().join(", ");
        Err(DelphiError::NoLatent { folder: self.folder.clone(), latent, held })
    }

    /// Every row cut into fragments, as many as it has room for.
    fn cut(&self, tokens: &Array2<u32>, fragment: usize, documents: Option<&[u32]>) -> Result<Fragments, DelphiError> {
        let (rows, ctx_len) = tokens.dim();
        let fail = |problem: String| DelphiError::Fragment { folder: self.folder.clone(), fragment, problem };
        if fragment == 0 || fragment > ctx_len {
            return Err(fail(format!("expected 1 to {ctx_len}, the length of the contexts")));
        }
        let per_row = ctx_len / fragment;
        let n = rows * per_row;
        if u32::try_from(n).is_err() {
            return Err(fail(format!("{rows} contexts have {n} of them, more than 32 bits count")));
        }
        let used = tokens.slice(s![.., ..per_row * fragment]);
        let ids: Vec<u32> = used.iter().copied().collect();
        let cut = Array2::from_shape_vec((n, fragment), ids).expect("as many tokens as fragments have");
        let document = |row: usize| documents.map_or(row as u32, |documents| documents[row]);
        Ok(Fragments { tokens: cut, documents: (0..n).map(|i| document(i / per_row)).collect() })
    }
}

/// Writes the activations of the fragments `range` into `block`, which begins with the first of them.
fn fill(
    block: &mut Array3<f32>,
    stream: &mut Entries<'_>,
    range: std::ops::Range<usize>,
    (fragment, per_row): (usize, usize),
    columns: &HashMap<usize, usize>,
) -> Result<(), DelphiError> {
    // What is dropped at the end of a row counts as of the next row's first fragment, so that the order stays.
    let fragment_of = |row: usize, position: usize| row * per_row + (position / fragment).min(per_row);
    while let Some(entry) = stream.next_if(|entry| fragment_of(entry.row, entry.position) < range.end)? {
        let dropped = entry.position >= per_row * fragment;
        if let Some(column) = columns.get(&entry.latent).filter(|_| !dropped) {
            let at = fragment_of(entry.row, entry.position) - range.start;
            block[[at, entry.position % fragment, *column]] = entry.activation;
        }
    }
    Ok(())
}

/// The cache's files in `folder`, hidden ones aside.
fn list(folder: &Path) -> Result<Vec<PathBuf>, DelphiError> {
    let fail = |e| DelphiError::io("read", folder, e);
    let (mut files, mut hooks) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.extension().is_some_and(|ending| ending == "safetensors") && !name.starts_with('.') {
            files.push(path);
        } else if path.join(CONFIG).is_file() {
            hooks.push(name.into_owned());
        }
    }
    if files.is_empty() {
        hooks.sort();
        hooks.truncate(16);
        let there = if hooks.is_empty() { String::new() } else { format!("; those of {hooks:?} are") };
        let problem = format!("no file FIRST_LAST.safetensors, expected the folder of one hook point{there}");
        return Err(DelphiError::invalid(folder, problem));
    }
    Ok(files)
}

fn read_config(path: &Path) -> Result<DelphiConfig, DelphiError> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => DelphiError::invalid(
            path,
            "missing; delphi writes it last, so this run ended early, or is of a sae-auto-interp that left out latents: cache again",
        ),
        _ => DelphiError::io("open", path, e),
    })?;
    file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(|e| DelphiError::io("read", path, e))?;
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(DelphiError::invalid(path, format!("longer than {MAX_CONFIG} bytes: not a cache's configuration")));
    }
    serde_json::from_slice(&bytes).map_err(|e| DelphiError::invalid(path, format!("not a cache's configuration: {e}")))
}
