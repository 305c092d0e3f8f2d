//! dictionary_learning: `ae.pt`, a pickled state dict, and `config.json` beside it.
//!
//! | class | codes | subtracts its bias from x first |
//! |---|---|---|
//! | `AutoEncoder` | ReLU | yes |
//! | `AutoEncoderNew` | ReLU | no |
//! | `AutoEncoderTopK` | top-k | yes |
//! | `BatchTopKSAE`, `MatryoshkaBatchTopKSAE` | JumpReLU with one threshold for all latents | yes |
//! | `JumpReluAutoEncoder` | JumpReLU | no |
//! | `GatedAutoEncoder` | JumpReLU; see [`saelens`](super::saelens) | yes |
//!
//! The arrays tell the classes apart but for `AutoEncoderTopK` and `BatchTopKSAE`, which only `config.json` (`trainer.dict_class`) does. Codes are
//! those of the arrays as they lie in the file: the package's own `AutoEncoder.from_pretrained` may multiply them by the norms of the decoder's
//! rows.
//!
//! The pickle is not executed: it is read by a small interpreter of our own that knows tensors and dicts, and refuses the rest by name.

use std::io::{BufReader, Read, Seek};
use std::path::Path;

use ndarray::Array1;
use serde::Deserialize;

use super::arrays::{Arrays, Result, checked, fold_input_bias, invalid};
use super::saelens::Gate;
use super::torch_file::TorchFile;
use crate::storage::{open, read};
use crate::{Activation, LinearDictionary};

pub(super) const WEIGHTS: &str = "ae.pt";
const CONFIG: &str = "config.json";

/// What is read of `config.json`; the rest is of training.
#[derive(Deserialize)]
struct Config {
    trainer: Trainer,
}

#[derive(Deserialize)]
struct Trainer {
    #[serde(default)]
    dict_class: Option<String>,
    #[serde(default)]
    k: Option<usize>,
}

/// Classes of the package.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Class {
    Standard,
    New,
    TopK,
    BatchTopK,
    Matryoshka,
    JumpRelu,
    Gated,
}

impl Class {
    const NAMES: [(&str, Self); 7] = [
        ("AutoEncoder", Self::Standard),
        ("AutoEncoderNew", Self::New),
        ("AutoEncoderTopK", Self::TopK),
        ("BatchTopKSAE", Self::BatchTopK),
        ("MatryoshkaBatchTopKSAE", Self::Matryoshka),
        ("JumpReluAutoEncoder", Self::JumpRelu),
        ("GatedAutoEncoder", Self::Gated),
    ];

    fn named(name: &str) -> Result<Self> {
        let class = Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, class)| *class);
        class.ok_or_else(|| {
            let known = Self::NAMES.map(|(name, _)| name);
            invalid(CONFIG, format!("trainer.dict_class {name:?}, expected one of {known:?}"))
        })
    }

    /// By the names of its arrays.
    fn of(arrays: &impl Arrays) -> Result<Self> {
        let has = |name: &str| arrays.has(name);
        match () {
            () if has("r_mag") => Ok(Self::Gated),
            () if has("W_enc") && (has("k") || has("group_sizes")) => Ok(Self::Matryoshka),
            () if has("W_enc") => Ok(Self::JumpRelu),
            () if has("bias") => Ok(Self::Standard),
            () if has("decoder.bias") => Ok(Self::New),
            () if has("b_dec") => {
                let problem = "an AutoEncoderTopK and a BatchTopKSAE have the same tensors: trainer.dict_class in a config.json beside it has \
                               to say which it is";
                Err(invalid(WEIGHTS, problem))
            }
            () => {
                let mut names = arrays.names();
                names.sort();
                names.truncate(16);
                Err(invalid(WEIGHTS, format!("tensors {names:?} are of no class of dictionary_learning")))
            }
        }
    }
}

/// Reads the dictionary in the file `path`, and the `config.json` beside it if there is one.
///
/// # Errors
/// If the file is missing or damaged, its pickle holds more than tensors, or a tensor is missing or not of the shape of the others.
pub fn load(path: &Path) -> Result<LinearDictionary> {
    let config_path = path.with_file_name(CONFIG);
    let config = if config_path.exists() { Some(read(&config_path)?) } else { None };
    parse(BufReader::new(open(path)?), config.as_deref()).map_err(|e| {
        let is_config = matches!(&e, crate::DictionaryError::Invalid { path, .. } if path == Path::new(CONFIG));
        e.on(if is_config { &config_path } else { path })
    })
}

