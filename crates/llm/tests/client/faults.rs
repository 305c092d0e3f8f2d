use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use monosem_llm::{Client, ClientConfig, Endpoint, LlmError};
use serde_json::json;

use crate::server::{Answer, Seen, Server, digest};
use crate::{ask_all, client, config, question, questions};

const QUESTIONS: usize = 3000;

/// A number in 0..n that the seed, the question and the attempt determine.
fn draw(question: &str, attempt: usize, n: u32) -> u32 {
    let hash = blake3::hash(format!("seed 11 {question} {attempt}").as_bytes());
    u32::from_le_bytes(hash.as_bytes()[..4].try_into().unwrap()) % n
}

/// What goes wrong with an attempt, if anything does.
fn fault(question: &str, attempt: usize) -> Option<Answer> {
    if attempt >= 6 {
        return None;
    }
    let right = Answer::chat(&digest(question));
    Some(match draw(question, attempt, 1000) {
        0..60 => Answer::error(429, "slow down").with("Retry-After", "0"),
        60..61 => Answer::error(429, "slow down").with("Retry-After", "1"),
        61..100 => Answer::error(429, "slow down"),
        100..160 => Answer::error(500, "internal"),
        160..162 => right.after(Duration::from_millis(3_500)),
        162..220 => Answer { cut: true, ..right },
        220..270 => Answer { body: b"{\"choices\": [{]".to_vec(), ..right },
        270..310 => Answer::json(&json!({"choices": [{"text": "another protocol"}]})),
        310..350 => Answer::json(&json!({"choices": [], "usage": null})),
        350..360 => Answer { status: 503, body: b"<html>busy</html>".to_vec(), ..right },
        _ => return None,
    })
}

