use serde::{Deserialize, Serialize};

use crate::statistics::pearson;
use crate::{ExampleRef, PatternExplanation, PatternSimulator, Scorer, Simulator};

/// How well simulated activations follow the true ones: Pearson's correlation over the concatenated tokens of the examples, as in
/// arXiv 2309.08600. Where the simulation or the truth is constant there is nothing to correlate, and the score is 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// On the strongest examples.
    pub top: f64,
    /// On random active examples.
    pub random: f64,
    /// On both together.
    pub combined: f64,
}

/// Scores by simulating: see [`Score`].
#[derive(Debug, Clone, Copy)]
pub struct CorrelationScorer<S> {
    /// Makes the values that are compared with the truth.
    pub simulator: S,
}

impl<E: ?Sized, S: Simulator<E>> Scorer<E> for CorrelationScorer<S> {
    type Error = S::Error;

    fn score(&self, explanation: &E, top: &[ExampleRef<'_>], random: &[ExampleRef<'_>]) -> Result<Score, S::Error> {
        let (mut truth, mut simulated) = (Vec::new(), Vec::new());
        for example in top.iter().chain(random) {
            let values = self.simulator.simulate(explanation, example.tokens)?;
            let (found, expected) = (values.len(), example.tokens.len());
            assert_eq!(found, expected, "a simulation of {found} values for {expected} tokens");
            truth.extend(example.activations.iter().map(|value| f64::from(*value)));
            simulated.extend(values[example.skip()..].iter().map(|value| f64::from(*value)));
        }
        let border = top.iter().map(|example| example.activations.len()).sum();
        let score = |range: std::ops::Range<usize>| pearson(&truth[range.clone()], &simulated[range]).unwrap_or(0.0);
        Ok(Score { top: score(0..border), random: score(border..truth.len()), combined: score(0..truth.len()) })
    }
}

/// How long an explanation may be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// At most so many patterns.
    Patterns(usize),
    /// At most so many bits.
    Bits(f64),
}

impl Budget {
    /// The part of an explanation that the budget allows.
    pub fn cut(self, explanation: &PatternExplanation) -> PatternExplanation {
        match self {
            Self::Patterns(k) => explanation.first(k),
            Self::Bits(bits) => explanation.within_bits(bits),
        }
    }
}

/// The score of an explanation cut to a budget.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurvePoint {
    /// What was allowed.
    pub budget: Budget,
    /// Patterns used, at most what was allowed.
    pub patterns: usize,
    /// Bits used.
    pub bits: f64,
    /// The score.
    pub score: Score,
}

/// The score at each budget, in the order given. Short explanations are what separates a feature that means one thing from a
/// direction that mixes many; without a limit a table of all tokens wins.
pub fn score_curve(
    simulator: PatternSimulator<'_>,
    explanation: &PatternExplanation,
    top: &[ExampleRef<'_>],
    random: &[ExampleRef<'_>],
    budgets: &[Budget],
) -> Vec<CurvePoint> {
    let scorer = CorrelationScorer { simulator };
    let point = |budget: &Budget| {
        let cut = budget.cut(explanation);
        let Ok(score) = scorer.score(&cut, top, random);
        CurvePoint { budget: *budget, patterns: cut.rules.len(), bits: cut.bits(), score }
    };
    budgets.iter().map(point).collect()
}
