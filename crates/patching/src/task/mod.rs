//! Tasks: data, and a small function that makes a prompt and its counterfactual of them.

mod greater_than;
mod ioi;
mod ioi_prompts;
mod minimal_pairs;

use std::collections::HashSet;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use greater_than::GreaterThanTask;
pub use ioi::{IoiTask, NameOrder, Template};
pub use minimal_pairs::{Class, MinimalPairs};

use crate::prompt::Mark;
use crate::{PatchingError, Prompt};

/// Draws for one prompt before it is given up.
const ATTEMPTS: usize = 500;

/// Turns a text into tokens, or into none if it holds a word that the vocabulary does not know. Nothing is added, so a prompt does not begin with
/// a special token unless this puts one there.
pub type Encode<'a> = dyn Fn(&str) -> Vec<u32> + 'a;

/// One of two disjoint halves of a task's templates and of the words that it is about (names, words that are changed, events): settings are chosen on one
/// and results reported on the other. Words that merely fill a sentence, and a word that is changed and stands alone, are in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Half {
    /// For choosing settings.
    Choose,
    /// For reporting results.
    Report,
}

/// Something that a model does, with prompts that show it.
pub trait Task: std::fmt::Debug + Send + Sync {
    /// Draws `n` different prompts from a [`Half`]. The halves depend on `seed` alone, not on `n`.
    ///
    /// # Errors
    /// If there are too few words or templates, or none gives a new prompt in this vocabulary.
    fn prompts(&self, n: usize, seed: u64, half: Half, encode: &Encode<'_>) -> Result<Vec<Prompt>, PatchingError>;

    /// How many names its prompts draw from, if they draw from a list of names.
    fn n_names(&self) -> Option<usize> {
        None
    }

    /// Of how many classes a prompt may be, each with answers of its own, if there are such classes.
    fn n_classes(&self) -> Option<usize> {
        None
    }

    /// The same task with `n` names only, where its prompts draw from a list of names: [`IoiTask::with_names`].
    ///
    /// # Errors
    /// If the task has no names, or the vocabulary none of them.
    fn with_names(&self, _n: usize, _seed: u64, _encode: &Encode<'_>) -> Result<Box<dyn Task>, PatchingError> {
        Err(PatchingError::Setting { setting: "names", problem: "this task has no names to draw from".into() })
    }
}

/// A prompt and its counterfactual as text, with their answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The prompt, up to its answer.
    pub text: String,
    /// The counterfactual.
    pub target_text: String,
    /// Continuations that are right after the prompt, each with its space. Those that are not one token are left out.
    pub answers: Vec<String>,
    /// Continuations that are right after the counterfactual and wrong after the prompt.
    pub target_answers: Vec<String>,
    /// What the answer has to beat for a model to be right; empty for [`Self::target_answers`].
    pub wrong: Vec<String>,
    /// Place of the template in its list, from 0.
    pub template: usize,
}

