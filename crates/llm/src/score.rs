//! Prompts with the log-probabilities of their tokens: as servers give them, and put right.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::wire::{Candidates, TextLogprobs, Unusable, WireUsage, form, likeliest, most_candidates, read, usage};
use crate::{Dialect, PromptRequest, ScoredPrompt, ScoredToken, Usage};

/// Which place the log-probabilities are for that a server gives with a token of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alignment {
    /// The token's own place, as the protocol means it.
    OwnPlace,
    /// The place of the token after it, as llama-cpp-python does for models whose prompts do not begin with a special token.
    NextPlace,
}

/// A text of which any language model knows how it goes on, after the first times.
pub(crate) fn probe() -> PromptRequest {
    let text = "The old clock above the kitchen door strikes nine, while rain falls on the empty garden.\n".repeat(4);
    PromptRequest { text, from: 0, top: 5, among: Vec::new(), source: "alignment probe".into() }
}

/// A token as the server gave it, candidates sorted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawToken {
    /// Its text, of which the texts of all tokens make up the prompt.
    pub(crate) text: String,
    /// How the server wrote it among candidates: a part of a character is lost or replaced there.
    pub(crate) written: String,
    pub(crate) logprob: Option<f64>,
    pub(crate) top: Vec<(String, f64)>,
}

/// A prompt as the server scored it, before anything is shifted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPrompt {
    pub(crate) tokens: Vec<RawToken>,
    pub(crate) usage: Usage,
}

#[derive(Serialize)]
struct PromptBody<'a> {
    model: &'a str,
    prompt: &'a str,
    // Not 0, which llama-cpp-python takes for no limit.
    max_tokens: u32,
    temperature: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    echo: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<u8>,
}

/// The way in which a server scores prompts: part of the cache's key, since the outcomes may be shifted differently.
pub(crate) fn kind(dialect: Dialect) -> &'static str {
    if dialect == Dialect::Vllm { "prompt-logprobs" } else { "echo" }
}

pub(crate) fn prompt_body(dialect: Dialect, model: &str, request: &PromptRequest) -> Vec<u8> {
    let top = Some(request.top.max(1).min(most_candidates(dialect, true)));
    let is_vllm = dialect == Dialect::Vllm;
    let body = PromptBody {
        model,
        prompt: &request.text,
        max_tokens: 1,
        temperature: 0.0,
        echo: (!is_vllm).then_some(true),
        logprobs: top.filter(|_| !is_vllm),
        prompt_logprobs: top.filter(|_| is_vllm),
    };
    serde_json::to_vec(&body).expect("texts and numbers are JSON")
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    logprobs: Option<TextLogprobs>,
    prompt_logprobs: Option<Vec<Option<InOrder>>>,
}

/// vLLM's candidates for a place: token number to candidate, the prompt's own token before the others.
struct InOrder(Vec<VllmCandidate>);

#[derive(Deserialize)]
struct VllmCandidate {
    logprob: Option<f64>,
    decoded_token: Option<String>,
}

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = InOrder;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from token numbers to candidates")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InOrder, A::Error> {
                let mut list = Vec::new();
                while let Some((_, candidate)) = map.next_entry::<String, VllmCandidate>()? {
                    list.push(candidate);
                }
                Ok(InOrder(list))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

pub(crate) fn read_prompt(body: &[u8], request: &PromptRequest) -> Result<RawPrompt, Unusable> {
    let answer: Completion = read(body, "an object with `choices` that hold `logprobs`")?;
    let Some(choice) = answer.choices.into_iter().next() else { return Err(form("`choices` is empty")) };
    let echoed = choice.text.as_deref().is_some_and(|text| text.starts_with(&request.text));
    let (tokens, first_is_known) = match (choice.prompt_logprobs, choice.logprobs) {
        (Some(entries), _) => (from_vllm(entries)?, false),
        (None, Some(logprobs)) if !logprobs.tokens.is_empty() => (from_echo(logprobs)?, true),
        _ => {
            let why = "its /completions gives no log-probabilities of a prompt; serve the model with vLLM or llama-cpp-python";
            return Err(Unusable::Unsupported(why.into()));
        }
    };
    let Some(tokens) = fit(&request.text, tokens, first_is_known) else {
        return Err(if echoed || !first_is_known {
            let why = "the texts of the scored tokens are not the prompt's; some servers leave out special tokens, such as `<|im_start|>`, \
                and those of a text that holds any cannot be told apart";
            Unusable::Final(why.into())
        } else {
            let why = "its /completions does not repeat the prompt (`echo`), so that only its own tokens are scored";
            Unusable::Unsupported(why.into())
        });
    };
    let usage = usage(answer.usage.as_ref(), request.text.len(), 1);
    Ok(RawPrompt { tokens, usage })
}

