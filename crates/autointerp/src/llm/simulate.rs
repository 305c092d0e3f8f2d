use monosem_llm::{Finish, LlmError, ScoredPrompt};
use rand::{Rng, RngExt};

use super::show::{listed, visible};
use super::{Evidence, Interpreter, ScorerKind, Tally, Unscored, Verdict};
use crate::ExampleRef;
use crate::statistics::{bootstrap, pearson};

/// Candidates asked for at each token (15 in arXiv 2309.08600).
const CANDIDATES: u8 = 15;

/// What may be predicted.
const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Where a value is to be predicted.
const UNKNOWN: &str = "unknown";

/// A fragment's true and simulated activations at the tokens that have both.
struct Simulated {
    top: bool,
    truth: Vec<f64>,
    values: Vec<f64>,
}

impl Interpreter<'_> {
    pub(super) fn simulation(
        &self,
        kind: ScorerKind,
        explanation: &str,
        evidence: &Evidence<'_>,
        rng: &mut impl Rng,
    ) -> Result<Verdict, LlmError> {
        let mut tally = Tally::default();
        let mut fragments = Vec::new();
        let examples = evidence.top.iter().map(|e| (e, true)).chain(evidence.random.iter().map(|e| (e, false)));
        for (example, top) in examples {
            let values = if kind == ScorerKind::Simulation {
                self.by_probabilities(explanation, example, &mut tally)?
            } else {
                self.by_reply(explanation, example, &mut tally)?
            };
            let Some(values) = values else { continue };
            let pairs = example.activations.iter().zip(&values[example.skip()..]);
            let (truth, values) = pairs.filter_map(|(truth, value)| Some((f64::from(*truth), (*value)?))).unzip();
            fragments.push(Simulated { top, truth, values });
        }
        let mut verdict = tally.verdict(kind, 0.0, self.config.max_failed);
        if evidence.top.is_empty() && evidence.random.is_empty() {
            verdict.unscored = Some(Unscored::TooFewFragments);
        }
        if verdict.unscored.is_none() {
            let all: Vec<&Simulated> = fragments.iter().collect();
            verdict.set(Some(correlated(&all)));
            let only = |top: bool| {
                let of: Vec<&Simulated> = all.iter().copied().filter(|f| f.top == top).collect();
                (!of.is_empty()).then(|| correlated(&of))
            };
            verdict.top = only(true);
            verdict.random = only(false);
            verdict.interval = bootstrap(all.len(), self.config.resamples, rng.random(), |drawn| {
                Some(correlated(&drawn.iter().map(|i| all[*i]).collect::<Vec<_>>()))
            });
        }
        Ok(verdict)
    }

    /// Expected values from the probabilities of the digits 0 to 9 in the places of `unknown`, renormalised among the digits; `None` for a place where no
    /// digit is among the candidates. As a whole `None` if that is so at too many places.
    fn by_probabilities(
        &self,
        explanation: &str,
        example: &ExampleRef<'_>,
        tally: &mut Tally,
    ) -> Result<Option<Vec<Option<f64>>>, LlmError> {
        let template = &self.prompts.simulate_scored;
        let tokens = listed(self.vocabulary, example.tokens, |_| UNKNOWN.to_owned());
        let text = template.text(&[("explanation", explanation), ("tokens", &tokens)]);
        let begins = text.len() - tokens.len();
        let places: Vec<usize> = (tokens.lines().scan(begins, |start, line| {
            let place = *start + line.len() - UNKNOWN.len();
            *start += line.len() + 1;
            Some(place)
        }))
        .collect();
        let Some(scored) = self.scored_prompt(template, text, begins, (CANDIDATES, &DIGITS), tally)? else {
            return Ok(None);
        };
        let values = expected_at(&scored, &places);
        let missing = values.iter().filter(|value| value.is_none()).count();
        tally.read(values.iter().map(|v| v.map_or("-".into(), |v| format!("{v:.1}"))).collect::<Vec<_>>().join(" "));
        if missing as f64 > self.config.max_failed * values.len() as f64 {
            tally.unparsed(format!("no digit among the candidates at {missing} of {} tokens", values.len()));
            return Ok(None);
        }
        Ok(Some(values))
    }

    /// Values as the model writes them, a line for each token.
    fn by_reply(
        &self,
        explanation: &str,
        example: &ExampleRef<'_>,
        tally: &mut Tally,
    ) -> Result<Option<Vec<Option<f64>>>, LlmError> {
        let n = example.tokens.len();
        let line = |(i, token): (usize, &u32)| format!("{}\t{}", i + 1, visible(self.vocabulary.text(*token)));
        let tokens = example.tokens.iter().enumerate().map(line).collect::<Vec<_>>().join("\n");
        let values = [("explanation", explanation), ("count", &n.to_string()), ("tokens", &tokens)];
        // A line is a number of up to three digits, a tab, a number and a line break.
        let longest = 8 * n as u32 + 16;
        let Some(reply) = self.chat(&self.prompts.simulate_chat, &values, longest, 0, tally)? else { return Ok(None) };
        if reply.finish == Finish::Length {
            // The last number may be the beginning of another.
            tally.unparsed("the reply was cut off");
            return Ok(None);
        }
        match read_lines(&reply.text, n) {
            Ok(values) => Ok(Some(values.into_iter().map(Some).collect())),
            Err(why) => {
                tally.unparsed(why);
                Ok(None)
            }
        }
    }
}

