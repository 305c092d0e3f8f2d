//! One safetensors file of rows: written as a stream, read through a map or by position.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::manifest::COLUMNS;
use crate::{ActivationError, Dtype, files};

/// Bytes that are collected before they are hashed and written.
const BUFFER: usize = 1 << 20;

/// Writes a shard row by row in constant memory: the number of rows is known beforehand, so the header can go first.
pub(crate) struct ShardWriter {
    file: files::NewFile,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    left: usize,
}

impl ShardWriter {
    /// Begins a shard of `rows` rows of `width` values; each column has `rows` entries.
    pub(crate) fn create(
        path: &Path,
        dtype: Dtype,
        rows: usize,
        width: usize,
        columns: &[(&str, Vec<u32>)],
    ) -> Result<Self, ActivationError> {
        // The columns go first: they are known, and 4-byte entries keep the rows behind them aligned.
        let mut tensors = Vec::new();
        let mut offset = 0;
        let mut add = |name: &str, dtype, shape: Vec<usize>, bytes| {
            let data_offsets = (offset, offset + bytes);
            tensors.push((name.to_owned(), TensorInfo { dtype, shape, data_offsets }));
            offset += bytes;
        };
        for (name, column) in columns {
            assert_eq!(column.len(), rows, "column {name} has {} entries for {rows} rows", column.len());
            add(name, safetensors::Dtype::U32, vec![rows], 4 * rows);
        }
        add("activations", dtype.safetensors(), vec![rows, width], rows * width * dtype.bytes());
        let wrong = |problem: String| ActivationError::Shard { path: path.to_owned(), problem };
        let metadata = Metadata::new(None, tensors).map_err(|e| wrong(e.to_string()))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| wrong(e.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');

        let mut buffer = Vec::with_capacity(2 * BUFFER);
        buffer.extend((header.len() as u64).to_le_bytes());
        buffer.extend(header);
        buffer.extend(columns.iter().flat_map(|(_, column)| column).flat_map(|entry| entry.to_le_bytes()));
        Ok(Self { file: files::NewFile::create(path)?, hasher: blake3::Hasher::new(), buffer, left: rows })
    }

    /// The file that this becomes.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Rows still to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Appends one encoded row.
    pub(crate) fn push(&mut self, row: &[u8]) -> Result<(), ActivationError> {
        assert!(self.left > 0, "a row too many for {}", self.path().display());
        self.left -= 1;
        self.buffer.extend_from_slice(row);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ActivationError> {
        self.hasher.update(&self.buffer);
        self.file.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Makes the shard durable and returns its BLAKE3.
    pub(crate) fn finish(mut self) -> Result<String, ActivationError> {
        assert_eq!(self.left, 0, "{} lacks {} rows", self.path().display(), self.left);
        self.flush()?;
        self.file.persist()?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

/// How the bytes of a shard are reached.
pub(crate) enum Access {
    /// Through a map: fastest, and every page that was touched counts as memory of this process.
    Map,
    /// By reads at a position, which leave nothing behind in this process.
    Read,
}

enum Source {
    Map(Mmap),
    Read(File),
}

/// A shard that is read.
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    source: Source,
    row_bytes: usize,
    /// Where the rows begin in the file.
    activations: usize,
    columns: [Option<Range<usize>>; COLUMNS.len()],
}

impl Shard {
    /// Opens a shard and checks its header against what the manifest says of it.
    pub(crate) fn open(
        path: &Path,
        access: &Access,
        dtype: Dtype,
        rows: usize,
        width: usize,
        columns: &[String],
    ) -> Result<Self, ActivationError> {
        let map = files::map(path)?;
        let wrong = |problem: String| ActivationError::Shard { path: path.to_owned(), problem };
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| wrong(format!("truncated or not safetensors, {} bytes: {e}", map.len())))?;
        let find = |name: &str, dtype: safetensors::Dtype, shape: &[usize]| {
            let info = metadata.info(name).ok_or_else(|| wrong(format!("has no tensor `{name}`")))?;
            if info.dtype != dtype || info.shape != shape {
                let found = format!("`{name}` is {} {:?}", info.dtype, info.shape);
                return Err(wrong(format!("{found}, but the manifest says {dtype} {shape:?}")));
            }
            let start = 8 + header;
            Ok(start + info.data_offsets.0..start + info.data_offsets.1)
        };
        let activations = find("activations", dtype.safetensors(), &[rows, width])?.start;
        let mut ranges = [const { None }; COLUMNS.len()];
        for (name, range) in COLUMNS.iter().zip(&mut ranges) {
            if columns.iter().any(|c| c == name) {
                *range = Some(find(name, safetensors::Dtype::U32, &[rows])?);
            }
        }
        let source = match access {
            Access::Map => Source::Map(map),
            Access::Read => Source::Read(File::open(path).map_err(|e| ActivationError::io("open", path, e))?),
        };
        let row_bytes = width * dtype.bytes();
        Ok(Self { path: path.to_owned(), source, row_bytes, activations, columns: ranges })
    }

    /// The bytes of consecutive rows; `buffer` is used where they are not in memory yet.
    pub(crate) fn rows<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], ActivationError> {
        let start = self.activations + rows.start * self.row_bytes;
        self.bytes(start..start + rows.len() * self.row_bytes, buffer)
    }

    fn bytes<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], ActivationError> {
        match &self.source {
            Source::Map(map) => Ok(&map[range]),
            Source::Read(file) => {
                buffer.resize(range.len(), 0);
                files::read_at(file, &self.path, range.start as u64, buffer)?;
                Ok(buffer)
            }
        }
    }

    /// Appends a column, given by its place in [`COLUMNS`]; false if the shard has none.
    pub(crate) fn column(
        &self,
        index: usize,
        out: &mut Vec<u32>,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, ActivationError> {
        let Some(range) = &self.columns[index] else { return Ok(false) };
        let bytes = self.bytes(range.clone(), buffer)?;
        out.extend(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)));
        Ok(true)
    }
}
