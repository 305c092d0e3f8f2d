//! sparsify: `cfg.json` and `sae.safetensors`, one folder per hook point.
//!
//! Codes are the k largest of `ReLU(encoder.weight x + encoder.bias)`, where b_dec was subtracted from x first unless `transcode` says that the
//! target is another place than the input. Refused are skip connections and `groupmax`.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::arrays::{Arrays, Result, SafeArrays, checked, fold_input_bias, invalid, unfold_input_bias, unsupported};
use crate::storage::{create_folder, read, write_json, write_tensors};
use crate::{Activation, LinearDictionary};

const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae.safetensors";

/// What is read of `cfg.json`; the rest is for training.
#[derive(Deserialize)]
struct Config {
    /// Missing before version 1.1, when there was only `topk`.
    #[serde(default)]
    activation: Option<String>,
    d_in: usize,
    /// 0 for `d_in * expansion_factor`.
    #[serde(default)]
    num_latents: usize,
    #[serde(default)]
    expansion_factor: Option<usize>,
    k: usize,
    #[serde(default)]
    skip_connection: bool,
    #[serde(default)]
    transcode: bool,
}

/// Reads the sparse coder in `folder`.
///
/// # Errors
/// If a file is missing or damaged, a key or a tensor is not as `cfg.json` says, or the coder is of a kind that no linear dictionary is.
pub fn load(folder: &Path) -> Result<LinearDictionary> {
    let config = read(&folder.join(CONFIG))?;
    parse(&config, &read(&folder.join(WEIGHTS))?).map_err(|e| e.inside(folder))
}

/// The sparse coder of a `cfg.json` and a `sae.safetensors` in memory.
///
/// # Errors
/// As [`load`]; files are named without a folder.
pub fn parse(config: &[u8], weights: &[u8]) -> Result<LinearDictionary> {
    let config: Config =
        serde_json::from_slice(config).map_err(|e| invalid(CONFIG, format!("not a sparsify configuration: {e}")))?;
    let mut arrays = SafeArrays::new(WEIGHTS, weights)?;
    if config.skip_connection || arrays.has("W_skip") {
        return Err(unsupported(CONFIG, "a skip connection (W_skip), which a linear dictionary does not have"));
    }
    if let Some(activation) = config.activation.filter(|activation| activation != "topk") {
        return Err(unsupported(CONFIG, format!("activation {activation:?}, expected \"topk\"")));
    }
    let d = config.d_in;
    let n = match (config.num_latents, config.expansion_factor) {
        (0, Some(factor)) => d.checked_mul(factor).unwrap_or(0),
        (0, None) => {
            return Err(invalid(CONFIG, "neither num_latents nor expansion_factor says how many latents there are"));
        }
        (n, _) => n,
    };
    if n == 0 || d == 0 {
        return Err(invalid(CONFIG, format!("{n} latents over {d} dimensions: expected at least one of each")));
    }
    let mut dictionary = LinearDictionary {
        w_enc: arrays.matrix("encoder.weight", [n, d])?,
        b_enc: arrays.vector("encoder.bias", n)?,
        w_dec: arrays.matrix("W_dec", [n, d])?,
        b_dec: arrays.vector("b_dec", d)?,
        activation: Activation::TopK { k: config.k },
        threshold: None,
    };
    if !config.transcode {
        let LinearDictionary { w_enc, b_enc, b_dec, .. } = &mut dictionary;
        fold_input_bias(w_enc, b_enc, b_dec);
    }
    checked(WEIGHTS, dictionary)
}

/// Writes `dictionary` into `folder`, made if it is not there, so that `SparseCoder.load_from_disk` reads it. `transcode` says that it decodes to
/// another place than it reads; without, sparsify subtracts `b_dec` from activations, and the encoder's bias is written so that codes stay what
/// they are.
///
/// # Errors
/// If a file cannot be written, or the dictionary is not top-k or decodes to another width than it reads: sparsify has no other.
///
/// # Panics
/// If the shapes of the arrays do not agree.
pub fn save(dictionary: &LinearDictionary, folder: &Path, transcode: bool) -> Result<()> {
    let (n_latents, d_in, d_out) = dictionary.assert_whole();
    let refused = |problem: String| Err(unsupported(CONFIG, problem).inside(folder));
    let Activation::TopK { k } = dictionary.activation else {
        return refused(format!("sparsify has only top-k codes, the dictionary has {:?}", dictionary.activation));
    };
    if d_out != d_in {
        return refused(format!(
            "sparsify decodes to the width it reads, the dictionary from {d_in} to {d_out} dimensions"
        ));
    }
    let mut b_enc = dictionary.b_enc.clone();
    if !transcode {
        unfold_input_bias(&dictionary.w_enc, &mut b_enc, &dictionary.b_dec);
    }
    let tensors = [
        ("encoder.weight", dictionary.w_enc.view().into_dyn()),
        ("encoder.bias", b_enc.view().into_dyn()),
        ("W_dec", dictionary.w_dec.view().into_dyn()),
        ("b_dec", dictionary.b_dec.view().into_dyn()),
    ];
    // `normalize_decoder` is of training: the rows are written as they are.
    let config = json!({
        "activation": "topk", "expansion_factor": n_latents.div_ceil(d_in), "normalize_decoder": false, "num_latents": n_latents,
        "k": k.min(n_latents), "multi_topk": false, "skip_connection": false, "transcode": transcode, "d_in": d_in,
    });
    create_folder(folder)?;
    write_tensors(&folder.join(WEIGHTS), &tensors)?;
    write_json(&folder.join(CONFIG), &config)
}
