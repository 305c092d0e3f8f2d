//! The byte-level BPE tokenizer inside a GGUF file.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::Parts;
use crate::LmError;
use crate::weights::gguf::Gguf;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// `LLAMA_TOKEN_TYPE_CONTROL` and `LLAMA_TOKEN_TYPE_USER_DEFINED` of llama.cpp.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How Llama 3 splits a text before the merges.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) fn read(file: &Gguf) -> Result<Parts, LmError> {
    let path = file.path();
    let missing = |key: &str| LmError::config(path, key, "is missing");
    let broken = |problem: String| LmError::malformed(path, problem);
    let model = file.text(MODEL)?.ok_or_else(|| missing(MODEL))?;
    if model != "gpt2" {
        return Err(LmError::unsupported(path, format!("{MODEL} {model:?}"), "\"gpt2\" (byte-level BPE)"));
    }
    let pre = file.text(PRE)?.ok_or_else(|| missing(PRE))?;
    let tokens = file.texts(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
    let merges = file.texts(MERGES)?.ok_or_else(|| missing(MERGES))?;
    let types = file.integers(TYPES)?.unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(LmError::config(path, TYPES, format!("has {} entries for {} tokens", types.len(), tokens.len())));
    }
    if let Some(twice) = first_repeated(&tokens) {
        return Err(LmError::config(path, TOKENS, format!("has the token {twice:?} twice")));
    }
    let count = u32::try_from(tokens.len()).map_err(|_| LmError::config(path, TOKENS, "has more entries than ids"))?;
    let vocab: Vocab = tokens.iter().map(|&t| t.to_owned()).zip(0..count).collect();
    let merge = |&merge: &&str| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => {
            Err(LmError::config(path, MERGES, format!("has {merge:?}, which is not two tokens with a space between")))
        }
    };
    let merges = merges.iter().map(merge).collect::<Result<Vec<_>, _>>()?;
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.starts_with("llama")).build();
    let mut inner = tokenizers::Tokenizer::new(bpe.map_err(|e| broken(format!("tokenizer: {e}")))?);
    inner.with_pre_tokenizer(Some(pre_tokenizer(file, pre)?));
    inner.with_decoder(Some(ByteLevel::default()));
    let added = tokens.iter().zip(&types).filter(|(_, kind)| [CONTROL, USER_DEFINED].contains(kind));
    let added: Vec<AddedToken> = added.map(|(&token, &kind)| AddedToken::from(token, kind == CONTROL)).collect();
    inner.add_tokens(added).map_err(|e| broken(format!("tokenizer: {e}")))?;
    let special = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = file.count(&key)? else { return Ok(None) };
        let id = u32::try_from(id).ok().filter(|&id| id < count);
        id.map(Some).ok_or_else(|| LmError::config(path, &key, format!("is not below the number of tokens {count}")))
    };
    let chat_template = file.text("tokenizer.chat_template")?.map(str::to_owned);
    let begins_with_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
    Ok(Parts {
        begins_with_bos,
        chat_template,
        bos: special("bos")?,
        eos: special("eos")?,
        hash: hash(model, pre, &tokens, &types, file)?,
        inner,
    })
}

/// Splits a text as the model's training did; the names are llama.cpp's (`llama-vocab.cpp`).
fn pre_tokenizer(file: &Gguf, pre: &str) -> Result<PreTokenizerWrapper, LmError> {
    let gpt2 = ByteLevel::new(false, false, true);
    Ok(match pre {
        "gpt-2" | "olmo" => gpt2.into(),
        // Every digit alone, then GPT-2's pattern on what lies between.
        "smollm" | "starcoder" | "refact" | "command-r" => {
            Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into()
        }
        "llama-bpe" | "llama3" => {
            let split = Split::new(SplitPattern::Regex(LLAMA3.to_owned()), SplitDelimiterBehavior::Isolated, false);
            let split = split.map_err(|e| LmError::malformed(file.path(), format!("tokenizer: {e}")))?;
            Sequence::new(vec![split.into(), ByteLevel::new(false, false, false).into()]).into()
        }
        other => {
            let expected = "\"gpt-2\", \"olmo\", \"smollm\", \"starcoder\", \"refact\", \"command-r\", \"llama-bpe\" or \"llama3\"";
            return Err(LmError::unsupported(file.path(), format!("{PRE} {other:?}"), expected));
        }
    })
}

fn first_repeated<'a>(tokens: &[&'a str]) -> Option<&'a str> {
    let mut seen = HashSet::with_capacity(tokens.len());
    tokens.iter().copied().find(|&token| !seen.insert(token))
}

/// A hash of everything that decides how a text becomes ids. Lengths go in so that no two lists run into one another.
fn hash(model: &str, pre: &str, tokens: &[&str], types: &[i64], file: &Gguf) -> Result<String, LmError> {
    let mut hasher = blake3::Hasher::new();
    let mut text = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    text(model);
    text(pre);
    tokens.iter().for_each(|t| text(t));
    text("merges");
    file.texts(MERGES)?.unwrap_or_default().into_iter().for_each(&mut text);
    types.iter().for_each(|kind| {
        hasher.update(&kind.to_le_bytes());
    });
    Ok(hasher.finalize().to_hex().to_string())
}
