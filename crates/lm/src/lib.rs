//! GPT-NeoX, GPT-2 and Llama forward passes with hooks; safetensors and GGUF weights; tokenizers.
mod attention;
mod config;
mod error;
mod gpt2;
mod linear;
mod llama;
mod math;
mod model;
mod neox;
mod norm;
mod parts;
mod pass;
mod product;
mod random;
mod rope;
mod tokenizer;
mod weights;

pub use config::{Activation, Config, Family, Rope, RopeScaling};
pub use error::LmError;
pub use model::{LanguageModel, LoadOptions};
pub use tokenizer::Tokenizer;
