//! From templates to a document: who acts, in which number and tense, and about what.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::lexicon::{COMMON, GIVING, Gender, MOODS, Noun, Person, TOPICS, Topic, VERBS, Verb, held_out, regulars};
use super::templates::{self, Weighted};
use super::writer::Writer;
use super::{Piece, Property, PropertySet};

const TOPIC_PROPERTIES: [Property; 6] = [
    Property::TopicKitchen,
    Property::TopicSchool,
    Property::TopicSea,
    Property::TopicFarm,
    Property::TopicMusic,
    Property::TopicWinter,
];

/// Sentences of a document.
const SENTENCES: std::ops::RangeInclusive<usize> = 12..=24;
/// People a document is about.
const CAST: std::ops::RangeInclusive<usize> = 4..=6;
/// Share of sentences in which one of two named people gives something to the other.
const GIFT_SHARE: f64 = 0.24;
/// Share of sentences that begin like those and tell of something else between the two.
const COMPANY_SHARE: f64 = 0.18;
/// Share of sentences that begin like those and tell of nothing between the two.
const NOTHING_BETWEEN_SHARE: f64 = 0.05;
/// Share of such pairs who are not of the document, so that a name need not be known to come again.
const STRANGERS_SHARE: f64 = 0.5;
/// Share of documents told in the past tense.
const PAST_SHARE: f64 = 0.65;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    Singular,
    Plural,
}

/// The subject that verbs agree with, and whether its verb is still to come.
#[derive(Clone, Copy)]
pub(super) struct Clause {
    pub(super) number: Number,
    pub(super) awaits_verb: bool,
}

/// Whom a pronoun stands for.
#[derive(Clone, Copy)]
pub(super) enum Referent {
    Nobody,
    One(Person),
    Two(Person, Person),
}

/// Two people who are together in a sentence.
#[derive(Clone, Copy)]
pub(super) struct Meeting {
    pub(super) people: [Person; 2],
    /// Which of the two acts, if one does.
    pub(super) actor: usize,
}

pub(super) struct Narrator {
    pub(super) rng: ChaCha8Rng,
    writer: Writer,
    topic: usize,
    told_in_past: bool,
    /// The tense of the clause: speech is in the present.
    past: bool,
    pub(super) cast: Vec<Person>,
    /// People of the sentence so far.
    pub(super) present: Vec<Person>,
    /// Names that the document has mentioned.
    pub(super) known: Vec<&'static str>,
    pub(super) clause: Clause,
    /// The clauses around it, innermost last.
    enclosing: Vec<Clause>,
    pub(super) referent: Referent,
    pub(super) meeting: Option<Meeting>,
    pub(super) partner_due: bool,
    in_attractor: bool,
}

impl Narrator {
    pub(super) fn new(mut rng: ChaCha8Rng) -> Self {
        let mut cast: Vec<Person> = regulars().chain(held_out()).collect();
        cast.shuffle(&mut rng);
        cast.truncate(rng.random_range(CAST));
        let told_in_past = rng.random_bool(PAST_SHARE);
        Self {
            topic: rng.random_range(0..TOPICS.len()),
            rng,
            writer: Writer::new(),
            told_in_past,
            past: told_in_past,
            cast,
            present: Vec::new(),
            known: Vec::new(),
            clause: Clause { number: Number::Singular, awaits_verb: false },
            enclosing: Vec::new(),
            referent: Referent::Nobody,
            meeting: None,
            partner_due: false,
            in_attractor: false,
        }
    }

    pub(super) fn document(mut self) -> Vec<Piece> {
        for index in 0..self.rng.random_range(SENTENCES) {
            self.sentence(index == 0);
        }
        self.writer.pieces
    }

    fn sentence(&mut self, first: bool) {
        self.present.clear();
        self.writer.begin_sentence();
        let kind: f64 = self.rng.random();
        if kind < GIFT_SHARE {
            self.tell_of_two(false, templates::GIFTS);
        } else if kind < GIFT_SHARE + COMPANY_SHARE {
            self.tell_of_two(true, templates::COMPANY);
        } else if kind < GIFT_SHARE + COMPANY_SHARE + NOTHING_BETWEEN_SHARE {
            self.tell_of_two(true, templates::NOTHING_BETWEEN);
        } else {
            let template = self.weighted(if first { templates::OPENINGS } else { templates::SENTENCES });
            if !first && !template.starts_with(['"', '(']) {
                self.lead();
            }
            self.fill(template);
        }
    }

    /// Sometimes a word such as `later,` before the sentence.
    fn lead(&mut self) {
        if self.rng.random_bool(0.1) {
            let lead = self.pick(templates::LEADS);
            self.fill(lead);
            self.writer.mark(',', self.context());
        }
    }

