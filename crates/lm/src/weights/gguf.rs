//! GGUF files, versions 2 and 3 (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! [`Gguf`] is the container: metadata and a table of tensors, checked against the size of the file before anything is allocated.
//! [`GgufLlama`] gives a Llama model's tensors under their Hugging Face names.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::Source;
use super::map::map;
use super::quant::Encoding;
use crate::LmError;

/// A metadata value. Arrays stay in the file until they are asked for.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array { kind: u32, count: usize, range: Range<usize> },
}

/// Where a tensor lies and how it is stored. The shape is in row-major order: the reverse of what the file says.
#[derive(Debug, Clone, PartialEq)]
struct TensorInfo {
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

#[derive(Debug)]
struct Header {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
    data_start: usize,
}

/// Type numbers of metadata values (`enum gguf_metadata_value_type`).
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a metadata value of fixed size.
fn fixed_size(kind: u32) -> Option<usize> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// Reads little-endian values off the front of a file; every error says where.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| {
            format!(
                "the file ends inside {what}: {count} bytes wanted at byte {}, the file has {}",
                self.at,
                self.bytes.len()
            )
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(array(self.take(4, what)?)))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(array(self.take(8, what)?)))
    }

    /// A count of things that take at least `least` bytes each: more than fit in the rest of the file is a lie.
    fn count(&mut self, least: usize, what: &str) -> Result<usize, String> {
        let at = self.at;
        let claimed = self.u64(what)?;
        let room = (self.bytes.len() - self.at) / least;
        usize::try_from(claimed)
            .ok()
            .filter(|&c| c <= room)
            .ok_or_else(|| format!("{what} at byte {at} is {claimed}, but the rest of the file has room for {room}"))
    }

    fn text(&mut self, what: &str) -> Result<&'a str, String> {
        let length = self.count(1, what)?;
        let at = self.at;
        std::str::from_utf8(self.take(length, what)?).map_err(|e| format!("{what} at byte {at} is not UTF-8: {e}"))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, String> {
        match kind {
            TEXT => Ok(Value::Text(self.text(key)?.to_owned())),
            ARRAY => {
                let kind = self.u32(key)?;
                let least = fixed_size(kind).or((kind == TEXT).then_some(8));
                let least = least.ok_or_else(|| format!("{key:?} is an array of values of unknown type {kind}"))?;
                let count = self.count(least, key)?;
                let start = self.at;
                if kind == TEXT {
                    for _ in 0..count {
                        self.text(key)?;
                    }
                } else {
                    self.take(count * least, key)?;
                }
                Ok(Value::Array { kind, count, range: start..self.at })
            }
            _ => {
                let size = fixed_size(kind).ok_or_else(|| format!("{key:?} has a value of unknown type {kind}"))?;
                Ok(scalar(kind, self.take(size, key)?))
            }
        }
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

/// A value of fixed size; `bytes` is as long as [`fixed_size`] says.
fn scalar(kind: u32, bytes: &[u8]) -> Value {
    match kind {
        0 => Value::Unsigned(bytes[0].into()),
        1 => Value::Signed(bytes[0].cast_signed().into()),
        2 => Value::Unsigned(u16::from_le_bytes(array(bytes)).into()),
        3 => Value::Signed(i16::from_le_bytes(array(bytes)).into()),
        4 => Value::Unsigned(u32::from_le_bytes(array(bytes)).into()),
        5 => Value::Signed(i32::from_le_bytes(array(bytes)).into()),
        6 => Value::Float(f32::from_le_bytes(array(bytes)).into()),
        7 => Value::Bool(bytes[0] != 0),
        10 => Value::Unsigned(u64::from_le_bytes(array(bytes))),
        11 => Value::Signed(i64::from_le_bytes(array(bytes))),
        _ => Value::Float(f64::from_le_bytes(array(bytes))),
    }
}

/// Smallest entry: an empty key, its type and a one-byte value; an empty name, no dimensions, a type and an offset.
const LEAST_METADATA: usize = 8 + 4 + 1;
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

fn parse(bytes: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4, "the magic")? != b"GGUF" {
        return Err("not a GGUF file: it does not begin with GGUF".into());
    }
    let version = cursor.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version} cannot be read: expected 2 or 3, little endian"));
    }
    let n_tensors = cursor.count(LEAST_TENSOR, "the number of tensors")?;
    let n_metadata = cursor.count(LEAST_METADATA, "the number of metadata entries")?;
    let mut metadata = HashMap::new();
    for i in 0..n_metadata {
        let key = cursor.text(&format!("metadata key {i}"))?;
        let kind = cursor.u32(key)?;
        let value = cursor.value(kind, key)?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(format!("metadata key {key:?} occurs twice"));
        }
    }
    let mut tensors = HashMap::new();
    for i in 0..n_tensors {
        let name = cursor.text(&format!("the name of tensor {i}"))?;
        let n_dims = cursor.u32(name)?;
        if n_dims > 4 {
            return Err(format!("tensor {name:?} has {n_dims} dimensions, expected at most 4"));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            let dim = cursor.u64(name)?;
            shape.push(usize::try_from(dim).map_err(|_| format!("tensor {name:?} has a dimension of {dim}"))?);
        }
        shape.reverse();
        let info = TensorInfo { shape, kind: cursor.u32(name)?, offset: cursor.u64(name)? };
        if tensors.insert(name.to_owned(), info).is_some() {
            return Err(format!("tensor {name:?} occurs twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Unsigned(a)) => usize::try_from(*a).ok().filter(|a| a.is_power_of_two()).unwrap_or(0),
        Some(_) => 0,
    };
    let data_start = if alignment == 0 { None } else { cursor.at.checked_next_multiple_of(alignment) };
    let data_start = data_start.ok_or("\"general.alignment\" is not a power of two that fits in memory")?;
    Ok(Header { metadata, tensors, data_start })
}

/// A GGUF file: its metadata and its tensors.
pub(crate) struct Gguf {
    path: PathBuf,
    bytes: Mmap,
    header: Header,
    hash: String,
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self, LmError> {
        let bytes = map(path)?;
        let header = parse(&bytes).map_err(|problem| LmError::malformed(path, problem))?;
        let hash = blake3::hash(&bytes).to_hex().to_string();
        Ok(Self { path: path.to_owned(), bytes, header, hash })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A text, or `None` if there is no such key.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, LmError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(LmError::config(&self.path, key, "must be a text")),
        }
    }

    /// A whole number that is not negative, or `None` if there is no such key.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>, LmError> {
        let number = match self.header.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(n)) => usize::try_from(*n).ok(),
            Some(Value::Signed(n)) => usize::try_from(*n).ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| LmError::config(&self.path, key, "must be a whole number, not negative"))
    }

    /// A floating-point number, or `None` if there is no such key.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, LmError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(_) => Err(LmError::config(&self.path, key, "must be a floating-point number")),
        }
    }

    /// Yes or no, or `None` if there is no such key.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, LmError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(LmError::config(&self.path, key, "must be true or false")),
        }
    }

    /// An array of texts, or `None` if there is no such key.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, LmError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array { kind: TEXT, count, range }) => {
                let mut cursor = Cursor { bytes: &self.bytes[..range.end], at: range.start };
                let read: Result<Vec<&str>, String> = (0..*count).map(|_| cursor.text(key)).collect();
                read.map(Some).map_err(|problem| LmError::malformed(&self.path, problem))
            }
            Some(_) => Err(LmError::config(&self.path, key, "must be an array of texts")),
        }
    }

    /// An array of whole numbers, or `None` if there is no such key.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, LmError> {
        let wrong = || LmError::config(&self.path, key, "must be an array of whole numbers");
        let (kind, range) = match self.header.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array { kind, range, .. }) => (*kind, range.clone()),
            Some(_) => return Err(wrong()),
        };
        let size = fixed_size(kind).ok_or_else(wrong)?;
        let read = self.bytes[range].chunks_exact(size).map(|chunk| match scalar(kind, chunk) {
            Value::Unsigned(n) => i64::try_from(n).ok(),
            Value::Signed(n) => Some(n),
            _ => None,
        });
        read.collect::<Option<Vec<i64>>>().map(Some).ok_or_else(wrong)
    }

    /// The shape of a tensor in row-major order.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.tensors.get(name).map(|info| &info.shape[..])
    }

    /// A tensor's values in row-major order.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LmError> {
        let malformed = |problem: String| LmError::malformed(&self.path, problem);
        let Some(info) = self.header.tensors.get(name) else {
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(LmError::MissingTensor { path, name, expected: shape.to_vec() });
        };
        if info.shape != shape {
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(LmError::TensorShape { path, name, found: info.shape.clone(), expected: shape.to_vec() });
        }
        let encoding = Encoding::from_ggml(info.kind).ok_or_else(|| {
            let what = format!("type number {} of tensor {name:?}", info.kind);
            LmError::unsupported(&self.path, what, Encoding::GGUF_NAMES)
        })?;
        let count = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        let row = shape.last().copied().unwrap_or(1);
        let size = count.filter(|_| row.is_multiple_of(encoding.block().0)).and_then(|count| encoding.bytes(count));
        let size = size.ok_or_else(|| {
            malformed(format!("rows of tensor {name:?} of shape {shape:?} are not whole blocks of {encoding:?}"))
        })?;
        let start = usize::try_from(info.offset).ok().and_then(|offset| offset.checked_add(self.header.data_start));
        let bytes = start.and_then(|start| self.bytes.get(start..start.checked_add(size)?));
        let bytes = bytes.ok_or_else(|| {
            let (offset, length) = (info.offset, self.bytes.len());
            malformed(format!(
                "tensor {name:?} takes {size} bytes at offset {offset} of the data, beyond the file's {length} bytes"
            ))
        })?;
        encoding.decode(bytes, shape.iter().product()).ok_or_else(|| malformed(format!("tensor {name:?} is cut short")))
    }
}

