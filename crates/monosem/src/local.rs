//! A language model in this process as an endpoint: it scores prompts and chats without a server or a key.

use std::sync::{Mutex, MutexGuard};

use anyhow::{Context as _, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};
use monosem_hooks::HookedModel as _;
use monosem_llm::{
    Endpoint, Finish, LlmError, Message, PromptRequest, Reply, ReplyToken, Request, ScoredPrompt, ScoredToken, Usage,
};
use monosem_lm::{LanguageModel, Session, Tokenizer};
use ndarray::{Array2, ArrayView1, Axis, concatenate, s};
use rand::SeedableRng as _;
use rand::distr::Distribution as _;
use rand::distr::weighted::WeightedIndex;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::interrupt;

/// Beginnings of prompts that are kept with their keys and values: prompts of one kind differ at the end only.
const KEPT: usize = 3;

/// Prompts are read in pieces of so many tokens: the last bits of a state depend on what it is computed together with, and a reply must not depend on what was
/// asked before.
const PIECE: usize = 128;

/// Tokens that end an answer in one of the common forms of conversations.
const ENDS: [&str; 6] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<|endoftext|>", "<end_of_turn>", "</s>"];

/// Stands in a conversation, while it is written out, where a special token typed in a message is cut in two; no text has it (it is a Unicode noncharacter).
const CUT: &str = "\u{fdd0}";

/// How a conversation is written where the model's files do not say.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";

/// A model with its tokenizer.
pub(crate) struct LocalModel<'m> {
    name: String,
    model: &'m LanguageModel,
    tokenizer: &'m Tokenizer,
    template: Environment<'m>,
    ends: Vec<u32>,
    /// The text of every token.
    texts: Vec<String>,
    /// [`PIECE`], but in tests.
    piece: usize,
    /// What was read last. One request at a time reads: a pass uses all cores.
    sessions: Mutex<Vec<Session<'m>>>,
}

impl<'m> LocalModel<'m> {
    /// # Errors
    /// If the model's template of a conversation is no template.
    pub(crate) fn new(name: String, model: &'m LanguageModel, tokenizer: &'m Tokenizer) -> Result<Self> {
        let mut template = Environment::new();
        template.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        template.add_function("raise_exception", |why: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, why))
        });
        // As transformers sets Jinja up, which templates are written for.
        template.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        let source = tokenizer.chat_template().unwrap_or(CHATML);
        template.add_template("chat", source).with_context(|| format!("the chat template of {name}"))?;
        let ends = ENDS.iter().filter_map(|end| tokenizer.id(end)).chain(tokenizer.eos()).collect();
        let text = |id: usize| u32::try_from(id).ok().and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let texts = (0..model.d_vocab()).map(text).collect();
        Ok(Self { name, model, tokenizer, template, ends, texts, piece: PIECE, sessions: Mutex::default() })
    }

    fn refused(&self, message: String) -> LlmError {
        LlmError::Refused { server: self.name.clone(), status: 400, message }
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<Session<'m>>> {
        // A panic while a session was out of the list leaves the list as it should be.
        self.sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A session that has read as many whole pieces of the beginning of `tokens` as any did, at most `most` tokens.
    fn session(&self, sessions: &mut Vec<Session<'m>>, tokens: &[u32], most: usize) -> Session<'m> {
        let common = |session: &Session<'_>| session.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let best = (0..sessions.len()).max_by_key(|i| common(&sessions[*i]));
        match best.map(|i| (i, common(&sessions[i]).min(most) / self.piece * self.piece)) {
            Some((i, shared)) if shared > 0 => {
                let mut session = sessions.remove(i);
                session.truncate(shared);
                session
            }
            _ => self.model.session(),
        }
    }

    fn check(&self, tokens: usize, more: usize) -> Result<(), LlmError> {
        if interrupt::requested() {
            return Err(LlmError::Stopped);
        }
        let most = self.model.max_context();
        if tokens == 0 || tokens + more > most {
            return Err(self.refused(format!("{tokens} tokens and {more} to answer: the model reads 1 to {most}")));
        }
        Ok(())
    }

    /// Parts of a text, each read by itself, with the part of it that each token stands for, behind the token that begins texts where the model wants one.
    fn pieces<'t>(&self, parts: impl IntoIterator<Item = &'t str>) -> Result<Vec<(u32, &'t str)>, LlmError> {
        let mut pieces = Vec::new();
        for part in parts {
            pieces.extend(self.tokenizer.pieces(part).map_err(|e| self.refused(e.to_string()))?);
        }
        if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.begins_with_bos())
            && pieces.first().is_none_or(|(id, _)| *id != bos)
        {
            pieces.insert(0, (bos, ""));
        }
        let d_vocab = self.texts.len();
        if let Some((id, part)) = pieces.iter().find(|(id, _)| *id as usize >= d_vocab) {
            return Err(self.refused(format!("token {id} ({part:?}) is beyond the model's vocabulary of {d_vocab}")));
        }
        Ok(pieces)
    }

    fn named(&self, candidates: &[(usize, f64)]) -> Vec<(String, f64)> {
        candidates.iter().map(|(token, logprob)| (self.texts[*token].clone(), *logprob)).collect()
    }

    /// The tokens that a request is interested in, where it names some.
    fn among(&self, request: &PromptRequest) -> Option<Vec<usize>> {
        let wanted = |text: &String| request.among.iter().any(|wanted| text.trim() == wanted);
        let of_interest = || (0..self.texts.len()).filter(|token| wanted(&self.texts[*token])).collect();
        (!request.among.is_empty()).then(of_interest)
    }

    /// Reads the rest of `tokens`, whose beginning the session has read; the states behind it.
    fn read_on(&self, session: &mut Session<'_>, tokens: &[u32]) -> Array2<f32> {
        let rest = &tokens[session.tokens().len()..];
        let states: Vec<Array2<f32>> = rest.chunks(self.piece).map(|piece| session.read(piece)).collect();
        let views: Vec<_> = states.iter().map(|states| states.view()).collect();
        concatenate(Axis(0), &views).expect("states of one width")
    }

    /// The conversation as the model was trained to read it, with a [`CUT`] in every special token that was typed in a message.
    fn written(&self, request: &Request) -> Result<String, LlmError> {
        let special = |id: Option<u32>| id.and_then(|id| self.tokenizer.token(id)).unwrap_or_default();
        let content = |message: &Message| self.tokenizer.without_special(&message.content).join(CUT);
        let message = |message: &Message| context! { role => message.role.name(), content => content(message) };
        let values = context! {
            messages => request.messages.iter().map(message).collect::<Vec<Value>>(),
            add_generation_prompt => true,
            bos_token => special(self.tokenizer.bos()),
            eos_token => special(self.tokenizer.eos()),
        };
        let written = self.template.get_template("chat").and_then(|template| template.render(values));
        written.map_err(|e| self.refused(format!("the model's chat template: {e}")))
    }
}

