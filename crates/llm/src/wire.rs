//! What goes over the wire for a conversation, and what comes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Dialect, Finish, Message, Reply, ReplyToken, Request, Usage};

/// Why an answer with status 200 is no use.
#[derive(Debug, PartialEq)]
pub(crate) enum Unusable {
    /// It is not of the protocol's form; another attempt may be.
    Form(String),
    /// It is not of the protocol's form, and another attempt would come to the same.
    Final(String),
    /// It says that the server cannot do what was asked.
    Unsupported(String),
}

pub(crate) fn form(why: impl Into<String>) -> Unusable {
    Unusable::Form(why.into())
}

/// What a candidate list is cut to, where a server refuses longer ones.
pub(crate) fn most_candidates(dialect: Dialect, prompt: bool) -> u8 {
    match (dialect, prompt) {
        (Dialect::OpenAi, true) => 5,
        (Dialect::OpenAi | Dialect::Vllm, _) | (Dialect::Ollama, false) => 20,
        _ => u8::MAX,
    }
}

#[derive(Serialize)]
struct ChatBody<'a> {
    model: &'a str,
    messages: &'a [Message],
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<u8>,
}

/// Servers hold a seed in 64 bits with a sign, or in 32: all of them take 31.
pub(crate) const SEED_BITS: u64 = 0x7fff_ffff;

pub(crate) fn chat_body(dialect: Dialect, model: &str, request: &Request) -> Vec<u8> {
    let is_openai = dialect == Dialect::OpenAi;
    let top = request.top_logprobs.min(most_candidates(dialect, false));
    let body = ChatBody {
        model,
        messages: &request.messages,
        max_tokens: (!is_openai).then_some(request.max_tokens),
        max_completion_tokens: is_openai.then_some(request.max_tokens),
        temperature: (!is_openai || request.temperature != 1.0).then_some(request.temperature),
        seed: request.seed & SEED_BITS,
        logprobs: (top > 0).then_some(true),
        top_logprobs: (top > 0).then_some(top),
    };
    serde_json::to_vec(&body).expect("texts and numbers are JSON")
}

#[derive(Deserialize)]
struct ChatAnswer {
    choices: Vec<ChatChoice>,
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct ChatChoice {
    message: ChatMessage,
    finish_reason: Option<String>,
    logprobs: Option<Value>,
}

#[derive(Deserialize)]
struct ChatMessage {
    content: Option<String>,
    refusal: Option<String>,
}

/// Tokens as a server counted them.
#[derive(Deserialize)]
pub(crate) struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

/// What the server counted; what it did not count is a quarter of the bytes.
pub(crate) fn usage(counted: Option<&WireUsage>, prompt_bytes: usize, reply_bytes: usize) -> Usage {
    // More than any model reads is a slip of the server's, and would overflow sums.
    const MOST: u64 = 1 << 40;
    let prompt = counted.and_then(|usage| usage.prompt_tokens).filter(|n| *n <= MOST);
    let reply = counted.and_then(|usage| usage.completion_tokens).filter(|n| *n <= MOST);
    Usage {
        prompt_tokens: prompt.unwrap_or((prompt_bytes as u64).div_ceil(4)),
        reply_tokens: reply.unwrap_or((reply_bytes as u64).div_ceil(4)),
        estimated: prompt.is_none() || reply.is_none(),
    }
}

/// Bytes of a conversation, for estimates.
pub(crate) fn chat_bytes(request: &Request) -> usize {
    // A template puts a few tokens around each message.
    request.messages.iter().map(|message| message.content.len() + 16).sum()
}

pub(crate) fn read<'a, A: Deserialize<'a>>(body: &'a [u8], what: &str) -> Result<A, Unusable> {
    serde_json::from_slice(body).map_err(|error| {
        // Some gateways answer 200 and an error.
        let said = error_message(body);
        form(said.unwrap_or_else(|| format!("expected {what}: {error}")))
    })
}

pub(crate) fn read_chat(body: &[u8], request: &Request) -> Result<Reply, Unusable> {
    let answer: ChatAnswer = read(body, "an object with `choices` that hold a `message`")?;
    let Some(choice) = answer.choices.into_iter().next() else { return Err(form("`choices` is empty")) };
    let refusal = choice.message.refusal.filter(|text| !text.is_empty());
    let finish = match choice.finish_reason.as_deref() {
        _ if refusal.is_some() => Finish::Refused,
        Some("content_filter") => Finish::Refused,
        Some("length" | "max_tokens") => Finish::Length,
        Some(reason @ ("abort" | "error")) => return Err(form(format!("`finish_reason` is `{reason}`"))),
        _ => Finish::Stop,
    };
    let content = choice.message.content.filter(|text| !text.is_empty());
    let text = content.or(refusal).unwrap_or_default();
    let tokens = match choice.logprobs {
        Some(logprobs) if request.top_logprobs > 0 => reply_tokens(logprobs, request.top_logprobs),
        _ => Vec::new(),
    };
    let usage = usage(answer.usage.as_ref(), chat_bytes(request), text.len());
    Ok(Reply { text, finish, tokens, usage })
}

#[derive(Deserialize)]
struct ChatLogprobs {
    content: Vec<ChatToken>,
}

#[derive(Deserialize)]
struct ChatToken {
    token: String,
    logprob: f64,
    #[serde(default)]
    top_logprobs: Vec<Candidate>,
}

#[derive(Deserialize)]
struct Candidate {
    token: String,
    logprob: Option<f64>,
}

/// Log-probabilities as the protocol's /completions gives them, and as older servers give them for chats too.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct TextLogprobs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<Option<f64>>,
    pub(crate) top_logprobs: Option<Vec<Option<Candidates>>>,
}

