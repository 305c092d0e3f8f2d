//! Explanations and scores by language models.

use monosem_llm::{Endpoint, Finish, LlmError, PromptRequest, Reply, Request, ScoredPrompt};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{ConfigError, ExampleRef, FeatureExamples, Fragments, Quiet, Vocabulary};

mod explain;
mod judge;
mod show;
mod simulate;
mod surprisal;
mod template;
#[cfg(test)]
mod tests;
mod verdict;

pub use explain::{ExplainerKind, Written};
pub use template::{Prompts, Template, TemplateError};
pub use verdict::{Exchange, ScorerKind, Unscored, Verdict};

/// How models are asked about features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlmConfig {
    /// Strongest fragments that an explainer is shown token by token (5 in arXiv 2309.08600).
    pub shown: usize,
    /// Windows that an explainer is shown with marks.
    pub shown_windows: usize,
    /// Tokens in a window.
    pub window: usize,
    /// Tokens whose activation is above this share of the window's maximum are marked.
    pub mark_above: f32,
    /// Windows judged in one request. With 1, the probabilities of the two answers decide where the model tells them.
    pub per_prompt: usize,
    /// Windows among which the intruder is to be found.
    pub intruder_choices: usize,
    /// Times that it is to be found for each feature.
    pub intruder_trials: usize,
    /// The longest explanation, in tokens.
    pub explanation_tokens: u32,
    /// A feature of whose replies a larger share is refused or cannot be read is unscored.
    pub max_failed: f64,
    /// Bootstrap resamples behind each interval.
    pub resamples: usize,
    /// Draws windows, marks, orders and resamples.
    pub seed: u64,
}

impl Default for LlmConfig {
    fn default() -> Self {
        Self {
            shown: 5,
            shown_windows: 20,
            window: 32,
            mark_above: 0.3,
            per_prompt: 5,
            intruder_choices: 4,
            intruder_trials: 10,
            explanation_tokens: 60,
            max_failed: 0.2,
            resamples: 1000,
            seed: 0,
        }
    }
}

impl LlmConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("shown", self.shown, 1),
            ("shown_windows", self.shown_windows, 1),
            ("window", self.window, 2),
            ("per_prompt", self.per_prompt, 1),
            ("intruder_choices", self.intruder_choices, 2),
            ("intruder_trials", self.intruder_trials, 1),
            ("explanation_tokens", self.explanation_tokens as usize, 1),
            ("resamples", self.resamples, 1),
        ];
        if let Some((key, value, least)) = counts.into_iter().find(|(_, value, least)| value < least) {
            return Err(ConfigError::value(key, format!("is {value}, expected at least {least}")));
        }
        if !(judge::SILENT..1.0).contains(&self.mark_above) {
            let expected = format!("is {}, expected {} to below 1", self.mark_above, judge::SILENT);
            return Err(ConfigError::value("mark_above", expected));
        }
        if !(0.0..1.0).contains(&self.max_failed) {
            return Err(ConfigError::value("max_failed", format!("is {}, expected 0 to below 1", self.max_failed)));
        }
        Ok(())
    }
}

/// What a scorer is shown of a feature, none of which its explanation was made from.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    /// The strongest fragments.
    pub top: Vec<ExampleRef<'a>>,
    /// Random ones on which the feature is active.
    pub random: Vec<ExampleRef<'a>>,
    /// Fragments on which it is quiet.
    pub quiet: Vec<QuietRef<'a>>,
}

/// A fragment on which a feature is quiet.
#[derive(Debug, Clone, Copy)]
pub struct QuietRef<'a> {
    /// The whole fragment.
    pub tokens: &'a [u32],
    /// Leading tokens whose activation is not known, as [`ExampleRef::skip`].
    pub skip: usize,
}

impl<'a> Evidence<'a> {
    /// Of a gathered feature.
    ///
    /// # Panics
    /// If its examples are not of these fragments, or a fragment to score on is also one to explain from.
    #[must_use]
    pub fn new(fragments: &'a Fragments, feature: &'a FeatureExamples) -> Self {
        let explained = |fragment: u32| feature.explain.iter().any(|example| example.fragment == fragment);
        let scored = feature.score_top.iter().chain(&feature.score_random).map(|example| example.fragment);
        if let Some(fragment) = scored.chain(feature.quiet.iter().map(|q| q.fragment)).find(|f| explained(*f)) {
            panic!("feature {}: fragment {fragment} is to explain from and to score on", feature.feature);
        }
        let (top, random) = (fragments.examples(&feature.score_top), fragments.examples(&feature.score_random));
        // All fragments have as many activations.
        let skip = top.first().or(random.first()).map_or(0, ExampleRef::skip);
        let quiet = |quiet: &Quiet| QuietRef { tokens: fragments.tokens_of(quiet.fragment), skip };
        Self { quiet: feature.quiet.iter().map(quiet).collect(), top, random }
    }
}

/// Asks a model for explanations and scores.
///
/// All draws come from the seed and the feature's number, so that the same features are asked the same, whatever else runs: a run that was stopped goes on
/// from an endpoint's cache, in the middle of a feature too.
#[derive(Clone, Copy)]
pub struct Interpreter<'a> {
    /// Who is asked.
    pub endpoint: &'a dyn Endpoint,
    /// With which words.
    pub prompts: &'a Prompts,
    /// The text of the tokens.
    pub vocabulary: &'a Vocabulary,
    /// How.
    pub config: &'a LlmConfig,
}

