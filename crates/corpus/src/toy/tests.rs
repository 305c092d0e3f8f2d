//! The laws of the language, checked on the text wherever the text shows them.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::lexicon::{COMMON, GIVING, TOPICS, VERBS, Verb, held_out};
use super::*;
use crate::{CorpusError, documents};

/// A word, a number or a mark, with the space before it.
fn split(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let mut last = '.';
    for c in text.chars() {
        let glued = (c.is_ascii_alphabetic() && last.is_ascii_alphabetic())
            || (c.is_ascii_digit() && last.is_ascii_digit())
            || (c != ' ' && last == ' ');
        match pieces.last_mut().filter(|_| glued) {
            Some(piece) => piece.push(c),
            None => pieces.push(c.to_string()),
        }
        last = c;
    }
    pieces
}

fn word(piece: &Piece) -> &str {
    piece.text.trim_start()
}

fn verbs() -> impl Iterator<Item = &'static Verb> {
    let topics = TOPICS.iter().chain([&COMMON]).flat_map(|topic| topic.transitive.iter().chain(topic.intransitive));
    topics.chain(VERBS).chain(GIVING)
}

fn is_awaiting(piece: &Piece) -> bool {
    piece.properties.contains(Property::SingularSubject) || piece.properties.contains(Property::PluralSubject)
}

/// Marks open and close; the labels say which are open.
fn check_marks(document: &ToyDocument) {
    let (mut brackets, mut quoted) = (0_usize, false);
    for piece in &document.pieces {
        match word(piece) {
            "(" => brackets += 1,
            ")" => brackets = brackets.checked_sub(1).expect("a bracket is open"),
            "\"" => quoted = !quoted,
            _ => {}
        }
        let label = |property| piece.properties.contains(property);
        assert_eq!(label(Property::InsideQuote), quoted, "{piece:?} in {}", document.text());
        assert_eq!(label(Property::InsideBracket), brackets > 0, "{piece:?} in {}", document.text());
        assert_eq!(label(Property::InsideNestedBracket), brackets > 1, "{piece:?} in {}", document.text());
        assert!(brackets <= 2);
    }
    assert!(brackets == 0 && !quoted, "{}", document.text());
}

/// The verb after a subject has the subject's number, whatever stands between.
fn check_verbs(document: &ToyDocument) {
    for pair in document.pieces.windows(2) {
        let [before, verb] = pair else { unreachable!("windows of two") };
        let number = usize::from(before.properties.contains(Property::PluralSubject));
        let form = word(verb);
        let is_form = |number: usize| move |verb: &&Verb| verb.present[number] == form || verb.past[number] == form;
        if is_awaiting(before) && verbs().any(|verb| is_form(0)(&verb) || is_form(1)(&verb)) {
            assert!(verbs().any(|verb| is_form(number)(&verb)), "{form:?} in {}", document.text());
        } else if is_awaiting(before) {
            assert!(is_awaiting(verb), "no verb, but {form:?} in {}", document.text());
        }
    }
}

/// `he` and `she` are of the gender of the last subject.
fn check_pronouns(document: &ToyDocument) {
    for pair in document.pieces.windows(2) {
        let of = |property| pair[0].properties.contains(property);
        match word(&pair[1]) {
            "he" | "He" => assert!(of(Property::MaleReferent), "{}", document.text()),
            "she" | "She" => assert!(of(Property::FemaleReferent), "{}", document.text()),
            // In a bracket, `they` are things.
            "they" | "They" if !of(Property::InsideBracket) => {
                assert!(of(Property::PairReferent), "{}", document.text());
            }
            _ => {}
        }
    }
}

