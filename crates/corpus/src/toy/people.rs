//! The slots that people fill.

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::lexicon::{Gender, Person, regulars};
use super::narrator::{Clause, Meeting, Narrator, Number, Referent};
use super::{Property, PropertySet};

impl Narrator {
    /// The name of the last subject, or of others, or a pronoun for it.
    pub(super) fn subject(&mut self) {
        match self.referent {
            Referent::One(_) | Referent::Two(..) if self.rng.random_bool(0.5) => self.subject_pronoun(),
            _ if self.rng.random_bool(0.25) => self.two_people(),
            _ => self.one_person(),
        }
    }

    pub(super) fn subject_pronoun(&mut self) {
        let (pronoun, number) = match self.referent {
            Referent::One(Person { gender: Gender::Female, .. }) => ("she", Number::Singular),
            Referent::One(_) => ("he", Number::Singular),
            Referent::Two(..) => ("they", Number::Plural),
            Referent::Nobody => ("it", Number::Singular),
        };
        match self.referent {
            Referent::One(person) => self.present.push(person),
            Referent::Two(first, second) => self.present.extend([first, second]),
            Referent::Nobody => {}
        }
        self.clause = Clause { number, awaits_verb: true };
        self.word(pronoun);
    }

    pub(super) fn one_person(&mut self) {
        let person = self.somebody_else();
        self.name_subject(person, PropertySet::default());
    }

    fn name_subject(&mut self, person: Person, properties: PropertySet) {
        self.clause = Clause { number: Number::Singular, awaits_verb: true };
        self.referent = Referent::One(person);
        self.name(person, properties);
    }

    pub(super) fn two_people(&mut self) {
        let first = self.somebody_else();
        self.present.push(first);
        let second = self.somebody_else();
        self.both(first, second);
    }

    /// The subject is plural from `and` on.
    fn both(&mut self, first: Person, second: Person) {
        self.name_subject(first, PropertySet::default());
        self.clause.number = Number::Plural;
        self.referent = Referent::Two(first, second);
        self.word("and");
        self.name(second, PropertySet::default());
    }

    fn meeting(&self) -> Meeting {
        self.meeting.expect("two people were chosen before the template")
    }

    pub(super) fn meeting_people(&mut self) {
        let [first, second] = self.meeting().people;
        self.both(first, second);
    }

    /// One of the two again: now the other is due.
    pub(super) fn actor(&mut self) {
        let Meeting { people, actor } = self.meeting();
        self.partner_due = true;
        self.name_subject(people[actor], PropertySet::default().with(Property::RepeatedName));
    }

    pub(super) fn partner(&mut self, receives: bool) {
        let Meeting { people, actor } = self.meeting();
        self.partner_due = false;
        self.name(people[1 - actor], PropertySet::default().with_if(Property::IndirectObject, receives));
    }

    pub(super) fn speaker(&mut self) {
        let person = self.somebody_else();
        self.referent = Referent::One(person);
        self.name(person, PropertySet::default());
    }

    pub(super) fn recipient(&mut self) {
        let properties = PropertySet::default().with(Property::IndirectObject);
        if self.rng.random_bool(0.25) {
            let pronoun = self.pick(&["him", "her", "them"]);
            self.tagged(pronoun, properties);
        } else {
            let person = self.somebody_else();
            self.name(person, properties);
        }
    }

    pub(super) fn possessive(&mut self) {
        self.word(match self.referent {
            Referent::One(Person { gender: Gender::Female, .. }) => "her",
            Referent::One(_) => "his",
            Referent::Two(..) => "their",
            Referent::Nobody => "its",
        });
    }

    pub(super) fn kind(&mut self) {
        let female = matches!(self.referent, Referent::One(Person { gender: Gender::Female, .. }));
        self.word(if female { "girl" } else { "boy" });
    }

    /// A person of the document who is not in the sentence yet.
    pub(super) fn somebody_else(&mut self) -> Person {
        let present = &self.present;
        let absent = |person: &Person| !present.contains(person);
        let mut candidates: Vec<Person> = self.cast.iter().copied().filter(absent).collect();
        if candidates.is_empty() {
            candidates = regulars().filter(absent).collect();
        }
        *candidates.choose(&mut self.rng).expect("there are more people than one sentence has")
    }

    pub(super) fn name(&mut self, person: Person, properties: PropertySet) {
        let known = self.known.contains(&person.name);
        self.tagged(person.name, properties.with_if(Property::KnownName, known));
        self.present.push(person);
        self.known.push(person.name);
    }
}
