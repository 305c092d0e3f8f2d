use crate::{LlmError, PromptRequest, Reply, Request, ScoredPrompt};

/// A language model that can be asked: one behind a server, or one in this process.
///
/// Calls block and may come from many threads at once. How many requests are under way, how often a failed one is sent again and what all may cost is the
/// endpoint's affair.
pub trait Endpoint: Sync {
    /// The model's name, as replies are attributed to it.
    fn model(&self) -> &str;

    /// Answers a conversation.
    ///
    /// # Errors
    /// See [`LlmError`]; [`LlmError::ends_the_run`] tells what concerns this request alone from what makes further ones pointless.
    fn chat(&self, request: &Request) -> Result<Reply, LlmError>;

    /// How likely each token of a text is, given what stands before it.
    ///
    /// # Errors
    /// As [`Self::chat`]; [`LlmError::Unsupported`] where the server does not tell, or tells in a way that cannot be trusted.
    fn score_prompt(&self, request: &PromptRequest) -> Result<ScoredPrompt, LlmError>;
}
