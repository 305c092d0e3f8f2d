use monosem_llm::{LlmError, ScoredPrompt};
use rand::{Rng, RngExt};

use super::show::{Window, running};
use super::{Evidence, Interpreter, ScorerKind, Tally, Unscored, Verdict};
use crate::statistics::{auc, bootstrap};

/// A description that says nothing.
const NOTHING: &str = "something";

/// What an explanation brought to a window.
#[derive(Clone, Copy)]
struct Gain {
    active: bool,
    top: bool,
    nats: f64,
}

impl Interpreter<'_> {
    pub(super) fn surprisal(
        &self,
        explanation: &str,
        evidence: &Evidence<'_>,
        rng: &mut impl Rng,
    ) -> Result<Verdict, LlmError> {
        let (kind, chance) = (ScorerKind::Surprisal, 0.5);
        let (found, needed) = (evidence.quiet.len(), evidence.top.len() + evidence.random.len());
        if needed == 0 {
            return Ok(Verdict::unscored(kind, chance, Unscored::TooFewFragments));
        }
        if found < needed {
            return Ok(Verdict::unscored(kind, chance, Unscored::TooFewQuiet { found, needed }));
        }
        let size = self.config.window;
        let mut windows = Vec::new();
        for (examples, top) in [(&evidence.top, true), (&evidence.random, false)] {
            windows.extend(examples.iter().map(|e| (Window::around_peak(*e, size, rng), true, top)));
        }
        windows.extend(evidence.quiet[..needed].iter().map(|q| (Window::of_quiet(*q, size, rng), false, false)));
        let (mut tally, mut gains) = (Tally::default(), Vec::new());
        for (window, active, top) in &windows {
            let text = running(self.vocabulary, window.tokens, |_| false);
            let with = self.log_likelihood(explanation, &text, &mut tally)?;
            let without = self.log_likelihood(NOTHING, &text, &mut tally)?;
            if let (Some(with), Some(without)) = (with, without) {
                gains.push(Gain { active: *active, top: *top, nats: with - without });
            }
        }
        let mut verdict = tally.verdict(kind, chance, self.config.max_failed);
        if verdict.unscored.is_some() {
            return Ok(verdict);
        }
        let area = |gains: &mut dyn Iterator<Item = Gain>| {
            let (active, quiet): (Vec<Gain>, Vec<Gain>) = gains.partition(|gain| gain.active);
            let nats = |gains: Vec<Gain>| -> Vec<f64> { gains.into_iter().map(|gain| gain.nats).collect() };
            auc(&nats(active), &nats(quiet))
        };
        verdict.set(area(&mut gains.iter().copied()));
        let only = |top: bool| area(&mut gains.iter().copied().filter(|gain| !gain.active || gain.top == top));
        verdict.top = only(true);
        verdict.random = only(false);
        verdict.interval = bootstrap(gains.len(), self.config.resamples, rng.random(), |drawn| {
            area(&mut drawn.iter().map(|i| gains[*i]))
        });
        if verdict.value.is_none() {
            verdict.unscored = Some(Unscored::TooFewFragments);
        }
        Ok(verdict)
    }

    /// The log-likelihood in nats of a window behind a description.
    fn log_likelihood(&self, description: &str, window: &str, tally: &mut Tally) -> Result<Option<f64>, LlmError> {
        let template = &self.prompts.surprisal;
        let values = [("explanation", description), ("window", window)];
        let text = template.text(&values);
        let begins = text.len() - window.len();
        let Some(scored) = self.scored_prompt(template, text, begins, (0, &[]), tally)? else {
            return Ok(None);
        };
        let sum = sum_from(&scored, begins);
        match sum {
            Some(sum) => tally.read(format!("{sum:.3} nats")),
            None => tally.unparsed("the log-probabilities of some tokens are missing"),
        }
        Ok(sum)
    }
}

/// The sum of the log-probabilities of the tokens that end after a byte offset; `None` if one of them has none.
fn sum_from(scored: &ScoredPrompt, begins: usize) -> Option<f64> {
    let mut end = 0;
    let mut sum = 0.0;
    for token in &scored.tokens {
        end += token.text.len();
        if end > begins {
            sum += token.logprob?;
        }
    }
    Some(sum)
}
