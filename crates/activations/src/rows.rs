//! Rows of one hook on their way into shards.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use monosem_hooks::HookPoint;

use crate::manifest::{HookEntry, Manifest, ShardEntry, shard_file, shard_path};
use crate::shard::ShardWriter;
use crate::{ActivationError, Dtype};

/// What stands beside the activations of a range of rows: names and entries.
pub(crate) type Columns = Vec<(&'static str, Vec<u32>)>;

/// Where a row comes from; prints as the part of an error message that follows the file.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) context: usize,
    pub(crate) position: usize,
    pub(crate) token: u32,
    pub(crate) document: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { context, position, token, document } = self;
        write!(f, " (context {context}, position {position}, token {token}, document {document})")
    }
}

/// Encodes rows, refuses those that are not finite, and opens and closes shards on the way.
pub(crate) struct RowWriter {
    out: PathBuf,
    hook: HookPoint,
    width: usize,
    dtype: Dtype,
    rows: usize,
    rows_per_shard: usize,
    next: usize,
    shards: Vec<ShardEntry>,
    open: Option<ShardWriter>,
    encoded: Vec<u8>,
}

impl RowWriter {
    /// Goes on after the shards of `entry`.
    pub(crate) fn new(out: &Path, manifest: &Manifest, entry: &HookEntry) -> Result<Self, ActivationError> {
        let folder = out.join(entry.hook.to_string());
        std::fs::create_dir_all(&folder).map_err(|e| ActivationError::io("create", &folder, e))?;
        Ok(Self {
            out: out.to_owned(),
            hook: entry.hook,
            width: entry.width,
            dtype: manifest.dtype,
            rows: manifest.rows,
            rows_per_shard: manifest.rows_per_shard,
            next: entry.shards.iter().map(|s| s.rows).sum(),
            shards: entry.shards.clone(),
            open: None,
            encoded: Vec::new(),
        })
    }

    pub(crate) fn hook(&self) -> HookPoint {
        self.hook
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Index of the row that comes next, counted over all shards.
    pub(crate) fn next(&self) -> usize {
        self.next
    }

    /// The shards that are finished.
    pub(crate) fn shards(&self) -> &[ShardEntry] {
        &self.shards
    }

    /// Appends a row. `columns` is asked once per shard; `place` is asked for the message of an error.
    pub(crate) fn push(
        &mut self,
        values: &[f32],
        columns: &dyn Fn(Range<usize>) -> Columns,
        place: &dyn Fn() -> String,
    ) -> Result<(), ActivationError> {
        debug_assert_eq!(values.len(), self.width);
        let mut shard = match self.open.take() {
            Some(shard) => shard,
            None => {
                let range = self.next..self.rows.min(self.next.saturating_add(self.rows_per_shard));
                let path = shard_path(&self.out, self.hook, self.shards.len());
                ShardWriter::create(&path, self.dtype, range.len(), self.width, &columns(range))?
            }
        };
        self.dtype.encode(values, &mut self.encoded);
        if !self.dtype.all_finite(&self.encoded) {
            return Err(self.refuse(values, shard.path(), place()));
        }
        shard.push(&self.encoded)?;
        self.next += 1;
        if shard.left() > 0 {
            self.open = Some(shard);
        } else {
            let (index, blake3) = (self.shards.len(), shard.finish()?);
            let rows = self.next - index * self.rows_per_shard;
            self.shards.push(ShardEntry { file: shard_file(self.hook, index), rows, blake3 });
        }
        Ok(())
    }

    /// The error for a row with an infinity or a NaN after encoding.
    fn refuse(&self, values: &[f32], file: &Path, place: String) -> ActivationError {
        let (hook, dtype, file) = (self.hook, self.dtype, file.to_owned());
        let row = self.next - self.shards.len() * self.rows_per_shard;
        if let Some(dimension) = values.iter().position(|v| !v.is_finite()) {
            return ActivationError::NonFinite { hook, file, row, dimension, value: values[dimension], place };
        }
        // Finite before and not after: the largest is one that did not fit.
        let largest = (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs())).unwrap_or(0);
        ActivationError::Overflow { hook, file, row, dimension: largest, value: values[largest], place, dtype }
    }
}
