use serde::{Deserialize, Serialize};

/// Why a reply ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model was done.
    Stop,
    /// It reached the longest reply allowed.
    Length,
    /// The server withheld it, or the model declined in the field that the protocol has for that.
    Refused,
}

/// Tokens that a request cost, as the server counted them, or else estimated from lengths (see `estimated`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub reply_tokens: u64,
    /// The server did not count; these are a quarter of the bytes.
    pub estimated: bool,
}

/// A token of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplyToken {
    /// Its text.
    pub text: String,
    /// Its log-probability, natural logarithm.
    pub logprob: f64,
    /// What else might have stood there, the likeliest first, the token itself among them where the server says so.
    pub top: Vec<(String, f64)>,
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// The text; may be empty.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Its tokens, where candidates were asked for and the server gives them; else empty.
    pub tokens: Vec<ReplyToken>,
    /// What it cost.
    pub usage: Usage,
}

/// A token of a scored text, with what was expected in its place **given what stands before it**.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoredToken {
    /// Its text. The texts of all tokens together are the text that was scored; of tokens that share a character the last one has it.
    pub text: String,
    /// Its log-probability, natural logarithm; `None` for the first token, and where the server does not say.
    pub logprob: Option<f64>,
    /// The likeliest candidates for its place, likeliest first; empty for the first token.
    pub top: Vec<(String, f64)>,
}

/// A text with the log-probabilities of its tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoredPrompt {
    /// In order.
    pub tokens: Vec<ScoredToken>,
    /// What it cost.
    pub usage: Usage,
}
