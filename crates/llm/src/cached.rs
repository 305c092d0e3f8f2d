use std::path::Path;

use crate::cache::{Cache, Key};
use crate::{Endpoint, LlmError, PromptRequest, Reply, Request, ScoredPrompt};

/// An endpoint whose replies are kept in a folder, as [`crate::Client`] keeps its own: for a model in this process, whose replies cost time.
pub struct Cached<E> {
    endpoint: E,
    cache: Cache,
    identity: String,
}

impl<E: Endpoint> Cached<E> {
    /// `identity` tells the model from others of its name: a hash of its weights, say.
    ///
    /// # Errors
    /// [`LlmError::Cache`] if the folder cannot be made.
    pub fn new(endpoint: E, identity: impl Into<String>, folder: &Path) -> Result<Self, LlmError> {
        Ok(Self { endpoint, cache: Cache::open(folder)?, identity: identity.into() })
    }

    fn answer<Q: crate::cache::Canonical, R: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        kind: &str,
        question: &Q,
        ask: impl Fn() -> Result<R, LlmError>,
    ) -> Result<R, LlmError> {
        let key = Key::new(kind, self.endpoint.model(), &self.identity, question);
        if let Some((reply, _)) = self.cache.load(&key) {
            return Ok(reply);
        }
        let reply = ask()?;
        let text = serde_json::to_string(&reply).expect("a reply of texts and finite numbers is JSON");
        self.cache.store(&key, &text)?;
        Ok(reply)
    }
}

impl<E: Endpoint> Endpoint for Cached<E> {
    fn model(&self) -> &str {
        self.endpoint.model()
    }

    fn chat(&self, request: &Request) -> Result<Reply, LlmError> {
        self.answer("chat", request, || self.endpoint.chat(request))
    }

    fn score_prompt(&self, request: &PromptRequest) -> Result<ScoredPrompt, LlmError> {
        self.answer("prompt", request, || self.endpoint.score_prompt(request))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::{Finish, Usage};

    struct Counting(AtomicU32);

    impl Endpoint for Counting {
        fn model(&self) -> &str {
            "counting"
        }
        fn chat(&self, _: &Request) -> Result<Reply, LlmError> {
            let n = self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Reply { text: n.to_string(), finish: Finish::Stop, tokens: Vec::new(), usage: Usage::default() })
        }
        fn score_prompt(&self, _: &PromptRequest) -> Result<ScoredPrompt, LlmError> {
            Err(LlmError::Stopped)
        }
    }

    #[test]
    fn a_question_is_answered_once_for_each_model() {
        let folder = tempfile::tempdir().unwrap();
        let open = |identity: &str| Cached::new(Counting(AtomicU32::new(7)), identity, folder.path()).unwrap();
        let request = |seed| Request {
            messages: Vec::new(),
            max_tokens: 1,
            temperature: 0.0,
            seed,
            top_logprobs: 0,
            source: String::new(),
        };
        let first = open("a");
        let said = |cached: &Cached<Counting>, seed| cached.chat(&request(seed)).unwrap().text;
        assert_eq!([said(&first, 1), said(&first, 2), said(&first, 1)], ["7", "8", "7"]);
        assert_eq!((said(&open("a"), 2), said(&open("b"), 2)), ("8".into(), "7".into()));
        let prompt = PromptRequest { text: "x".into(), from: 0, top: 1, among: Vec::new(), source: String::new() };
        assert_eq!(first.score_prompt(&prompt), Err(LlmError::Stopped));
    }
}
