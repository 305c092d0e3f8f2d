//! The state of a training run on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use ndarray::ArrayD;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::{CheckpointError, Space, Spaces, TrainConfig, TrainState};

const STATE: &str = "state.json";
const FORMAT: &str = "monosem-train-state-2";
/// Factors on activations are kept with the weights, where their bits stay as they are.
const SCALES: [&str; 2] = ["input_scale", "target_scale"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    config: TrainConfig,
    d_in: usize,
    /// Of a transcoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    d_out: Option<usize>,
    step: u64,
    counters: BTreeMap<String, u64>,
    /// Name of the file with the tensors, beside this one.
    tensors: String,
    /// BLAKE3 of that file.
    blake3: String,
}

impl TrainState {
    /// Writes `state.json` and the safetensors file that it names into `folder`, made if it is not there. The state that was there before stays
    /// whole until the new one is: the renaming of `state.json` is the one moment at which the new state replaces the old one.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        fs::create_dir_all(folder).map_err(|source| io("create", folder, source))?;
        let spaces = [Some(self.spaces.input), self.spaces.target].into_iter().flatten();
        let scales = SCALES.into_iter().zip(spaces.map(|space| (vec![1], space.scale.to_le_bytes().to_vec())));
        let bytes: Vec<(&str, Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, t)| (name.as_str(), t.shape().to_vec(), t.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .chain(scales.map(|(name, (shape, bytes))| (name, shape, bytes)))
            .collect();
        let invalid =
            |e: &dyn std::fmt::Display| CheckpointError::Invalid { path: folder.into(), problem: e.to_string() };
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|e| invalid(&e))?;
        let file = safetensors::serialize(views, None).map_err(|e| invalid(&e))?;
        let blake3 = blake3::hash(&file).to_hex().to_string();
        let tensors = format!("state-{}.safetensors", &blake3[..16]);
        write_whole(&folder.join(&tensors), &file)?;

        let header = Header {
            format: FORMAT.into(),
            config: self.config.clone(),
            d_in: self.spaces.input.d,
            d_out: self.spaces.target.map(|target| target.d),
            step: self.step,
            counters: self.counters.clone(),
            tensors: tensors.clone(),
            blake3,
        };
        let mut json = serde_json::to_vec_pretty(&header).map_err(|e| invalid(&e))?;
        json.push(b'\n');
        write_whole(&folder.join(STATE), &json)?;
        remove_others(folder, &tensors)
    }

    /// Whether `folder` holds a state (which may still turn out to be damaged).
    #[must_use]
    pub fn is_in(folder: &Path) -> bool {
        folder.join(STATE).is_file()
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// If a file is missing, damaged (its checksum is compared) or of another format.
    pub fn load(folder: &Path) -> Result<Self, CheckpointError> {
        let path = folder.join(STATE);
        let invalid = |path: &Path, problem: String| CheckpointError::Invalid { path: path.into(), problem };
        let header: Header = serde_json::from_slice(&read(&path)?)
            .map_err(|e| invalid(&path, format!("not the state of a training run: {e}")))?;
        if header.format != FORMAT {
            return Err(invalid(&path, format!("format {:?}, expected {FORMAT:?}", header.format)));
        }
        if Path::new(&header.tensors).file_name().is_none_or(|name| name != header.tensors.as_str()) {
            return Err(invalid(&path, format!("tensors {:?} is not the name of a file beside it", header.tensors)));
        }
        let path = folder.join(&header.tensors);
        let bytes = read(&path)?;
        if blake3::hash(&bytes).to_hex().as_str() != header.blake3 {
            return Err(invalid(&path, format!("truncated or damaged: its checksum is not the one in {STATE}")));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|e| invalid(&path, format!("not safetensors: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(invalid(&path, format!("{name} is {:?}, expected F32", view.dtype())));
            }
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
            let tensor =
                ArrayD::from_shape_vec(view.shape(), values).map_err(|e| invalid(&path, format!("{name}: {e}")))?;
            tensors.insert(name, tensor);
        }
        let mut space = |name: &str, d: usize| {
            let scale = tensors.remove(name).and_then(|t| t.first().copied());
            let scale = scale.ok_or_else(|| invalid(&path, format!("no tensor {name}")))?;
            Ok::<_, CheckpointError>(Space { d, scale })
        };
        let Header { config, d_in, d_out, step, counters, .. } = header;
        let input = space(SCALES[0], d_in)?;
        let target = d_out.map(|d| space(SCALES[1], d)).transpose()?;
        Ok(Self { config, spaces: Spaces { input, target }, step, counters, tensors })
    }
}

/// Files of earlier states and of writes that were cut off.
fn remove_others(folder: &Path, keep: &str) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(folder).map_err(|source| io("list", folder, source))? {
        let entry = entry.map_err(|source| io("list", folder, source))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = name.starts_with("state-") && (name.ends_with(".safetensors") || name.ends_with(".tmp"));
        if ours && name != keep {
            fs::remove_file(entry.path()).map_err(|source| io("remove", &entry.path(), source))?;
        }
    }
    Ok(())
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> CheckpointError {
    CheckpointError::Io { action, path: path.into(), source }
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(path).map_err(|source| io("read", path, source))
}

/// Writes beside `path` and renames, so that `path` is never half written.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let beside = path.with_extension("tmp");
    let write = || {
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| io("write", path, source))
}
