//! From a model and tokens to a store.

use std::ops::ControlFlow;
use std::path::Path;

use monosem_hooks::{HookPoint, HookedModel};
use ndarray::{ArrayView2, ArrayViewMut3, s};
use serde::{Deserialize, Serialize};

use crate::manifest::{COLUMNS, HookEntry, MANIFEST, Manifest, PARTIAL, SourceInfo, shard_path};
use crate::rows::{Place, RowWriter};
use crate::{ActivationError, Dtype, Store, files};

/// Rows per shard unless a setting says otherwise: half a minute of a small model on a laptop, the most that an interruption costs.
pub const DEFAULT_ROWS_PER_SHARD: usize = 32_768;

/// What to capture and how to store it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureConfig {
    /// The hook points, all captured in one pass that ends at the deepest; at least one.
    pub hooks: Vec<HookPoint>,
    /// Storage type; default f16, as in arXiv 2309.08600.
    pub dtype: Dtype,
    /// Positions of each context that get no rows; default 0 alone, where attention sinks have norms far above the rest.
    pub drop_positions: Vec<usize>,
    /// Contexts per forward pass; default 8. A trade of memory against speed.
    pub batch_contexts: usize,
    /// Rows of every shard but the last; default [`DEFAULT_ROWS_PER_SHARD`]. An interruption costs at most so many.
    pub rows_per_shard: usize,
}

impl Default for CaptureConfig {
    /// The defaults of the fields, and no hook points.
    fn default() -> Self {
        Self {
            hooks: Vec::new(),
            dtype: Dtype::F16,
            drop_positions: vec![0],
            batch_contexts: 8,
            rows_per_shard: DEFAULT_ROWS_PER_SHARD,
        }
    }
}

impl CaptureConfig {
    /// Checks everything that can be checked without a model.
    ///
    /// # Errors
    /// [`ActivationError::Config`] if there is no hook or one twice, or if a count is 0.
    pub fn validate(&self) -> Result<(), ActivationError> {
        let wrong = |key, problem: &str| Err(ActivationError::Config { key, problem: problem.to_owned() });
        if self.hooks.is_empty() {
            return wrong("hooks", "is empty; name at least one, such as blocks.3.hook_resid_post");
        }
        if let Some(twice) = self.hooks.iter().enumerate().find_map(|(i, h)| self.hooks[..i].contains(h).then_some(h)) {
            return wrong("hooks", &format!("has {twice} twice"));
        }
        if self.batch_contexts == 0 {
            return wrong("batch_contexts", "is 0; expected at least 1");
        }
        if self.rows_per_shard == 0 {
            return wrong("rows_per_shard", "is 0; expected at least 1");
        }
        Ok(())
    }
}

/// The token stream that is run, and which of it gets rows.
struct Tokens<'a> {
    ids: ArrayView2<'a, u32>,
    documents: ArrayView2<'a, u32>,
    /// Positions that get rows, ascending.
    kept: Vec<usize>,
}

