//! Reading a store.

use std::fmt;
use std::path::{Path, PathBuf};

use monosem_hooks::HookPoint;
use ndarray::{ArrayViewMut1, ArrayViewMut2};

use crate::manifest::{COLUMNS, MANIFEST, Manifest, PARTIAL, shard_path};
use crate::shard::{Access, Shard};
use crate::{ActivationError, Dtype, files};

/// Bytes of shards that [`Store::hook`] maps; see [`Store::hook_within`].
pub const DEFAULT_MAPPED: usize = 384 << 20;

/// Shards of one hook that are kept open for reads by position. Systems commonly allow a process 1024 files; beyond these, shards are
/// mapped whatever the budget, since a map needs none.
const MAX_OPEN: usize = 512;

/// Rows that are read together where they follow each other.
const TOGETHER: usize = 256;

/// A finished store.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    manifest: Manifest,
}

impl Store {
    /// Reads the manifest of the store in folder `path`.
    ///
    /// # Errors
    /// If there is no manifest, it is damaged, or it is that of an unfinished capture.
    pub fn open(path: &Path) -> Result<Self, ActivationError> {
        let file = path.join(MANIFEST);
        if let Some(manifest) = Manifest::read(&file)? {
            if manifest.kept() < manifest.rows {
                let problem = format!("lists shards for {} of its {} rows", manifest.kept(), manifest.rows);
                return Err(ActivationError::Manifest { path: file, problem });
            }
            return Ok(Self { path: path.to_owned(), manifest });
        }
        Err(match Manifest::read(&path.join(PARTIAL))? {
            Some(partial) => {
                ActivationError::Unfinished { path: path.to_owned(), kept: partial.kept(), rows: partial.rows }
            }
            None => {
                let problem = "no such file: the folder is not an activation store".to_owned();
                ActivationError::Manifest { path: file, problem }
            }
        })
    }

    /// What the store holds.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Opens the shards of one hook, mapping [`DEFAULT_MAPPED`] bytes of them: see [`Self::hook_within`].
    ///
    /// # Errors
    /// As [`Self::hook_within`].
    pub fn hook(&self, hook: HookPoint) -> Result<HookStore, ActivationError> {
        self.hook_within(hook, DEFAULT_MAPPED)
    }

    /// Opens the shards of one hook and checks their headers against the manifest, but not their checksums: see [`Self::verify`].
    ///
    /// The first shards, up to `mapped` bytes, are mapped into memory; the others are read by position, row by row. Both go through the
    /// system's page cache. A map is up to three times as fast where the cache holds the row, but what was touched counts as memory of
    /// this process, so `mapped` is what reading adds to its resident set at most (beyond 512 further shards the rest is mapped too).
    /// With `usize::MAX` everything is mapped.
    ///
    /// # Errors
    /// [`ActivationError::UnknownHook`] lists the hooks there are; a shard that is missing, truncated or not what the manifest says is
    /// named.
    pub fn hook_within(&self, hook: HookPoint, mapped: usize) -> Result<HookStore, ActivationError> {
        let Some(entry) = self.manifest.hooks.iter().find(|h| h.hook == hook) else {
            let available = self.manifest.hook_points();
            return Err(ActivationError::UnknownHook { path: self.path.clone(), hook, available });
        };
        let (dtype, columns) = (self.manifest.dtype, &self.manifest.columns);
        let row_bytes = entry.width * dtype.bytes() + 4 * columns.len();
        let (mut shards, mut budget, mut open) = (Vec::new(), mapped, 0);
        for (index, shard) in entry.shards.iter().enumerate() {
            let path = shard_path(&self.path, hook, index);
            let bytes = shard.rows.saturating_mul(row_bytes);
            let access = if bytes <= budget || open == MAX_OPEN { Access::Map } else { Access::Read };
            match access {
                Access::Map => budget = budget.saturating_sub(bytes),
                Access::Read => open += 1,
            }
            shards.push(Shard::open(&path, &access, dtype, shard.rows, entry.width, columns)?);
        }
        Ok(HookStore {
            hook,
            dtype,
            rows: self.manifest.rows,
            rows_per_shard: self.manifest.rows_per_shard,
            width: entry.width,
            shards,
        })
    }

    /// Reads every shard and compares its BLAKE3 with the manifest's.
    ///
    /// # Errors
    /// Names the first shard that is missing or not what was written.
    pub fn verify(&self) -> Result<(), ActivationError> {
        for hook in &self.manifest.hooks {
            for (index, shard) in hook.shards.iter().enumerate() {
                let path = shard_path(&self.path, hook.hook, index);
                let found = files::hash(&path)?;
                if found != shard.blake3 {
                    let problem =
                        format!("is not what was written: BLAKE3 {found}, the manifest says {}", shard.blake3);
                    return Err(ActivationError::Shard { path, problem });
                }
            }
        }
        Ok(())
    }
}

/// The activations of one hook: `len` rows of `width` values, mapped or read on demand. Shared by reference among threads.
///
/// The files must not be changed while they are open.
pub struct HookStore {
    hook: HookPoint,
    dtype: Dtype,
    rows: usize,
    rows_per_shard: usize,
    width: usize,
    shards: Vec<Shard>,
}