    /// `When Mary and John went to the store, John gave a drink to Mary.`
    fn tell_of_two(&mut self, anybody: bool, ends: &[Weighted]) {
        let held_out: Vec<Person> = held_out().collect();
        let may_come = |person: &Person| anybody || !held_out.contains(person);
        let mut people: Vec<Person> = self.cast.iter().copied().filter(may_come).collect();
        if people.len() < 2 || self.rng.random_bool(STRANGERS_SHARE) {
            // Held-out names make up here for the gifts they are not in; otherwise the model would know them less well.
            let among_held_out = anybody && self.rng.random_bool(0.6);
            people = if among_held_out { held_out } else { regulars().collect() };
        }
        people.shuffle(&mut self.rng);
        self.meeting = Some(Meeting { people: [people[0], people[1]], actor: self.rng.random_range(0..2) });
        self.lead();
        let (beginning, end) = (self.pick(templates::MEETINGS), self.weighted(ends));
        self.fill(beginning);
        self.fill(end);
        self.meeting = None;
    }

    fn fill(&mut self, template: &str) {
        for chunk in template.split(' ') {
            let rest = chunk.trim_start_matches(['(', '"']);
            let core = rest.trim_end_matches(['.', ',', '?', '!', ')', '"']);
            for mark in chunk[..chunk.len() - rest.len()].chars() {
                self.writer.open(mark, self.context());
            }
            self.element(core);
            for mark in rest[core.len()..].chars() {
                self.writer.mark(mark, self.context());
            }
        }
    }

    fn element(&mut self, core: &str) {
        if let Some(slot) = core.strip_prefix('[').and_then(|slot| slot.strip_suffix(']')) {
            self.slot(slot);
        } else if let Some(verb) = core.strip_prefix('{').and_then(|verb| verb.strip_suffix('}')) {
            self.verb(verb);
        } else {
            self.word(core);
        }
    }

    /// Writes what a slot stands for, which may be nothing.
    fn slot(&mut self, slot: &str) {
        match slot {
            // Subjects.
            "SUBJ" => self.subject(),
            "NAME" => self.one_person(),
            "PAIR" => self.two_people(),
            "SHE" => self.subject_pronoun(),
            "TWO" => self.meeting_people(),
            "ACTOR" => self.actor(),
            "CREATURE#" => self.noun_subject(|topic| topic.creatures),
            "OBJECT#" => self.noun_subject(|topic| topic.objects),
            "IT" => self.thing_pronoun(),
            "ONE" => self.clause = Clause { number: Number::Singular, awaits_verb: false },
            "MANY" => self.clause = Clause { number: Number::Plural, awaits_verb: false },
            // People who are not subjects of a verb to come.
            "SPEAKER" => self.speaker(),
            "OTHER" => {
                let person = self.somebody_else();
                self.name(person, PropertySet::default());
            }
            "RECIPIENT" => self.recipient(),
            "RECEIVER" => self.partner(true),
            "PARTNER" => self.partner(false),
            "POSS" => self.possessive(),
            "KIND" => self.kind(),
            // Words.
            "PLACE" => self.draw(|topic| topic.places),
            "OBJECT" => {
                let noun = self.topical(|topic| topic.objects);
                self.tagged(noun.one, PropertySet::default().with(Property::DirectObject));
            }
            "THING" => self.noun(|topic| topic.objects, Number::Singular),
            "THINGS" => self.noun(|topic| topic.objects, Number::Plural),
            "CREATURE" => self.noun(|topic| topic.creatures, Number::Singular),
            "ADJ" => self.draw(|topic| topic.adjectives),
            "ADJ?" if self.rng.random_bool(0.35) => self.draw(|topic| topic.adjectives),
            "ADJ?" => {}
            "MOOD" => {
                let mood = self.pick(MOODS);
                self.word(mood);
            }
            "AGE" => {
                let age = self.rng.random_range(5..20_u8).to_string();
                self.word(&age);
            }
            // Phrases.
            "AT" => self.perhaps(0.5, templates::WHERE),
            "WHEN" => self.perhaps(0.5, templates::WHEN),
            "ATTRACTOR" => self.attractor(),
            "WHO" => self.inside(templates::WHO, self.past),
            "WHAT" => self.inside(templates::WHAT, self.past),
            "STATEMENT" => self.inside(templates::STATEMENTS, false),
            "QUESTION" => self.inside(templates::QUESTIONS, false),
            "GREETING" => self.inside(templates::GREETINGS, false),
            other => unreachable!("a template has the slot [{other}], which nothing fills"),
        }
    }

