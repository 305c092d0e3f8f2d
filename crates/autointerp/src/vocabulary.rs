use serde::{Deserialize, Serialize};

use crate::TokenClass;
use crate::classes::classes;

/// The text of every token, and what follows from it.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    strings: Vec<String>,
    /// Bit `i` is class `TokenClass::ALL[i]`.
    classes: Vec<u32>,
    edges: Vec<Edges>,
}

#[derive(Debug, Clone, Copy)]
struct Edges {
    begins_with_letter: bool,
    ends_with_letter: bool,
    has_letter: bool,
}

/// Where in its word a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordPiece {
    /// The word begins here.
    First,
    /// It continues the first piece.
    Second,
    /// It continues a later piece.
    Later,
}

impl WordPiece {
    /// All places, in order.
    pub const ALL: [Self; 3] = [Self::First, Self::Second, Self::Later];
}

impl Vocabulary {
    /// From the text of each token id, spaces and line breaks included: `" Mary"`, `"ing"`. A piece of bytes that is no whole
    /// UTF-8 is given with replacement characters.
    pub fn new(strings: Vec<String>) -> Self {
        let bits = |text: &String| classes(text).into_iter().fold(0, |set, class| set | 1 << class as u32);
        let edges = |text: &String| Edges {
            begins_with_letter: text.starts_with(char::is_alphabetic),
            ends_with_letter: text.ends_with(char::is_alphabetic),
            has_letter: text.contains(char::is_alphabetic),
        };
        Self { classes: strings.iter().map(bits).collect(), edges: strings.iter().map(edges).collect(), strings }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.strings.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// The text of a token.
    ///
    /// # Panics
    /// If there is no such token, as all methods that take one.
    pub fn text(&self, token: u32) -> &str {
        &self.strings[self.index(token)]
    }

    /// Whether a token is of a class.
    pub fn is(&self, token: u32, class: TokenClass) -> bool {
        self.classes[self.index(token)] >> class as u32 & 1 == 1
    }

    /// The classes of a token.
    pub fn classes(&self, token: u32) -> impl Iterator<Item = TokenClass> {
        let set = self.classes[self.index(token)];
        TokenClass::ALL.into_iter().filter(move |class| set >> *class as u32 & 1 == 1)
    }

    /// Where in its word the token at a position stands; `None` if it has no letter. A token continues a word if it begins with a
    /// letter and the one before it ends with one; the first token of a fragment is taken for a first piece.
    pub fn piece(&self, tokens: &[u32], at: usize) -> Option<WordPiece> {
        let edges = |at: usize| self.edges[self.index(tokens[at])];
        let continues = |at: usize| at > 0 && edges(at).begins_with_letter && edges(at - 1).ends_with_letter;
        edges(at).has_letter.then(|| match (continues(at), at > 0 && continues(at - 1)) {
            (false, _) => WordPiece::First,
            (true, false) => WordPiece::Second,
            (true, true) => WordPiece::Later,
        })
    }

    fn index(&self, token: u32) -> usize {
        assert!((token as usize) < self.len(), "token {token}, but the vocabulary has {}", self.len());
        token as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_words_are_counted_from_their_beginning() {
        let texts = ["ab", " un", "believ", "able", ",", "x", " 7", "\n", "The"];
        let vocabulary = Vocabulary::new(texts.map(String::from).to_vec());
        let tokens: Vec<u32> = (0..texts.len() as u32).collect();
        let pieces: Vec<_> = (0..texts.len()).map(|at| vocabulary.piece(&tokens, at)).collect();
        let (first, second, later) = (Some(WordPiece::First), Some(WordPiece::Second), Some(WordPiece::Later));
        assert_eq!(pieces, [first, first, second, later, None, first, None, None, first]);
        assert!(vocabulary.is(8, TokenClass::Capitalised));
        assert_eq!(vocabulary.classes(4).collect::<Vec<_>>(), [TokenClass::Comma]);
    }
}
