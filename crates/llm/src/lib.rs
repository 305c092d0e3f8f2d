#![doc = include_str!("../README.md")]

mod cache;
mod cached;
mod client;
mod config;
mod each;
mod endpoint;
mod error;
mod http;
mod ledger;
mod limits;
mod reply;
mod request;
mod score;
mod secret;
mod waits;
mod wire;

pub use cached::Cached;
pub use client::Client;
pub use config::{Budget, ClientConfig, Dialect, Key, Prices};
pub use each::each;
pub use endpoint::Endpoint;
pub use error::LlmError;
pub use ledger::Spent;
pub use reply::{Finish, Reply, ReplyToken, ScoredPrompt, ScoredToken, Usage};
pub use request::{Message, PromptRequest, Request, Role};
pub use score::Alignment;
pub use secret::Secret;
