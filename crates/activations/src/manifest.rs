//! What a store holds, as written beside its shards.

use std::path::{Path, PathBuf};

use monosem_hooks::HookPoint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ActivationError, Dtype, files};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const PARTIAL: &str = "manifest.partial.json";
const FORMAT: &str = "monosem-activations";
const VERSION: u32 = 1;

/// Where activations come from: free text for whoever reads the store later, and part of what a resumed capture must agree on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceInfo {
    /// Name of the model.
    pub model: String,
    /// Hash of its weights.
    pub weights_hash: String,
    /// Hash of its tokenizer.
    pub tokenizer_hash: String,
    /// Name of the text that was run through it.
    pub text: String,
}

/// One file of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Path relative to the manifest, with `/`.
    pub file: String,
    /// Rows in the file.
    pub rows: usize,
    /// BLAKE3 of the whole file, hexadecimal.
    pub blake3: String,
}

/// One hook of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookEntry {
    /// The hook point.
    pub hook: HookPoint,
    /// Values per row.
    pub width: usize,
    /// The files, in the order of their rows.
    pub shards: Vec<ShardEntry>,
}

/// The contents of `manifest.json`. It is written last, so a folder that has one is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `monosem-activations`.
    pub format: String,
    /// Version of the layout: 1.
    pub version: u32,
    /// Where the activations come from.
    pub source: SourceInfo,
    /// BLAKE3 of the token ids and documents that were run, hexadecimal; none where the activations were imported.
    pub tokens_hash: Option<String>,
    /// Type of the `activations` tensors.
    pub dtype: Dtype,
    /// Rows of each hook.
    pub rows: usize,
    /// Contexts that were run; none where the activations were imported.
    pub contexts: Option<usize>,
    /// Tokens per context; none where the activations were imported.
    pub context_length: Option<usize>,
    /// Positions of each context that have no rows, ascending.
    pub dropped_positions: Vec<usize>,
    /// Contexts per forward pass: a product over other rows may round differently, so a resumed capture keeps to it.
    pub batch_contexts: Option<usize>,
    /// Rows of every shard but the last.
    pub rows_per_shard: usize,
    /// The tensors that shards have beside `activations`, each u32 `[rows]`: all of `token_ids`, `document`, `position` or, where
    /// imported files had them not, fewer.
    pub columns: Vec<String>,
    /// The hooks, each with the same rows in the same shards.
    pub hooks: Vec<HookEntry>,
}