/// A Llama model in a GGUF file, under the names and in the row order of the Hugging Face layout.
pub(crate) struct GgufLlama<'a> {
    pub(crate) file: &'a Gguf,
    pub(crate) head_dim: usize,
}

/// The GGUF name of a Hugging Face tensor.
fn gguf_name(name: &str) -> String {
    let whole = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(whole) = whole {
        return whole.to_owned();
    }
    const PARTS: [(&str, &str); 10] = [
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    PARTS.iter().fold(name.to_owned(), |name, (theirs, ours)| name.replace(theirs, ours))
}

/// Undoes the permutation of query and key rows with which GGUF turns half-split rotary pairs into neighbouring ones: row `2j + b` of a
/// head goes to row `b * head_dim / 2 + j`.
fn unpermute(rows: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * width) {
        for b in 0..2 {
            for j in 0..head_dim / 2 {
                out.extend_from_slice(&head[(2 * j + b) * width..][..width]);
            }
        }
    }
    out
}

impl Source for GgufLlama<'_> {
    fn has(&self, name: &str) -> bool {
        self.file.header.tensors.contains_key(&gguf_name(name))
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LmError> {
        let values = self.file.read(&gguf_name(name), shape)?;
        if name.contains("q_proj") || name.contains("k_proj") {
            let width = shape.get(1).copied().unwrap_or(1);
            return Ok(unpermute(&values, self.head_dim, width));
        }
        Ok(values)
    }

    fn hash(&self) -> &str {
        &self.file.hash
    }
}
