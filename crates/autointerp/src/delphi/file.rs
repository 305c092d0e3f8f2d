//! One file of a latent cache: its header, and its entries one after the other.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::Array2;
use safetensors::tensor::{Dtype, Metadata};

use super::DelphiError;

/// Safetensors allows no longer header; a longer one is a damaged file.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;

const LOCATIONS: &str = "locations";
const ACTIVATIONS: &str = "activations";
const TOKENS: &str = "tokens";

/// The files of a cache with all of what their headers say checked against their lengths.
#[derive(Debug)]
pub(super) struct SplitFile {
    pub(super) path: PathBuf,
    /// The latents that this file is of, from its name.
    pub(super) latents: RangeInclusive<usize>,
    /// `[n_entries, 3]`: row, position, latent less the first one.
    locations: Tensor,
    /// `[n_entries]`.
    activations: Tensor,
    /// `[rows, ctx_len]`.
    tokens: Option<Tensor>,
    n_entries: usize,
}

#[derive(Debug)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where it begins, in bytes from the beginning of the file.
    start: u64,
}

impl SplitFile {
    /// Reads the name and the header.
    pub(super) fn open(path: PathBuf) -> Result<Self, DelphiError> {
        let latents = range_of(&path)?;
        let file = File::open(&path).map_err(|e| DelphiError::io("open", &path, e))?;
        let length = file.metadata().map_err(|e| DelphiError::io("read", &path, e))?.len();
        let (metadata, data) = header(&path, file, length)?;
        let tensor = |name: &str| {
            let info = metadata.info(name)?;
            let start = data + info.data_offsets.0 as u64;
            Some(Tensor { dtype: info.dtype, shape: info.shape.clone(), start })
        };
        let expected = |name: &str| {
            tensor(name).ok_or_else(|| {
                let mut names: Vec<String> = metadata.tensors().into_keys().collect();
                names.sort();
                names.truncate(16);
                DelphiError::invalid(&path, format!("no tensor `{name}`; it has {names:?}"))
            })
        };
        let (locations, activations, tokens) = (expected(LOCATIONS)?, expected(ACTIVATIONS)?, tensor(TOKENS));

        let wrong_type = |name: &str, dtype: Dtype, expected: &str| {
            DelphiError::invalid(&path, format!("tensor `{name}` is {dtype:?}, expected {expected}"))
        };
        if !is_integer(locations.dtype) {
            return Err(wrong_type(LOCATIONS, locations.dtype, "integers of 16, 32 or 64 bits"));
        }
        if !matches!(activations.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
            return Err(wrong_type(ACTIVATIONS, activations.dtype, "F16, BF16 or F32"));
        }
        if let Some(tokens) = tokens.as_ref().filter(|tokens| !is_integer(tokens.dtype)) {
            return Err(wrong_type(TOKENS, tokens.dtype, "integers of 16, 32 or 64 bits"));
        }
        let wrong_shape = |name: &str, shape: &[usize], expected: String| {
            DelphiError::invalid(&path, format!("tensor `{name}` has shape {shape:?}, expected {expected}"))
        };
        let [n_entries, 3] = *locations.shape else {
            return Err(wrong_shape(LOCATIONS, &locations.shape, "[n, 3]: row, position and latent".into()));
        };
        if *activations.shape != [n_entries] {
            let expected = format!("[{n_entries}], a number for each of the `{LOCATIONS}`");
            return Err(wrong_shape(ACTIVATIONS, &activations.shape, expected));
        }
        if let Some(tokens) = &tokens {
            let [rows, ctx_len] = *tokens.shape else {
                return Err(wrong_shape(TOKENS, &tokens.shape, "[rows, ctx_len]".into()));
            };
            if rows == 0 || ctx_len == 0 {
                return Err(wrong_shape(TOKENS, &tokens.shape, "at least one token".into()));
            }
        }
        Ok(Self { path, latents, locations, activations, tokens, n_entries })
    }

    /// `[rows, ctx_len]` of its tokens; `None` if it holds none.
    pub(super) fn tokens_shape(&self) -> Option<[usize; 2]> {
        self.tokens.as_ref().map(|tokens| [tokens.shape[0], tokens.shape[1]])
    }

    /// Its tokens `[rows, ctx_len]`; `None` if it holds none.
    pub(super) fn read_tokens(&self) -> Result<Option<Array2<u32>>, DelphiError> {
        let Some([rows, ctx_len]) = self.tokens_shape() else { return Ok(None) };
        // No more than the file has: the header's shapes agree with its length.
        let mut ids = Vec::with_capacity(rows * ctx_len);
        self.each_token(|id| {
            ids.push(id);
            Ok(())
        })?;
        let tokens = Array2::from_shape_vec((rows, ctx_len), ids);
        tokens.map(Some).map_err(|e| self.invalid(format!("tensor `{TOKENS}` is not {rows} x {ctx_len}: {e}")))
    }

