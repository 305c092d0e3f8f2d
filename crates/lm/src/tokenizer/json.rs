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
    Ok(Parts { bos: special("bos")?, eos: special("eos")?, hash: blake3::hash(&bytes).to_hex().to_string(), inner })
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
