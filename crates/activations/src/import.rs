//! Activations made elsewhere become a store.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use monosem_hooks::HookPoint;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};
use safetensors::Dtype as Stored;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::manifest::{COLUMNS, HookEntry, MANIFEST, Manifest, PARTIAL};
use crate::rows::RowWriter;
use crate::{ActivationError, DEFAULT_ROWS_PER_SHARD, Dtype, SourceInfo, files};

/// Safetensors allows no longer header; a longer one is a damaged file.
const MAX_HEADER: u64 = 100_000_000;

/// The same of `.npy`, whose header is a line of text (numpy itself reads no more than 10,000 bytes unless told to trust the file). Its parser would make room for
/// whatever length is claimed, and go as deep as brackets nest.
const MAX_NPY_HEADER: u64 = 10_000;

/// Makes a store in the folder `out` from the rows of `files`, one after the other: activations of `hook` that something else computed.
///
/// A `.npy` file holds one array `[rows, width]` of f16, f32 or f64, little-endian, in C order. A `.safetensors` file holds a tensor
/// `activations`, or a single two-dimensional one of f16, bf16, f32 or f64; its `token_ids`, `document` and `position` `[rows]` (u32, i32
/// or i64) are kept if every file has them. The manifest lists what there is. Rows are stored as `dtype`.
///
/// # Errors
/// See [`ActivationError`]: [`ActivationError::Import`] for a file that is damaged or holds something else,
/// [`ActivationError::NonFinite`] for a NaN or an infinity, [`ActivationError::OtherCapture`] if `out` already holds a store.
pub fn import(
    files: &[PathBuf],
    hook: HookPoint,
    source: &SourceInfo,
    dtype: Dtype,
    out: &Path,
) -> Result<Manifest, ActivationError> {
    let mut inputs = Vec::new();
    for path in files {
        let input = Input::open(path)?;
        let first: &Input = inputs.first().unwrap_or(&input);
        if input.width != first.width {
            let (width, expected) = (input.width, first.width);
            return Err(wrong(path, format!("{width} values per row; {} has {expected}", first.path.display())));
        }
        inputs.push(input);
    }
    let rows = inputs.iter().map(|i| i.rows).sum();
    let Some(width) = inputs.first().map(|i| i.width).filter(|_| rows > 0) else {
        let problem = format!("{} files with no row among them", files.len());
        return Err(ActivationError::Config { key: "files", problem });
    };

    let lock = files::Lock::take(out)?;
    for name in [MANIFEST, PARTIAL] {
        let path = out.join(name);
        if path.exists() {
            let differs = "an import starts in a folder without a store".to_owned();
            return Err(ActivationError::OtherCapture { path, differs });
        }
    }
    let columns = common_columns(&mut inputs);
    let mut manifest = Manifest::new(source, dtype, rows, DEFAULT_ROWS_PER_SHARD);
    manifest.columns = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    manifest.hooks.push(HookEntry { hook, width, shards: Vec::new() });

    let mut writer = RowWriter::new(out, &manifest, &manifest.hooks[0])?;
    let mut values = vec![0.0; width];
    for input in &inputs {
        let mut reader = input.reader()?;
        for row in 0..input.rows {
            reader.next(&mut values)?;
            let part = |rows: std::ops::Range<usize>| {
                columns.iter().map(|(name, column)| (*name, column[rows.clone()].to_vec())).collect()
            };
            writer.push(&values, &part, &|| format!(" (row {row} of {})", input.path.display()))?;
        }
    }
    manifest.hooks[0].shards = writer.shards().to_vec();
    manifest.write(&out.join(MANIFEST))?;
    lock.remove();
    Ok(manifest)
}

/// Refuses a header that claims to be longer than any is.
fn check_npy_header(path: &Path, reader: &mut BufReader<File>) -> Result<(), ActivationError> {
    let mut start = [0_u8; 12];
    reader.read_exact(&mut start).map_err(|e| wrong(path, format!("not a .npy file: {e}")))?;
    // Magic, version, and the length in two bytes for version 1, in four from version 2 on.
    let length = match start[6] {
        1 => u64::from(u16::from_le_bytes([start[8], start[9]])),
        _ => u64::from(u32::from_le_bytes([start[8], start[9], start[10], start[11]])),
    };
    if length > MAX_NPY_HEADER {
        let problem = format!("not a .npy file: a header of {length} bytes, expected at most {MAX_NPY_HEADER}");
        return Err(wrong(path, problem));
    }
    reader.seek(SeekFrom::Start(0)).map_err(|e| ActivationError::io("read", path, e))?;
    Ok(())
}