/// A candidate's text to its log-probability, where that is a number.
pub(crate) type Candidates = BTreeMap<String, Option<f64>>;

/// Tokens of a reply in either form; none if it is another one: a reply is of use without them.
fn reply_tokens(logprobs: Value, most: u8) -> Vec<ReplyToken> {
    if logprobs.get("content").is_some() {
        let Ok(ChatLogprobs { content }) = serde_json::from_value(logprobs) else { return Vec::new() };
        let token = |token: ChatToken| {
            let top = token.top_logprobs.into_iter().filter_map(|c| Some((c.token, c.logprob?))).collect();
            ReplyToken { text: token.token, logprob: token.logprob, top: likeliest(top, most) }
        };
        return content.into_iter().map(token).collect();
    }
    let Ok(logprobs) = serde_json::from_value::<TextLogprobs>(logprobs) else { return Vec::new() };
    let mut tops = logprobs.top_logprobs.unwrap_or_default().into_iter();
    let token = |(text, logprob): (String, Option<f64>)| {
        let top = tops.next().flatten().unwrap_or_default();
        let top = top.into_iter().filter_map(|(text, logprob)| Some((text, logprob?))).collect();
        Some(ReplyToken { text, logprob: logprob?, top: likeliest(top, most) })
    };
    logprobs.tokens.into_iter().zip(logprobs.token_logprobs).map_while(token).collect()
}

/// Sorts candidates, the likeliest first, and keeps so many.
pub(crate) fn likeliest(mut top: Vec<(String, f64)>, most: u8) -> Vec<(String, f64)> {
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    top.truncate(usize::from(most));
    top
}

/// What a server says in an answer that is an error, in one of the forms that servers have for that.
pub(crate) fn error_message(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Object(map) => map.get("message").and_then(Value::as_str).map(str::to_owned),
        // FastAPI lists what it found wrong with the body; the body itself, which it repeats, is of no use to anyone.
        Value::Array(list) => {
            let said = list.iter().filter_map(|fault| fault.get("msg")?.as_str());
            Some(said.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
        }
        _ => None,
    };
    ["error", "detail", "message"].into_iter().find_map(|name| text(value.get(name)?))
}

/// Whether a refusal for too many requests will last: no money is left, rather than no time.
pub(crate) fn is_out_of_money(body: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return false };
    let error = &value["error"];
    [&error["code"], &error["type"]].into_iter().any(|field| field == "insufficient_quota")
}

/// Whether a server says that something will never work, whatever the status: llama-cpp-python says so with 500.
pub(crate) fn is_never(message: &str) -> bool {
    let message = message.to_lowercase();
    ["not supported", "unsupported"].iter().any(|words| message.contains(words))
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    owned_by: Option<String>,
}

