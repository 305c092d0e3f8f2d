//! Against a real server, which is not there in general: name one in `MONOSEM_TEST_LLM_URL` (up to `/v1`) and its model in
//! `MONOSEM_TEST_LLM_MODEL`, and run `cargo test -p monosem-llm --test real_server -- --ignored`.

use std::path::Path;

use monosem_llm::{Client, ClientConfig, Endpoint, Finish, LlmError, Message, PromptRequest, Request, Role};

fn client(cache: Option<&Path>) -> Client {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("set {name}"));
    let config = ClientConfig {
        base_url: variable("MONOSEM_TEST_LLM_URL"),
        model: variable("MONOSEM_TEST_LLM_MODEL"),
        cache: cache.map(Into::into),
        ..ClientConfig::default()
    };
    Client::new(config, None).unwrap()
}

fn question(text: &str) -> Request {
    let messages = vec![Message { role: Role::User, content: text.into() }];
    Request { messages, max_tokens: 24, temperature: 0.0, seed: 1, top_logprobs: 0, source: String::new() }
}

fn prompt(text: &str) -> PromptRequest {
    PromptRequest { text: text.into(), from: 0, top: 5, among: Vec::new(), source: String::new() }
}

#[test]
#[ignore = "needs a server: see the head of this file"]
fn a_chat_is_answered_counted_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let first = client(Some(folder.path()));
    let request = question("What is the capital of France?");
    let reply = first.chat(&request).unwrap();
    assert!(!reply.text.trim().is_empty(), "{reply:?}");
    assert!(!reply.usage.estimated && reply.usage.prompt_tokens > 5 && reply.usage.reply_tokens > 0, "{reply:?}");
    let spent = first.spent();
    assert_eq!((spent.prompt_tokens, spent.reply_tokens), (reply.usage.prompt_tokens, reply.usage.reply_tokens));

    let second = client(Some(folder.path()));
    assert_eq!(second.chat(&request).unwrap(), reply);
    assert_eq!((second.spent().requests, second.spent().cached), (0, 1));

    let short = first.chat(&Request { max_tokens: 2, ..request }).unwrap();
    assert_eq!(short.finish, Finish::Length);
    assert!(short.usage.reply_tokens <= 2, "{short:?}");
}

#[test]
#[ignore = "needs a server: see the head of this file"]
fn candidates_of_a_reply_are_given_where_the_server_has_them() {
    let client = client(None);
    let request = Request { top_logprobs: 3, ..question("What is the capital of France?") };
    let reply = client.chat(&request).unwrap();
    for token in &reply.tokens {
        assert!((1..=3).contains(&token.top.len()), "{token:?}");
        assert!(token.logprob <= 0.0 && token.top.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{token:?}");
    }
    let text: String = reply.tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(reply.tokens.is_empty() || text.trim().starts_with(reply.text.trim()), "{text:?} {:?}", reply.text);
}

#[test]
#[ignore = "needs a server that scores prompts: see the head of this file"]
fn a_prompt_is_scored_at_the_right_places() {
    let client = client(None);
    let text = "When Mary and John went to the store, John gave a drink to Mary. Then John gave a drink to Mary";
    let scored = client.score_prompt(&prompt(text)).unwrap();
    let texts: Vec<&str> = scored.tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(texts.concat(), text);
    let last = scored.tokens.last().unwrap();
    assert_eq!(last.top[0].0, last.text, "the end of a repeated sentence is known: {last:?}");
    assert!(last.logprob.is_some_and(|logprob| logprob > -2.0), "{last:?}");
    assert!(scored.tokens[0].logprob.is_none() && scored.tokens[0].top.is_empty());
    assert!(scored.usage.prompt_tokens as usize >= scored.tokens.len());

    let odd = "naïve \u{1F600} \"quotes\"\n\ttabs 日本語 end";
    let scored = client.score_prompt(&prompt(odd)).unwrap();
    assert_eq!(scored.tokens.iter().map(|token| token.text.as_str()).collect::<String>(), odd);

    // Either the special tokens are scored like others, or the text is refused: never at the wrong places.
    let special = format!("<|im_start|>{text}<|im_end|>");
    match client.score_prompt(&prompt(&special)) {
        Ok(scored) => {
            assert_eq!(scored.tokens.iter().map(|token| token.text.as_str()).collect::<String>(), special);
        }
        Err(error) => assert!(matches!(error, LlmError::Schema { .. }), "{error}"),
    }
}

#[test]
#[ignore = "needs a server: see the head of this file"]
fn a_model_that_is_not_there_or_a_prompt_too_long_is_refused() {
    let client = client(None);
    let long = question(&"word ".repeat(200_000));
    let error = client.chat(&long).unwrap_err();
    assert!(matches!(error, LlmError::Refused { .. } | LlmError::Unreachable { .. }), "{error}");
}