/// Draws `n` different prompts, each from a pair that `draw` makes up: what a task of one's own needs. Pairs that this vocabulary cannot
/// express are drawn again: texts of unlike lengths in tokens, or answers none of which is one token.
///
/// ```
/// use monosem_patching::{Pair, draw_prompts};
/// use rand::seq::IndexedRandom;
///
/// let encode = |text: &str| text.split_whitespace().map(|word| word.len() as u32).collect::<Vec<_>>();
/// let mut draw = |rng: &mut _| Pair {
///     text: format!("One {}", ["cat", "dog", "elephant"].choose(rng).expect("three")),
///     target_text: "Two oxen".into(),
///     answers: vec![" is".into()],
///     target_answers: vec![" are".into()],
///     ..Pair::default()
/// };
/// assert_eq!(draw_prompts(3, 0, &encode, &mut draw)?.len(), 3);
/// let problem = draw_prompts(4, 0, &encode, &mut draw).unwrap_err().to_string();
/// assert!(problem.contains("was drawn before"), "{problem}");
/// # Ok::<(), monosem_patching::PatchingError>(())
/// ```
///
/// # Errors
/// If `draw` gives no new prompt of use in 500 attempts.
pub fn draw_prompts(
    n: usize,
    seed: u64,
    encode: &Encode<'_>,
    draw: &mut dyn FnMut(&mut ChaCha8Rng) -> Pair,
) -> Result<Vec<Prompt>, PatchingError> {
    let mut rng = rng(seed, Stream::Prompts);
    let mut seen = HashSet::new();
    let mut prompts: Vec<Prompt> = Vec::with_capacity(n);
    while prompts.len() < n {
        let (mut problem, mut template) = (String::new(), 0);
        let found = (0..ATTEMPTS).find_map(|_| {
            let pair = draw(&mut rng);
            template = pair.template;
            match prompt_of(&pair, encode) {
                Ok(prompt) if seen.insert((prompt.text.clone(), prompt.target_text.clone())) => return Some(prompt),
                Ok(prompt) => problem = drawn_before(&prompt),
                Err(e) => problem = e,
            }
            None
        });
        let made = prompts.len();
        prompts.push(found.ok_or(PatchingError::NoPrompt { template, attempts: ATTEMPTS, found: made, problem })?);
    }
    Ok(prompts)
}

fn drawn_before(prompt: &Prompt) -> String {
    format!("{:?} was drawn before; ask for fewer prompts, or add words or templates", prompt.text)
}

/// A text in tokens, or why there are none.
fn tokens_of(text: &str, encode: &Encode<'_>) -> Result<Vec<u32>, String> {
    let tokens = encode(text);
    if tokens.is_empty() { Err(format!("the vocabulary lacks a word of {text:?}")) } else { Ok(tokens) }
}

/// A pair in tokens, or why it is of no use.
fn prompt_of(pair: &Pair, encode: &Encode<'_>) -> Result<Prompt, String> {
    let Pair { text, target_text, .. } = pair;
    let (tokens, target_tokens) = (tokens_of(text, encode)?, tokens_of(target_text, encode)?);
    if tokens.len() != target_tokens.len() {
        let (n, n_target) = (tokens.len(), target_tokens.len());
        return Err(format!("{text:?} has {n} tokens, its counterfactual {target_text:?} {n_target}"));
    }
    let single = |answer: &String| single_token(text, answer, encode);
    let all = |answers: &[String]| {
        let mut tokens: Vec<u32> = answers.iter().filter_map(single).collect();
        // Two ways to write one token are one answer.
        let mut seen = HashSet::new();
        tokens.retain(|token| seen.insert(*token));
        if tokens.is_empty() { Err(format!("none of {answers:?} is one token after {text:?}")) } else { Ok(tokens) }
    };
    let (answers, target_answers) = (all(&pair.answers)?, all(&pair.target_answers)?);
    let both = |answer: &&String| single(answer).is_some_and(|token| target_answers.contains(&token));
    if let Some(answer) = pair.answers.iter().find(both) {
        return Err(format!(
            "the answer {answer:?} is right after both {text:?} and its counterfactual {target_text:?}"
        ));
    }
    let wrong = if pair.wrong.is_empty() { target_answers.clone() } else { all(&pair.wrong)? };
    let Some(changed) = tokens.iter().zip(&target_tokens).position(|(a, b)| a != b) else {
        return Err(format!("{text:?} and its counterfactual are the same"));
    };
    let marks = vec![Mark::new("CHANGED", changed), Mark::new("END", tokens.len() - 1)];
    Ok(Prompt {
        text: text.clone(),
        target_text: target_text.clone(),
        tokens,
        target_tokens,
        answers,
        target_answers,
        wrong,
        template: pair.template,
        marks,
    })
}