fn wrong(path: &Path, problem: impl Into<String>) -> ActivationError {
    ActivationError::Import { path: path.to_owned(), problem: problem.into() }
}

/// The columns that every file has, each joined to one.
fn common_columns(inputs: &mut [Input]) -> Vec<(&'static str, Vec<u32>)> {
    let mut common = Vec::new();
    for (index, name) in COLUMNS.into_iter().enumerate() {
        if inputs.iter().all(|i| i.columns[index].is_some()) {
            common.push((name, inputs.iter_mut().flat_map(|i| i.columns[index].take()).flatten().collect()));
        }
    }
    common
}

/// A checked file. It is opened again when its turn comes: thousands may be imported at once.
struct Input {
    path: PathBuf,
    stored: Stored,
    /// Where the rows begin, in bytes.
    start: u64,
    rows: usize,
    width: usize,
    /// See [`COLUMNS`].
    columns: [Option<Vec<u32>>; COLUMNS.len()],
}

impl Input {
    fn open(path: &Path) -> Result<Self, ActivationError> {
        let file = File::open(path).map_err(|e| ActivationError::io("open", path, e))?;
        let length = file.metadata().map_err(|e| ActivationError::io("read", path, e))?.len();
        let reader = BufReader::new(file);
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => Self::npy(path, reader, length),
            Some("safetensors") => Self::safetensors(path, reader, length),
            _ => Err(wrong(path, "its name ends neither in .npy nor in .safetensors")),
        }
    }

    fn npy(path: &Path, mut reader: BufReader<File>, length: u64) -> Result<Self, ActivationError> {
        check_npy_header(path, &mut reader)?;
        let header = NpyHeader::from_reader(&mut reader).map_err(|e| wrong(path, format!("not a .npy file: {e}")))?;
        let dtype = header.dtype();
        let stored = match &dtype {
            DType::Plain(t) if t.type_char() == TypeChar::Float && t.endianness() == Endianness::Little => {
                match t.size_field() {
                    2 => Some(Stored::F16),
                    4 => Some(Stored::F32),
                    8 => Some(Stored::F64),
                    _ => None,
                }
            }
            _ => None,
        };
        let stored = stored.ok_or_else(|| {
            wrong(path, format!("type {}; expected little-endian f16, f32 or f64 (<f2, <f4, <f8)", dtype.descr()))
        })?;
        let [rows, width] = *header.shape() else {
            return Err(wrong(path, format!("shape {:?}; expected [rows, width]", header.shape())));
        };
        if header.order() == Order::Fortran {
            return Err(wrong(path, "columns first (Fortran order); save numpy.ascontiguousarray of it"));
        }
        let start = reader.stream_position().map_err(|e| ActivationError::io("read", path, e))?;
        let (Ok(rows), Ok(width)) = (usize::try_from(rows), usize::try_from(width)) else {
            return Err(wrong(path, format!("shape {:?} is too large", header.shape())));
        };
        let expected = rows.checked_mul(width).and_then(|n| n.checked_mul(stored.bitsize() / 8));
        if expected.is_none_or(|n| n as u64 != length - start) {
            let found = length - start;
            return Err(wrong(
                path,
                format!("truncated or damaged: {found} bytes of data for {rows} x {width} {}", dtype.descr()),
            ));
        }
        Self::checked(path, stored, start, rows, width, [None, None, None])
    }

    fn safetensors(path: &Path, mut reader: BufReader<File>, length: u64) -> Result<Self, ActivationError> {
        let unreadable = |e| ActivationError::io("read", path, e);
        let damaged = |what: String| wrong(path, format!("truncated or not safetensors: {what}"));
        let mut size = [0; 8];
        reader.read_exact(&mut size).map_err(|_| damaged(format!("{length} bytes")))?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER || size > length - 8 {
            return Err(damaged(format!("a header of {size} bytes in {length}")));
        }
        let mut header = vec![0; size as usize];
        reader.read_exact(&mut header).map_err(unreadable)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(e.to_string()))?;
        let data = 8 + size;
        if data + metadata.data_len() as u64 != length {
            return Err(damaged(format!("{length} bytes, its header says {}", data + metadata.data_len() as u64)));
        }

        let mut columns = [const { None }; COLUMNS.len()];
        let info = pick(path, &metadata)?;
        let (rows, width) = (info.shape[0], info.shape[1]);
        for (name, column) in COLUMNS.iter().zip(&mut columns) {
            let Some(info) = metadata.info(name) else { continue };
            let found = format!("`{name}` is {} {:?}", info.dtype, info.shape);
            if info.shape != [rows] || !matches!(info.dtype, Stored::U32 | Stored::I32 | Stored::I64) {
                return Err(wrong(path, format!("{found}; expected u32, i32 or i64 [{rows}]")));
            }
            let mut bytes = vec![0; info.data_offsets.1 - info.data_offsets.0];
            reader.seek(SeekFrom::Start(data + info.data_offsets.0 as u64)).map_err(unreadable)?;
            reader.read_exact(&mut bytes).map_err(unreadable)?;
            let entries =
                entries(info.dtype, &bytes).ok_or_else(|| wrong(path, format!("`{name}` has entries beyond u32")))?;
            *column = Some(entries);
        }
        Self::checked(path, info.dtype, data + info.data_offsets.0 as u64, rows, width, columns)
    }

    fn checked(
        path: &Path,
        stored: Stored,
        start: u64,
        rows: usize,
        width: usize,
        columns: [Option<Vec<u32>>; COLUMNS.len()],
    ) -> Result<Self, ActivationError> {
        if width == 0 {
            return Err(wrong(path, "rows of no values"));
        }
        Ok(Self { path: path.to_owned(), stored, start, rows, width, columns })
    }

    fn reader(&self) -> Result<RowReader<'_>, ActivationError> {
        let mut file = File::open(&self.path).map_err(|e| ActivationError::io("open", &self.path, e))?;
        file.seek(SeekFrom::Start(self.start)).map_err(|e| ActivationError::io("read", &self.path, e))?;
        let bytes = vec![0; self.width * self.stored.bitsize() / 8];
        Ok(RowReader { input: self, file: BufReader::with_capacity(1 << 20, file), bytes })
    }
}

