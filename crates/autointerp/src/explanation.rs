use std::convert::Infallible;

use serde::{Deserialize, Serialize};

use crate::{Pattern, Simulator, Vocabulary};

/// Values of patterns are in tenths of the feature's maximum, as the integers 0 to 10 of arXiv 2309.08600.
pub(crate) const TENTHS: u8 = 10;

/// The value elsewhere is in hundredths: it is the mean of what is mostly small.
pub(crate) const HUNDREDTHS: u8 = 100;

/// Patterns and what the feature does where they show, the most useful first. The first `k` rules are the explanation of length `k`.
///
/// Of the rules that match a token the most specific one decides, which is the one that matched the fewest tokens of the examples;
/// of equally specific ones, the first. (The first or the last match deciding scored a little lower on held-out text.) A token that
/// no rule matches has the value `otherwise`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatternExplanation {
    /// The rules, each of which was the best addition to the ones before.
    pub rules: Vec<Rule>,
    /// The value everywhere if there are no rules, in hundredths of `max`.
    pub baseline: u8,
    /// The largest activation among the examples, 0 if there was none.
    pub max: f32,
    /// Size of the vocabulary, which an argument of a pattern is a choice from.
    pub n_tokens: usize,
}

/// One pattern of an explanation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Where it applies.
    pub pattern: Pattern,
    /// The value there, in tenths of the feature's maximum: 0 to 10.
    pub tenths: u8,
    /// How many tokens of the examples show the pattern: fewer is more specific.
    pub support: u32,
    /// The value where no rule matches, if this is the last one; in hundredths of the feature's maximum.
    pub otherwise: u8,
}

impl PatternExplanation {
    /// The explanation by the first `k` rules, or by all if there are fewer.
    pub fn first(&self, k: usize) -> Self {
        Self { rules: self.rules[..k.min(self.rules.len())].to_vec(), ..*self }
    }

    /// The longest explanation by first rules that needs at most `bits`; without rules if even one is too many.
    pub fn within_bits(&self, bits: f64) -> Self {
        let fits = |k: &usize| self.first(*k).bits() <= bits;
        self.first((1..=self.rules.len()).take_while(fits).last().unwrap_or(0))
    }

    /// The length of its description: every rule's pattern and one of 11 values, and one of 101 values elsewhere.
    pub fn bits(&self) -> f64 {
        let rule = |rule: &Rule| rule.pattern.bits(self.n_tokens) + value_bits();
        f64::from(HUNDREDTHS + 1).log2() + self.rules.iter().map(rule).sum::<f64>()
    }

    /// The value where no rule matches, in hundredths of the maximum.
    pub fn otherwise(&self) -> u8 {
        self.rules.last().map_or(self.baseline, |rule| rule.otherwise)
    }

    /// The value of the token at a position, from 0 to 1: in parts of the feature's maximum.
    pub fn value(&self, vocabulary: &Vocabulary, tokens: &[u32], at: usize) -> f32 {
        let matching = self.rules.iter().filter(|rule| rule.pattern.matches(vocabulary, tokens, at));
        // The first of equal ones, as `min_by_key` returns.
        match matching.min_by_key(|rule| rule.support) {
            Some(rule) => f32::from(rule.tenths) / f32::from(TENTHS),
            None => f32::from(self.otherwise()) / f32::from(HUNDREDTHS),
        }
    }

