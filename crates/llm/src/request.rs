use serde::{Deserialize, Serialize};

/// Who says something in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What the model is told to be.
    System,
    /// Who asks.
    User,
    /// The model; in a request, an answer that shows it what is wanted.
    Assistant,
}

impl Role {
    /// The protocol's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// A conversation to be continued by the model.
///
/// All of it is part of the key under which the reply is cached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// The longest reply, in tokens.
    pub max_tokens: u32,
    /// 0 for the likeliest reply.
    pub temperature: f32,
    /// Draws the reply, where the server takes a seed.
    pub seed: u64,
    /// For each token of the reply the log-probabilities of so many candidates; 0 for none. A server that gives none leaves [`crate::Reply::tokens`] empty.
    pub top_logprobs: u8,
    /// What the request was made from (the hash of a prompt template, say): not sent, but part of the key.
    pub source: String,
}

/// A text whose tokens are to be scored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptRequest {
    /// The text; no template of a chat is put around it.
    pub text: String,
    /// Scores are wanted of the tokens that end after this byte; an endpoint may leave those before without.
    pub from: usize,
    /// Candidates whose log-probability is wanted at each token, the likeliest first. A server may give fewer.
    pub top: u8,
    /// If not empty, only candidates that are one of these are of interest, white space around them aside: an endpoint that can tells exactly how likely each is,
    /// however unlikely; others give the `top` likeliest all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub among: Vec<String>,
    /// As [`Request::source`].
    pub source: String,
}