/// A name comes a second time in a sentence only where one of two people does something to the other, and no held-out name where it
/// is a gift.
fn check_pairs(document: &ToyDocument) {
    let text = document.text();
    for sentence in document.pieces.split(|piece| matches!(word(piece), "." | "?" | "!")) {
        let names: Vec<&Piece> = sentence.iter().filter(|piece| piece.properties.contains(Property::Name)).collect();
        let actor = names.iter().position(|piece| piece.properties.contains(Property::RepeatedName));
        let Some(actor) = actor else {
            let distinct: BTreeSet<&str> = names.iter().map(|piece| word(piece)).collect();
            assert_eq!(distinct.len(), names.len(), "a name comes twice in {text}");
            continue;
        };
        let words: Vec<&str> = names.iter().map(|piece| word(piece)).collect();
        let [first, second, third, fourth] = words[..] else { panic!("{words:?} in {text}") };
        assert!(actor == 2 && first != second && third != fourth, "{words:?} in {text}");
        assert!([first, second].contains(&third) && [first, second].contains(&fourth), "{words:?} in {text}");
        assert!(names[2].properties.contains(Property::PartnerDue));
        assert!(!names[3].properties.contains(Property::PartnerDue));
        let gift = names[3].properties.contains(Property::IndirectObject);
        assert!(!gift || !held_out().any(|person| words.contains(&person.name)), "{words:?} in {text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_document_keeps_the_laws(seed: u64, index: u64) {
        let document = ToyLanguage::new(seed).document(index);
        let pieces: Vec<&str> = document.pieces.iter().map(|piece| piece.text.as_str()).collect();
        prop_assert_eq!(split(&document.text()), pieces);
        prop_assert!((60..500).contains(&document.pieces.len()), "{} tokens", document.pieces.len());
        check_marks(&document);
        check_verbs(&document);
        check_pronouns(&document);
        check_pairs(&document);
        prop_assert_eq!(document, ToyLanguage::new(seed).document(index));
    }
}

#[test]
fn what_a_label_says_is_in_the_context_and_not_in_the_token() {
    let mut seen: BTreeMap<String, [u32; 2]> = BTreeMap::new();
    for document in ToyLanguage::new(3).documents(2000) {
        for piece in document.pieces {
            let bits = piece.properties.bits();
            let [some, none] = seen.entry(word(&piece).to_lowercase()).or_default();
            (*some, *none) = (*some | bits, *none | !bits);
        }
    }
    for property in Property::ALL {
        let holds = |bits: u32| PropertySet::from_bits(bits).contains(property);
        assert!(seen.values().any(|[some, _]| holds(*some)), "{property} never holds");
        let mixed = seen.values().filter(|[some, none]| holds(*some) && holds(*none)).count();
        assert_eq!(mixed == 0, property.is_lexical(), "{property}: {mixed} tokens with and without it");
    }
}

#[test]
fn the_vocabulary_is_small_and_everybody_appears() {
    let documents: Vec<ToyDocument> = ToyLanguage::new(5).documents(3000).collect();
    let vocabulary: BTreeSet<&str> = documents.iter().flat_map(|d| &d.pieces).map(|p| p.text.as_str()).collect();
    assert!((400..=700).contains(&vocabulary.len()), "{} tokens", vocabulary.len());
    for name in ToyLanguage::held_out_names() {
        assert!(vocabulary.contains(name) && vocabulary.contains(format!(" {name}").as_str()), "{name}");
    }
    let has = |name: &str, property| {
        let mut pieces = documents.iter().flat_map(|d| &d.pieces);
        pieces.any(|p| word(p) == name && p.properties.contains(property))
    };
    // Held-out names are subjects, receive in other sentences and are spoken to.
    for property in [Property::SingularSubject, Property::IndirectObject, Property::InsideQuote, Property::KnownName] {
        assert!(ToyLanguage::held_out_names().all(|name| has(name, property)), "{property}");
    }
}

#[test]
fn properties_keep_their_bits_and_names() {
    for (bit, property) in Property::ALL.into_iter().enumerate() {
        assert_eq!(property as usize, bit);
        assert_eq!(PropertySet::default().with(property).bits(), 1 << bit);
    }
    let names: BTreeSet<&str> = Property::ALL.iter().map(|property| property.name()).collect();
    assert_eq!(names.len(), Property::ALL.len());
    let set = PropertySet::from_iter([Property::Name, Property::TopicSea]);
    assert_eq!(PropertySet::from_bits(set.bits() | 1 << 31), set);
    assert_eq!(set.iter().collect::<Vec<_>>(), [Property::Name, Property::TopicSea]);
}

#[test]
fn a_written_file_is_read_as_the_same_documents() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy.jsonl");
    write_documents(&path, 20, 9).unwrap();
    let read: Vec<String> = documents(&[&path], "text").unwrap().map(|document| document.unwrap().text).collect();
    let written: Vec<String> = ToyLanguage::new(9).documents(20).map(|document| document.text()).collect();
    assert_eq!(read, written);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let nowhere = write_documents(&folder.path().join("no/toy.jsonl"), 1, 0).unwrap_err();
    assert!(matches!(nowhere, CorpusError::Write { .. }), "{nowhere}");
}

#[test]
fn labels_stay_with_their_tokens() {
    // The id of a token is its length in bytes, so that it tells where it came from.
    let encode = |text: &str| Ok(split(text).iter().map(|piece| u32::try_from(piece.len()).unwrap()).collect());
    let contexts = labelled_contexts(12, 4, 32, 99, &encode).unwrap();
    let all: Vec<ToyDocument> = ToyLanguage::new(4).documents(12).collect();
    let total: usize = all.iter().map(|document| document.pieces.len() + 1).sum();
    assert_eq!(contexts.tokens.dim(), (total / 32, 32));
    let expected = (0..).zip(&all).flat_map(|(index, document)| {
        let of = move |piece: &Piece| (u32::try_from(piece.text.len()).unwrap(), piece.properties.bits(), index);
        document.pieces.iter().map(of).chain([(99, 0, index)])
    });
    let found = contexts.tokens.iter().zip(&contexts.properties).zip(&contexts.documents);
    assert!(found.zip(expected).all(|(((&token, &bits), &index), expected)| (token, bits, index) == expected));
    let short = labelled_contexts(1, 4, 32, 99, &|_| Ok(vec![1, 2])).unwrap_err().to_string();
    assert!(short.contains("2 tokens, expected one for each of"), "{short}");
}
