//! The configuration inside a GGUF file.

use super::{Activation, Config, Family, Rope, RopeScaling};
use crate::LmError;
use crate::weights::gguf::Gguf;

/// Reads the configuration of a Llama model; GGUF files of other families have to be converted to the Hugging Face layout.
pub(crate) fn read(file: &Gguf) -> Result<Config, LmError> {
    let path = file.path();
    match file.text("general.architecture")? {
        Some("llama") => {}
        Some(other) => {
            let what = format!("architecture {other:?} in a GGUF file");
            let expected = format!("\"llama\"; a folder in Hugging Face layout may hold {}", Family::names());
            return Err(LmError::unsupported(path, what, expected));
        }
        None => return Err(LmError::config(path, "general.architecture", "is missing")),
    }
    let size = |key: &str| {
        let key = format!("llama.{key}");
        file.count(&key)?.ok_or_else(|| LmError::config(path, &key, "is missing"))
    };
    let (d_model, n_heads) = (size("embedding_length")?, size("attention.head_count")?);
    if let Some(n_experts @ 1..) = file.count("llama.expert_count")? {
        return Err(LmError::unsupported(path, format!("a mixture of {n_experts} experts"), "a dense model"));
    }
    let head_dim = match file.count("llama.attention.key_length")? {
        Some(head_dim) => head_dim,
        None if n_heads > 0 && d_model.is_multiple_of(n_heads) => d_model / n_heads,
        None => {
            let problem = format!("is {n_heads}, expected a divisor of the model width {d_model}");
            return Err(LmError::config(path, "llama.attention.head_count", problem));
        }
    };
    let dims = file.count("llama.rope.dimension_count")?.unwrap_or(head_dim);
    if dims != head_dim {
        // The permutation of query and key rows is defined on whole heads only.
        let problem = format!("is {dims}, expected the head width {head_dim}");
        return Err(LmError::config(path, "llama.rope.dimension_count", problem));
    }
    let embedding = file.shape("token_embd.weight").and_then(|shape| shape.first());
    let d_vocab =
        embedding.copied().ok_or_else(|| LmError::malformed(path, "tensor \"token_embd.weight\" is missing"))?;
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    let has = |name: &str| file.shape(name).is_some();
    let config = Config {
        family: Family::Llama,
        n_layers: size("block_count")?,
        d_model,
        d_mlp: size("feed_forward_length")?,
        n_heads,
        n_kv_heads: file.count("llama.attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        d_vocab,
        max_context: size("context_length")?,
        norm_eps: file.float(epsilon)?.ok_or_else(|| LmError::config(path, epsilon, "is missing"))?,
        activation: Activation::Silu,
        rope: Some(Rope {
            base: file.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
            dims,
            scaling: scaling(file, dims)?,
        }),
        parallel_residual: false,
        tied_embeddings: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        attn_out_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
    };
    config.validate().map_err(|(what, problem)| LmError::malformed(path, format!("the {what} {problem}")))?;
    Ok(config)
}

fn scaling(file: &Gguf, dims: usize) -> Result<RopeScaling, LmError> {
    const DIVISORS: &str = "rope_freqs.weight";
    if file.shape(DIVISORS).is_some() {
        return Ok(RopeScaling::Divisors(file.read(DIVISORS, &[dims / 2])?));
    }
    let factor = "llama.rope.scaling.factor";
    match file.text("llama.rope.scaling.type")? {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => {
            let factor = file.float(factor)?.ok_or_else(|| LmError::config(file.path(), factor, "is missing"))?;
            Ok(RopeScaling::Linear { factor })
        }
        Some(other) => Err(LmError::unsupported(file.path(), format!("rope scaling {other:?}"), "none or linear")),
    }
}
