#![doc = include_str!("../README.md")]

mod endpoint;
mod error;
mod reply;
mod request;

pub use endpoint::Endpoint;
pub use error::LlmError;
pub use reply::{Finish, Reply, ReplyToken, ScoredPrompt, ScoredToken, Usage};
pub use request::{Message, PromptRequest, Request, Role};