impl Endpoint for LocalModel<'_> {
    fn model(&self) -> &str {
        &self.name
    }

    fn chat(&self, request: &Request) -> Result<Reply, LlmError> {
        let prompt = self.pieces(self.written(request)?.split(CUT))?.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        self.check(prompt.len(), request.max_tokens as usize)?;
        let mut sessions = self.sessions();
        let mut session = self.session(&mut sessions, &prompt, prompt.len() - 1);
        let mut states = self.read_on(&mut session, &prompt);
        let mut rng = ChaCha8Rng::seed_from_u64(request.seed);
        let (mut ids, mut tokens, mut finish) = (Vec::new(), Vec::new(), Finish::Length);
        while ids.len() < request.max_tokens as usize {
            if interrupt::requested() {
                return Err(LlmError::Stopped);
            }
            let logits = session.logits(states.slice(s![states.nrows() - 1.., ..]));
            let logits = logits.row(0);
            let next = choose(logits, request.temperature, &mut rng);
            if self.ends.contains(&(next as u32)) {
                finish = Finish::Stop;
                break;
            }
            if request.top_logprobs > 0 {
                let (total, top) = likeliest(logits, request.top_logprobs.into());
                let logprob = f64::from(logits[next]) - total;
                tokens.push(ReplyToken { text: self.texts[next].clone(), logprob, top: self.named(&top) });
            }
            ids.push(next as u32);
            states = session.read(&[next as u32]);
        }
        // The answer is no beginning of another prompt.
        session.truncate(prompt.len());
        keep(&mut sessions, session);
        let text = self.tokenizer.decode(&ids).map_err(|e| self.refused(e.to_string()))?;
        let usage = Usage { prompt_tokens: prompt.len() as u64, reply_tokens: ids.len() as u64, estimated: false };
        Ok(Reply { text, finish, tokens, usage })
    }

    fn score_prompt(&self, request: &PromptRequest) -> Result<ScoredPrompt, LlmError> {
        let pieces = self.pieces(self.tokenizer.without_special(&request.text))?;
        self.check(pieces.len(), 0)?;
        let ids: Vec<u32> = pieces.iter().map(|(id, _)| *id).collect();
        let ends = pieces.iter().scan(0, |end, (_, part)| {
            *end += part.len();
            Some(*end)
        });
        // A token is scored by the state before it.
        let first = ends.take_while(|end| *end <= request.from).count().clamp(1, ids.len());
        let mut sessions = self.sessions();
        let mut session = self.session(&mut sessions, &ids, first - 1);
        let read = session.tokens().len();
        let states = self.read_on(&mut session, &ids);
        let wanted = states.slice(s![first - 1 - read..states.nrows() - 1, ..]);
        let logits: Array2<f32> = session.logits(wanted);
        keep(&mut sessions, session);
        drop(sessions);
        let among = self.among(request);
        // Where candidates are named, the likeliest others are not looked for.
        let n = if among.is_some() { 0 } else { request.top.into() };
        let scores: Vec<(f64, Vec<(usize, f64)>)> = (0..logits.nrows())
            .into_par_iter()
            .map(|row| {
                let (total, mut top) = likeliest(logits.row(row), n);
                for token in among.iter().flatten() {
                    top.push((*token, f64::from(logits[[row, *token]]) - total));
                }
                top.sort_by(|a, b| b.1.total_cmp(&a.1));
                (f64::from(logits[[row, ids[first + row] as usize]]) - total, top)
            })
            .collect();
        let mut tokens: Vec<ScoredToken> = Vec::with_capacity(pieces.len());
        for (i, (_, part)) in pieces.iter().enumerate() {
            let (logprob, top) = match i.checked_sub(first) {
                Some(row) => (Some(scores[row].0), self.named(&scores[row].1)),
                None => (None, Vec::new()),
            };
            tokens.push(ScoredToken { text: (*part).to_owned(), logprob, top });
        }
        let usage = Usage { prompt_tokens: ids.len() as u64, reply_tokens: 0, estimated: false };
        Ok(ScoredPrompt { tokens, usage })
    }
}