    fn noun_subject(&mut self, of: fn(&Topic) -> &[Noun]) {
        let number = if self.rng.random() { Number::Singular } else { Number::Plural };
        self.clause = Clause { number, awaits_verb: true };
        self.referent = Referent::Nobody;
        self.noun(of, number);
    }

    /// For what a bracket explains: the subject before it, or an object, which is one thing.
    fn thing_pronoun(&mut self) {
        let explained = self.enclosing.last().filter(|clause| clause.awaits_verb);
        let number = explained.map_or(Number::Singular, |clause| clause.number);
        self.clause = Clause { number, awaits_verb: true };
        self.word(if number == Number::Singular { "it" } else { "they" });
    }

    fn noun(&mut self, of: fn(&Topic) -> &[Noun], number: Number) {
        let noun = self.topical(of);
        self.word(if number == Number::Singular { noun.one } else { noun.many });
    }

    fn verb(&mut self, name: &str) {
        let verb = match name {
            "act" => self.topical(|topic| topic.transitive),
            "move" => self.topical(|topic| topic.intransitive),
            "give" => self.pick(GIVING),
            _ => *VERBS.iter().find(|verb| verb.present[1] == name).expect("a template's verb is in the lexicon"),
        };
        let Verb { present, past } = verb;
        let forms = if self.past { past } else { present };
        self.clause.awaits_verb = false;
        self.word(forms[usize::from(self.clause.number == Number::Plural)]);
    }

    fn attractor(&mut self) {
        if self.rng.random_bool(0.6) {
            let outside = std::mem::replace(&mut self.in_attractor, true);
            self.inside(templates::ATTRACTORS, self.past);
            self.in_attractor = outside;
        }
    }

    /// A part with its own clause and tense, which leaves no trace in what is around it.
    fn inside(&mut self, templates: &[Weighted], past: bool) {
        let (clause, referent, outer) = (self.clause, self.referent, self.past);
        self.enclosing.push(clause);
        self.clause.awaits_verb = false;
        self.past = past;
        let template = self.weighted(templates);
        self.fill(template);
        self.enclosing.pop();
        (self.clause, self.referent, self.past) = (clause, referent, outer);
    }

    fn perhaps(&mut self, probability: f64, templates: &[Weighted]) {
        if self.rng.random_bool(probability) {
            let template = self.weighted(templates);
            self.fill(template);
        }
    }

    pub(super) fn word(&mut self, word: &str) {
        self.tagged(word, PropertySet::default());
    }

    pub(super) fn tagged(&mut self, word: &str, properties: PropertySet) {
        self.writer.word(word, self.context().union(properties));
    }

    /// The properties that hold here whatever the token is.
    fn context(&self) -> PropertySet {
        let waiting = self.enclosing.iter().chain([&self.clause]).rev().find(|clause| clause.awaits_verb);
        let awaited = waiting.map(|clause| clause.number);
        // A relative clause has a subject that no pronoun takes up.
        let referent = if self.in_attractor { Referent::Nobody } else { self.referent };
        let gender = match referent {
            Referent::One(person) => Some(person.gender),
            _ => None,
        };
        PropertySet::default()
            .with(TOPIC_PROPERTIES[self.topic])
            .with_if(Property::PastTense, self.told_in_past)
            .with_if(Property::SingularSubject, awaited == Some(Number::Singular))
            .with_if(Property::PluralSubject, awaited == Some(Number::Plural))
            .with_if(Property::Attractor, self.in_attractor)
            .with_if(Property::PartnerDue, self.partner_due)
            .with_if(Property::FemaleReferent, gender == Some(Gender::Female))
            .with_if(Property::MaleReferent, gender == Some(Gender::Male))
            .with_if(Property::PairReferent, matches!(referent, Referent::Two(..)))
    }

    fn draw(&mut self, of: fn(&Topic) -> &[&'static str]) {
        let word = self.topical(of);
        self.word(word);
    }

    /// Seven words in ten are the topic's own, two are common to all topics, one is from anywhere.
    fn topical<T: Copy>(&mut self, of: fn(&Topic) -> &[T]) -> T {
        let topic = match self.rng.random_range(0..10_u8) {
            0 => self.rng.random_range(0..TOPICS.len()),
            1 | 2 => return self.pick(of(&COMMON)),
            _ => self.topic,
        };
        self.pick(of(&TOPICS[topic]))
    }

    pub(super) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        *list.choose(&mut self.rng).expect("no list is empty")
    }

    fn weighted(&mut self, templates: &[Weighted]) -> &'static str {
        templates.choose_weighted(&mut self.rng, |(weight, _)| *weight).expect("weights are positive").1
    }
}

/// The generator of the document `index`: documents do not depend on each other.
pub(super) fn rng_of(seed: u64, index: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    rng
}