impl Tokens<'_> {
    fn place(&self, row: usize) -> Place {
        let (context, position) = (row / self.kept.len(), self.kept[row % self.kept.len()]);
        let (token, document) = (self.ids[[context, position]], self.documents[[context, position]]);
        Place { context, position, token, document }
    }

    fn columns(&self, rows: std::ops::Range<usize>) -> [(&'static str, Vec<u32>); 3] {
        let column = |of: fn(Place) -> u32| rows.clone().map(|row| of(self.place(row))).collect();
        let [token_ids, document, position] = COLUMNS;
        [
            (token_ids, column(|p| p.token)),
            (document, column(|p| p.document)),
            (position, column(|p| p.position as u32)),
        ]
    }

    fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = Vec::new();
        for array in [self.ids, self.documents] {
            for context in array.rows() {
                bytes.clear();
                bytes.extend(context.iter().flat_map(|t| t.to_le_bytes()));
                hasher.update(&bytes);
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Runs `tokens` `[contexts, context_length]` through `model` and stores the activations at the hook points of `config` in the folder
/// `out`. `documents`, of the same shape, says which document each token is of. Rows keep the order of the tokens.
///
/// Before each forward pass `progress` hears how many tokens are done and how many there are; if it returns
/// [`ControlFlow::Break`], the call ends with [`ActivationError::Interrupted`]. After that, or after a crash, the same call goes on at
/// the last shard that every hook has whole, and the store ends up the same byte for byte. On a finished store of the same arguments it
/// returns at once. `source` is recorded, and is what tells one model from another here: name different weights differently.
///
/// Memory does not grow with the number of tokens nor with `rows_per_shard` beyond 12 bytes a row.
///
/// # Errors
/// See [`ActivationError`]; above all [`ActivationError::NonFinite`] if the model produces a NaN or an infinity at a kept position,
/// and [`ActivationError::OtherCapture`] if `out` holds something else.
///
/// # Panics
/// If `documents` has another shape than `tokens`, or `model` calls the hook with another shape than it announces.
pub fn capture(
    model: &dyn HookedModel,
    tokens: ArrayView2<'_, u32>,
    documents: ArrayView2<'_, u32>,
    config: &CaptureConfig,
    source: &SourceInfo,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Manifest, ActivationError> {
    assert_eq!(documents.dim(), tokens.dim(), "documents {:?} for tokens {:?}", documents.dim(), tokens.dim());
    config.validate()?;
    let (plan, tokens) = plan(model, tokens, documents, config, source)?;

    let (manifest_path, partial_path) = (out.join(MANIFEST), out.join(PARTIAL));
    let lock = files::Lock::take(out)?;
    if let Some(found) = Manifest::read(&manifest_path)? {
        if let Some(differs) = found.differs(&plan) {
            return Err(ActivationError::OtherCapture { path: manifest_path, differs });
        }
        let store = Store::open(out)?;
        found.hook_points().into_iter().try_for_each(|hook| store.hook(hook).map(drop))?;
        lock.remove();
        return Ok(found);
    }
    let mut manifest = match Manifest::read(&partial_path)? {
        None => plan,
        Some(found) => match found.differs(&plan) {
            Some(differs) => return Err(ActivationError::OtherCapture { path: partial_path, differs }),
            None => found,
        },
    };
    forget_damaged_shards(&mut manifest, out)?;
    manifest.write(&partial_path)?;

    let run = Run { model, tokens: &tokens, config, out };
    run.all(&mut manifest, progress)?;
    std::fs::rename(&partial_path, &manifest_path).map_err(|e| ActivationError::io("rename", &partial_path, e))?;
    files::sync_folder(&manifest_path)?;
    lock.remove();
    Ok(manifest)
}

/// Checks the arguments against each other and writes down what they come to.
fn plan<'a>(
    model: &dyn HookedModel,
    ids: ArrayView2<'a, u32>,
    documents: ArrayView2<'a, u32>,
    config: &CaptureConfig,
    source: &SourceInfo,
) -> Result<(Manifest, Tokens<'a>), ActivationError> {
    let (contexts, length) = ids.dim();
    if length > model.max_context() {
        let problem = format!("contexts of {length} tokens, the model takes {}", model.max_context());
        return Err(ActivationError::Tokens { problem });
    }
    if let Some(((context, position), id)) = ids.indexed_iter().find(|(_, id)| **id as usize >= model.d_vocab()) {
        let problem =
            format!("id {id} at context {context}, position {position}; the vocabulary has {}", model.d_vocab());
        return Err(ActivationError::Tokens { problem });
    }
    let mut dropped = config.drop_positions.clone();
    dropped.sort_unstable();
    dropped.dedup();
    if let Some(beyond) = dropped.iter().find(|p| **p >= length) {
        let problem = format!("has {beyond}, but contexts have {length} tokens");
        return Err(ActivationError::Config { key: "drop_positions", problem });
    }
    let kept: Vec<usize> = (0..length).filter(|p| dropped.binary_search(p).is_err()).collect();
    if contexts * kept.len() == 0 {
        let problem = format!("{contexts} contexts of {length} tokens, {} dropped, leave no rows", dropped.len());
        return Err(ActivationError::Tokens { problem });
    }
    let tokens = Tokens { ids, documents, kept };
    let mut plan = Manifest::new(source, config.dtype, contexts * tokens.kept.len(), config.rows_per_shard);
    plan.tokens_hash = Some(tokens.hash());
    plan.contexts = Some(contexts);
    plan.context_length = Some(length);
    plan.dropped_positions = dropped;
    plan.batch_contexts = Some(config.batch_contexts);
    plan.columns = COLUMNS.map(str::to_owned).to_vec();
    for &hook in &config.hooks {
        let no = |problem| ActivationError::NoSuchHook { hook, problem };
        if hook.layer >= model.n_layers() {
            return Err(no(format!("it has {} blocks, counted from 0", model.n_layers())));
        }
        let width = model.width(hook.site).ok_or_else(|| no("this architecture has no such site".to_owned()))?;
        plan.hooks.push(HookEntry { hook, width, shards: Vec::new() });
    }
    Ok((plan, tokens))
}

/// Shortens the lists of shards to those that every hook has intact: the power may have failed since.
fn forget_damaged_shards(manifest: &mut Manifest, out: &Path) -> Result<(), ActivationError> {
    let mut whole = manifest.hooks.iter().map(|h| h.shards.len()).min().unwrap_or(0);
    for hook in &manifest.hooks {
        for (index, shard) in hook.shards.iter().enumerate().take(whole) {
            let path = shard_path(out, hook.hook, index);
            if !path.is_file() || files::hash(&path)? != shard.blake3 {
                whole = index;
                break;
            }
        }
    }
    manifest.hooks.iter_mut().for_each(|h| h.shards.truncate(whole));
    Ok(())
}

/// What stays the same while the model runs.
struct Run<'a> {
    model: &'a dyn HookedModel,
    tokens: &'a Tokens<'a>,
    config: &'a CaptureConfig,
    out: &'a Path,
}

impl Run<'_> {
    fn all(
        &self,
        manifest: &mut Manifest,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<(), ActivationError> {
        let (contexts, length) = self.tokens.ids.dim();
        let start = manifest.kept();
        let writers: Result<Vec<_>, _> = manifest.hooks.iter().map(|h| RowWriter::new(self.out, manifest, h)).collect();
        let mut writers = writers?;
        let report = |context: usize| ((context * length) as u64, (contexts * length) as u64);
        // Back to the beginning of a batch: only the same batches give the same bytes.
        let batch = self.config.batch_contexts;
        let first = start / self.tokens.kept.len() / batch * batch;
        let pending = if start == manifest.rows { contexts..contexts } else { first..contexts };
        for context in pending.step_by(batch) {
            let (done, total) = report(context);
            if progress(done, total).is_break() {
                return Err(ActivationError::Interrupted { kept: manifest.kept(), rows: manifest.rows });
            }
            self.batch(context..contexts.min(context + batch), &mut writers)?;
            self.record(manifest, &writers)?;
        }
        let (done, total) = report(contexts);
        // Nothing is left that could be interrupted.
        let _ = progress(done, total);
        Ok(())
    }

    /// One forward pass, written as it goes.
    fn batch(&self, contexts: std::ops::Range<usize>, writers: &mut [RowWriter]) -> Result<(), ActivationError> {
        let deepest = writers.iter().map(RowWriter::hook).max();
        let mut waiting: Vec<HookPoint> = writers.iter().map(RowWriter::hook).collect();
        let mut failed = None;
        let ids = self.tokens.ids.slice(s![contexts.clone(), ..]);
        let _ = self.model.forward(ids, &mut |point, activations| {
            let Some(writer) = writers.iter_mut().find(|w| w.hook() == point) else { return ControlFlow::Continue(()) };
            waiting.retain(|w| *w != point);
            failed = self.write(&contexts, writer, &activations).err();
            if failed.is_some() || Some(point) == deepest { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match (failed, waiting.first()) {
            (Some(error), _) => Err(error),
            (None, Some(&hook)) => {
                let problem = "its forward pass never came there".to_owned();
                Err(ActivationError::NoSuchHook { hook, problem })
            }
            (None, None) => Ok(()),
        }
    }

    fn write(
        &self,
        contexts: &std::ops::Range<usize>,
        writer: &mut RowWriter,
        activations: &ArrayViewMut3<'_, f32>,
    ) -> Result<(), ActivationError> {
        let expected = (contexts.len(), self.tokens.ids.ncols(), writer.width());
        assert_eq!(
            activations.dim(),
            expected,
            "{} gave {:?}, expected {expected:?}",
            writer.hook(),
            activations.dim()
        );
        let kept = &self.tokens.kept;
        let columns = |rows| self.tokens.columns(rows).to_vec();
        for (context, values) in contexts.clone().zip(activations.outer_iter()) {
            for (index, &position) in kept.iter().enumerate() {
                let row = context * kept.len() + index;
                // Rows of shards that an earlier run finished.
                if row < writer.next() {
                    continue;
                }
                let values = values.row(position);
                let place = || self.tokens.place(row).to_string();
                match values.as_slice() {
                    Some(values) => writer.push(values, &columns, &place)?,
                    None => writer.push(&values.to_vec(), &columns, &place)?,
                }
            }
        }
        Ok(())
    }

    /// Writes down shards that every hook has finished by now.
    fn record(&self, manifest: &mut Manifest, writers: &[RowWriter]) -> Result<(), ActivationError> {
        let whole = writers.iter().map(|w| w.shards().len()).min().unwrap_or(0);
        if manifest.hooks.iter().any(|h| h.shards.len() < whole) {
            for (entry, writer) in manifest.hooks.iter_mut().zip(writers) {
                entry.shards = writer.shards()[..whole].to_vec();
            }
            manifest.write(&self.out.join(PARTIAL))?;
        }
        Ok(())
    }
}