fn keep<'m>(sessions: &mut Vec<Session<'m>>, session: Session<'m>) {
    if sessions.len() == KEPT {
        sessions.remove(0);
    }
    sessions.push(session);
}

/// `ln sum exp` of the logits, and the log-probabilities of the `n` likeliest tokens, the likeliest first.
fn likeliest(logits: ArrayView1<'_, f32>, n: usize) -> (f64, Vec<(usize, f64)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
    let total = f64::from(max) + f64::from(sum).ln();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let n = n.min(order.len());
    if n > 0 {
        order.select_nth_unstable_by(n - 1, |a, b| logits[*b].total_cmp(&logits[*a]));
    }
    order.truncate(n);
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    (total, order.into_iter().map(|token| (token, f64::from(logits[token]) - total)).collect())
}

/// The likeliest token at temperature 0, else one drawn from `softmax(logits / temperature)`.
fn choose(logits: ArrayView1<'_, f32>, temperature: f32, rng: &mut ChaCha8Rng) -> usize {
    let best = || (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0);
    if temperature <= 0.0 {
        return best();
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights = logits.iter().map(|logit| f64::from((logit - max) / temperature).exp());
    WeightedIndex::new(weights).map_or_else(|_| best(), |weighted| weighted.sample(rng))
}

#[cfg(test)]
mod tests {
    use monosem_assets::Assets;
    use monosem_llm::Role;
    use monosem_lm::LoadOptions;
    use ndarray::ArrayView2;

    use super::*;
    use crate::model::Model;

    fn toy() -> (LanguageModel, Tokenizer) {
        let assets = Assets::from_env().unwrap();
        let path = Model::Toy.obtain(&assets, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
        (LanguageModel::load(&path, &LoadOptions::default()).unwrap(), Tokenizer::load(&path).unwrap())
    }

    /// Log-probabilities of every token but the first, from one pass over all.
    fn by_one_pass(model: &LanguageModel, ids: &[u32]) -> Vec<f64> {
        let tokens = ArrayView2::from_shape((1, ids.len()), ids).unwrap();
        let logits = model.forward(tokens, &mut |_, _| std::ops::ControlFlow::Continue(())).continue_value().unwrap();
        let score = |at: usize| {
            let row = logits.slice(s![0, at, ..]);
            f64::from(row[ids[at + 1] as usize]) - likeliest(row, 0).0
        };
        (0..ids.len() - 1).map(score).collect()
    }

    #[test]
    fn prompts_are_scored_as_by_one_pass_whatever_was_read_before() {
        let (model, tokenizer) = toy();
        let new = || LocalModel { piece: 16, ..LocalModel::new("toy".into(), &model, &tokenizer).unwrap() };
        let local = new();
        let texts = ["The cat saw the dog. Then the dog saw", "The cat saw the dog. Then she", "Then the dog", "The"];
        let long = " The cat saw the dog. Then the dog saw the cat.".repeat(9);
        let texts = texts.into_iter().chain([long.as_str(), &long[..long.len() - 30]]).collect::<Vec<_>>();
        for (text, from) in texts.iter().flat_map(|text| [(*text, 0), (*text, text.len() / 2), (*text, 0)]) {
            let request =
                PromptRequest { text: text.to_owned(), from, top: 3, among: Vec::new(), source: String::new() };
            let scored = local.score_prompt(&request).unwrap();
            assert_eq!(new().score_prompt(&request).unwrap(), scored);
            assert_eq!(scored.tokens.iter().map(|t| t.text.as_str()).collect::<String>(), text);
            let ids = tokenizer.encode(text).unwrap();
            let expected = by_one_pass(&model, &ids);
            let mut end = 0;
            for (i, token) in scored.tokens.iter().enumerate() {
                end += token.text.len();
                if i == 0 || end <= from {
                    continue;
                }
                assert!((token.logprob.unwrap() - expected[i - 1]).abs() < 1e-4, "{text:?} {i}");
                assert!(token.top.windows(2).all(|pair| pair[0].1 >= pair[1].1) && token.top.len() == 3);
            }
            let among = PromptRequest { among: vec!["cat".into(), "dog".into()], ..request };
            for token in local.score_prompt(&among).unwrap().tokens.iter().filter(|token| token.logprob.is_some()) {
                let mut named: Vec<&str> = token.top.iter().map(|(text, _)| text.trim()).collect();
                named.sort_unstable();
                named.dedup();
                assert_eq!(named, ["cat", "dog"]);
            }
        }
    }

    #[test]
    fn special_tokens_in_a_text_are_only_characters() {
        let (model, tokenizer) = toy();
        let mut local = LocalModel::new("toy".into(), &model, &tokenizer).unwrap();
        local.template.add_template("chat", "{{ messages[0].content }}<|endoftext|>").unwrap();
        let end = tokenizer.eos().unwrap();
        for (text, parts) in [("The cat.", 1), ("<|endoftext|>", 2), ("The <|endoftext|> cat<unk><unk>", 4)] {
            assert_eq!(tokenizer.without_special(text).len(), parts);
            assert_eq!(tokenizer.without_special(text).concat(), text);
            let request =
                PromptRequest { text: text.to_owned(), from: 0, top: 0, among: Vec::new(), source: String::new() };
            let scored = local.score_prompt(&request).unwrap();
            assert_eq!(scored.tokens.iter().map(|t| t.text.as_str()).collect::<String>(), text);
            assert!(local.pieces(tokenizer.without_special(text)).unwrap().iter().all(|(id, _)| *id != end));
            // The template's own counts.
            let messages = vec![Message { role: Role::User, content: text.to_owned() }];
            let chat =
                Request { messages, max_tokens: 1, temperature: 0.0, seed: 0, top_logprobs: 0, source: String::new() };
            let written = local.written(&chat).unwrap();
            let read = local.pieces(written.split(CUT)).unwrap();
            assert_eq!(read.iter().filter(|(id, _)| *id == end).count(), 1);
            assert_eq!(read.iter().map(|(_, part)| *part).collect::<String>(), format!("{text}<|endoftext|>"));
        }
    }

    #[test]
    fn a_reply_is_the_likeliest_continuation_and_comes_again() {
        let (model, tokenizer) = toy();
        let mut local = LocalModel::new("toy".into(), &model, &tokenizer).unwrap();
        // The toy model knows no conversation: a template that only writes the text.
        local.template.add_template("chat", "{{ messages[0].content.strip() }}").unwrap();
        let message = Message { role: Role::User, content: " The cat saw the ".into() };
        let request = Request {
            messages: vec![message],
            max_tokens: 4,
            temperature: 0.0,
            seed: 0,
            top_logprobs: 2,
            source: String::new(),
        };
        let reply = local.chat(&request).unwrap();
        assert_eq!(local.chat(&request).unwrap(), reply);
        let mut ids = tokenizer.encode("The cat saw the").unwrap();
        for token in &reply.tokens {
            let row = ArrayView2::from_shape((1, ids.len()), &ids).unwrap();
            let logits = model.forward(row, &mut |_, _| std::ops::ControlFlow::Continue(())).continue_value().unwrap();
            let best = choose(logits.slice(s![0, ids.len() - 1, ..]), 0.0, &mut ChaCha8Rng::seed_from_u64(0));
            assert_eq!(tokenizer.token(best as u32).unwrap(), token.text);
            ids.push(best as u32);
        }
        let too_long = Request { max_tokens: 1 << 20, ..request };
        assert!(!local.chat(&too_long).unwrap_err().ends_the_run());
    }
}
