//! SAELens 6 and later: `cfg.json` and `sae_weights.safetensors`.
//!
//! `W_enc` is `[d_in, d_sae]`, `W_dec` `[d_sae, d_out]`. Read are the architectures `standard`, `topk`, `jumprelu`, `gated`, `transcoder` and
//! `jumprelu_transcoder`; SAELens itself saves BatchTopK and Matryoshka autoencoders as `jumprelu`. A configuration from before version 6 is read as
//! SAELens migrates it. What a linear dictionary has no place for is folded into the arrays:
//!
//! - `apply_b_dec_to_input`: `b_enc - W_encᵀ b_dec`;
//! - `rescale_acts_by_decoder_norm` of `topk`: row i of the encoder and its bias times `‖W_dec,i‖`, row i of the decoder divided by it;
//! - a gate (arXiv 2404.16014): a latent is on where `z + b_gate > 0`, and then is `exp(r_mag) z + b_mag`, so it is a JumpReLU on the latter with
//!   threshold `b_mag - exp(r_mag) b_gate`.
//!
//! Activations of a `hook_z` autoencoder (`reshape_activations`) are read flat, the heads side by side.
//!
//! Refused are skip connections, which a linear dictionary does not have, and `normalize_activations` other than `none`: what it divides by is not
//! in the file, or not linear.

use std::path::{Path, PathBuf};

use ndarray::{Array1, ArrayView1};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::arrays::{Arrays, Result, SafeArrays, checked, fold_input_bias, invalid, unsupported};
use crate::storage::{create_folder, read, write_json, write_tensors};
use crate::{Activation, LinearDictionary};

const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae_weights.safetensors";
const SPARSITY: &str = "sparsity.safetensors";
/// What SAELens adds to a frequency before it takes the logarithm.
const SPARSITY_FLOOR: f64 = 1e-10;
/// The version of the format that is written.
const VERSION: &str = "6.0.0";

/// What is read of `cfg.json`; the rest is for training and for people.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architecture: Option<String>,
    d_in: usize,
    d_sae: usize,
    #[serde(default)]
    d_out: Option<usize>,
    #[serde(default)]
    k: Option<usize>,
    #[serde(default)]
    apply_b_dec_to_input: Option<bool>,
    #[serde(default)]
    normalize_activations: Option<Normalize>,
    #[serde(default)]
    rescale_acts_by_decoder_norm: Option<bool>,
    /// Before version 6, where `architecture` was `standard` and this said more.
    #[serde(default)]
    activation_fn: Option<String>,
    /// The same, by its first name.
    #[serde(default)]
    activation_fn_str: Option<String>,
    #[serde(default)]
    activation_fn_kwargs: Option<ActivationArguments>,
    #[serde(default)]
    sae_lens_version: Option<String>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

/// A name, or before version 3 whether to normalise at all.
#[derive(Deserialize)]
#[serde(untagged)]
enum Normalize {
    Whether(bool),
    How(String),
}

#[derive(Deserialize)]
struct ActivationArguments {
    #[serde(default)]
    k: Option<usize>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    sae_lens_version: Option<String>,
}

impl Config {
    /// Whether SAELens reads it by the rules of before version 6.
    fn is_old(&self) -> bool {
        let version = self.sae_lens_version.as_ref();
        let version = version.or_else(|| self.metadata.as_ref().and_then(|m| m.sae_lens_version.as_ref()));
        let major = version.and_then(|v| v.split('.').next()?.parse::<u32>().ok());
        major.is_none_or(|major| major < 6)
    }

    /// The architecture by its name of today, and k where it has one.
    fn architecture(&self) -> Result<(&str, Option<usize>)> {
        let activation = self.activation_fn_str.as_deref().or(self.activation_fn.as_deref()).unwrap_or("relu");
        let old_k = self.activation_fn_kwargs.as_ref().and_then(|arguments| arguments.k).or(self.k);
        match (self.architecture.as_deref(), self.is_old()) {
            (Some(name), false) => Ok((name, self.k)),
            (None, false) => Err(invalid(CONFIG, "no key \"architecture\"")),
            (_, true) if activation == "topk" => Ok(("topk", old_k)),
            (_, true) if activation != "relu" => {
                Err(unsupported(CONFIG, format!("activation_fn {activation:?}, expected \"relu\" or \"topk\"")))
            }
            (name, true) => Ok((name.unwrap_or("standard"), old_k)),
        }
    }

