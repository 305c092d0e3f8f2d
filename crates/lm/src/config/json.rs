//! `config.json` of the Hugging Face layout, as transformers 4 and 5 write it.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Activation, Config, Family, Rope, RopeScaling};
use crate::LmError;

/// A JSON object and the file it comes from.
struct Keys<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Keys<'_> {
    /// The value of a key that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn error(&self, key: &str, problem: impl Into<String>) -> LmError {
        LmError::config(self.path, key, problem)
    }

    fn optional<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, LmError> {
        let read =
            |v: &Value| convert(v).ok_or_else(|| self.error(key, format!("is {}, expected {expected}", brief(v))));
        self.get(key).map(read).transpose()
    }

    fn size(&self, key: &str) -> Result<usize, LmError> {
        self.optional_size(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, LmError> {
        self.optional(key, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, LmError> {
        self.optional(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, LmError> {
        Ok(self.optional(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    fn object(&self, key: &str) -> Result<Option<Keys<'_>>, LmError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { path: self.path, map })),
            Some(other) => Err(self.error(key, format!("is {}, expected an object", brief(other)))),
        }
    }

    fn activation(&self, key: &str, default: Activation) -> Result<Activation, LmError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let known = value.as_str().and_then(Activation::from_name);
        known.ok_or_else(|| LmError::unsupported(self.path, format!("{key} {}", brief(value)), Activation::NAMES))
    }
}

/// A value as it appears in a message: short, whatever the file holds.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("...".chars()).collect() }
}

/// Reads `config.json`.
pub(crate) fn read(path: &Path) -> Result<Config, LmError> {
    let bytes = std::fs::read(path).map_err(|e| LmError::io(path, e))?;
    let parsed: Value = serde_json::from_slice(&bytes).map_err(|e| LmError::malformed(path, e.to_string()))?;
    let Value::Object(map) = &parsed else {
        return Err(LmError::malformed(path, "not a JSON object"));
    };
    let keys = Keys { path, map };
    let family = keys.get("model_type").ok_or_else(|| keys.error("model_type", "is missing"))?;
    let config = match family.as_str() {
        Some("gpt_neox") => neox(&keys)?,
        Some("gpt2") => gpt2(&keys)?,
        Some("llama") => llama(&keys)?,
        _ => {
            let given = family.as_str().map_or_else(|| brief(family), ToOwned::to_owned);
            return Err(LmError::UnknownFamily { path: path.to_owned(), given });
        }
    };
    config.validate().map_err(|(what, problem)| LmError::malformed(path, format!("the {what} {problem}")))?;
    Ok(config)
}

fn head_dim(keys: &Keys<'_>, d_model: usize, n_heads: usize, key: &str) -> Result<usize, LmError> {
    if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
        return Err(keys.error(key, format!("is {n_heads}, expected a divisor of the model width {d_model}")));
    }
    Ok(d_model / n_heads)
}

fn neox(keys: &Keys<'_>) -> Result<Config, LmError> {
    let (d_model, n_heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
    let head_dim = head_dim(keys, d_model, n_heads, "num_attention_heads")?;
    let partial = match keys.object("rope_parameters")? {
        Some(parameters) => parameters.float("partial_rotary_factor")?,
        None => None,
    };
    let partial = partial.or(keys.float("partial_rotary_factor")?).or(keys.float("rotary_pct")?).unwrap_or(0.25);
    if !(0.0..=1.0).contains(&partial) {
        return Err(keys.error("rotary_pct", format!("is {partial}, expected 0 to 1")));
    }
    let attention_bias = keys.flag("attention_bias", true)?;
    Ok(Config {
        family: Family::GptNeoX,
        n_layers: keys.size("num_hidden_layers")?,
        d_model,
        d_mlp: keys.size("intermediate_size")?,
        n_heads,
        n_kv_heads: n_heads,
        head_dim,
        d_vocab: keys.size("vocab_size")?,
        max_context: keys.size("max_position_embeddings")?,
        norm_eps: keys.float("layer_norm_eps")?.unwrap_or(1e-5),
        activation: keys.activation("hidden_act", Activation::Gelu)?,
        rope: Some(rope(keys, "rotary_emb_base", (head_dim as f64 * partial) as usize)?),
        parallel_residual: keys.flag("use_parallel_residual", true)?,
        tied_embeddings: keys.flag("tie_word_embeddings", false)?,
        qkv_bias: attention_bias,
        attn_out_bias: attention_bias,
        mlp_bias: true,
    })
}

fn gpt2(keys: &Keys<'_>) -> Result<Config, LmError> {
    let (d_model, n_heads) = (keys.size("n_embd")?, keys.size("n_head")?);
    for (key, expected) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)] {
        if keys.flag(key, expected)? != expected {
            return Err(LmError::unsupported(keys.path, format!("{key} = {}", !expected), expected.to_string()));
        }
    }
    Ok(Config {
        family: Family::Gpt2,
        n_layers: keys.size("n_layer")?,
        d_model,
        d_mlp: keys.optional_size("n_inner")?.unwrap_or(d_model.saturating_mul(4)),
        n_heads,
        n_kv_heads: n_heads,
        head_dim: head_dim(keys, d_model, n_heads, "n_head")?,
        d_vocab: keys.size("vocab_size")?,
        max_context: keys.size("n_positions")?,
        norm_eps: keys.float("layer_norm_epsilon")?.unwrap_or(1e-5),
        activation: keys.activation("activation_function", Activation::GeluTanh)?,
        rope: None,
        parallel_residual: false,
        tied_embeddings: keys.flag("tie_word_embeddings", true)?,
        qkv_bias: true,
        attn_out_bias: true,
        mlp_bias: true,
    })
}

fn llama(keys: &Keys<'_>) -> Result<Config, LmError> {
    let (d_model, n_heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
    let head_dim = match keys.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None => head_dim(keys, d_model, n_heads, "num_attention_heads")?,
    };
    let attention_bias = keys.flag("attention_bias", false)?;
    Ok(Config {
        family: Family::Llama,
        n_layers: keys.size("num_hidden_layers")?,
        d_model,
        d_mlp: keys.size("intermediate_size")?,
        n_heads,
        n_kv_heads: keys.optional_size("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        d_vocab: keys.size("vocab_size")?,
        max_context: keys.size("max_position_embeddings")?,
        norm_eps: keys.float("rms_norm_eps")?.unwrap_or(1e-6),
        activation: keys.activation("hidden_act", Activation::Silu)?,
        rope: Some(rope(keys, "rope_theta", head_dim)?),
        parallel_residual: false,
        tied_embeddings: keys.flag("tie_word_embeddings", false)?,
        qkv_bias: attention_bias,
        attn_out_bias: attention_bias,
        mlp_bias: keys.flag("mlp_bias", false)?,
    })
}

/// Transformers 5 keeps base and scaling in `rope_parameters`; 4 has the base at the top (`base_key`) and the rest in `rope_scaling`.
fn rope(keys: &Keys<'_>, base_key: &str, dims: usize) -> Result<Rope, LmError> {
    let (parameters, scaling) = (keys.object("rope_parameters")?, keys.object("rope_scaling")?);
    let base = match &parameters {
        Some(parameters) => parameters.float("rope_theta")?,
        None => None,
    };
    let base = base.or(keys.float(base_key)?).unwrap_or(10_000.0);
    let Some(scaling) = parameters.or(scaling) else {
        return Ok(Rope { base, dims, scaling: RopeScaling::None });
    };
    let needed =
        |key: &str| scaling.float(key)?.ok_or_else(|| scaling.error(key, "is missing from the rotary scaling"));
    let kind = scaling.get("rope_type").or(scaling.get("type"));
    let scaling = match kind.map(|k| k.as_str().unwrap_or_default()) {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: needed("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: needed("factor")?,
            low_freq_factor: needed("low_freq_factor")?,
            high_freq_factor: needed("high_freq_factor")?,
            original_context: scaling.size("original_max_position_embeddings")?,
        },
        Some(_) => {
            let what = format!("rope_type {}", kind.map(brief).unwrap_or_default());
            return Err(LmError::unsupported(keys.path, what, "default, linear or llama3"));
        }
    };
    Ok(Rope { base, dims, scaling })
}
