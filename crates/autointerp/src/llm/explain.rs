use monosem_llm::{Finish, LlmError};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::show::{Window, listed, numbered, running};
use super::{Exchange, Interpreter, Tally};
use crate::ExampleRef;

/// The longest explanation that is kept, in characters.
const LONGEST: usize = 400;

/// How a model is shown what to explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExplainerKind {
    /// The strongest fragments token by token, each with `floor(10 * activation / max)`: the protocol of Bills et al. 2023 and of arXiv 2309.08600.
    Integers,
    /// Windows around the peaks of the strongest fragments and of others drawn from the rest, with the active tokens marked, as delphi does.
    Windows,
}

/// What a model wrote about a feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// The explanation in one line; none if the model gave none that can be used.
    pub text: Option<String>,
    /// The prompt and the reply.
    pub exchange: Exchange,
}

impl Interpreter<'_> {
    /// Explains a feature from examples, the strongest first.
    ///
    /// # Errors
    /// Those of the endpoint that end the run.
    ///
    /// # Panics
    /// If there are no examples.
    pub fn explain(
        &self,
        kind: ExplainerKind,
        feature: usize,
        examples: &[ExampleRef<'_>],
    ) -> Result<Written, LlmError> {
        assert!(!examples.is_empty(), "feature {feature} has no examples to explain from");
        let mut tally = Tally::default();
        let limit = self.config.explanation_tokens;
        let reply = match kind {
            ExplainerKind::Integers => {
                let shown = &examples[..self.config.shown.min(examples.len())];
                self.chat(
                    &self.prompts.explain_integers,
                    &[("fragments", &self.with_integers(shown))],
                    limit,
                    0,
                    &mut tally,
                )
            }
            ExplainerKind::Windows => {
                let windows = self.with_marks(feature, examples);
                self.chat(&self.prompts.explain_windows, &[("windows", &windows)], limit, 0, &mut tally)
            }
        }?;
        let text = reply.and_then(|reply| one_line(&reply.text).map(|text| whole(text, reply.finish)));
        if text.is_none() && tally.exchanges.last().is_some_and(|exchange| exchange.problem.is_none()) {
            tally.unparsed("no words in the reply");
        }
        Ok(Written { text, exchange: tally.exchanges.remove(0) })
    }

    fn with_integers(&self, shown: &[ExampleRef<'_>]) -> String {
        let max = shown.iter().flat_map(|example| example.activations).copied().fold(0.0, f32::max);
        let text = |(i, example): (usize, &ExampleRef<'_>)| {
            let (skip, value) = (example.skip(), |x: f32| integer(x, max, 10));
            let line = |at: usize| at.checked_sub(skip).map_or(0, |at| value(example.activations[at])).to_string();
            format!("Text {}\n{}", i + 1, listed(self.vocabulary, example.tokens, line))
        };
        shown.iter().enumerate().map(text).collect::<Vec<_>>().join("\n\n")
    }

    fn with_marks(&self, feature: usize, examples: &[ExampleRef<'_>]) -> String {
        let mut rng = self.rng(feature, "explain-windows");
        // Half are the strongest, half are drawn from all others: an explanation from the top alone misses what the feature does otherwise.
        let (n, half) = (self.config.shown_windows, self.config.shown_windows.div_ceil(2));
        let (top, rest) = examples.split_at(half.min(examples.len()));
        let mut chosen: Vec<ExampleRef<'_>> = rest.to_vec();
        chosen.shuffle(&mut rng);
        chosen.truncate(n - half);
        let windows = top.iter().chain(&chosen).map(|example| {
            let window = Window::around_peak(*example, self.config.window, &mut rng);
            let limit = self.config.mark_above * window.max();
            running(self.vocabulary, window.tokens, |at| window.activations[at].is_some_and(|x| x > limit))
        });
        numbered(windows).lines().map(|line| format!("Window {line}")).collect::<Vec<_>>().join("\n")
    }
}

/// `floor(top * relu(x) / max)`, at most `top`.
pub(super) fn integer(x: f32, max: f32, top: u8) -> u8 {
    if max > 0.0 { (f32::from(top) * x.max(0.0) / max).floor().min(f32::from(top)) as u8 } else { 0 }
}

/// An explanation that was cut off, to its last whole word.
fn whole(text: String, finish: Finish) -> String {
    match (finish, text.rsplit_once(' ')) {
        (Finish::Length, Some((words, _))) => words.to_owned(),
        _ => text,
    }
}

/// The first paragraph of a reply without what models put around an answer; `None` if no letter or digit is in it.
fn one_line(reply: &str) -> Option<String> {
    let paragraph = reply.trim().split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let bare = ["Description:", "Explanation:", "Answer:"]
        .iter()
        .fold(line.as_str(), |line, label| line.strip_prefix(label).unwrap_or(line).trim());
    let quoted = bare.len() >= 2 && bare.starts_with('"') && bare.ends_with('"') && bare.matches('"').count() == 2;
    let bare = if quoted { &bare[1..bare.len() - 1] } else { bare };
    let kept: String = bare.chars().take(LONGEST).collect();
    kept.contains(char::is_alphanumeric).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_floors() {
        assert_eq!([-1.0, 0.0, 0.99, 1.0, 9.99, 10.0].map(|x| integer(x, 10.0, 10)), [0, 0, 0, 1, 9, 10]);
        assert_eq!((integer(10.0, 10.0, 9), integer(1.0, 0.0, 10)), (9, 0));
    }

    #[test]
    fn an_explanation_is_one_line_of_words() {
        assert_eq!(one_line("  Explanation: names\nof days\n\nHope that helps!").unwrap(), "names of days");
        assert_eq!(one_line(r#""the word of""#).unwrap(), "the word of");
        assert_eq!(one_line(r#""of" and "to""#).unwrap(), r#""of" and "to""#);
        assert_eq!(one_line(" \n ... "), None);
        assert_eq!(one_line(&"é".repeat(900)).unwrap().chars().count(), LONGEST);
    }
}
