//! What is known about every token.

use std::fmt;

/// A latent property of a token, known because the language was generated.
///
/// A property holds at a token when the text up to and including that token fixes it for a reader who knows the rules, with the
/// exception of the topic and the tense, which hold for a whole document. Spans (quotes, brackets, waiting for a verb) include the token that
/// opens them and not the token that ends them, so that at every token inside the end is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Property {
    /// The token is a first name.
    Name,
    /// The token is the first name of a woman.
    FemaleName,
    /// The token is the first name of a man.
    MaleName,
    /// The token is a personal or possessive pronoun.
    Pronoun,
    /// The token is a noun for a place.
    Place,
    /// The token is an adjective.
    Adjective,
    /// The token is a number in digits.
    Number,
    /// The token before is a preposition.
    AfterPreposition,
    /// The token is the first word of a sentence, be it the narrator's or quoted.
    SentenceStart,
    /// A quotation is open.
    InsideQuote,
    /// A bracket is open.
    InsideBracket,
    /// Two brackets are open, one in the other.
    InsideNestedBracket,
    /// The innermost clause that waits for its verb has a singular subject.
    SingularSubject,
    /// The innermost clause that waits for its verb has a plural subject.
    PluralSubject,
    /// Between a subject's head and its verb, in words that belong to neither (`near the tree` in `the dogs near the tree run`).
    Attractor,
    /// The token is an object that somebody acts on.
    DirectObject,
    /// The token is the person who receives something.
    IndirectObject,
    /// The token is the second mention of one of two people in a sentence, who now acts, as the giver of a gift does.
    RepeatedName,
    /// One of two people has been named a second time and the other not yet, so that the next name is certain.
    PartnerDue,
    /// The token is a name that the document has already mentioned.
    KnownName,
    /// The last subject of the narration is one woman, for whom `she` would stand.
    FemaleReferent,
    /// The last subject of the narration is one man, for whom `he` would stand.
    MaleReferent,
    /// The last subject of the narration is two people, for whom `they` would stand.
    PairReferent,
    /// The document is told in the past tense.
    PastTense,
    /// The document is about cooking.
    TopicKitchen,
    /// The document is about learning.
    TopicSchool,
    /// The document is about the sea.
    TopicSea,
    /// The document is about a farm.
    TopicFarm,
    /// The document is about music.
    TopicMusic,
    /// The document is about snow and ice.
    TopicWinter,
}

impl Property {
    /// Every property, in the order of the bits of a [`PropertySet`].
    pub const ALL: [Self; 30] = [
        Self::Name,
        Self::FemaleName,
        Self::MaleName,
        Self::Pronoun,
        Self::Place,
        Self::Adjective,
        Self::Number,
        Self::AfterPreposition,
        Self::SentenceStart,
        Self::InsideQuote,
        Self::InsideBracket,
        Self::InsideNestedBracket,
        Self::SingularSubject,
        Self::PluralSubject,
        Self::Attractor,
        Self::DirectObject,
        Self::IndirectObject,
        Self::RepeatedName,
        Self::PartnerDue,
        Self::KnownName,
        Self::FemaleReferent,
        Self::MaleReferent,
        Self::PairReferent,
        Self::PastTense,
        Self::TopicKitchen,
        Self::TopicSchool,
        Self::TopicSea,
        Self::TopicFarm,
        Self::TopicMusic,
        Self::TopicWinter,
    ];

    /// The name in results, such as `inside_quote`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::FemaleName => "female_name",
            Self::MaleName => "male_name",
            Self::Pronoun => "pronoun",
            Self::Place => "place",
            Self::Adjective => "adjective",
            Self::Number => "number",
            Self::AfterPreposition => "after_preposition",
            Self::SentenceStart => "sentence_start",
            Self::InsideQuote => "inside_quote",
            Self::InsideBracket => "inside_bracket",
            Self::InsideNestedBracket => "inside_nested_bracket",
            Self::SingularSubject => "singular_subject",
            Self::PluralSubject => "plural_subject",
            Self::Attractor => "attractor",
            Self::DirectObject => "direct_object",
            Self::IndirectObject => "indirect_object",
            Self::RepeatedName => "repeated_name",
            Self::PartnerDue => "partner_due",
            Self::KnownName => "known_name",
            Self::FemaleReferent => "female_referent",
            Self::MaleReferent => "male_referent",
            Self::PairReferent => "pair_referent",
            Self::PastTense => "past_tense",
            Self::TopicKitchen => "topic_kitchen",
            Self::TopicSchool => "topic_school",
            Self::TopicSea => "topic_sea",
            Self::TopicFarm => "topic_farm",
            Self::TopicMusic => "topic_music",
            Self::TopicWinter => "topic_winter",
        }
    }

    /// Whether the token alone decides, without any context.
    #[must_use]
    pub fn is_lexical(self) -> bool {
        matches!(
            self,
            Self::Name
                | Self::FemaleName
                | Self::MaleName
                | Self::Pronoun
                | Self::Place
                | Self::Adjective
                | Self::Number
        )
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The properties of one token: bit `i` stands for `Property::ALL[i]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PropertySet(u32);

impl PropertySet {
    /// The set as bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The set that [`Self::bits`] gave; bits beyond the last property are dropped.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits & ((1 << Property::ALL.len()) - 1))
    }

    /// Whether the property holds.
    #[must_use]
    pub fn contains(self, property: Property) -> bool {
        self.0 & (1 << property as u32) != 0
    }

    /// The set with one more property.
    #[must_use]
    pub fn with(self, property: Property) -> Self {
        Self(self.0 | (1 << property as u32))
    }

    /// The set with one more property if `holds`.
    #[must_use]
    pub fn with_if(self, property: Property, holds: bool) -> Self {
        if holds { self.with(property) } else { self }
    }

    /// What is in one set or the other.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The properties in it.
    pub fn iter(self) -> impl Iterator<Item = Property> {
        Property::ALL.into_iter().filter(move |property| self.contains(*property))
    }
}

impl FromIterator<Property> for PropertySet {
    fn from_iter<I: IntoIterator<Item = Property>>(properties: I) -> Self {
        properties.into_iter().fold(Self::default(), Self::with)
    }
}
