use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{TokenClass, Vocabulary, WordPiece};

/// How far back [`Pattern::Within`] may look.
pub const WINDOWS: [u8; 2] = [4, 16];

/// Number of kinds of patterns.
const KINDS: f64 = 7.0;

/// Something that a token and the tokens before it may show. No pattern looks at a later token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// The token is this one.
    Token(u32),
    /// The token is of this class.
    Class(TokenClass),
    /// The token stands at this place in its word.
    Piece(WordPiece),
    /// The previous token is this one.
    After(u32),
    /// The previous token is of this class.
    AfterClass(TokenClass),
    /// The previous token and the token are these.
    Pair {
        /// The previous token.
        previous: u32,
        /// The token.
        token: u32,
    },
    /// This token is among the last `window` ones before the token.
    Within {
        /// The token looked for.
        token: u32,
        /// One of [`WINDOWS`].
        window: u8,
    },
}

impl Pattern {
    /// Whether position `at` of a fragment shows the pattern. Reads `tokens[..=at]` only.
    ///
    /// # Panics
    /// If `at` is beyond the fragment, or a token beyond the vocabulary.
    pub fn matches(self, vocabulary: &Vocabulary, tokens: &[u32], at: usize) -> bool {
        let previous = at.checked_sub(1).map(|before| tokens[before]);
        match self {
            Self::Token(token) => tokens[at] == token,
            Self::Class(class) => vocabulary.is(tokens[at], class),
            Self::Piece(piece) => vocabulary.piece(tokens, at) == Some(piece),
            Self::After(token) => previous == Some(token),
            Self::AfterClass(class) => previous.is_some_and(|previous| vocabulary.is(previous, class)),
            Self::Pair { previous: before, token } => tokens[at] == token && previous == Some(before),
            Self::Within { token, window } => tokens[at.saturating_sub(window.into())..at].contains(&token),
        }
    }

    /// The length of its description in a vocabulary of `n_tokens`: the kind, and each argument as one choice among its values.
    pub fn bits(self, n_tokens: usize) -> f64 {
        let token = (n_tokens.max(1) as f64).log2();
        let choice = |n: usize| (n as f64).log2();
        KINDS.log2()
            + match self {
                Self::Token(_) | Self::After(_) => token,
                Self::Class(_) | Self::AfterClass(_) => choice(TokenClass::ALL.len()),
                Self::Piece(_) => choice(WordPiece::ALL.len()),
                Self::Pair { .. } => 2.0 * token,
                Self::Within { .. } => token + choice(WINDOWS.len()),
            }
    }

    /// In words, to follow "fires".
    pub fn words(self, vocabulary: &Vocabulary) -> impl fmt::Display {
        // The debug form of a string is quoted and shows line breaks and control characters escaped.
        let quote = |token: u32| format!("{:?}", vocabulary.text(token));
        match self {
            Self::Token(token) => format!("on {}", quote(token)),
            Self::Class(class) => format!("on {}", class.words()),
            Self::Piece(WordPiece::First) => "on first pieces of words".to_owned(),
            Self::Piece(WordPiece::Second) => "on second pieces of words".to_owned(),
            Self::Piece(WordPiece::Later) => "on later pieces of words".to_owned(),
            Self::After(token) => format!("after {}", quote(token)),
            Self::AfterClass(class) => format!("after {}", class.words()),
            Self::Pair { previous, token } => format!("on {} after {}", quote(token), quote(previous)),
            Self::Within { token, window } => format!("up to {window} tokens after {}", quote(token)),
        }
    }
}

/// Calls `found` with every pattern that position `at` shows, each once.
///
/// `next_same[i]` is the position of the next token that equals token `i`, or anything beyond the fragment: with it, only the
/// latest of equal tokens in a window is reported.
pub(crate) fn patterns_at(
    vocabulary: &Vocabulary,
    tokens: &[u32],
    next_same: &[usize],
    at: usize,
    mut found: impl FnMut(Pattern),
) {
    let token = tokens[at];
    found(Pattern::Token(token));
    vocabulary.classes(token).for_each(|class| found(Pattern::Class(class)));
    if let Some(piece) = vocabulary.piece(tokens, at) {
        found(Pattern::Piece(piece));
    }
    if at > 0 {
        let previous = tokens[at - 1];
        found(Pattern::After(previous));
        vocabulary.classes(previous).for_each(|class| found(Pattern::AfterClass(class)));
        found(Pattern::Pair { previous, token });
    }
    for window in WINDOWS {
        for before in (at.saturating_sub(window.into())..at).filter(|before| next_same[*before] >= at) {
            found(Pattern::Within { token: tokens[before], window });
        }
    }
}

/// The position of the next token that equals each one; `usize::MAX` if there is none.
pub(crate) fn next_same(tokens: &[u32]) -> Vec<usize> {
    let next = |at: usize| tokens[at + 1..].iter().position(|token| *token == tokens[at]);
    (0..tokens.len()).map(|at| next(at).map_or(usize::MAX, |distance| at + 1 + distance)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Twelve tokens of many classes.
    pub(crate) fn small_vocabulary() -> Vocabulary {
        let texts = [" the", " Mary", "ing", "\n", ",", " 19", "ed", " said", " NASA", "é", " walked", "."];
        Vocabulary::new(texts.map(String::from).to_vec())
    }

    /// Every pattern over a vocabulary.
    fn all_patterns(vocabulary: &Vocabulary) -> Vec<Pattern> {
        let tokens = 0..vocabulary.len() as u32;
        let mut all: Vec<Pattern> = Vec::new();
        for token in tokens.clone() {
            all.extend([Pattern::Token(token), Pattern::After(token)]);
            all.extend(tokens.clone().map(|previous| Pattern::Pair { previous, token }));
            all.extend(WINDOWS.map(|window| Pattern::Within { token, window }));
        }
        all.extend(TokenClass::ALL.into_iter().flat_map(|class| [Pattern::Class(class), Pattern::AfterClass(class)]));
        all.extend(WordPiece::ALL.map(Pattern::Piece));
        all
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_matches(tokens in prop::collection::vec(0u32..12, 1..40)) {
            let vocabulary = small_vocabulary();
            let next = next_same(&tokens);
            for at in 0..tokens.len() {
                let mut found = Vec::new();
                patterns_at(&vocabulary, &tokens, &next, at, |pattern| found.push(pattern));
                let distinct: HashSet<Pattern> = found.iter().copied().collect();
                prop_assert_eq!(distinct.len(), found.len());
                let all = all_patterns(&vocabulary);
                let matching = all.into_iter().filter(|pattern| pattern.matches(&vocabulary, &tokens, at)).collect();
                prop_assert_eq!(distinct, matching);
            }
        }
    }

    #[test]
    fn bits_count_the_choices() {
        assert_eq!(Pattern::Token(3).bits(1 << 10), KINDS.log2() + 10.0);
        assert_eq!(Pattern::Within { token: 3, window: 4 }.bits(1 << 10), KINDS.log2() + 11.0);
        assert!(Pattern::Class(TokenClass::Number).bits(1 << 10) < Pattern::Token(3).bits(1 << 10));
    }
}
