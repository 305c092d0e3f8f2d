//! Words and marks to pieces: spaces, capitals, `a` or `an`, and the properties that follow from the text so far.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::lexicon::{COMMON, Gender, MOODS, PREPOSITIONS, PRONOUNS, Person, TOPICS, held_out, regulars};
use super::{Piece, Property, PropertySet};

/// What a word says about itself. Names are as written, all other words in lower case.
static LEXICAL: LazyLock<HashMap<&'static str, PropertySet>> = LazyLock::new(|| {
    let name = |person: Person| {
        let female = person.gender == Gender::Female;
        let gender = if female { Property::FemaleName } else { Property::MaleName };
        (person.name, PropertySet::from_iter([Property::Name, gender]))
    };
    let mut words: HashMap<_, _> = regulars().chain(held_out()).map(name).collect();
    let topics = || TOPICS.iter().chain([&COMMON]);
    let mut all = |list: &[&'static str], property| {
        words.extend(list.iter().map(|&word| (word, PropertySet::from_iter([property]))));
    };
    topics().for_each(|topic| all(topic.places, Property::Place));
    topics().for_each(|topic| all(topic.adjectives, Property::Adjective));
    all(MOODS, Property::Adjective);
    all(PRONOUNS, Property::Pronoun);
    words
});

fn lexical(word: &str) -> PropertySet {
    let number = word.bytes().all(|byte| byte.is_ascii_digit());
    let known = LEXICAL.get(word).or_else(|| LEXICAL.get(word.to_lowercase().as_str()));
    known.copied().unwrap_or_default().with_if(Property::Number, number)
}

/// The pieces of a document as they are written.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) pieces: Vec<Piece>,
    /// Open brackets and quotes, innermost last.
    open: Vec<char>,
    /// The next word begins a sentence.
    fresh: bool,
    /// The next piece follows without a space: an opening mark is before it, or nothing.
    glued: bool,
    after_preposition: bool,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self { glued: true, ..Self::default() }
    }

    pub(super) fn begin_sentence(&mut self) {
        self.fresh = true;
    }

    /// Writes a word; `context` are the properties that the writer cannot know.
    pub(super) fn word(&mut self, word: &str, context: PropertySet) {
        self.fit_article(word);
        let text = if self.fresh { capitalised(word) } else { word.to_owned() };
        let properties = lexical(word)
            .with_if(Property::SentenceStart, self.fresh)
            .with_if(Property::AfterPreposition, self.after_preposition);
        self.fresh = false;
        self.after_preposition = PREPOSITIONS.contains(&word);
        self.push(&text, context.union(properties));
    }

    /// Writes an opening bracket or quotation mark.
    pub(super) fn open(&mut self, mark: char, context: PropertySet) {
        self.open.push(mark);
        let properties = context.with_if(Property::AfterPreposition, self.after_preposition);
        self.after_preposition = false;
        self.push(&mark.to_string(), properties);
        self.glued = true;
        self.fresh |= mark == '"';
    }

    /// Writes a mark that follows without a space: a closing one or punctuation.
    pub(super) fn mark(&mut self, mark: char, context: PropertySet) {
        if matches!(mark, ')' | '"') {
            self.open.pop();
        }
        self.after_preposition = false;
        self.glued = true;
        self.push(&mark.to_string(), context);
    }

    fn push(&mut self, text: &str, properties: PropertySet) {
        let brackets = self.open.iter().filter(|mark| **mark == '(').count();
        let properties = properties
            .with_if(Property::InsideQuote, self.open.contains(&'"'))
            .with_if(Property::InsideBracket, brackets > 0)
            .with_if(Property::InsideNestedBracket, brackets > 1);
        let text = if self.glued { text.to_owned() } else { format!(" {text}") };
        self.glued = false;
        self.pieces.push(Piece { text, properties });
    }

    /// Templates have `a` everywhere.
    fn fit_article(&mut self, word: &str) {
        if let Some(last) = self.pieces.last_mut()
            && matches!(last.text.trim_start(), "a" | "A")
            && word.starts_with(['a', 'e', 'i', 'o', 'u'])
        {
            last.text.push('n');
        }
    }
}

fn capitalised(word: &str) -> String {
    let mut characters = word.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}