/// Which server made a list of models; `None` if it does not tell.
pub(crate) fn dialect_of(body: &[u8]) -> Result<Option<Dialect>, Unusable> {
    let models: Models = read(body, "an object with `data`")?;
    let owner = models.data.into_iter().find_map(|model| model.owned_by).unwrap_or_default();
    Ok(match owner.as_str() {
        "vllm" => Some(Dialect::Vllm),
        // llama.cpp's own server, and llama-cpp-python's.
        "llamacpp" | "me" => Some(Dialect::LlamaCpp),
        // The namespace of a model, which is this one unless somebody else published it.
        "library" => Some(Dialect::Ollama),
        owner if owner == "system" || owner.starts_with("openai") => Some(Dialect::OpenAi),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(top_logprobs: u8) -> Request {
        Request {
            messages: vec![Message { role: crate::Role::User, content: "Hello \"you\"\n\u{1}".into() }],
            max_tokens: 7,
            temperature: 0.7,
            seed: u64::MAX,
            top_logprobs,
            source: "not sent".into(),
        }
    }

    fn body(dialect: Dialect, request: &Request) -> String {
        String::from_utf8(chat_body(dialect, "m", request)).unwrap()
    }

    #[test]
    fn bodies_are_of_the_dialect() {
        let openai = body(Dialect::OpenAi, &request(30));
        assert_eq!(
            openai,
            r#"{"model":"m","messages":[{"role":"user","content":"Hello \"you\"\n\u0001"}],"max_completion_tokens":7,"temperature":0.7,"seed":2147483647,"logprobs":true,"top_logprobs":20}"#
        );
        let llama = body(Dialect::LlamaCpp, &request(0));
        assert!(llama.contains("\"max_tokens\":7") && !llama.contains("logprobs") && !llama.contains("source"));
        let plain = Request { temperature: 1.0, ..request(0) };
        assert!(!body(Dialect::OpenAi, &plain).contains("temperature"));
        assert!(body(Dialect::Vllm, &plain).contains("\"temperature\":1.0"));
    }

    #[test]
    fn replies_are_read_in_all_their_forms() {
        let read = |text: &str| read_chat(text.as_bytes(), &request(2));
        let reply = read(
            r#"{"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": "a b"}, "finish_reason": "length",
            "logprobs": {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
            {"token": "b", "logprob": -1.5}, {"token": "a", "logprob": -0.5}, {"token": "c", "logprob": null}]}]}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2}}"#,
        );
        let top = vec![("a".to_owned(), -0.5), ("b".to_owned(), -1.5)];
        let tokens = vec![ReplyToken { text: "a".into(), logprob: -0.5, top: top.clone() }];
        let usage = Usage { prompt_tokens: 5, reply_tokens: 2, estimated: false };
        assert_eq!(reply, Ok(Reply { text: "a b".into(), finish: Finish::Length, tokens, usage }));
        let older = read(
            r#"{"choices": [{"message": {"content": "a"}, "finish_reason": "stop", "logprobs": {"tokens": ["a"], "token_logprobs": [-0.5],
            "text_offset": [0], "top_logprobs": [{"b": -1.5, "a": -0.5, "c": -9}]}}]}"#,
        )
        .unwrap();
        assert_eq!((older.tokens[0].top.clone(), older.usage.estimated), (top, true));

        let refused =
            read(r#"{"choices": [{"message": {"content": null, "refusal": "No."}, "finish_reason": "stop"}]}"#);
        assert_eq!(refused.map(|r| (r.finish, r.text)), Ok((Finish::Refused, "No.".into())));
        let filtered = read(r#"{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}"#);
        assert_eq!(filtered.map(|r| r.finish), Ok(Finish::Refused));

        assert_eq!(read(r#"{"choices": []}"#), Err(form("`choices` is empty")));
        assert_eq!(read(r#"{"error": {"message": "overloaded"}}"#), Err(form("overloaded")));
        assert!(matches!(read(r#"{"choices": [{"text": "a"}]}"#), Err(Unusable::Form(why)) if why.contains("message")));
        assert!(matches!(read("<html>"), Err(Unusable::Form(_))));
    }

    #[test]
    fn what_servers_say_of_errors_is_found() {
        let said = |text: &str| error_message(text.as_bytes());
        assert_eq!(said(r#"{"error": {"message": "bad key", "code": 401}}"#).as_deref(), Some("bad key"));
        assert_eq!(said(r#"{"error": "no model"}"#).as_deref(), Some("no model"));
        assert_eq!(
            said(r#"{"detail": [{"loc": ["body"], "msg": "field required"}]}"#).as_deref(),
            Some("field required")
        );
        assert_eq!(said(r#"{"object": "error", "message": "too long"}"#).as_deref(), Some("too long"));
        assert_eq!(said("nginx"), None);
        assert!(is_out_of_money(br#"{"error": {"code": "insufficient_quota"}}"#));
        assert!(!is_out_of_money(br#"{"error": {"code": "rate_limit_exceeded"}}"#));
    }

    #[test]
    fn servers_are_known_by_their_models() {
        let of = |owner: &str| dialect_of(format!(r#"{{"data": [{{"id": "m", "owned_by": "{owner}"}}]}}"#).as_bytes());
        assert_eq!(of("vllm"), Ok(Some(Dialect::Vllm)));
        assert_eq!(of("me"), Ok(Some(Dialect::LlamaCpp)));
        assert_eq!(of("llamacpp"), Ok(Some(Dialect::LlamaCpp)));
        assert_eq!(of("library"), Ok(Some(Dialect::Ollama)));
        assert_eq!(of("openai-internal"), Ok(Some(Dialect::OpenAi)));
        assert_eq!(of("someone"), Ok(None));
        assert!(dialect_of(b"{}").is_err());
    }
}
