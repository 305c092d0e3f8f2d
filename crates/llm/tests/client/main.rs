//! The client against a local server that misbehaves in the ways that real ones do. No public network.

mod cache;
mod faults;
mod limits;
mod scores;
mod secrets;
mod server;
mod talk;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use monosem_llm::{Client, ClientConfig, Dialect, Endpoint, LlmError, Message, Reply, Request, Role, each};
use server::Server;

/// Settings for a server, with waits that a test has time for.
fn config(server: &Server) -> ClientConfig {
    ClientConfig {
        base_url: server.base_url(),
        model: "model-a".into(),
        timeout_s: 20.0,
        attempts: 3,
        backoff_s: 0.005,
        server: Dialect::LlamaCpp,
        ..ClientConfig::default()
    }
}

fn client(config: ClientConfig) -> Client {
    Client::new(config, None).unwrap()
}

fn flag() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(false))
}

fn question(text: &str) -> Request {
    let messages = vec![Message { role: Role::User, content: text.into() }];
    Request { messages, max_tokens: 50, temperature: 0.0, seed: 3, top_logprobs: 0, source: "test".into() }
}

fn questions(count: usize) -> Vec<Request> {
    (0..count).map(|index| question(&format!("question {index}"))).collect()
}

type Replies = Vec<Option<Result<Reply, LlmError>>>;

fn ask_all(client: &Client, questions: &[Request], workers: usize) -> Replies {
    each(questions, workers, |_, question| client.chat(question), &mut |_| ControlFlow::Continue(()))
}
