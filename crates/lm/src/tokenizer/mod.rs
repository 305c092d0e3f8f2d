//! Text to token ids and back.

mod gguf;
mod json;

use std::collections::HashMap;
use std::path::Path;

use crate::LmError;
use crate::weights::gguf::Gguf;

/// What a loader finds out about a tokenizer.
struct Parts {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    hash: String,
    chat_template: Option<String>,
    begins_with_bos: bool,
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    hash: String,
    chat_template: Option<String>,
    begins_with_bos: bool,
    /// The byte behind each character of a byte-level vocabulary; `None` where the vocabulary is plain text.
    bytes: Option<HashMap<char, u8>>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model: from a folder with `tokenizer.json`, from such a file itself, or from a `.gguf` file.
    ///
    /// # Errors
    /// If a file is absent or corrupt, or a GGUF tokenizer is of a kind that is not supported.
    pub fn load(path: &Path) -> Result<Self, LmError> {
        let Parts { inner, bos, eos, hash, chat_template, begins_with_bos } = if path.is_dir() {
            json::read(&path.join("tokenizer.json"))?
        } else if path.extension().is_some_and(|e| e == "json") {
            json::read(path)?
        } else {
            gguf::read(&Gguf::open(path)?)?
        };
        // The decoder says what the vocabulary's characters mean; it may be wrapped in a sequence.
        let decoder = inner.get_decoder().and_then(|d| serde_json::to_string(d).ok()).unwrap_or_default();
        let bytes = decoder.contains("\"ByteLevel\"").then(byte_of_character);
        Ok(Self { inner, bos, eos, hash, chat_template, begins_with_bos, bytes })
    }

    /// The ids of a text. Nothing is put before or after it: see [`Self::bos`] and [`Self::eos`].
    ///
    /// # Errors
    /// If the text holds something that the vocabulary has no token for.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, LmError> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|e| LmError::Tokenize { what: "encode the text", problem: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of a sequence of ids, special tokens included. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, LmError> {
        let error = |problem: String| LmError::Tokenize { what: "decode the ids", problem };
        if let Some(id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(error(format!("there is no token {id} in a vocabulary of {}", self.vocab_size())));
        }
        self.inner.decode(ids, false).map_err(|e| error(e.to_string()))
    }

    /// The text of one token as it stands in a longer text, its leading space included; `None` if there is no such token. Bytes that are not
    /// UTF-8, because the token is a part of a character, become U+FFFD.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        if self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return Some(token);
        }
        if let Some(bytes) = &self.bytes {
            // A character that stands for no byte makes it a token of plain text.
            let undone: Option<Vec<u8>> = token.chars().map(|c| bytes.get(&c).copied()).collect();
            return Some(undone.map_or(token, |b| String::from_utf8_lossy(&b).into_owned()));
        }
        let byte =
            token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).and_then(|t| u8::from_str_radix(t, 16).ok());
        Some(byte.map_or_else(|| token.replace('\u{2581}', " "), |b| String::from_utf8_lossy(&[b]).into_owned()))
    }

    /// The ids of a text with the part of the text that each stands for: the parts together are the text. Where a character takes several tokens, the last
    /// of them has it and the others have an empty part.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn pieces<'t>(&self, text: &'t str) -> Result<Vec<(u32, &'t str)>, LmError> {
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|e| LmError::Tokenize { what: "encode the text", problem: e.to_string() })?;
        let ids = encoding.get_ids();
        // Where every character of a token stands for a byte, the tokens' own lengths say where they end. Offsets may leave out leading spaces.
        let length = |id: &u32| {
            let added = self.inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(id);
            let token = self.inner.id_to_token(*id).unwrap_or_default();
            if added { token.len() } else { token.chars().count() }
        };
        let lengths: Option<Vec<usize>> = self.bytes.as_ref().map(|_| ids.iter().map(length).collect());
        let lengths = lengths.filter(|lengths| lengths.iter().sum::<usize>() == text.len());
        let offsets = encoding.get_offsets();
        let (mut start, mut read) = (0, 0);
        let piece = |(i, id): (usize, &u32)| {
            let end = match &lengths {
                Some(lengths) => {
                    read += lengths[i];
                    read
                }
                // A piece ends where the next one begins, so that nothing between them is lost; tokens of one character share its offsets.
                None => offsets.get(i + 1).map_or(text.len(), |next| next.0),
            };
            // Of a character that is not whole yet, nothing.
            let end =
                (start..=end.max(start).min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(start);
            let end = if i + 1 == ids.len() { text.len() } else { end };
            let part = &text[start..end];
            start = end;
            (*id, part)
        };
        Ok(ids.iter().enumerate().map(piece).collect())
    }

    /// Cuts a text inside every special token (of two characters or more) that is typed in it, so that no part holds one: what other people wrote is read as the characters that stand there,
    /// and cannot end a document or begin a message. The parts together are the text.
    #[must_use]
    pub fn without_special<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        // What has no inside cannot be cut.
        let special = added.values().filter(|t| t.special && t.content.chars().nth(1).is_some());
        let special: Vec<&str> = special.map(|t| t.content.as_str()).collect();
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = special.iter().filter_map(|special| rest.find(special)).min() {
            let first = rest[at..].chars().next().map_or(0, char::len_utf8);
            let (part, others) = rest.split_at(at + first);
            parts.push(part);
            rest = others;
        }
        parts.push(rest);
        parts
    }

    /// How a conversation is written out for this model: a Jinja template, where the files have one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The id of a token given as it stands in the vocabulary (special tokens above all: `<|im_end|>`).
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, added ones included.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token that ends a document.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The token that begins a document, where the model has one.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether the model was trained to read [`Self::bos`] before every text.
    #[must_use]
    pub fn begins_with_bos(&self) -> bool {
        self.begins_with_bos
    }

    /// BLAKE3 in hexadecimal of `tokenizer.json`, or of the tokenizer's entries in a GGUF file.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// GPT-2's reversible map from bytes to printable characters, inverted: printable Latin-1 characters stand for themselves, the other
/// bytes for the characters from U+0100 on.
fn byte_of_character() -> HashMap<char, u8> {
    let mut next = 0x100;
    let character = |byte: u8| {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    let characters: Vec<char> = (0..=255).map(character).collect();
    characters.into_iter().zip(0..=255).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let map = byte_of_character();
        assert_eq!(map.len(), 256);
        assert_eq!((map[&'\u{120}'], map[&'\u{10a}'], map[&'a']), (b' ', b'\n', b'a'));
    }
}