/// Correlation over the concatenated tokens; 0 where either side is constant.
fn correlated(fragments: &[&Simulated]) -> f64 {
    let truth: Vec<f64> = fragments.iter().flat_map(|f| f.truth.iter().copied()).collect();
    let values: Vec<f64> = fragments.iter().flat_map(|f| f.values.iter().copied()).collect();
    pearson(&truth, &values).unwrap_or(0.0)
}

/// The expected digit at each byte offset of the text, where a token begins there and digits are among its candidates.
fn expected_at(scored: &ScoredPrompt, places: &[usize]) -> Vec<Option<f64>> {
    let mut next = 0;
    let mut start = 0;
    let mut values = vec![None; places.len()];
    for token in &scored.tokens {
        while next < places.len() && places[next] < start {
            next += 1;
        }
        if next < places.len() && places[next] == start {
            values[next] = expected(&token.top);
        }
        start += token.text.len();
    }
    values
}

/// `sum of v p(v) / sum of p(v)` over the candidates that are a digit.
fn expected(candidates: &[(String, f64)]) -> Option<f64> {
    let digit = |text: &str| match text.trim().as_bytes() {
        [digit @ b'0'..=b'9'] => Some(f64::from(digit - b'0')),
        _ => None,
    };
    let digits = candidates.iter().filter_map(|(text, logprob)| Some((digit(text)?, logprob.exp())));
    let (sum, total) = digits.fold((0.0, 0.0), |(sum, total), (value, p)| (sum + value * p, total + p));
    (total > 0.0).then(|| sum / total)
}

/// `n` lines of a number from 1 to `n`, each once, and a value from 0 to 10.
fn read_lines(reply: &str, n: usize) -> Result<Vec<f64>, String> {
    let mut values: Vec<Option<f64>> = vec![None; n];
    for line in reply.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut parts = line.split(|c: char| c.is_whitespace() || c == ':' || c == ',').filter(|part| !part.is_empty());
        let number = parts.next().and_then(|part| part.trim_end_matches('.').parse::<usize>().ok());
        // A model may repeat the token between the two.
        let value = parts.next_back().and_then(|part| part.parse::<f64>().ok());
        let (Some(number), Some(value)) = (number, value) else { continue };
        if !(1..=n).contains(&number) || !(0.0..=10.0).contains(&value) {
            return Err(format!("line {line:?}: expected a number from 1 to {n} and a value from 0 to 10"));
        }
        if values[number - 1].replace(value).is_some() {
            return Err(format!("token {number} has two values"));
        }
    }
    let missing = values.iter().filter(|value| value.is_none()).count();
    let all: Option<Vec<f64>> = values.into_iter().collect();
    all.ok_or_else(|| format!("{missing} of {n} tokens have no value"))
}

#[cfg(test)]
mod tests {
    use monosem_llm::{ScoredToken, Usage};

    use super::*;

    #[test]
    fn the_expectation_is_over_digits_only() {
        let top = [("0", 0.5_f64), ("8", 0.25), ("un", 0.2), ("10", 0.05)];
        let top: Vec<(String, f64)> = top.map(|(text, p)| (text.to_owned(), p.ln())).to_vec();
        assert!((expected(&top).unwrap() - 8.0 / 3.0).abs() < 1e-12);
        assert_eq!(expected(&top[2..]), None);
    }

    #[test]
    fn values_are_read_where_a_token_begins() {
        let token = |text: &str, digit: &str| ScoredToken {
            text: text.into(),
            logprob: None,
            top: vec![(digit.to_owned(), -0.1)],
        };
        let tokens = vec![
            token(" a", "1"),
            token("\t", "2"),
            token("unk", "3"),
            token("nown\n", "4"),
            token(" b\tunknown", "5"),
        ];
        let scored = ScoredPrompt { tokens, usage: Usage::default() };
        // The second place is inside a token: nothing was predicted there.
        let found: Vec<_> = expected_at(&scored, &[3, 14]).iter().map(|value| value.map(f64::round)).collect();
        assert_eq!(found, [Some(3.0), None]);
    }

    #[test]
    fn lines_may_come_in_any_order_but_once_each() {
        assert_eq!(read_lines("1\t0\n3\t10\n2: 4.5\n", 3), Ok(vec![0.0, 4.5, 10.0]));
        assert_eq!(read_lines("1\t the\t0\n2\t,\t3", 2), Ok(vec![0.0, 3.0]));
        assert!(read_lines("1\t0\n1\t2\n2\t0", 2).unwrap_err().contains("two values"));
        assert!(read_lines("1\t0", 2).unwrap_err().contains("1 of 2"));
        assert!(read_lines("1\t11\n2\t0", 2).unwrap_err().contains("0 to 10"));
        assert!(read_lines("I cannot do that", 2).is_err());
    }
}
