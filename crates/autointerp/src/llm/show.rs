//! Tokens as a model is shown them.

use std::ops::Range;

use rand::{Rng, RngExt};

use super::QuietRef;
use crate::{ExampleRef, Vocabulary};

/// Around marked tokens.
const OPEN: char = '«';
const CLOSE: char = '»';

/// A token on a line of its own: breaks and tabs would end the line or the column, marks would be taken for ours.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            OPEN => shown.push('‹'),
            CLOSE => shown.push('›'),
            c => shown.push(c),
        }
    }
    shown
}

/// A line for each token: the token, a tab, what `value` says of its position.
pub(crate) fn listed(vocabulary: &Vocabulary, tokens: &[u32], value: impl Fn(usize) -> String) -> String {
    let line = |(at, token): (usize, &u32)| format!("{}\t{}", visible(vocabulary.text(*token)), value(at));
    tokens.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

/// Tokens as running text; neighbours among the marked ones share one pair of marks.
pub(crate) fn running(vocabulary: &Vocabulary, tokens: &[u32], marked: impl Fn(usize) -> bool) -> String {
    let mut text = String::new();
    for (at, token) in tokens.iter().enumerate() {
        let (here, before) = (marked(at), at > 0 && marked(at - 1));
        if here && !before {
            text.push(OPEN);
        }
        if !here && before {
            text.push(CLOSE);
        }
        text.push_str(&visible(vocabulary.text(*token)));
    }
    if !tokens.is_empty() && marked(tokens.len() - 1) {
        text.push(CLOSE);
    }
    text
}

/// Pieces numbered from 1, a line each.
pub(crate) fn numbered(pieces: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let line = |(i, piece): (usize, _)| format!("{}:{}", i + 1, spaced(AsRef::as_ref(&piece)));
    pieces.into_iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

fn spaced(piece: &str) -> String {
    if piece.starts_with(' ') { piece.to_owned() } else { format!(" {piece}") }
}

/// A part of a fragment, with the activations there.
#[derive(Debug, Clone)]
pub(crate) struct Window<'a> {
    pub(crate) tokens: &'a [u32],
    /// One for each token; none where the fragment has none.
    pub(crate) activations: Vec<Option<f32>>,
}

impl<'a> Window<'a> {
    /// A window of `size` tokens around the peak, whose place within it is drawn: it shall tell nothing.
    pub(crate) fn around_peak(example: ExampleRef<'a>, size: usize, rng: &mut impl Rng) -> Self {
        let peak = |activations: &[f32]| {
            (0..activations.len()).rev().max_by(|a, b| activations[*a].total_cmp(&activations[*b])).unwrap_or(0)
        };
        let around = Self::around(example.tokens.len(), example.skip() + peak(example.activations), size, rng);
        let activation = |at: usize| at.checked_sub(example.skip()).map(|at| example.activations[at]);
        Self { tokens: &example.tokens[around.clone()], activations: around.map(activation).collect() }
    }

    /// A window of a fragment on which the feature is quiet, around a token drawn from those that have an activation: placed as the windows around peaks are, so
    /// that the place tells nothing.
    pub(crate) fn of_quiet(QuietRef { tokens, skip }: QuietRef<'a>, size: usize, rng: &mut impl Rng) -> Self {
        let n = tokens.len();
        let token = if skip < n { rng.random_range(skip..n) } else { 0 };
        let around = Self::around(n, token, size, rng);
        Self { tokens: &tokens[around.clone()], activations: around.map(|at| (at >= skip).then_some(0.0)).collect() }
    }

    /// `size` of `n` positions, `at` among them.
    fn around(n: usize, at: usize, size: usize, rng: &mut impl Rng) -> Range<usize> {
        let (size, at) = (size.clamp(1, n.max(1)), at.min(n.saturating_sub(1)));
        let (earliest, latest) = ((at + 1).saturating_sub(size), at.min(n.saturating_sub(size)));
        let start = if earliest < latest { rng.random_range(earliest..=latest) } else { earliest };
        start..(start + size).min(n)
    }

    /// The largest activation.
    pub(crate) fn max(&self) -> f32 {
        self.activations.iter().flatten().copied().fold(0.0, f32::max)
    }

    /// Positions whose activation is known and as wanted.
    pub(crate) fn positions(&self, wanted: impl Fn(f32) -> bool) -> Vec<usize> {
        (0..self.tokens.len()).filter(|at| self.activations[*at].is_some_and(&wanted)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn marks_and_lines_cannot_be_forged() {
        let texts = [" a", "\n", "« b", "\t", " c"];
        let vocabulary = Vocabulary::new(texts.map(String::from).to_vec());
        let tokens = [0, 1, 2, 3, 4];
        assert_eq!(running(&vocabulary, &tokens, |at| at == 1 || at == 2 || at == 4), r" a«\n‹ b»\t« c»");
        assert_eq!(listed(&vocabulary, &tokens[..3], |at| at.to_string()), " a\t0\n\\n\t1\n‹ b\t2");
        assert_eq!(numbered([" x", "y"]), "1: x\n2: y");
    }

    proptest! {
        #[test]
        fn a_window_holds_the_peak(n in 1usize..70, skip in 0usize..3, size in 1usize..80, seed: u64) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let tokens: Vec<u32> = (0..n as u32).collect();
            let activations: Vec<f32> = (0..n.saturating_sub(skip)).map(|_| rng.random()).collect();
            let example = ExampleRef { tokens: &tokens, activations: &activations };
            let window = Window::around_peak(example, size, &mut rng);
            prop_assert_eq!(window.tokens.len(), size.min(n));
            prop_assert_eq!(window.tokens.len(), window.activations.len());
            prop_assert_eq!(window.max(), activations.iter().copied().fold(0.0, f32::max));
        }
    }
}