    fn refuse_normalisation(&self) -> Result<()> {
        let why = match &self.normalize_activations {
            None | Some(Normalize::Whether(false)) => return Ok(()),
            Some(Normalize::How(how)) if how == "none" => return Ok(()),
            Some(Normalize::How(how)) if how != "expected_average_only_in" => {
                format!("normalize_activations {how:?} is not of the autoencoder's arrays; expected \"none\"")
            }
            Some(_) => "the factor of normalize_activations \"expected_average_only_in\" is not in the file; fold it in SAELens \
                        (fold_activation_norm_scaling_factor) and save again"
                .to_owned(),
        };
        Err(unsupported(CONFIG, why))
    }
}

/// Reads the autoencoder in `folder`.
///
/// # Errors
/// If a file is missing or damaged, a key or a tensor is not as `cfg.json` says, or the autoencoder is of a kind that no linear dictionary is.
pub fn load(folder: &Path) -> Result<LinearDictionary> {
    let config = read(&folder.join(CONFIG))?;
    parse(&config, &read(&folder.join(WEIGHTS))?).map_err(|e| e.inside(folder))
}

/// The autoencoder of a `cfg.json` and a `sae_weights.safetensors` in memory.
///
/// # Errors
/// As [`load`]; files are named without a folder.
pub fn parse(config: &[u8], weights: &[u8]) -> Result<LinearDictionary> {
    let config: Config =
        serde_json::from_slice(config).map_err(|e| invalid(CONFIG, format!("not a SAELens configuration: {e}")))?;
    let (architecture, k) = config.architecture()?;
    let is_transcoder = architecture.ends_with("transcoder");
    let mut arrays = SafeArrays::new(WEIGHTS, weights)?;
    if architecture.contains("skip") || arrays.has("W_skip") {
        return Err(unsupported(CONFIG, "a skip connection (W_skip), which a linear dictionary does not have"));
    }
    config.refuse_normalisation()?;
    if let Some(factor) = ["scaling_factor", "finetuning_scaling_factor"].into_iter().find(|name| arrays.has(name)) {
        let factors = arrays.vector(factor, config.d_sae)?;
        if factors.iter().any(|f| (f - 1.0).abs() > 1e-5) {
            return Err(unsupported(WEIGHTS, format!("tensor {factor:?} rescales codes; expected all 1")));
        }
    }
    let (n, d) = (config.d_sae, config.d_in);
    let d_out = if is_transcoder { config.d_out.unwrap_or(d) } else { d };
    if n == 0 || d == 0 || d_out == 0 {
        return Err(invalid(CONFIG, format!("d_sae {n}, d_in {d}, d_out {d_out}: none of them may be 0")));
    }
    let mut dictionary = LinearDictionary {
        w_enc: arrays.transposed("W_enc", [n, d])?,
        b_enc: Array1::zeros(n),
        w_dec: arrays.matrix("W_dec", [n, d_out])?,
        b_dec: arrays.vector("b_dec", d_out)?,
        activation: Activation::Relu,
        threshold: None,
    };
    let subtract = config.apply_b_dec_to_input.unwrap_or(!is_transcoder);
    if is_transcoder && subtract {
        return Err(invalid(CONFIG, "apply_b_dec_to_input is true, expected false for a transcoder"));
    }
    match architecture {
        "standard" | "transcoder" => dictionary.b_enc = arrays.vector("b_enc", n)?,
        "topk" => {
            let k = k.ok_or_else(|| invalid(CONFIG, "no key \"k\", expected for architecture \"topk\""))?;
            dictionary.activation = Activation::TopK { k };
            dictionary.b_enc = arrays.vector("b_enc", n)?;
        }
        "jumprelu" | "jumprelu_transcoder" => {
            dictionary.activation = Activation::JumpRelu;
            dictionary.b_enc = arrays.vector("b_enc", n)?;
            dictionary.threshold = Some(arrays.vector("threshold", n)?);
        }
        "gated" => {
            let gate = Gate {
                r_mag: arrays.vector("r_mag", n)?,
                b_mag: arrays.vector("b_mag", n)?,
                b_gate: arrays.vector("b_gate", n)?,
            };
            gate.fold(WEIGHTS, &mut dictionary)?;
        }
        other => {
            let problem = format!(
                "architecture {other:?}, expected \"standard\", \"topk\", \"jumprelu\", \"gated\", \"transcoder\" or \"jumprelu_transcoder\" \
                 (an autoencoder in training becomes one of them by save_inference_model)"
            );
            return Err(unsupported(CONFIG, problem));
        }
    }
    if subtract {
        let LinearDictionary { w_enc, b_enc, b_dec, .. } = &mut dictionary;
        fold_input_bias(w_enc, b_enc, b_dec);
    }
    if architecture == "topk" && config.rescale_acts_by_decoder_norm == Some(true) {
        fold_decoder_norms(&mut dictionary);
    }
    checked(WEIGHTS, dictionary)
}