    /// In words: `fires on " that" (7/10), after " said" (5/10); less on commas and colons (0/10); otherwise about 0.8/10`.
    pub fn sentence(&self, vocabulary: &Vocabulary) -> String {
        let otherwise = f32::from(self.otherwise()) / f32::from(HUNDREDTHS / TENTHS);
        let (more, less): (Vec<_>, Vec<_>) = self.rules.iter().partition(|rule| f32::from(rule.tenths) > otherwise);
        let list = |rules: Vec<&Rule>| {
            let words = |rule: &&Rule| format!("{} ({}/{TENTHS})", rule.pattern.words(vocabulary), rule.tenths);
            rules.iter().map(words).collect::<Vec<_>>().join(", ")
        };
        let mut parts = Vec::new();
        if !more.is_empty() {
            parts.push(format!("fires {}", list(more)));
        }
        if !less.is_empty() {
            parts.push(format!("{} {}", if parts.is_empty() { "fires less" } else { "less" }, list(less)));
        }
        let rest = if parts.is_empty() { "everywhere" } else { "otherwise" };
        parts.push(format!("{rest} about {otherwise}/{TENTHS}"));
        parts.join("; ")
    }
}

/// Bits of a rule's value.
pub(crate) fn value_bits() -> f64 {
    f64::from(TENTHS + 1).log2()
}

/// Simulates a [`PatternExplanation`] by [`PatternExplanation::value`].
#[derive(Debug, Clone, Copy)]
pub struct PatternSimulator<'a> {
    /// The text of the tokens.
    pub vocabulary: &'a Vocabulary,
}

impl Simulator<PatternExplanation> for PatternSimulator<'_> {
    type Error = Infallible;

    fn simulate(&self, explanation: &PatternExplanation, tokens: &[u32]) -> Result<Vec<f32>, Infallible> {
        Ok((0..tokens.len()).map(|at| explanation.value(self.vocabulary, tokens, at)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::tests::small_vocabulary;
    use crate::{TokenClass, WordPiece};

    fn explanation() -> PatternExplanation {
        let rule = |pattern, tenths, support, otherwise| Rule { pattern, tenths, support, otherwise };
        let rules = vec![
            rule(Pattern::Token(7), 7, 40, 9),
            rule(Pattern::After(3), 5, 30, 8),
            rule(Pattern::Class(TokenClass::Comma), 0, 60, 11),
            rule(Pattern::Piece(WordPiece::First), 2, 900, 1),
        ];
        PatternExplanation { rules, baseline: 12, max: 3.0, n_tokens: 12 }
    }

    #[test]
    fn the_most_specific_rule_decides() {
        let vocabulary = small_vocabulary();
        let simulator = PatternSimulator { vocabulary: &vocabulary };
        let tokens = [7, 3, 7, 0, 4, 5, 3, 4];
        let Ok(values) = simulator.simulate(&explanation(), &tokens);
        assert_eq!(values, [0.7, 0.01, 0.5, 0.2, 0.0, 0.01, 0.01, 0.5]);
        let Ok(values) = simulator.simulate(&explanation().first(1), &tokens);
        assert_eq!(values, [0.7, 0.09, 0.7, 0.09, 0.09, 0.09, 0.09, 0.09]);
    }

    #[test]
    fn sentences_show_what_cannot_be_seen() {
        let vocabulary = small_vocabulary();
        let sentence = |k| explanation().first(k).sentence(&vocabulary);
        assert_eq!(sentence(0), "everywhere about 1.2/10");
        assert_eq!(sentence(2), r#"fires on " said" (7/10), after "\n" (5/10); otherwise about 0.8/10"#);
        assert_eq!(
            sentence(3),
            r#"fires on " said" (7/10), after "\n" (5/10); less on commas and colons (0/10); otherwise about 1.1/10"#
        );
    }

    #[test]
    fn bits_grow_with_every_rule_and_bound_the_length() {
        let whole = explanation();
        for k in 0..4 {
            assert!(whole.first(k).bits() < whole.first(k + 1).bits());
            assert_eq!(whole.within_bits(whole.first(k).bits()), whole.first(k));
        }
        assert_eq!(whole.within_bits(0.0), whole.first(0));
        assert_eq!(whole.within_bits(1e9), whole);
    }

    #[test]
    fn an_explanation_survives_json() {
        let json = serde_json::to_string(&explanation()).unwrap();
        assert_eq!(serde_json::from_str::<PatternExplanation>(&json).unwrap(), explanation());
    }
}