/// Reads the rows of a file one by one.
struct RowReader<'a> {
    input: &'a Input,
    file: BufReader<File>,
    bytes: Vec<u8>,
}

impl RowReader<'_> {
    fn next(&mut self, values: &mut [f32]) -> Result<(), ActivationError> {
        let read = self.file.read_exact(&mut self.bytes);
        read.map_err(|e| ActivationError::io("read", &self.input.path, e))?;
        let bytes = &self.bytes;
        match self.input.stored {
            Stored::F16 => Dtype::F16.decode(bytes, values),
            Stored::BF16 => Dtype::Bf16.decode(bytes, values),
            Stored::F32 => Dtype::F32.decode(bytes, values),
            _ => {
                for (to, from) in values.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *to = f64::from_le_bytes(*from) as f32;
                }
            }
        }
        Ok(())
    }
}

/// The tensor to import.
fn pick<'a>(path: &Path, metadata: &'a Metadata) -> Result<&'a TensorInfo, ActivationError> {
    let floats = |info: &TensorInfo| {
        info.shape.len() == 2 && matches!(info.dtype, Stored::F16 | Stored::BF16 | Stored::F32 | Stored::F64)
    };
    let tensors = metadata.tensors();
    let matrices: Vec<&TensorInfo> = tensors.values().copied().filter(|i| floats(i)).collect();
    match (metadata.info("activations"), matrices.as_slice()) {
        (Some(info), _) if floats(info) => Ok(info),
        (None, [info]) => Ok(info),
        _ => {
            let mut found: Vec<String> =
                tensors.iter().map(|(n, i)| format!("{n} {} {:?}", i.dtype, i.shape)).collect();
            found.sort();
            let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
            let expected = "a tensor `activations`, or only one, that is [rows, width] of f16, bf16, f32 or f64";
            Err(wrong(path, format!("expected {expected}; it has {found}")))
        }
    }
}

/// Column entries as u32; `None` if one does not fit.
fn entries(stored: Stored, bytes: &[u8]) -> Option<Vec<u32>> {
    match stored {
        Stored::U32 => Some(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()),
        Stored::I32 => bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b).try_into().ok()).collect(),
        _ => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b).try_into().ok()).collect(),
    }
}