/// The path that decides whether a latent is on, and what scales it.
pub(super) struct Gate {
    pub(super) r_mag: Array1<f32>,
    pub(super) b_mag: Array1<f32>,
    pub(super) b_gate: Array1<f32>,
}

impl Gate {
    /// Makes a JumpReLU of `dictionary`, whose encoder is the gate's and whose bias is still zero. `file` held the gate.
    pub(super) fn fold(self, file: &str, dictionary: &mut LinearDictionary) -> Result<()> {
        let gain = self.r_mag.mapv(f32::exp);
        if let Some(latent) = gain.iter().position(|gain| !gain.is_normal()) {
            let r_mag = self.r_mag[latent];
            return Err(unsupported(file, format!("exp(r_mag) of latent {latent} is outside f32 (r_mag is {r_mag})")));
        }
        for (mut row, gain) in dictionary.w_enc.rows_mut().into_iter().zip(&gain) {
            row *= *gain;
        }
        dictionary.threshold = Some(&self.b_mag - &(&gain * &self.b_gate));
        dictionary.b_enc = self.b_mag;
        dictionary.activation = Activation::JumpRelu;
        Ok(())
    }
}

/// Codes `c_i ‖w_dec,i‖` in place of `c_i`, and the decoder's rows of unit length.
fn fold_decoder_norms(dictionary: &mut LinearDictionary) {
    let LinearDictionary { w_enc, b_enc, w_dec, .. } = dictionary;
    for ((mut encoder, bias), mut decoder) in w_enc.rows_mut().into_iter().zip(b_enc).zip(w_dec.rows_mut()) {
        let norm = decoder.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
        encoder *= norm;
        *bias *= norm;
        // A row of zeros decodes to nothing as it is.
        if norm > 0.0 {
            decoder /= norm;
        }
    }
}

/// Which of SAELens's architectures a dictionary is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// What it most plainly is: `standard` for ReLU, `topk`, `jumprelu`; `transcoder` or `jumprelu_transcoder` where `d_out` is not `d_in`.
    #[default]
    Plain,
    /// `gated`, of a JumpReLU or a ReLU: `r_mag` is 0 and the gate opens where the threshold is exceeded.
    Gated,
    /// `transcoder` for ReLU, `jumprelu_transcoder`: also where it decodes to a place as wide as the one it reads.
    Transcoder,
}

/// How a dictionary is written for SAELens, and what is said beside it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Export {
    /// The architecture.
    pub form: Form,
    /// SAELens's `metadata`, as it names its keys: `model_name`, `hook_name`, `context_size`, `prepend_bos`, `dataset_path`, .... The version of
    /// the format is added.
    pub metadata: Map<String, Value>,
}