#[test]
fn thousands_of_questions_through_a_faulty_server_each_get_their_own_answer_once() {
    let right: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let counted = Arc::clone(&right);
    let server = Server::start(move |request: &Seen, before| {
        let question = request.question();
        fault(&question, before).unwrap_or_else(|| {
            *counted.lock().unwrap().entry(question.clone()).or_default() += 1;
            Answer::chat(&digest(&question))
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let config = ClientConfig {
        concurrency: 16,
        attempts: 10,
        timeout_s: 3.0,
        cache: Some(folder.path().into()),
        ..config(&server)
    };
    let questions = questions(QUESTIONS);
    let first = client(config.clone());
    let replies = ask_all(&first, &questions, 16);
    for (question, reply) in questions.iter().zip(&replies) {
        let reply = reply.as_ref().expect("none is lost").as_ref().unwrap();
        assert_eq!(reply.text, digest(&question.messages[0].content), "none gets another one's");
    }
    {
        let right = right.lock().unwrap();
        assert_eq!(right.len(), QUESTIONS);
        assert!(right.values().all(|count| *count == 1), "none is answered twice");
    }
    let spent = first.spent();
    assert_eq!(spent.requests as usize, server.count());
    assert_eq!(spent.retried, spent.requests - QUESTIONS as u64);
    assert!(spent.retried > 1000 && spent.cached == 0, "{spent:?}");

    let before = server.count();
    let second = client(config);
    assert_eq!(ask_all(&second, &questions, 16), replies);
    assert_eq!(server.count(), before, "the second run asks nothing");
    assert_eq!((second.spent().requests, second.spent().cached), (0, QUESTIONS as u64));
}

/// What comes of a question to a server that always answers so, and how often it was sent.
fn outcome(answer: Answer) -> (LlmError, usize) {
    let server = Server::start(move |_, _| answer.clone());
    let client = client(config(&server));
    let error = client.chat(&question("anything")).unwrap_err();
    (error, server.count())
}

#[test]
fn what_may_pass_is_tried_again_and_what_will_not_is_refused_at_once() {
    for status in [408, 409, 425, 429, 500, 502, 503, 504, 529] {
        let (error, sent) = outcome(Answer::error(status, "try later"));
        let LlmError::Unreachable { attempts: 3, last, .. } = &error else { panic!("{error}") };
        assert!(last.contains(&status.to_string()) && last.contains("try later"), "{last}");
        assert_eq!((sent, error.ends_the_run()), (3, true));
    }
    for (status, ends) in
        [(400, false), (401, true), (403, true), (404, true), (413, false), (422, false), (501, false)]
    {
        let (error, sent) = outcome(Answer::error(status, "not like this"));
        let LlmError::Refused { status: got, message, .. } = &error else { panic!("{error}") };
        assert_eq!((*got, message.as_str(), sent), (status, "not like this", 1));
        assert_eq!(error.ends_the_run(), ends, "{status}");
    }
    for answer in [
        Answer::json(&json!({"choices": []})),
        Answer::json(&json!({"choices": [{"message": {"content": 7}}]})),
        Answer::json(&json!({"error": {"message": "overloaded"}})),
        Answer { body: b"no json".to_vec(), ..Answer::chat("") },
    ] {
        let (error, sent) = outcome(answer);
        assert!(matches!(error, LlmError::Schema { .. }), "{error}");
        assert_eq!((sent, error.ends_the_run()), (3, false));
    }
    let (error, sent) = outcome(Answer { cut: true, ..Answer::chat("a") });
    assert!(matches!(error, LlmError::Unreachable { attempts: 3, .. }), "{error}");
    assert_eq!(sent, 3);

    let broke = json!({"error": {"message": "no credit left", "code": "insufficient_quota"}});
    let (error, sent) = outcome(Answer { status: 429, ..Answer::json(&broke) });
    assert!(matches!(error, LlmError::Refused { status: 429, .. }) && error.ends_the_run(), "{error}");
    assert_eq!(sent, 1);
}

#[test]
fn a_server_that_is_not_there_or_never_answers_is_unreachable() {
    let server = Server::echo();
    let nobody = ClientConfig { base_url: "http://127.0.0.1:9/v1".into(), ..config(&server) };
    let error = client(nobody).chat(&question("x")).unwrap_err();
    let LlmError::Unreachable { attempts: 3, server, .. } = &error else { panic!("{error}") };
    assert_eq!(server, "http://127.0.0.1:9");

    let silent = Server::start(|_, _| Answer::chat("late").after(Duration::from_secs(5)));
    let client = client(ClientConfig { timeout_s: 0.2, attempts: 2, ..config(&silent) });
    let start = Instant::now();
    let error = client.chat(&question("x")).unwrap_err();
    assert!(error.to_string().contains("0.2 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4));
    let spent = client.spent();
    assert_eq!(spent.requests, 2);
    assert!(spent.reply_tokens >= 100, "a server may have worked on what was given up, at most this long: {spent:?}");
}

#[test]
fn redirects_are_not_followed() {
    let elsewhere = Server::echo();
    let target = format!("{}/v1/chat/completions?token=hidden", elsewhere.address);
    let server = Server::start(move |_, _| Answer::error(307, "moved").with("Location", &target));
    let error = client(config(&server)).chat(&question("x")).unwrap_err();
    let LlmError::Refused { status: 307, message, .. } = &error else { panic!("{error}") };
    assert!(message.contains(&elsewhere.address) && message.contains("base_url") && !message.contains("hidden"));
    assert!(error.ends_the_run());
    assert_eq!((elsewhere.count(), server.count()), (0, 1));
}

#[test]
fn questions_that_no_server_should_see_are_refused_here() {
    let server = Server::echo();
    let client: Client = client(config(&server));
    for temperature in [f32::NAN, f32::INFINITY, -0.5] {
        let bad = monosem_llm::Request { temperature, ..question("x") };
        assert!(matches!(client.chat(&bad), Err(LlmError::Config { key: "temperature", .. })));
    }
    let bad = monosem_llm::Request { max_tokens: 0, ..question("x") };
    assert!(matches!(client.chat(&bad), Err(LlmError::Config { key: "max_tokens", .. })));
    assert_eq!(server.count(), 0);
}