/// The dictionary of an `ae.pt`, perhaps in memory, and of its `config.json`.
///
/// # Errors
/// As [`load`]; the files are called `ae.pt` and `config.json`.
pub fn parse(state: impl Read + Seek, config: Option<&[u8]>) -> Result<LinearDictionary> {
    let trainer = match config.map(serde_json::from_slice::<Config>).transpose() {
        Ok(config) => config.map(|config| config.trainer),
        Err(e) => return Err(invalid(CONFIG, format!("not a configuration of dictionary_learning: {e}"))),
    };
    let mut arrays = TorchFile::new(WEIGHTS, state)?;
    let class = match trainer.as_ref().and_then(|trainer| trainer.dict_class.as_ref()) {
        Some(name) => Class::named(name)?,
        None => Class::of(&arrays)?,
    };
    // The latents are rows of the encoder here, but columns where it is not a torch module of its own.
    let own_matrices = matches!(class, Class::JumpRelu | Class::Matryoshka);
    let (n, d) = if own_matrices {
        let [d, n] = arrays.matrix_shape("W_enc")?;
        (n, d)
    } else {
        let [n, d] = arrays.matrix_shape("encoder.weight")?;
        (n, d)
    };
    let bias = match class {
        Class::Standard => "bias",
        Class::New => "decoder.bias",
        Class::Gated => "decoder_bias",
        Class::TopK | Class::BatchTopK | Class::Matryoshka | Class::JumpRelu => "b_dec",
    };
    let mut dictionary = LinearDictionary {
        w_enc: if own_matrices {
            arrays.transposed("W_enc", [n, d])?
        } else {
            arrays.matrix("encoder.weight", [n, d])?
        },
        b_enc: match class {
            Class::Gated => Array1::zeros(n),
            _ if own_matrices => arrays.vector("b_enc", n)?,
            _ => arrays.vector("encoder.bias", n)?,
        },
        w_dec: if own_matrices {
            arrays.matrix("W_dec", [n, d])?
        } else {
            arrays.transposed("decoder.weight", [n, d])?
        },
        b_dec: arrays.vector(bias, d)?,
        activation: Activation::Relu,
        threshold: None,
    };
    match class {
        Class::Standard | Class::New => {}
        Class::TopK => {
            let k = k(&mut arrays, trainer.and_then(|trainer| trainer.k))?;
            dictionary.activation = Activation::TopK { k };
        }
        Class::BatchTopK | Class::Matryoshka => {
            // Where training never got to estimate it, it is -1: a ReLU, as for the package.
            dictionary.threshold = Some(Array1::from_elem(n, arrays.scalar("threshold")?));
            dictionary.activation = Activation::JumpRelu;
        }
        Class::JumpRelu => {
            dictionary.threshold = Some(arrays.vector("threshold", n)?);
            dictionary.activation = Activation::JumpRelu;
        }
        Class::Gated => {
            let gate = Gate {
                r_mag: arrays.vector("r_mag", n)?,
                b_mag: arrays.vector("mag_bias", n)?,
                b_gate: arrays.vector("gate_bias", n)?,
            };
            gate.fold(WEIGHTS, &mut dictionary)?;
        }
    }
    if !matches!(class, Class::New | Class::JumpRelu) {
        let LinearDictionary { w_enc, b_enc, b_dec, .. } = &mut dictionary;
        fold_input_bias(w_enc, b_enc, b_dec);
    }
    checked(WEIGHTS, dictionary)
}

/// How many codes a row has: of the file, or before it was kept there, of `config.json`.
fn k(arrays: &mut impl Arrays, configured: Option<usize>) -> Result<usize> {
    if !arrays.has("k") {
        return configured.ok_or_else(|| invalid(CONFIG, "no trainer.k, and no tensor \"k\" in ae.pt"));
    }
    let stored = arrays.scalar("k")?;
    let k = stored as usize;
    if k as f32 != stored {
        return Err(invalid(WEIGHTS, format!("tensor \"k\" is {stored}, expected how many codes a row has")));
    }
    match configured {
        Some(configured) if configured != k => {
            Err(invalid(WEIGHTS, format!("tensor \"k\" is {k}, expected {configured} as config.json says")))
        }
        _ => Ok(k),
    }
}
