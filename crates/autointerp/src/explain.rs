use std::convert::Infallible;

use serde::{Deserialize, Serialize};

use crate::candidates::Candidates;
use crate::explanation::{HUNDREDTHS, TENTHS, value_bits};
use crate::{ConfigError, ExampleRef, Explainer, PatternExplanation, Rule, Vocabulary};

/// How patterns are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatternConfig {
    /// The longest explanation.
    pub max_patterns: usize,
    /// A pattern must show in so many examples: what is seen once says nothing of other texts.
    pub min_examples: usize,
    /// A pattern's value is the mean over the tokens that it decides and so many imagined ones that have the value `otherwise`.
    pub shrinkage: f64,
    /// How much a bit of description costs. At 1 a rule must shorten the description of the activations, under
    /// Gaussian errors of the present size, by more than its own length (minimum description length); at 0 any gain will do.
    pub bit_penalty: f64,
}

impl Default for PatternConfig {
    fn default() -> Self {
        Self { max_patterns: 30, min_examples: 2, shrinkage: 2.0, bit_penalty: 1.0 }
    }
}

impl PatternConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [("max_patterns", self.max_patterns), ("min_examples", self.min_examples)] {
            if value == 0 {
                return Err(ConfigError::value(key, "is 0, expected at least 1".into()));
            }
        }
        for (key, value) in [("shrinkage", self.shrinkage), ("bit_penalty", self.bit_penalty)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ConfigError::value(key, format!("is {value}, expected a number from 0 up")));
            }
        }
        Ok(())
    }
}

/// Explains a feature by the patterns that reduce the squared error of its simulation most, one after the other.
///
/// Greedy, so that explanations of different lengths are nested: at each step every pattern that shows in the examples is tried
/// with its shrunken mean in tenths of the maximum, and the one with the largest gain less the price of its bits is added. It ends
/// at `max_patterns`, or when no pattern is worth its price.
#[derive(Debug, Clone, Copy)]
pub struct PatternExplainer<'a> {
    /// The text of the tokens.
    pub vocabulary: &'a Vocabulary,
    /// How patterns are chosen.
    pub config: PatternConfig,
}

impl Explainer for PatternExplainer<'_> {
    type Explanation = PatternExplanation;
    type Error = Infallible;

    fn explain(&self, examples: &[ExampleRef<'_>]) -> Result<PatternExplanation, Infallible> {
        let activations = || examples.iter().flat_map(|example| example.activations);
        let max = activations().copied().fold(0.0, f32::max);
        let n_tokens = self.vocabulary.len();
        if max <= 0.0 {
            return Ok(PatternExplanation { rules: Vec::new(), baseline: 0, max: 0.0, n_tokens });
        }
        let candidates = Candidates::new(self.vocabulary, examples, self.config.min_examples);
        let truth = activations().map(|activation| f64::from(activation.max(0.0) / max)).collect();
        let mut fit = Fit::new(&candidates, truth, self.config, n_tokens);
        let baseline = fit.otherwise();
        let mut rules = Vec::new();
        while let Some(choice) = fit.best().filter(|_| rules.len() < self.config.max_patterns) {
            rules.push(fit.accept(choice));
        }
        Ok(PatternExplanation { rules, baseline, max, n_tokens })
    }
}

/// Count, sum and sum of squares of some tokens' truths.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    n: f64,
    sum: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, truth: f64, sign: f64) {
        self.n += sign;
        self.sum += sign * truth;
        self.squares += sign * truth * truth;
    }

    fn plus(self, other: Self) -> Self {
        Self { n: self.n + other.n, sum: self.sum + other.sum, squares: self.squares + other.squares }
    }

    /// Squared error of one value for all.
    fn error(self, value: f64) -> f64 {
        self.squares - 2.0 * value * self.sum + value * value * self.n
    }
}

/// The tokens that a pattern would decide if it were added.
#[derive(Debug, Clone, Copy, Default)]
struct Stake {
    /// Those that no rule matches.
    free: Sums,
    /// Those that a less specific rule decides, and their present squared error.
    held: Sums,
    held_error: f64,
}

/// A pattern to add, and its value.
#[derive(Debug, Clone, Copy)]
struct Choice {
    candidate: usize,
    tenths: u8,
}

