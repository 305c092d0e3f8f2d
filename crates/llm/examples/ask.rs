//! Asks a question of a model behind an OpenAI-compatible server, or scores the tokens of a text.
//!
//! ```text
//! cargo run -p monosem-llm --example ask -- http://127.0.0.1:8123/v1 MODEL "Why is the sky blue?"
//! cargo run -p monosem-llm --example ask -- http://127.0.0.1:8123/v1 MODEL --score "When Mary and John went out, John gave a drink to Mary"
//! ```
//!
//! A key is taken from `OPENAI_API_KEY` if that is set. `MONOSEM_LLM_CACHE` names a folder in which replies are kept.

use std::error::Error;

use monosem_llm::{Client, ClientConfig, Endpoint, Key, Message, PromptRequest, Request, Role};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let score = words.iter().position(|word| word == "--score").map(|at| words.remove(at)).is_some();
    let [base_url, model, text] =
        words.try_into().map_err(|_| "expected: BASE_URL MODEL [--score] TEXT, the text as one word in quotes")?;
    let key = std::env::var("OPENAI_API_KEY").map_or(Key::None, |_| Key::Env("OPENAI_API_KEY".into()));
    let cache = std::env::var_os("MONOSEM_LLM_CACHE").map(Into::into);
    let client = Client::new(ClientConfig { base_url, model, key, cache, ..ClientConfig::default() }, None)?;
    println!("dialect: {:?}", client.dialect()?);
    if score {
        println!("alignment: {:?}", client.alignment()?);
        let scored =
            client.score_prompt(&PromptRequest { text, from: 0, top: 5, among: Vec::new(), source: String::new() })?;
        for token in &scored.tokens {
            let logprob = token.logprob.map_or("-".into(), |logprob| format!("{logprob:.3}"));
            let top: Vec<String> = token.top.iter().map(|(text, logprob)| format!("{text:?} {logprob:.2}")).collect();
            println!("{:16} {logprob:>8}   {}", format!("{:?}", token.text), top.join("  "));
        }
    } else {
        let messages = vec![Message { role: Role::User, content: text }];
        let request =
            Request { messages, max_tokens: 200, temperature: 0.0, seed: 0, top_logprobs: 0, source: String::new() };
        let reply = client.chat(&request)?;
        println!("{}\n({:?})", reply.text, reply.finish);
    }
    println!("{:?}", client.spent());
    Ok(())
}