impl fmt::Debug for HookStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HookStore")
            .field("hook", &self.hook)
            .field("dtype", &self.dtype)
            .field("rows", &self.rows)
            .field("width", &self.width)
            .field("shards", &self.shards.len())
            .finish_non_exhaustive()
    }
}

impl HookStore {
    /// The hook point.
    #[must_use]
    pub fn hook(&self) -> HookPoint {
        self.hook
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows; a store always has some.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Values per row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Fills `out` `[n, width]` with rows `start..start + n`.
    ///
    /// # Errors
    /// [`ActivationError::NonFinite`] names the shard and row of a NaN or infinity.
    ///
    /// # Panics
    /// If `out` is not `width` wide or the rows go beyond the last.
    pub fn rows(&self, start: usize, mut out: ArrayViewMut2<'_, f32>) -> Result<(), ActivationError> {
        let end = start.saturating_add(out.nrows());
        assert!(end <= self.rows, "rows {start}..{end} of a store of {} rows", self.rows);
        self.check_width(&out);
        let (mut row, mut buffer) = (start, Vec::new());
        while row < end {
            // As many as lie in one shard and are worth a read.
            let (shard, inside) = (&self.shards[row / self.rows_per_shard], row % self.rows_per_shard);
            let count = TOGETHER.min(end - row).min(self.rows_per_shard - inside);
            let bytes = shard.rows(inside..inside + count, &mut buffer)?;
            for (i, bytes) in bytes.chunks_exact(bytes.len() / count).enumerate() {
                self.decode(bytes, out.row_mut(row - start + i), shard, inside + i)?;
            }
            row += count;
        }
        Ok(())
    }

    /// Fills row `i` of `out` `[rows.len(), width]` with row `rows[i]` of the store, in any order.
    ///
    /// # Errors
    /// [`ActivationError::NonFinite`] names the shard and row of a NaN or infinity.
    ///
    /// # Panics
    /// If `out` is not `[rows.len(), width]` or a row is not below [`Self::len`].
    pub fn gather(&self, rows: &[usize], mut out: ArrayViewMut2<'_, f32>) -> Result<(), ActivationError> {
        assert_eq!(out.nrows(), rows.len(), "{:?} for {} rows", out.dim(), rows.len());
        self.check_width(&out);
        let mut buffer = Vec::new();
        for (&row, to) in rows.iter().zip(out.rows_mut()) {
            assert!(row < self.rows, "row {row} of a store of {} rows", self.rows);
            let (shard, inside) = (&self.shards[row / self.rows_per_shard], row % self.rows_per_shard);
            self.decode(shard.rows(inside..inside + 1, &mut buffer)?, to, shard, inside)?;
        }
        Ok(())
    }

    /// The token id of every row; `None` where the activations were imported without.
    ///
    /// # Errors
    /// [`ActivationError::Io`] if a shard cannot be read.
    pub fn token_ids(&self) -> Result<Option<Vec<u32>>, ActivationError> {
        self.column(0)
    }

    /// The document of every row; `None` where the activations were imported without.
    ///
    /// # Errors
    /// [`ActivationError::Io`] if a shard cannot be read.
    pub fn documents(&self) -> Result<Option<Vec<u32>>, ActivationError> {
        self.column(1)
    }

    /// The position of every row inside its context; `None` where the activations were imported without.
    ///
    /// # Errors
    /// [`ActivationError::Io`] if a shard cannot be read.
    pub fn positions(&self) -> Result<Option<Vec<u32>>, ActivationError> {
        self.column(2)
    }

    /// See [`COLUMNS`] for `index`.
    fn column(&self, index: usize) -> Result<Option<Vec<u32>>, ActivationError> {
        debug_assert!(index < COLUMNS.len());
        let (mut entries, mut buffer) = (Vec::new(), Vec::new());
        for shard in &self.shards {
            if !shard.column(index, &mut entries, &mut buffer)? {
                return Ok(None);
            }
        }
        Ok(Some(entries))
    }

    fn check_width(&self, out: &ArrayViewMut2<'_, f32>) {
        assert_eq!(out.ncols(), self.width, "{:?} for rows of {} values", out.dim(), self.width);
    }

    /// Turns the bytes of row `row` of `shard` into numbers, which must be finite.
    fn decode(
        &self,
        bytes: &[u8],
        mut to: ArrayViewMut1<'_, f32>,
        shard: &Shard,
        row: usize,
    ) -> Result<(), ActivationError> {
        match to.as_slice_mut() {
            Some(to) => self.dtype.decode(bytes, to),
            None => {
                let mut values = vec![0.0; self.width];
                self.dtype.decode(bytes, &mut values);
                to.assign(&ndarray::ArrayView1::from(&values));
            }
        }
        if self.dtype.all_finite(bytes) {
            return Ok(());
        }
        let dimension = to.iter().position(|v| !v.is_finite()).unwrap_or(0);
        let (hook, file, value, place) = (self.hook, shard.path.clone(), to[dimension], String::new());
        Err(ActivationError::NonFinite { hook, file, row, dimension, value, place })
    }
}
