//! `tokenizer.json` of the Hugging Face layout.

use std::path::Path;

use serde_json::Value;

use super::Parts;
use crate::LmError;

pub(super) fn read(path: &Path) -> Result<Parts, LmError> {
    let bytes = std::fs::read(path).map_err(|e| LmError::io(path, e))?;
    let inner = tokenizers::Tokenizer::from_bytes(&bytes)
        .map_err(|e| LmError::malformed(path, format!("not a tokenizer: {e}")))?;
    let special = |name: &str| special_token(path, &inner, name);
    let chat_template = chat_template(path)?;
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let bos = special("bos")?;
    // What the post-processor adds to a text of nothing.
    let added = inner.encode("", true).map_err(|e| LmError::malformed(path, e.to_string()))?;
    let begins_with_bos = bos.is_some() && added.get_ids().first().copied() == bos;
    Ok(Parts { chat_template, begins_with_bos, bos, eos: special("eos")?, hash, inner })
}

/// The template of a conversation: a file of its own in newer folders, else a key of `tokenizer_config.json`, where there may be several by name.
fn chat_template(path: &Path) -> Result<Option<String>, LmError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    match std::fs::read_to_string(folder.join("chat_template.jinja")) {
        Ok(template) => return Ok(Some(template)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(LmError::io(&folder.join("chat_template.jinja"), e)),
    }
    let config = object(&folder.join("tokenizer_config.json"))?;
    Ok(match &config["chat_template"] {
        Value::String(template) => Some(template.clone()),
        Value::Array(several) => {
            let default = several.iter().find(|template| template["name"] == "default");
            default.and_then(|template| template["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    })
}

/// The id of the `bos` or `eos` token: by its text from `tokenizer_config.json`, else by its number from `config.json`.
fn special_token(path: &Path, tokenizer: &tokenizers::Tokenizer, name: &str) -> Result<Option<u32>, LmError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let texts = object(&folder.join("tokenizer_config.json"))?;
    let text = match texts.get(format!("{name}_token")) {
        Some(Value::String(text)) => Some(text.as_str()),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
        _ => None,
    };
    if let Some(id) = text.and_then(|text| tokenizer.token_to_id(text)) {
        return Ok(Some(id));
    }
    let numbers = object(&folder.join("config.json"))?;
    let number = match numbers.get(format!("{name}_token_id")) {
        // Chat models list several; the first ends a text.
        Some(Value::Array(several)) => several.first().and_then(Value::as_u64),
        Some(number) => number.as_u64(),
        None => None,
    };
    Ok(number.and_then(|n| u32::try_from(n).ok()))
}

/// A JSON file that need not be there.
fn object(path: &Path) -> Result<Value, LmError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| LmError::malformed(path, e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(LmError::io(path, e)),
    }
}