    /// Checks that its tokens, if it holds any, are `expected`, which are those of `other`.
    pub(super) fn check_tokens(&self, expected: &Array2<u32>, other: &Path) -> Result<(), DelphiError> {
        let mut expected = expected.indexed_iter();
        self.each_token(|id| match expected.next() {
            Some((_, expected)) if *expected == id => Ok(()),
            Some(((row, at), expected)) => {
                let other = other.display();
                let what =
                    format!("token {at} of row {row} is {id}, but {expected} in {other}: files of different runs");
                Err(self.invalid(what))
            }
            None => Err(self.invalid(format!("more `{TOKENS}` than {}", other.display()))),
        })
    }

    fn each_token(&self, mut with: impl FnMut(u32) -> Result<(), DelphiError>) -> Result<(), DelphiError> {
        let Some(tokens) = &self.tokens else { return Ok(()) };
        let mut reader = self.reader(tokens)?;
        for i in 0..tokens.shape.iter().product() {
            let value = self.integer(&mut reader, tokens.dtype)?;
            let id = u32::try_from(value).map_err(|_| {
                let (row, at) = (i / tokens.shape[1], i % tokens.shape[1]);
                self.invalid(format!("token {at} of row {row} is {value}, expected 0 to {}", u32::MAX))
            })?;
            with(id)?;
        }
        Ok(())
    }

    /// Its entries from the first on, to be checked against contexts `[rows, ctx_len]` cut into `fragment` tokens each.
    pub(super) fn entries(&self, shape: (usize, usize), fragment: usize) -> Result<Entries<'_>, DelphiError> {
        let (locations, activations) = (self.reader(&self.locations)?, self.reader(&self.activations)?);
        // The writer looks at rows and latents only when it chooses 16 bits: a later position has wrapped around.
        if self.locations.dtype.bitsize() == 16 && shape.1 > 1 << 16 {
            let why =
                format!("`{LOCATIONS}` are {:?}, too narrow for positions up to {}", self.locations.dtype, shape.1);
            return Err(self.invalid(why));
        }
        // A gatherer sums the activations of a fragment; the half is for rounding.
        let limit = f32::MAX / 2.0 / fragment as f32;
        Ok(Entries { file: self, locations, activations, read: 0, previous: None, pending: None, shape, limit })
    }

    fn reader(&self, tensor: &Tensor) -> Result<BufReader<File>, DelphiError> {
        let open = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(tensor.start))?;
            Ok(BufReader::with_capacity(BUFFER, file))
        };
        open().map_err(|e| DelphiError::io("open", &self.path, e))
    }

    fn integer(&self, reader: &mut BufReader<File>, dtype: Dtype) -> Result<i128, DelphiError> {
        Ok(match dtype {
            Dtype::U16 => u16::from_le_bytes(self.bytes(reader)?).into(),
            Dtype::I16 => i16::from_le_bytes(self.bytes(reader)?).into(),
            Dtype::U32 => u32::from_le_bytes(self.bytes(reader)?).into(),
            Dtype::I32 => i32::from_le_bytes(self.bytes(reader)?).into(),
            Dtype::U64 => u64::from_le_bytes(self.bytes(reader)?).into(),
            // The header's check lets through no other type.
            _ => i64::from_le_bytes(self.bytes(reader)?).into(),
        })
    }

    fn float(&self, reader: &mut BufReader<File>, dtype: Dtype) -> Result<f32, DelphiError> {
        Ok(match dtype {
            Dtype::F16 => f16::from_le_bytes(self.bytes(reader)?).to_f32(),
            Dtype::BF16 => bf16::from_le_bytes(self.bytes(reader)?).to_f32(),
            _ => f32::from_le_bytes(self.bytes(reader)?),
        })
    }

    fn bytes<const N: usize>(&self, reader: &mut BufReader<File>) -> Result<[u8; N], DelphiError> {
        let mut bytes = [0; N];
        reader.read_exact(&mut bytes).map_err(|e| DelphiError::io("read", &self.path, e))?;
        Ok(bytes)
    }

    fn invalid(&self, problem: impl Into<String>) -> DelphiError {
        DelphiError::invalid(&self.path, problem)
    }
}

/// An activation and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) row: usize,
    pub(super) position: usize,
    /// Its number in the dictionary.
    pub(super) latent: usize,
    /// Finite, not negative.
    pub(super) activation: f32,
}

