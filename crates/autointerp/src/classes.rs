use serde::{Deserialize, Serialize};

/// What can be said of a token by itself, for English text. A token may be in several classes or in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenClass {
    /// A capital, then no other: ` Mary`.
    Capitalised,
    /// At least two letters, all of them capitals.
    AllCaps,
    /// Digits only.
    Number,
    /// `.`, `!`, `?`, alone or with other punctuation.
    SentenceEnd,
    /// `,`, `;`, `:`.
    Comma,
    /// Quotation marks.
    Quote,
    /// Brackets of any kind.
    Bracket,
    /// Hyphens and dashes.
    Dash,
    /// Other signs.
    Symbol,
    /// White space with a line break.
    Newline,
    /// Other white space.
    Space,
    /// Begins with a letter, without a space before it: mostly the continuation of a word.
    Continuation,
    /// Has a letter beyond ASCII.
    NonAscii,
    /// Ends in -ing.
    Ing,
    /// Ends in -ed.
    Ed,
    /// Ends in -ly.
    Ly,
    /// Ends in -s, but not in -ss.
    S,
    /// Ends in -tion or -sion.
    Tion,
    /// Ends in -er or -or.
    Er,
    /// ` the`, ` a`, ` this`, ...
    Determiner,
    /// ` of`, ` in`, ` with`, ...
    Preposition,
    /// ` he`, ` it`, ` them`, ...
    Pronoun,
    /// ` and`, ` but`, ` because`, ...
    Conjunction,
    /// ` is`, ` have`, ` would`, ...
    Auxiliary,
    /// ` who`, ` which`, ` how`, ...
    QuestionWord,
    /// ` not`, ` never`, `n't`, ...
    Negation,
}

use TokenClass as C;

const FUNCTION_WORDS: [(TokenClass, &[&str]); 7] = [
    (
        C::Determiner,
        &["the", "a", "an", "this", "that", "these", "those", "some", "any", "each", "every", "all", "both"],
    ),
    (
        C::Preposition,
        &[
            "of", "in", "to", "for", "with", "on", "at", "by", "from", "into", "about", "over", "under", "after",
            "before", "between", "through", "during", "against", "without", "within", "upon", "toward", "towards",
        ],
    ),
    (
        C::Pronoun,
        &[
            "i",
            "you",
            "he",
            "she",
            "it",
            "we",
            "they",
            "me",
            "him",
            "her",
            "us",
            "them",
            "my",
            "your",
            "his",
            "its",
            "our",
            "their",
            "himself",
            "herself",
            "itself",
            "themselves",
            "myself",
        ],
    ),
    (C::Conjunction, &["and", "or", "but", "nor", "yet", "because", "although", "while", "if", "unless", "than", "as"]),
    (
        C::Auxiliary,
        &[
            "is", "are", "was", "were", "be", "been", "being", "am", "has", "have", "had", "do", "does", "did", "will",
            "would", "can", "could", "may", "might", "shall", "should", "must",
        ],
    ),
    (C::QuestionWord, &["who", "whom", "whose", "which", "what", "when", "where", "why", "how"]),
    (C::Negation, &["not", "no", "never", "none", "nothing", "neither", "n't"]),
];

const SUFFIXES: [(TokenClass, &[&str]); 6] = [
    (C::Ing, &["ing"]),
    (C::Ed, &["ed"]),
    (C::Ly, &["ly"]),
    (C::S, &["s"]),
    (C::Tion, &["tion", "sion"]),
    (C::Er, &["er", "or"]),
];

const SIGNS: [(TokenClass, &[char]); 5] = [
    (C::SentenceEnd, &['.', '!', '?', '…']),
    (C::Comma, &[',', ';', ':']),
    (C::Quote, &['"', '\'', '`', '“', '”', '‘', '’', '«', '»']),
    (C::Bracket, &['(', ')', '[', ']', '{', '}', '<', '>']),
    (C::Dash, &['-', '–', '—']),
];

impl TokenClass {
    /// All classes, in the order of their declaration.
    pub const ALL: [Self; 26] = [
        C::Capitalised,
        C::AllCaps,
        C::Number,
        C::SentenceEnd,
        C::Comma,
        C::Quote,
        C::Bracket,
        C::Dash,
        C::Symbol,
        C::Newline,
        C::Space,
        C::Continuation,
        C::NonAscii,
        C::Ing,
        C::Ed,
        C::Ly,
        C::S,
        C::Tion,
        C::Er,
        C::Determiner,
        C::Preposition,
        C::Pronoun,
        C::Conjunction,
        C::Auxiliary,
        C::QuestionWord,
        C::Negation,
    ];

