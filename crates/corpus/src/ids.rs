//! Token ids that were made elsewhere.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::CorpusError;

/// A header longer than this is not a header.
const MAX_HEADER: u64 = 100 << 20;

/// The tensor `input_ids` of a safetensors file, read row by row.
pub(crate) struct Rows<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    dtype: Dtype,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    next: usize,
    largest: u64,
}

impl<'a> Rows<'a> {
    /// Opens the file; ids from `vocabulary` on are errors.
    pub(crate) fn open(path: &'a Path, vocabulary: Option<usize>) -> Result<Self, CorpusError> {
        let bad = |why: String| CorpusError::Format { file: path.into(), why };
        let file = File::open(path).map_err(CorpusError::read(path))?;
        let length = file.metadata().map_err(CorpusError::read(path))?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut size = [0; 8];
        let begun = reader.read_exact(&mut size);
        let size = u64::from_le_bytes(size);
        if begun.is_err() || size > MAX_HEADER.min(length.saturating_sub(8)) {
            return Err(bad("not a safetensors file, or a truncated one".into()));
        }
        let mut header = vec![0; size as usize];
        reader.read_exact(&mut header).map_err(CorpusError::read(path))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| bad(format!("the header does not parse: {error}")))?;
        let expected = metadata.data_len() as u64 + 8 + size;
        if expected != length {
            return Err(bad(format!("the file has {length} bytes, its header announces {expected}: it is damaged")));
        }
        let Some(info) = metadata.info("input_ids") else {
            let names = metadata.offset_keys().join(", ");
            return Err(bad(format!("there is no tensor `input_ids`; tensors present: {names}")));
        };
        let [rows, columns] = info.shape[..] else {
            return Err(bad(format!("`input_ids` has the shape {:?}, expected [n, context]", info.shape)));
        };
        if !matches!(info.dtype, Dtype::I64 | Dtype::I32 | Dtype::U32 | Dtype::U16) {
            return Err(bad(format!("`input_ids` is {:?}, expected I64, I32, U32 or U16", info.dtype)));
        }
        reader.seek(SeekFrom::Start(8 + size + info.data_offsets.0 as u64)).map_err(CorpusError::read(path))?;
        let largest = vocabulary.map_or(u64::from(u32::MAX), |v| (v as u64).saturating_sub(1).min(u32::MAX.into()));
        Ok(Self { path, reader, dtype: info.dtype, rows, columns, next: 0, largest })
    }

    fn read_row(&mut self) -> Result<Vec<u32>, CorpusError> {
        let width = match self.dtype {
            Dtype::I64 => 8,
            Dtype::U16 => 2,
            _ => 4,
        };
        let mut bytes = vec![0; width * self.columns];
        self.reader.read_exact(&mut bytes).map_err(CorpusError::read(self.path))?;
        let row = self.next;
        self.next += 1;
        let id = |(column, word): (usize, &[u8])| {
            let id = match (self.dtype, word) {
                (Dtype::U16, &[a, b]) => i64::from(u16::from_le_bytes([a, b])),
                (Dtype::U32, &[a, b, c, d]) => i64::from(u32::from_le_bytes([a, b, c, d])),
                (_, &[a, b, c, d]) => i64::from(i32::from_le_bytes([a, b, c, d])),
                (_, &[a, b, c, d, e, f, g, h]) => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => -1,
            };
            match u32::try_from(id) {
                Ok(token) if u64::from(token) <= self.largest => Ok(token),
                _ => Err(CorpusError::Token { file: self.path.into(), row, column, id, largest: self.largest }),
            }
        };
        bytes.chunks_exact(width).enumerate().map(id).collect()
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Vec<u32>, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.next < self.rows).then(|| self.read_row())
    }
}