/// Writes `dictionary` into `folder`, made if it is not there, so that `SAE.load_from_disk` reads it.
///
/// # Errors
/// If a file cannot be written, or SAELens has no such architecture: signed codes, a top-k transcoder, a gated transcoder, a gate on top-k.
///
/// # Panics
/// If the shapes of the arrays do not agree.
pub fn save(dictionary: &LinearDictionary, folder: &Path, export: &Export) -> Result<()> {
    let (n_latents, d_in, d_out) = dictionary.assert_whole();
    let transcoder = export.form == Form::Transcoder || d_out != d_in;
    let architecture = match (dictionary.activation, export.form, transcoder) {
        (Activation::Relu, Form::Plain | Form::Transcoder, true) => "transcoder",
        (Activation::JumpRelu, Form::Plain | Form::Transcoder, true) => "jumprelu_transcoder",
        (Activation::Relu | Activation::JumpRelu, Form::Gated, false) => "gated",
        (Activation::Relu, _, false) => "standard",
        (Activation::JumpRelu, _, false) => "jumprelu",
        (Activation::TopK { .. }, Form::Plain, false) => "topk",
        (activation, form, _) => {
            let to = if d_out == d_in { String::new() } else { format!(" from {d_in} to {d_out} dimensions") };
            let problem = format!("SAELens has no {form:?} architecture for {activation:?}{to}");
            return Err(unsupported(CONFIG, problem).inside(folder));
        }
    };
    let mut metadata = export.metadata.clone();
    metadata.insert("sae_lens_version".into(), VERSION.into());
    // Left out, SAELens would claim that its own version had trained it.
    metadata.entry("sae_lens_training_version").or_insert(Value::Null);
    let mut config = json!({
        "architecture": architecture, "d_in": d_in, "d_sae": n_latents, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": false, "normalize_activations": "none", "reshape_activations": "none", "metadata": metadata,
    });
    if transcoder {
        config["d_out"] = d_out.into();
    }
    if let Activation::TopK { k } = dictionary.activation {
        // More than there are latents means all of them here, and is an error in SAELens.
        config["k"] = k.min(n_latents).into();
        config["rescale_acts_by_decoder_norm"] = false.into();
    }

    let w_enc = dictionary.w_enc.t();
    let mut tensors = vec![
        ("W_enc", w_enc.into_dyn()),
        ("W_dec", dictionary.w_dec.view().into_dyn()),
        ("b_dec", dictionary.b_dec.view().into_dyn()),
    ];
    let zeros = Array1::zeros(n_latents);
    let b_gate = match &dictionary.threshold {
        Some(threshold) => &dictionary.b_enc - threshold,
        None => dictionary.b_enc.clone(),
    };
    if architecture == "gated" {
        tensors.push(("b_gate", b_gate.view().into_dyn()));
        tensors.push(("b_mag", dictionary.b_enc.view().into_dyn()));
        tensors.push(("r_mag", zeros.view().into_dyn()));
    } else {
        tensors.push(("b_enc", dictionary.b_enc.view().into_dyn()));
        tensors.extend(dictionary.threshold.as_ref().map(|threshold| ("threshold", threshold.view().into_dyn())));
    }
    create_folder(folder)?;
    write_tensors(&folder.join(WEIGHTS), &tensors)?;
    write_json(&folder.join(CONFIG), &config)
}

/// Writes SAELens's `sparsity.safetensors` into `folder`: `log10(frequency + 1e-10)` of each latent, where `frequencies` `[n_latents]` are the
/// fractions of tokens on which it is active.
///
/// # Errors
/// If the file cannot be written, or a frequency is not from 0 to 1.
pub fn save_sparsity(frequencies: ArrayView1<'_, f64>, folder: &Path) -> Result<PathBuf> {
    if let Some((latent, frequency)) = frequencies.iter().enumerate().find(|(_, f)| !(0.0..=1.0).contains(*f)) {
        let problem = format!("latent {latent} is active on a fraction {frequency} of tokens, expected 0 to 1");
        return Err(invalid(SPARSITY, problem).inside(folder));
    }
    let sparsity = frequencies.mapv(|frequency| (frequency + SPARSITY_FLOOR).log10() as f32);
    create_folder(folder)?;
    let path = folder.join(SPARSITY);
    write_tensors(&path, &[("sparsity", sparsity.view().into_dyn())])?;
    Ok(path)
}
