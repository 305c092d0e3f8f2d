use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use monosem_llm::{Alignment, Client, ClientConfig, Dialect, Endpoint, LlmError, PromptRequest, ScoredPrompt};
use serde_json::{Map, Value, json};

use crate::server::{Answer, Seen, Server};
use crate::{client, config};

/// What a made-up server does with prompts. Its model knows each text by heart.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// As the protocol means it.
    Aligned,
    /// As llama-cpp-python does: an entry holds the candidates for the next token, and the token itself among them.
    Shifted,
    /// Candidates that are never right.
    Nonsense,
    /// Tokens that are not the prompt's.
    OtherText,
}

const TEXT: &str = "Mary gave a drink to John, and \"John\"\n gave a drink to Mary.";

fn tokens(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(str::to_owned).collect()
}

/// The model's candidates for a place, by the token that stands there.
fn candidates(token: &str) -> Vec<(String, f64)> {
    let sure = -0.125 - token.len() as f64 / 64.0;
    vec![(token.to_owned(), sure), ("the ".into(), -3.5), ("of ".into(), -4.25)]
}

fn echo(request: &Seen, way: Way) -> Answer {
    let body = request.json();
    assert_eq!((&body["echo"], &body["max_tokens"]), (&json!(true), &json!(1)), "{body}");
    let prompt = body["prompt"].as_str().unwrap();
    let mut texts = tokens(prompt);
    texts.push("generated ".into());
    let (mut logprobs, mut tops) = (Vec::new(), Vec::new());
    for index in 0..texts.len() {
        let place = if way == Way::Shifted { index + 1 } else { index };
        let mut top: Map<String, Value> = candidates(texts.get(place).map_or("end ", String::as_str))
            .into_iter()
            .map(|(t, l)| (t, json!(l)))
            .collect();
        if way == Way::Nonsense {
            top = [(format!("nonsense {index}"), json!(-0.1))].into_iter().collect();
        }
        let own = top.get(&texts[index]).and_then(Value::as_f64).unwrap_or(-9.0);
        if way == Way::Shifted {
            top.insert(texts[index].clone(), json!(own));
        }
        let first = index == 0;
        logprobs.push(if first { Value::Null } else { json!(own) });
        tops.push(if first { Value::Null } else { Value::Object(top) });
    }
    if way == Way::OtherText {
        texts[2] = "WRONG ".into();
    }
    let count = tokens(prompt).len();
    Answer::json(&json!({
        "choices": [{"text": format!("{prompt}generated "), "index": 0, "finish_reason": "length",
            "logprobs": {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": []}}],
        "usage": {"prompt_tokens": count, "completion_tokens": 1}
    }))
}

fn server(way: Way) -> Server {
    Server::start(move |request, _| {
        assert_eq!(request.target, "/v1/completions");
        echo(request, way)
    })
}

fn request(text: &str) -> PromptRequest {
    PromptRequest { text: text.into(), from: 0, top: 2, among: Vec::new(), source: String::new() }
}

fn score(client: &Client) -> ScoredPrompt {
    client.score_prompt(&request(TEXT)).unwrap()
}

#[test]
fn aligned_and_shifted_servers_come_to_the_same() {
    let (aligned, shifted) = (server(Way::Aligned), server(Way::Shifted));
    let (one, other) = (client(config(&aligned)), client(config(&shifted)));
    let (expected, mut got) = (score(&one), score(&other));
    assert_eq!(one.alignment(), Ok(Alignment::OwnPlace));
    assert_eq!(other.alignment(), Ok(Alignment::NextPlace));

    let texts: Vec<&str> = expected.tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(texts.concat(), TEXT, "what the server generated is cut off");
    assert!(expected.tokens[0].logprob.is_none() && expected.tokens[0].top.is_empty());
    for token in &expected.tokens[1..] {
        let candidates = candidates(&token.text);
        assert_eq!((token.logprob, &token.top[..]), (Some(candidates[0].1), &candidates[..2]));
    }
    assert_eq!((expected.usage.prompt_tokens, expected.usage.reply_tokens), (texts.len() as u64, 1));

    // A shifted server says nothing with the first token, which is where the second one's candidates would be.
    assert!(got.tokens[1].logprob.is_none() && got.tokens[1].top.is_empty());
    got.tokens[1] = expected.tokens[1].clone();
    assert_eq!(got, expected);
    // One for the probe, one for the text.
    assert_eq!((aligned.count(), shifted.count()), (2, 2));
}

#[test]
fn the_probe_is_asked_once_and_kept() {
    let server = server(Way::Shifted);
    let folder = tempfile::tempdir().unwrap();
    let config = ClientConfig { cache: Some(folder.path().into()), ..config(&server) };
    let first = client(config.clone());
    let expected = score(&first);
    first.score_prompt(&request("another text ")).unwrap();
    assert_eq!(server.count(), 3);
    let second = client(config);
    assert_eq!(score(&second), expected);
    assert_eq!(second.alignment(), Ok(Alignment::NextPlace));
    assert_eq!((server.count(), second.spent().requests), (3, 0));
}

#[test]
fn many_threads_ask_for_the_probe_once() {
    let server = server(Way::Aligned);
    let client = client(config(&server));
    std::thread::scope(|scope| {
        for index in 0..8 {
            let client = &client;
            scope.spawn(move || client.score_prompt(&request(&format!("text number {index}"))).unwrap());
        }
    });
    assert_eq!(server.count(), 9);
}

#[test]
fn nonsense_is_refused() {
    let nonsense = server(Way::Nonsense);
    let client_of = |server: &Server| client(config(server));
    let error = client_of(&nonsense).score_prompt(&request(TEXT)).unwrap_err();
    let LlmError::Unsupported { why, .. } = &error else { panic!("{error}") };
    assert!(why.contains("cannot be told") && error.ends_the_run(), "{why}");
    assert_eq!(nonsense.count(), 1, "the text itself is not sent");

    let other = server(Way::OtherText);
    let error = client_of(&other).score_prompt(&request(TEXT)).unwrap_err();
    assert!(matches!(error, LlmError::Schema { .. }) && !error.ends_the_run(), "{error}");
    assert_eq!(other.count(), 1);

    let deaf = Server::start(|_, _| {
        Answer::json(&json!({"choices": [{"text": " x", "logprobs": {"content": [{"token": " x", "logprob": -1}]}}]}))
    });
    let error = client_of(&deaf).score_prompt(&request(TEXT)).unwrap_err();
    assert!(matches!(error, LlmError::Unsupported { .. }), "{error}");
    assert_eq!(deaf.count(), 1, "asking again would not help");
}

#[test]
fn a_refusal_of_the_parameters_is_one_of_all_prompts() {
    for (status, message) in [
        (400, "You requested echo and logprobs at the same time, which is not supported for this model"),
        (500, "logprobs is not supported for models created with logits_all=False"),
        (501, "Unsupported param: echo"),
    ] {
        let server = Server::start(move |_, _| Answer::error(status, message));
        let error = client(config(&server)).score_prompt(&request(TEXT)).unwrap_err();
        assert!(matches!(&error, LlmError::Unsupported { why, .. } if why.contains(message)), "{error}");
        assert_eq!(server.count(), 1);
    }
    let long = Server::start(|_, _| Answer::error(400, "the prompt is too long"));
    let error = client(config(&long)).score_prompt(&request(TEXT)).unwrap_err();
    assert!(matches!(error, LlmError::Refused { .. }), "{error}");
}

#[test]
fn vllm_is_asked_in_its_own_way() {
    let models = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&models);
    let server = Server::start(move |request, _| {
        if request.target == "/v1/models" {
            counted.fetch_add(1, Ordering::SeqCst);
            return Answer::json(&json!({"object": "list", "data": [{"id": "model-a", "owned_by": "vllm"}]}));
        }
        let body = request.json();
        assert_eq!((&body["max_tokens"], &body["echo"]), (&json!(1), &Value::Null), "{body}");
        assert!(body["prompt_logprobs"].as_u64().is_some_and(|top| top >= 2), "{body}");
        // serde_json would sort the entries, and vLLM does not.
        let entry = |token: &String| {
            let candidates = candidates(token);
            let one = |(id, (text, logprob)): (usize, &(String, f64))| {
                let value = json!({"logprob": logprob, "rank": 1, "decoded_token": text});
                format!("\"{}\": {value}", 9 - id)
            };
            format!("{{{}}}", candidates.iter().enumerate().map(one).collect::<Vec<_>>().join(","))
        };
        let texts = tokens(body["prompt"].as_str().unwrap());
        let entries = texts[1..].iter().map(entry).collect::<Vec<_>>().join(",");
        let usage = json!({"prompt_tokens": texts.len(), "completion_tokens": 1});
        let answer = format!(
            r#"{{"choices": [{{"text": "generated", "logprobs": null, "prompt_logprobs": [null, {entries}]}}], "usage": {usage}}}"#
        );
        Answer { status: 200, body: answer.into_bytes(), ..Answer::default() }
    });
    let folder = tempfile::tempdir().unwrap();
    let auto = ClientConfig { server: Dialect::Auto, cache: Some(folder.path().into()), ..config(&server) };
    let vllm = client(auto.clone());
    let echo = self::server(Way::Aligned);
    assert_eq!(score(&vllm), score(&client(config(&echo))));
    assert_eq!((vllm.dialect(), vllm.alignment()), (Ok(Dialect::Vllm), Ok(Alignment::OwnPlace)));
    let before = server.count();
    score(&client(auto));
    assert_eq!((server.count(), models.load(Ordering::SeqCst)), (before, 1), "the dialect is kept too");
}
