//! A [`LinearDictionary`] on disk: `dictionary.json` (format, shape, activation, free metadata) and `dictionary.safetensors`
//! (`w_enc`, `b_enc`, `w_dec`, `b_dec` and, for JumpReLU, `threshold` in f32, a latent a row).

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, ArrayViewD};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::{Activation, Dictionary, LinearDictionary};

pub(crate) const CONFIG: &str = "dictionary.json";
const WEIGHTS: &str = "dictionary.safetensors";
const FORMAT: &str = "monosem-dictionary-1";

/// Why a dictionary could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DictionaryError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// A file is sound but says what a [`LinearDictionary`] cannot be; or a dictionary cannot be said in the format asked for.
    #[error("{}: {problem}", path.display())]
    Unsupported {
        /// Which file, read or to be written.
        path: PathBuf,
        /// What has no counterpart.
        problem: String,
    },
}

impl DictionaryError {
    /// The same error on a file that was named without its folder.
    pub(crate) fn inside(self, folder: &Path) -> Self {
        match self {
            Self::Io { action, path, source } => Self::Io { action, path: folder.join(path), source },
            Self::Invalid { path, problem } => Self::Invalid { path: folder.join(path), problem },
            Self::Unsupported { path, problem } => Self::Unsupported { path: folder.join(path), problem },
        }
    }