impl Manifest {
    /// A manifest of this version with no shards yet and nothing known about tokens.
    pub(crate) fn new(source: &SourceInfo, dtype: Dtype, rows: usize, rows_per_shard: usize) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            source: source.clone(),
            tokens_hash: None,
            dtype,
            rows,
            contexts: None,
            context_length: None,
            dropped_positions: Vec::new(),
            batch_contexts: None,
            rows_per_shard,
            columns: Vec::new(),
            hooks: Vec::new(),
        }
    }

    /// The hook points of the store.
    #[must_use]
    pub fn hook_points(&self) -> Vec<HookPoint> {
        self.hooks.iter().map(|h| h.hook).collect()
    }

    /// Rows that one context has; `None` where the activations were imported. Row `r` belongs to context `r / rows_per_context`.
    #[must_use]
    pub fn rows_per_context(&self) -> Option<usize> {
        Some(self.context_length? - self.dropped_positions.len())
    }

    /// Number of shards that each hook has when the store is whole.
    pub(crate) fn shard_count(&self) -> usize {
        self.rows.div_ceil(self.rows_per_shard)
    }

    /// Rows of shard `index`.
    pub(crate) fn shard_rows(&self, index: usize) -> usize {
        self.rows_per_shard.min(self.rows - index * self.rows_per_shard)
    }

    /// Rows in shards that every hook has.
    pub(crate) fn kept(&self) -> usize {
        let shards = self.hooks.iter().map(|h| h.shards.len()).min().unwrap_or(0);
        self.rows.min(shards.saturating_mul(self.rows_per_shard))
    }

    /// Reads and checks a manifest; `None` if there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, ActivationError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ActivationError::io("read", path, e)),
        };
        let wrong = |problem: String| ActivationError::Manifest { path: path.to_owned(), problem };
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(format!("not valid JSON: {e}")))?;
        // Another version is told apart before its unknown keys are complained about.
        match (value["format"].as_str(), value["version"].as_u64()) {
            (Some(FORMAT), Some(version)) if version == u64::from(VERSION) => {}
            (Some(FORMAT), Some(other)) => {
                return Err(wrong(format!("layout version {other}; this program reads version {VERSION}")));
            }
            _ => return Err(wrong(format!("expected \"format\": \"{FORMAT}\" and a \"version\""))),
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        manifest.check().map_err(wrong)?;
        Ok(Some(manifest))
    }

    /// What a well-formed JSON file can still get wrong.
    fn check(&self) -> Result<(), String> {
        if self.rows == 0 || self.rows_per_shard == 0 || self.hooks.is_empty() {
            return Err("`rows`, `rows_per_shard` and `hooks` must not be empty".to_owned());
        }
        if self.context_length.is_some_and(|length| length <= self.dropped_positions.len()) {
            return Err("`dropped_positions` leaves nothing of a context".to_owned());
        }
        if let Some(column) = self.columns.iter().find(|c| !COLUMNS.contains(&c.as_str())) {
            return Err(format!("unknown column {column:?}; expected any of {}", COLUMNS.join(", ")));
        }
        for hook in &self.hooks {
            let row_bytes = hook.width.checked_mul(self.dtype.bytes());
            if hook.width == 0 || row_bytes.and_then(|b| b.checked_mul(self.rows)).is_none() {
                return Err(format!("{}: width {} with {} rows is impossible", hook.hook, hook.width, self.rows));
            }
            for (index, shard) in hook.shards.iter().enumerate() {
                let (file, count) = (shard_file(hook.hook, index), self.shard_count());
                if index >= count || shard.file != file || shard.rows != self.shard_rows(index) {
                    return Err(format!(
                        "{}: shard {index} is {:?} with {} rows; {} rows in shards of {} make {count} shards, called like {file:?}",
                        hook.hook, shard.file, shard.rows, self.rows, self.rows_per_shard
                    ));
                }
            }
        }
        Ok(())
    }

    /// Writes the manifest so that a reader sees the old one or the new one, whole.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ActivationError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|e| ActivationError::Manifest { path: path.to_owned(), problem: e.to_string() })?;
        text.push('\n');
        files::write_whole(path, text.as_bytes())
    }

    /// The keys in which two manifests differ, shards aside, with the values in `self` and in `other`.
    pub(crate) fn differs(&self, other: &Self) -> Option<String> {
        let plan = |m: &Self| {
            let mut m = m.clone();
            m.hooks.iter_mut().for_each(|h| h.shards.clear());
            serde_json::to_value(m).unwrap_or(Value::Null)
        };
        let (a, b) = (plan(self), plan(other));
        let keys = a.as_object().into_iter().flatten().filter(|(key, value)| b[key.as_str()] != **value);
        let differs: Vec<String> =
            keys.map(|(k, v)| format!("`{k}` is {v} there and {} here", b[k.as_str()])).collect();
        (!differs.is_empty()).then(|| differs.join(", "))
    }
}

/// The tensors that stand beside `activations`, u32 `[rows]` each.
pub(crate) const COLUMNS: [&str; 3] = ["token_ids", "document", "position"];

/// Path of a shard relative to the store, with `/`.
pub(crate) fn shard_file(hook: HookPoint, index: usize) -> String {
    format!("{hook}/activations-{index:05}.safetensors")
}

/// The same as a path of this system.
pub(crate) fn shard_path(store: &Path, hook: HookPoint, index: usize) -> PathBuf {
    store.join(hook.to_string()).join(format!("activations-{index:05}.safetensors"))
}