impl Interpreter<'_> {
    /// Scores the explanation of a feature by one scorer.
    ///
    /// # Errors
    /// Those of the endpoint that end the run ([`LlmError::ends_the_run`]); what concerns one reply only is counted in the verdict.
    ///
    /// # Panics
    /// For [`ScorerKind::Patterns`], which asks no model.
    pub fn score(
        &self,
        kind: ScorerKind,
        feature: usize,
        explanation: &str,
        evidence: &Evidence<'_>,
    ) -> Result<Verdict, LlmError> {
        let mut rng = self.rng(feature, kind.name());
        // One line, whoever wrote it: what it says of pieces and numbers is no part of the prompt.
        let explanation = &show::visible(explanation);
        match kind {
            ScorerKind::Patterns => panic!("patterns are scored without a model"),
            ScorerKind::Simulation | ScorerKind::ChatSimulation => {
                self.simulation(kind, explanation, evidence, &mut rng)
            }
            ScorerKind::Detection | ScorerKind::Fuzzing => self.judged(kind, explanation, evidence, &mut rng),
            ScorerKind::Intruder => self.intruder(evidence, &mut rng),
            ScorerKind::Surprisal => self.surprisal(explanation, evidence, &mut rng),
        }
    }

    fn rng(&self, feature: usize, purpose: &str) -> ChaCha8Rng {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.config.seed.to_le_bytes()).update(&(feature as u64).to_le_bytes());
        ChaCha8Rng::from_seed(*hasher.update(purpose.as_bytes()).finalize().as_bytes())
    }

    /// Asks a conversation; `None` if the reply was refused or never came in the protocol's form, which the tally counts.
    fn chat(
        &self,
        template: &Template,
        values: &[(&str, &str)],
        max_tokens: u32,
        top_logprobs: u8,
        tally: &mut Tally,
    ) -> Result<Option<Reply>, LlmError> {
        let messages = template.messages(values);
        let request = Request {
            messages: messages.clone(),
            max_tokens,
            temperature: 0.0,
            seed: self.config.seed,
            top_logprobs,
            source: template.source(),
        };
        let exchange =
            Exchange { template: template.source(), messages, text: None, reply: String::new(), problem: None };
        let outcome = self.endpoint.chat(&request).map(|reply| {
            let refused = reply.finish == Finish::Refused;
            (reply.text.clone(), (!refused).then_some(reply))
        });
        tally.note(exchange, outcome)
    }

    /// Has a text scored from a byte on; as [`Self::chat`].
    fn scored_prompt(
        &self,
        template: &Template,
        text: String,
        from: usize,
        (top, among): (u8, &[&str]),
        tally: &mut Tally,
    ) -> Result<Option<ScoredPrompt>, LlmError> {
        let among = among.iter().map(|text| (*text).to_owned()).collect();
        let request = PromptRequest { text: text.clone(), from, top, among, source: template.source() };
        let exchange = Exchange {
            template: template.source(),
            messages: Vec::new(),
            text: Some(text),
            reply: String::new(),
            problem: None,
        };
        tally.note(exchange, self.endpoint.score_prompt(&request).map(|scored| (String::new(), Some(scored))))
    }
}

/// Counts what was asked of a feature and what came back.
#[derive(Debug, Default)]
struct Tally {
    asked: u32,
    unparsed: u32,
    refused: u32,
    exchanges: Vec<Exchange>,
}

impl Tally {
    /// Keeps an exchange: `Ok(.., None)` is a refusal.
    fn note<T>(
        &mut self,
        mut exchange: Exchange,
        outcome: Result<(String, Option<T>), LlmError>,
    ) -> Result<Option<T>, LlmError> {
        self.asked += 1;
        let found = match outcome {
            Ok((reply, found)) => {
                if found.is_none() {
                    self.refused += 1;
                    exchange.problem = Some("refused".into());
                }
                exchange.reply = reply;
                found
            }
            Err(error) if error.ends_the_run() => return Err(error),
            Err(error) => {
                match error {
                    LlmError::Refused { .. } => self.refused += 1,
                    _ => self.unparsed += 1,
                }
                exchange.problem = Some(error.to_string());
                None
            }
        };
        self.exchanges.push(exchange);
        Ok(found)
    }

    /// The last reply cannot be read.
    fn unparsed(&mut self, why: impl Into<String>) {
        self.unparsed += 1;
        if let Some(exchange) = self.exchanges.last_mut() {
            exchange.problem = Some(why.into());
        }
    }

    /// What was read off the last reply.
    fn read(&mut self, what: String) {
        if let Some(exchange) = self.exchanges.last_mut() {
            exchange.reply = what;
        }
    }

    /// The verdict, unscored if too much went wrong.
    fn verdict(self, scorer: ScorerKind, chance: f64, max_failed: f64) -> Verdict {
        let Self { asked, unparsed, refused, exchanges } = self;
        let failed = f64::from(unparsed + refused);
        let too_many = asked == 0 || failed > max_failed * f64::from(asked);
        let unscored = too_many.then_some(Unscored::Replies { asked, unparsed, refused });
        let verdict = Verdict::unscored(scorer, chance, Unscored::TooFewFragments);
        Verdict { asked, unparsed, refused, exchanges, unscored, ..verdict }
    }
}