    /// The same error on the file at `path`.
    pub(crate) fn on(self, path: &Path) -> Self {
        let path = path.to_owned();
        match self {
            Self::Io { action, source, .. } => Self::Io { action, path, source },
            Self::Invalid { problem, .. } => Self::Invalid { path, problem },
            Self::Unsupported { problem, .. } => Self::Unsupported { path, problem },
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    format: String,
    d_in: usize,
    /// Where it is not `d_in`: the width that a transcoder decodes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    d_out: Option<usize>,
    n_latents: usize,
    activation: Activation,
    /// Where the dictionary comes from, for people; see [`metadata`].
    #[serde(default)]
    metadata: serde_json::Value,
}

/// What a dictionary's `dictionary.json` says of where it comes from: free-form, `null` where nothing was said.
///
/// # Errors
/// If the file is missing or is not of the format that [`LinearDictionary::save`] writes.
pub fn metadata(folder: &Path) -> Result<serde_json::Value, DictionaryError> {
    Ok(config(folder)?.metadata)
}

fn config(folder: &Path) -> Result<Config, DictionaryError> {
    let path = folder.join(CONFIG);
    let config: Config = serde_json::from_slice(&read(&path)?).map_err(|e| DictionaryError::Invalid {
        path: path.clone(),
        problem: format!("not a dictionary's settings: {e}"),
    })?;
    if config.format != FORMAT {
        let problem = format!("format {:?}, expected {FORMAT:?}", config.format);
        return Err(DictionaryError::Invalid { path, problem });
    }
    Ok(config)
}

impl LinearDictionary {
    /// Writes the dictionary into `folder`, made if it is not there. `metadata` says where it comes from (hook point, model, training).
    ///
    /// # Errors
    /// If a file cannot be written; a file that was there before is then still whole.
    ///
    /// # Panics
    /// If the shapes of the four arrays do not agree.
    pub fn save(&self, folder: &Path, metadata: serde_json::Value) -> Result<(), DictionaryError> {
        let (n_latents, d_in, d_out) = self.assert_whole();
        create_folder(folder)?;

        let mut tensors = vec![
            ("b_dec", self.b_dec.view().into_dyn()),
            ("b_enc", self.b_enc.view().into_dyn()),
            ("w_dec", self.w_dec.view().into_dyn()),
            ("w_enc", self.w_enc.view().into_dyn()),
        ];
        tensors.extend(self.threshold.as_ref().map(|threshold| ("threshold", threshold.view().into_dyn())));
        write_tensors(&folder.join(WEIGHTS), &tensors)?;

        let d_out = (d_out != d_in).then_some(d_out);
        let config = Config { format: FORMAT.into(), d_in, d_out, n_latents, activation: self.activation, metadata };
        write_json(&folder.join(CONFIG), &config)
    }

    /// Reads a dictionary that [`Self::save`] wrote.
    ///
    /// # Errors
    /// If a file is missing, truncated, of another shape than `dictionary.json` says, or holds a value that is not finite.
    pub fn load(folder: &Path) -> Result<Self, DictionaryError> {
        let config = config(folder)?;
        let path = folder.join(WEIGHTS);
        let bytes = read(&path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| DictionaryError::Invalid {
            path: path.clone(),
            problem: format!("not a whole safetensors file: {e}"),
        })?;
        let (n, d) = (config.n_latents, config.d_in);
        let d_out = config.d_out.unwrap_or(d);
        let tensor = |name: &str, shape: &[usize]| floats(&path, &tensors, name, shape);
        let matrix = |name: &str, d: usize| {
            let values = tensor(name, &[n, d])?;
            Ok(Array2::from_shape_vec((n, d), values).expect("the length was checked against the shape"))
        };
        Ok(Self {
            w_enc: matrix("w_enc", d)?,
            b_enc: Array1::from(tensor("b_enc", &[n])?),
            w_dec: matrix("w_dec", d_out)?,
            b_dec: Array1::from(tensor("b_dec", &[d_out])?),
            activation: config.activation,
            threshold: match config.activation {
                Activation::JumpRelu => Some(Array1::from(tensor("threshold", &[n])?)),
                Activation::Linear | Activation::Relu | Activation::TopK { .. } => None,
            },
        })
    }

    /// `(n_latents, d_in, d_out)`.
    ///
    /// # Panics
    /// If the shapes of the arrays do not agree, or thresholds are missing or too many.
    pub(crate) fn assert_whole(&self) -> (usize, usize, usize) {
        let (n_latents, d_in) = self.w_enc.dim();
        let d_out = self.d_out();
        assert_eq!(self.w_dec.nrows(), n_latents, "rows of the decoder, of the encoder");
        assert_eq!(
            (self.b_enc.len(), self.b_dec.len()),
            (n_latents, d_out),
            "biases for a dictionary of {n_latents} latents from {d_in} to {d_out}"
        );
        let thresholds = (self.activation == Activation::JumpRelu).then_some(n_latents);
        assert_eq!(self.threshold.as_ref().map(Array1::len), thresholds, "thresholds of {:?}", self.activation);
        (n_latents, d_in, d_out)
    }

    /// One line on the shape, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let d_out = if self.d_out() == self.d_in() { String::new() } else { format!(" to {}", self.d_out()) };
        format!("{} latents over {}{d_out} dimensions, {:?}", self.n_latents(), self.d_in(), self.activation)
    }
}

fn floats(path: &Path, tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, DictionaryError> {
    let invalid = |problem: String| DictionaryError::Invalid { path: path.to_owned(), problem };
    let tensor =
        tensors.tensor(name).map_err(|_| invalid(format!("no tensor {name:?}; it has {:?}", tensors.names())))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
        return Err(invalid(format!(
            "tensor {name:?} is {:?} {:?}, expected F32 {shape:?} as {CONFIG} says",
            tensor.dtype(),
            tensor.shape()
        )));
    }
    let values: Vec<f32> =
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(invalid(format!("tensor {name:?} has the value {} at element {at}", values[at]))),
        None => Ok(values),
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> DictionaryError {
    DictionaryError::Io { action, path: path.to_owned(), source }
}

pub(crate) fn create_folder(folder: &Path) -> Result<(), DictionaryError> {
    fs::create_dir_all(folder).map_err(|source| io("create", folder, source))
}

pub(crate) fn open(path: &Path) -> Result<fs::File, DictionaryError> {
    fs::File::open(path).map_err(|source| io("read", path, source))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, DictionaryError> {
    fs::read(path).map_err(|source| io("read", path, source))
}

/// Writes arrays in f32, row-major.
pub(crate) fn write_tensors(path: &Path, tensors: &[(&str, ArrayViewD<'_, f32>)]) -> Result<(), DictionaryError> {
    let invalid =
        |e: safetensors::SafeTensorError| DictionaryError::Invalid { path: path.to_owned(), problem: e.to_string() };
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, values), bytes)| Ok((*name, TensorView::new(Dtype::F32, values.shape().to_vec(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(invalid)?;
    write_whole(path, &safetensors::serialize(views, None).map_err(invalid)?)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), DictionaryError> {
    let mut json = serde_json::to_vec_pretty(value)
        .map_err(|e| DictionaryError::Invalid { path: path.to_owned(), problem: e.to_string() })?;
    json.push(b'\n');
    write_whole(path, &json)
}

/// Writes beside `path` and renames, so that a reader never sees half a file.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DictionaryError> {
    let beside = path.with_extension("tmp");
    let write = || {
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| io("write", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let mut dictionary = LinearDictionary::random(11, 4, Activation::TopK { k: 3 }, 1);
        dictionary.b_dec[2] = 0.5;
        dictionary.save(folder.path(), serde_json::json!({"hook": "blocks.0.hook_resid_post"})).unwrap();
        assert_eq!(LinearDictionary::load(folder.path()).unwrap(), dictionary);
        // A transcoder with thresholds.
        dictionary.w_dec = LinearDictionary::random(11, 6, Activation::Relu, 2).w_dec;
        dictionary.b_dec = Array1::ones(6);
        (dictionary.activation, dictionary.threshold) = (Activation::JumpRelu, Some(Array1::linspace(0.0, 1.0, 11)));
        dictionary.save(folder.path(), serde_json::Value::Null).unwrap();
        assert_eq!(LinearDictionary::load(folder.path()).unwrap(), dictionary);
    }

    #[test]
    fn a_wrong_shape_is_named() {
        let folder = tempfile::tempdir().unwrap();
        LinearDictionary::random(11, 4, Activation::Relu, 1).save(folder.path(), serde_json::Value::Null).unwrap();
        let config = folder.path().join(CONFIG);
        let text = fs::read_to_string(&config).unwrap().replace("11", "12");
        fs::write(&config, text).unwrap();
        let error = LinearDictionary::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(WEIGHTS) && error.contains("[11, 4]") && error.contains("[12, 4]"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_file_is_an_error_not_a_panic(cut in 0.0_f64..1.0, flip in 0usize..2000, weights in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            LinearDictionary::random(5, 3, Activation::Relu, 1).save(folder.path(), serde_json::Value::Null).unwrap();
            let path = folder.path().join(if weights { WEIGHTS } else { CONFIG });
            let mut bytes = fs::read(&path).unwrap();
            let at = flip % bytes.len();
            bytes[at] ^= 0x15;
            let whole = bytes.clone();
            bytes.truncate((bytes.len() as f64 * cut) as usize);
            fs::write(&path, &bytes).unwrap();
            prop_assert!(LinearDictionary::load(folder.path()).is_err());
            // A flipped bit in a weight may still be a number: then it loads, else it is refused; never a panic.
            fs::write(&path, &whole).unwrap();
            let _ = LinearDictionary::load(folder.path());
        }
    }
}