/// The state of the greedy choice. Truths are from 0 to 1.
///
/// A candidate's gain needs only its [`Stake`], and a new rule changes the stakes of those patterns that share tokens with
/// it: a step costs the patterns of the tokens that change hands, and one look at each candidate.
struct Fit<'a> {
    candidates: &'a Candidates,
    config: PatternConfig,
    truth: Vec<f64>,
    /// The support of the rule that decides each token, and its value.
    holders: Vec<Option<(usize, f64)>>,
    stakes: Vec<Stake>,
    used: Vec<bool>,
    /// Price in bits of each candidate.
    bits: Vec<f64>,
    /// Tokens that no rule matches.
    free: Sums,
    /// Squared error of all others.
    held_error: f64,
    /// Gains below this are rounding.
    least_gain: f64,
}

impl<'a> Fit<'a> {
    fn new(candidates: &'a Candidates, truth: Vec<f64>, config: PatternConfig, n_tokens: usize) -> Self {
        let sums = |tokens: &mut dyn Iterator<Item = f64>| {
            tokens.fold(Sums::default(), |mut sums, truth| {
                sums.add(truth, 1.0);
                sums
            })
        };
        let free = sums(&mut truth.iter().copied());
        let n = candidates.patterns.len();
        let stake = |candidate| {
            let tokens = candidates.tokens_of.get(candidate).iter();
            Stake { free: sums(&mut tokens.map(|token| truth[*token as usize])), ..Stake::default() }
        };
        Self {
            candidates,
            config,
            holders: vec![None; truth.len()],
            stakes: (0..n).map(stake).collect(),
            used: vec![false; n],
            bits: candidates.patterns.iter().map(|pattern| pattern.bits(n_tokens) + value_bits()).collect(),
            free,
            held_error: 0.0,
            least_gain: 1e-9 * free.squares,
            truth,
        }
    }

    /// The mean where no rule matches, in hundredths; 0 where rules match everywhere.
    fn otherwise(&self) -> u8 {
        let mean = if self.free.n > 0.5 { self.free.sum / self.free.n } else { 0.0 };
        (mean * f64::from(HUNDREDTHS)).round().clamp(0.0, f64::from(HUNDREDTHS)) as u8
    }

    /// The candidate with the largest gain above its price; of equal ones the first.
    fn best(&self) -> Option<Choice> {
        let otherwise = f64::from(self.otherwise()) / f64::from(HUNDREDTHS);
        let variance = (self.held_error + self.free.error(otherwise)) / self.truth.len() as f64;
        // A Gaussian error e costs e^2 / (2 variance) nats.
        let price = self.config.bit_penalty * 2.0 * variance * std::f64::consts::LN_2;
        let mut best = (self.least_gain, None);
        for (candidate, stake) in self.stakes.iter().enumerate().filter(|(candidate, _)| !self.used[*candidate]) {
            let decided = stake.free.plus(stake.held);
            let mean = (decided.sum + self.config.shrinkage * otherwise) / (decided.n + self.config.shrinkage);
            let tenths = (mean * f64::from(TENTHS)).round();
            let before = stake.held_error + stake.free.error(otherwise);
            let gain = before - decided.error(tenths / f64::from(TENTHS)) - price * self.bits[candidate];
            if gain > best.0 {
                best = (gain, Some(Choice { candidate, tenths: tenths as u8 }));
            }
        }
        best.1
    }

    /// Adds a rule: it decides those of its tokens that no more specific rule does.
    fn accept(&mut self, Choice { candidate, tenths }: Choice) -> Rule {
        let candidates = self.candidates;
        let tokens = candidates.tokens_of.get(candidate);
        let (support, value) = (tokens.len(), f64::from(tenths) / f64::from(TENTHS));
        self.used[candidate] = true;
        for token in tokens.iter().map(|token| *token as usize) {
            if self.holders[token].is_none_or(|(holder, _)| holder > support) {
                self.weigh(token, -1.0);
                self.holders[token] = Some((support, value));
                self.weigh(token, 1.0);
            }
        }
        let pattern = candidates.patterns[candidate];
        Rule { pattern, tenths, support: support as u32, otherwise: self.otherwise() }
    }

    /// Adds a token, as it is held now, to all sums (or takes it away, with the sign -1).
    fn weigh(&mut self, token: usize, sign: f64) {
        let truth = self.truth[token];
        let patterns = self.candidates.patterns_of.get(token).iter().map(|pattern| *pattern as usize);
        let Some((holder, value)) = self.holders[token] else {
            self.free.add(truth, sign);
            patterns.for_each(|pattern| self.stakes[pattern].free.add(truth, sign));
            return;
        };
        let error = sign * (truth - value).powi(2);
        self.held_error += error;
        for pattern in patterns.filter(|pattern| self.candidates.tokens_of.get(*pattern).len() < holder) {
            self.stakes[pattern].held.add(truth, sign);
            self.stakes[pattern].held_error += error;
        }
    }
}