fn raw(text: String, logprob: Option<f64>, top: Vec<(String, f64)>) -> RawToken {
    RawToken { written: text.clone(), text, logprob, top: likeliest(top, u8::MAX) }
}

fn from_echo(logprobs: TextLogprobs) -> Result<Vec<RawToken>, Unusable> {
    let TextLogprobs { tokens, token_logprobs, top_logprobs } = logprobs;
    let tops = top_logprobs.unwrap_or_else(|| vec![None; tokens.len()]);
    if token_logprobs.len() != tokens.len() || tops.len() != tokens.len() {
        return Err(form("`tokens`, `token_logprobs` and `top_logprobs` are of different lengths"));
    }
    let known = |top: Candidates| top.into_iter().filter_map(|(t, l)| Some((t, l?))).collect();
    let entries = tokens.into_iter().zip(token_logprobs).zip(tops);
    Ok(entries.map(|((text, logprob), top)| raw(text, logprob, top.map(known).unwrap_or_default())).collect())
}

fn from_vllm(entries: Vec<Option<InOrder>>) -> Result<Vec<RawToken>, Unusable> {
    let mut tokens = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let Some(InOrder(candidates)) = entry else {
            if index > 0 {
                return Err(form("`prompt_logprobs` lacks an entry"));
            }
            tokens.push(raw(String::new(), None, Vec::new()));
            continue;
        };
        let own = candidates.first().ok_or_else(|| form("`prompt_logprobs` holds an empty entry"))?;
        let (text, logprob) = (own.decoded_token.clone().unwrap_or_default(), own.logprob);
        let top = candidates.into_iter().filter_map(|c| Some((c.decoded_token?, c.logprob?))).collect();
        tokens.push(raw(text, logprob, top));
    }
    Ok(tokens)
}

/// Gives the tokens texts that make up the prompt exactly, and drops those that are none of it: a special one before it, generated ones after it.
///
/// A character may be spread over several tokens, which a server then writes as replacement characters or not at all. The last of them gets the character.
/// `None` if the texts are not the prompt's.
fn fit(prompt: &str, mut tokens: Vec<RawToken>, first_is_known: bool) -> Option<Vec<RawToken>> {
    if !first_is_known {
        let after: String = tokens.iter().skip(1).map(|token| token.text.as_str()).collect();
        // Characters in pieces make the rest's length uncertain: then the first token is whatever a walk without it leaves over.
        let first = tokens.first_mut()?;
        if let Some(text) = prompt.strip_suffix(after.as_str()) {
            first.written = text.to_owned();
            first.text = text.to_owned();
        } else {
            return fit_rest(prompt, tokens);
        }
    }
    let first = tokens.first()?;
    // An empty text may be a piece of the first character as well; then the second token is none of it yet.
    let is_special = |next: &RawToken| !next.text.is_empty() && prompt.starts_with(next.text.as_str());
    let starts_special = first.text.is_empty() && tokens.get(1).is_some_and(is_special);
    if !starts_special && let Some(laid) = walk(prompt, &tokens) {
        return Some(laid);
    }
    tokens.remove(0);
    walk(prompt, &tokens)
}

/// Tries each beginning of the prompt as the unknown first token.
fn fit_rest(prompt: &str, tokens: Vec<RawToken>) -> Option<Vec<RawToken>> {
    let ends = prompt.char_indices().map(|(at, _)| at).chain([prompt.len()]).take(64);
    ends.filter_map(|at| {
        // These are all of the prompt: none may be left over.
        let rest = walk(&prompt[at..], &tokens[1..]).filter(|rest| rest.len() + 1 == tokens.len())?;
        let first = (at > 0).then(|| raw(prompt[..at].to_owned(), None, Vec::new()));
        Some(first.into_iter().chain(rest).collect())
    })
    .next()
}

const REPLACED: char = char::REPLACEMENT_CHARACTER;

