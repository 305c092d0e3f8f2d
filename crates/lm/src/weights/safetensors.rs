//! Models in Hugging Face layout: `model.safetensors`, or shards listed by `model.safetensors.index.json`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::Source;
use super::map::map;
use super::quant::Encoding;
use crate::LmError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

struct Shard {
    path: PathBuf,
    bytes: Mmap,
}

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The tensors of a folder in Hugging Face layout.
pub(crate) struct SafetensorsFolder {
    folder: PathBuf,
    shards: Vec<Shard>,
    entries: HashMap<String, Entry>,
    hash: String,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsFolder {
    pub(crate) fn open(folder: &Path) -> Result<Self, LmError> {
        let names = shard_names(folder)?;
        let mut hasher = blake3::Hasher::new();
        let mut shards = Vec::new();
        let mut entries = HashMap::new();
        for name in names {
            let path = folder.join(name);
            let bytes = map(&path)?;
            hasher.update(&bytes);
            read_entries(&path, &bytes, shards.len(), &mut entries)?;
            shards.push(Shard { path, bytes });
        }
        let hash = hasher.finalize().to_hex().to_string();
        Ok(Self { folder: folder.to_owned(), shards, entries, hash })
    }
}

/// The weight files of a folder, in the order in which they are hashed.
fn shard_names(folder: &Path) -> Result<BTreeSet<String>, LmError> {
    let index = folder.join(INDEX);
    if folder.join(SINGLE).exists() {
        return Ok(BTreeSet::from([SINGLE.to_owned()]));
    }
    if !index.exists() {
        return Err(LmError::malformed(folder, format!("there is neither {SINGLE} nor {INDEX} in the folder")));
    }
    let text = std::fs::read(&index).map_err(|e| LmError::io(&index, e))?;
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| LmError::malformed(&index, e.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    // A name with a folder in it could point anywhere on the machine.
    if let Some(bad) = names.iter().find(|n| Path::new(n).file_name().is_none_or(|f| f != n.as_str())) {
        return Err(LmError::malformed(&index, format!("{bad:?} in weight_map is not a plain file name")));
    }
    if names.is_empty() {
        return Err(LmError::malformed(&index, "weight_map lists no file"));
    }
    Ok(names)
}

fn read_entries(path: &Path, bytes: &[u8], shard: usize, into: &mut HashMap<String, Entry>) -> Result<(), LmError> {
    let malformed =
        |e: safetensors::SafeTensorError| LmError::malformed(path, format!("not a whole safetensors file: {e}"));
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
    let start = header + size_of::<u64>();
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let entry = Entry { shard, dtype: info.dtype, shape: info.shape.clone(), range: start + from..start + to };
        if into.contains_key(&name) {
            return Err(LmError::malformed(path, format!("tensor {name:?} is in another shard as well")));
        }
        into.insert(name, entry);
    }
    Ok(())
}

impl Source for SafetensorsFolder {
    fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LmError> {
        let Some(entry) = self.entries.get(name) else {
            let path = if let [only] = &self.shards[..] { &only.path } else { &self.folder };
            return Err(LmError::MissingTensor { path: path.clone(), name: name.to_owned(), expected: shape.to_vec() });
        };
        let Shard { path, bytes } = &self.shards[entry.shard];
        if entry.shape != shape {
            return Err(LmError::TensorShape {
                path: path.clone(),
                name: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let encoding = match entry.dtype {
            Dtype::F32 => Encoding::F32,
            Dtype::F16 => Encoding::F16,
            Dtype::BF16 => Encoding::Bf16,
            other => {
                let what = format!("type {other:?} of tensor {name:?}");
                return Err(LmError::unsupported(path, what, "F32, F16 or BF16"));
            }
        };
        let count = shape.iter().product();
        encoding.decode(&bytes[entry.range.clone()], count).ok_or_else(|| {
            LmError::malformed(path, format!("tensor {name:?} has the wrong number of bytes for {shape:?}"))
        })
    }

    fn hash(&self) -> &str {
        &self.hash
    }
}