/// The entries of a file in their order, each checked.
pub(super) struct Entries<'a> {
    file: &'a SplitFile,
    locations: BufReader<File>,
    activations: BufReader<File>,
    read: usize,
    previous: Option<[usize; 3]>,
    /// Read, but not yet given out.
    pending: Option<Entry>,
    /// Of the tokens: `(rows, ctx_len)`.
    shape: (usize, usize),
    /// The largest activation allowed.
    limit: f32,
}

impl Entries<'_> {
    /// The next entry if `wanted` takes it; otherwise it stays the next.
    pub(super) fn next_if(&mut self, wanted: impl Fn(&Entry) -> bool) -> Result<Option<Entry>, DelphiError> {
        if self.pending.is_none() {
            self.pending = self.read()?;
        }
        Ok(self.pending.take_if(|entry| wanted(entry)))
    }

    fn read(&mut self) -> Result<Option<Entry>, DelphiError> {
        let file = self.file;
        if self.read == file.n_entries {
            return Ok(None);
        }
        let mut location = [0; 3];
        for value in &mut location {
            *value = file.integer(&mut self.locations, file.locations.dtype)?;
        }
        let activation = file.float(&mut self.activations, file.activations.dtype)?;
        let [row, position, latent] = location;
        let wrong = |problem: String| {
            let entry = self.read;
            file.invalid(format!("entry {entry}, row {row}, position {position}, latent {latent}: {problem}"))
        };

        let (rows, ctx_len) = self.shape;
        let within = |value: i128, n: usize| usize::try_from(value).ok().filter(|value| *value < n);
        let row = within(row, rows).ok_or_else(|| wrong(format!("there are {rows} rows of tokens")))?;
        let position = within(position, ctx_len).ok_or_else(|| wrong(format!("rows have {ctx_len} tokens")))?;
        let (first, last) = (*file.latents.start(), *file.latents.end());
        let latent = usize::try_from(latent).ok().and_then(|latent| first.checked_add(latent));
        let latent = latent.filter(|latent| *latent <= last).ok_or_else(|| {
            wrong(format!("the file is of latents {first} to {last}, counted from {first} in `{LOCATIONS}`"))
        })?;
        // torch.nonzero gives rows in order, positions in a row and latents at a position as well, and batches follow each other.
        let here = [row, position, latent];
        match self.previous {
            Some(previous) if previous == here => return Err(wrong("the same place as the entry before".into())),
            Some(previous) if previous > here => {
                let [row, position, _] = previous;
                let why = format!(
                    "comes after row {row}, position {position}; expected rising order: a place twice, or several runs in one cache"
                );
                return Err(wrong(why));
            }
            _ => self.previous = Some(here),
        }
        if activation.is_infinite() && file.activations.dtype == Dtype::F16 {
            return Err(wrong(format!(
                "activation {activation}: beyond 65504 delphi cannot store it, scale the encoder"
            )));
        }
        if !(0.0..=self.limit).contains(&activation) {
            return Err(wrong(format!("activation {activation}, expected 0 to {:e}", self.limit)));
        }
        self.read += 1;
        Ok(Some(Entry { row, position, latent, activation }))
    }
}

fn is_integer(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::U16 | Dtype::I16 | Dtype::U32 | Dtype::I32 | Dtype::U64 | Dtype::I64)
}

/// The latents that a file is of by its name.
fn range_of(path: &Path) -> Result<RangeInclusive<usize>, DelphiError> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let range = stem.split_once('_').and_then(|(start, end)| Some(start.parse().ok()?..=end.parse().ok()?));
    range.filter(|range| !range.is_empty()).ok_or_else(|| {
        let expected = "expected FIRST_LAST.safetensors, the first and the last of its latents";
        DelphiError::invalid(path, format!("the name does not say which latents the file is of, {expected}"))
    })
}

/// The header of a safetensors file of `length` bytes, and where its data begins. Reads nothing else.
fn header(path: &Path, mut file: File, length: u64) -> Result<(Metadata, u64), DelphiError> {
    let damaged = |what: String| DelphiError::invalid(path, format!("truncated or not a safetensors file: {what}"));
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|_| damaged(format!("{length} bytes")))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER || size > length.saturating_sub(8) {
        return Err(damaged(format!("a header of {size} bytes in {length}")));
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact(&mut bytes).map_err(|e| DelphiError::io("read", path, e))?;
    // Deserialising checks that tensors follow each other, each as long as its type and shape say.
    let metadata: Metadata = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    let (data, expected) = (8 + size, metadata.data_len() as u64);
    if data.checked_add(expected) != Some(length) {
        return Err(damaged(format!("{} bytes of data, its header says {expected}", length - data)));
    }
    Ok((metadata, data))
}