/// Lays the tokens along the prompt until it is used up.
fn walk(prompt: &str, tokens: &[RawToken]) -> Option<Vec<RawToken>> {
    let mut rest = prompt;
    let mut laid: Vec<RawToken> = Vec::new();
    // Whether the last token ended within a character that is still to come.
    let mut in_pieces = false;
    for token in tokens {
        if rest.is_empty() {
            break;
        }
        let whole = token.written.split(REPLACED).next().unwrap_or_default();
        let mut text = String::new();
        if !whole.is_empty() && (in_pieces || !rest.starts_with(whole)) {
            let Some(skipped) = pieces(rest, whole) else {
                if in_pieces {
                    // Nothing of the prompt is left but the character: this token is a generated one.
                    break;
                }
                return None;
            };
            // Some servers leave no sign of a piece that shares a token with whole characters.
            let owner = laid.last_mut().filter(|_| in_pieces).map_or(&mut text, |last| &mut last.text);
            owner.push_str(&rest[..skipped]);
            rest = &rest[skipped..];
        }
        rest = rest.strip_prefix(whole)?;
        text.push_str(whole);
        in_pieces = (in_pieces && whole.is_empty()) || token.written.is_empty() || token.written.contains(REPLACED);
        let tail = token.written.rsplit(REPLACED).next().unwrap_or_default();
        if token.written.contains(REPLACED) && !tail.is_empty() {
            let skipped = pieces(rest, tail)?;
            text.push_str(&rest[..skipped + tail.len()]);
            rest = &rest[skipped + tail.len()..];
            in_pieces = false;
        }
        laid.push(RawToken { text, ..token.clone() });
    }
    if in_pieces && !rest.is_ascii() && rest.chars().all(|c| !c.is_ascii()) {
        laid.last_mut()?.text.push_str(rest);
        rest = "";
    }
    rest.is_empty().then_some(laid)
}

/// How many bytes of characters beyond ASCII stand before `next`: at least one such character, where there is one.
fn pieces(rest: &str, next: &str) -> Option<usize> {
    let mut ends = rest.char_indices().take_while(|(_, c)| !c.is_ascii()).map(|(at, c)| at + c.len_utf8());
    ends.find(|end| rest[*end..].starts_with(next)).or_else(|| rest.starts_with(next).then_some(0))
}

/// Finds out from the scored probe which place a server's log-probabilities are for, or why that cannot be told.
pub(crate) fn decide(tokens: &[RawToken]) -> Result<Alignment, String> {
    // In the second half the text has been seen often enough.
    let half = &tokens[tokens.len() / 2..];
    let best = |token: &RawToken| token.top.first().map(|(text, _)| text.clone());
    let own = half.windows(2).filter(|pair| best(&pair[0]).as_ref() == Some(&pair[0].written)).count();
    let next = half.windows(2).filter(|pair| best(&pair[0]).as_ref() == Some(&pair[1].written)).count();
    let all = half.len().saturating_sub(1);
    let clear = |most: usize, least: usize| all >= 20 && most * 2 > all && most > 2 * least;
    if clear(own, next) {
        Ok(Alignment::OwnPlace)
    } else if clear(next, own) {
        Ok(Alignment::NextPlace)
    } else {
        Err(format!(
            "its log-probabilities of a prompt cannot be told to be for any place: of {all} tokens of a repeated sentence, the \
             likeliest candidate is the token itself for {own}, the next token for {next}"
        ))
    }
}

/// Puts each log-probability to the token that it is for.
pub(crate) fn align(raw: &RawPrompt, alignment: Alignment, most: u8) -> ScoredPrompt {
    let place = |(index, token): (usize, &RawToken)| {
        let text = token.text.clone();
        let Some(before) = index.checked_sub(1).map(|index| &raw.tokens[index]) else {
            // Whatever a server says of the first token depends on what special token it puts before it.
            return ScoredToken { text, logprob: None, top: Vec::new() };
        };
        let (logprob, top) = match alignment {
            Alignment::OwnPlace => (token.logprob, &token.top),
            Alignment::NextPlace => {
                // A piece of a character may be written like another.
                let is_whole = !token.written.is_empty() && !token.written.contains(REPLACED);
                let found = before.top.iter().find(|(text, _)| is_whole && *text == token.written);
                (found.map(|(_, logprob)| *logprob), &before.top)
            }
        };
        ScoredToken { text, logprob, top: top.iter().take(usize::from(most)).cloned().collect() }
    };
    ScoredPrompt { tokens: raw.tokens.iter().enumerate().map(place).collect(), usage: raw.usage }
}

#[cfg(test)]
#[path = "score_tests.rs"]
mod tests;