    /// What its members are called, in the plural.
    pub fn words(self) -> &'static str {
        match self {
            C::Capitalised => "capitalised words",
            C::AllCaps => "words in capitals",
            C::Number => "numbers",
            C::SentenceEnd => "ends of sentences",
            C::Comma => "commas and colons",
            C::Quote => "quotation marks",
            C::Bracket => "brackets",
            C::Dash => "dashes",
            C::Symbol => "other signs",
            C::Newline => "line breaks",
            C::Space => "white space",
            C::Continuation => "pieces without a space before them",
            C::NonAscii => "letters beyond ASCII",
            C::Ing => "words in -ing",
            C::Ed => "words in -ed",
            C::Ly => "words in -ly",
            C::S => "words in -s",
            C::Tion => "words in -tion",
            C::Er => "words in -er",
            C::Determiner => "determiners",
            C::Preposition => "prepositions",
            C::Pronoun => "pronouns",
            C::Conjunction => "conjunctions",
            C::Auxiliary => "auxiliary verbs",
            C::QuestionWord => "question words",
            C::Negation => "negations",
        }
    }
}

/// The classes of a token with this text.
pub(crate) fn classes(text: &str) -> Vec<TokenClass> {
    let bare = text.trim();
    if bare.is_empty() {
        let whitespace = !text.is_empty();
        let newline = text.contains(['\n', '\r']);
        return whitespace.then_some(if newline { C::Newline } else { C::Space }).into_iter().collect();
    }
    if bare.chars().all(char::is_numeric) {
        return vec![C::Number];
    }
    if !bare.chars().any(char::is_alphanumeric) {
        // By the first kind that occurs in it: `."` ends a sentence.
        let kind = SIGNS.iter().find(|(_, signs)| bare.contains(*signs));
        return vec![kind.map_or(C::Symbol, |(class, _)| *class)];
    }
    let mut found = shape(text, bare);
    let lower = bare.to_lowercase();
    match FUNCTION_WORDS.iter().find(|(_, words)| words.contains(&lower.as_str())) {
        // A piece in the middle of a word may read like a function word.
        Some((class, _)) if found.contains(&C::Capitalised) || !found.contains(&C::Continuation) => found.push(*class),
        _ => found.extend(suffix(&lower, found.contains(&C::Continuation))),
    }
    found
}

/// The classes that capitals and alphabets decide.
fn shape(text: &str, bare: &str) -> Vec<TokenClass> {
    let mut found = Vec::new();
    let mut letters = bare.chars().filter(|c| c.is_alphabetic());
    let first = letters.next().is_some_and(char::is_uppercase);
    let others: Vec<bool> = letters.map(char::is_uppercase).collect();
    if first && !others.contains(&true) {
        found.push(C::Capitalised);
    } else if first && others.iter().all(|upper| *upper) {
        found.push(C::AllCaps);
    }
    if text.starts_with(char::is_alphabetic) {
        found.push(C::Continuation);
    }
    if bare.chars().any(|c| c.is_alphabetic() && !c.is_ascii()) {
        found.push(C::NonAscii);
    }
    found
}

/// The suffix class of a word, or of the piece that ends a word.
fn suffix(lower: &str, continuation: bool) -> Option<TokenClass> {
    let stem = if continuation { 0 } else { 2 };
    let ends = |suffix: &str| {
        let rest = lower.strip_suffix(suffix);
        rest.is_some_and(|rest| rest.chars().count() >= stem && !(suffix == "s" && rest.ends_with('s')))
    };
    SUFFIXES.iter().find(|(_, suffixes)| suffixes.iter().any(|suffix| ends(suffix))).map(|(class, _)| *class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_typical_tokens() {
        let cases: [(&str, &[TokenClass]); 22] = [
            (" Mary", &[C::Capitalised]),
            (" The", &[C::Capitalised, C::Determiner]),
            ("The", &[C::Capitalised, C::Continuation, C::Determiner]),
            (" I", &[C::Capitalised, C::Pronoun]),
            (" NASA", &[C::AllCaps]),
            (" 1961", &[C::Number]),
            (".", &[C::SentenceEnd]),
            (".\"", &[C::SentenceEnd]),
            (",", &[C::Comma]),
            (" (", &[C::Bracket]),
            (" --", &[C::Dash]),
            ("''", &[C::Quote]),
            (" %", &[C::Symbol]),
            ("\n\n", &[C::Newline]),
            ("  ", &[C::Space]),
            ("ing", &[C::Continuation, C::Ing]),
            (" walked", &[C::Ed]),
            (" glass", &[]),
            (" nations", &[C::S]),
            ("is", &[C::Continuation, C::S]),
            ("é", &[C::Continuation, C::NonAscii]),
            ("", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(classes(text), expected, "{text:?}");
        }
    }

    #[test]
    fn all_is_in_the_order_of_declaration() {
        assert!(C::ALL.iter().enumerate().all(|(index, class)| *class as usize == index));
    }
}