/// The token that `answer` adds to a text, if it is one.
fn single_token(text: &str, answer: &str, encode: &Encode<'_>) -> Option<u32> {
    let (before, after) = (encode(text), encode(&format!("{text}{answer}")));
    let added = after.strip_prefix(&before[..])?;
    <[u32; 1]>::try_from(added).ok().map(|[token]| token)
}

/// Streams of one seed: what is drawn for one purpose leaves the others as they are.
enum Stream {
    Names = 0,
    Templates = 1,
    Choose = 2,
    Report = 3,
    Prompts = 4,
}

fn rng(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

/// A half of the items, in seeded order; the first half has the odd one.
fn half_of<T>(mut items: Vec<T>, rng: &mut ChaCha8Rng, half: Half) -> Vec<T> {
    items.shuffle(rng);
    let report = items.split_off(items.len().div_ceil(2));
    match half {
        Half::Choose => items,
        Half::Report => report,
    }
}

/// Every slot of a text, `[SLOT]`, with the text before it since the last one.
fn slots(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        let (slot, after) = after.split_once(']').ok_or("a slot has no closing bracket")?;
        found.push((before, slot));
        rest = after;
    }
    Ok(found)
}

/// Checks a list of words for slots.
fn check_words(words: &[String], needed: bool) -> Result<(), String> {
    if needed && words.is_empty() {
        return Err("expected one or more".into());
    }
    for (i, word) in words.iter().enumerate() {
        if word.is_empty() || word.trim() != word || word.contains(['[', ']']) {
            return Err(format!("{word:?} is empty, or has spaces around it or brackets in it"));
        }
        if words[..i].contains(word) {
            return Err(format!("{word:?} is named twice"));
        }
    }
    Ok(())
}

/// What a task's file is to be read as.
#[derive(Deserialize)]
struct Head {
    kind: Option<toml::Spanned<toml::Value>>,
}

const MINIMAL_PAIRS: &str = "minimal-pairs";
const GREATER_THAN: &str = "greater-than";

/// Reads a task from TOML: one of `kind = "minimal-pairs"` ([`MinimalPairs`]) or `kind = "greater-than"` ([`GreaterThanTask`]), or without a kind an
/// [`IoiTask`]. `origin` (a file's name) is for messages.
///
/// # Errors
/// If the text is not TOML of that form, or makes no sense.
pub fn parse_task(text: &str, origin: &str) -> Result<Box<dyn Task>, PatchingError> {
    let parse_error = |problem: String| PatchingError::Parse { origin: origin.into(), problem };
    let problem = |e: toml::de::Error| parse_error(e.to_string());
    let head: Head = toml::from_str(text).map_err(problem)?;
    let kinds = format!("kind = {MINIMAL_PAIRS:?} or kind = {GREATER_THAN:?}");
    let Some(kind) = head.kind else {
        let of_another_kind = |e: PatchingError| match e {
            PatchingError::Parse { problem, .. } => parse_error(format!(
                "{}\nA file without a kind is a task of indirect object identification; others begin with {kinds}",
                problem.trim_end()
            )),
            other => other,
        };
        return Ok(Box::new(IoiTask::parse(text, origin).map_err(of_another_kind)?));
    };
    // The rest is read where it stands, so that what is wrong with it has its line and column.
    let before = text[..kind.span().start].rfind('\n').map_or(0, |end| end + 1);
    let blank = " ".repeat(kind.span().end - before);
    let rest = [&text[..before], &blank, &text[kind.span().end..]].concat();
    Ok(match kind.get_ref().as_str() {
        Some(MINIMAL_PAIRS) => {
            let task: MinimalPairs = toml::from_str(&rest).map_err(problem)?;
            task.validate(origin)?;
            Box::new(task)
        }
        Some(GREATER_THAN) => {
            let task: GreaterThanTask = toml::from_str(&rest).map_err(problem)?;
            task.validate(origin)?;
            Box::new(task)
        }
        _ => return Err(parse_error(format!("kind = {}: expected {kinds}", kind.get_ref()))),
    })
}
