//! A generated language whose tokens carry known properties.
//!
//! Documents are plain English of a small vocabulary: a few people in one of six surroundings go places, give each other things, speak in
//! quotation marks and are explained in brackets. Verbs agree with subjects across other nouns, pronouns with the gender of the last
//! subject, and in `When Mary and John went to the store, John gave a drink to Mary.` the last name follows from the rest (Wang et
//! al., "Interpretability in the Wild"). Since the text is generated, every token has labels that a dictionary learned from a
//! model of the language can be measured against: see [`Property`].
//!
//! [`write_documents`] makes a file that [`build`](crate::build) reads; [`labelled_contexts`] makes contexts with labels.
//!
//! ```
//! use monosem_corpus::toy::{Property, ToyLanguage};
//!
//! let document = ToyLanguage::new(0).document(7);
//! let names: Vec<&str> =
//!     document.pieces.iter().filter(|p| p.properties.contains(Property::Name)).map(|p| p.text.trim_start()).collect();
//! assert!(document.text().contains(names[0]));
//! ```

mod labels;
mod lexicon;
mod narrator;
mod people;
mod property;
mod templates;
mod writer;

#[cfg(test)]
mod tests;

pub use labels::{LabelledContexts, labelled_contexts, write_documents};
pub use property::{Property, PropertySet};

use narrator::{Narrator, rng_of};

/// The language; a seed gives a sequence of documents without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToyLanguage {
    seed: u64,
}

/// One token and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token as it stands in the text, the space before it included.
    pub text: String,
    /// What is known.
    pub properties: PropertySet,
}

/// A generated document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToyDocument {
    /// Its tokens; the toy model's tokenizer splits [`Self::text`] into the same ones.
    pub pieces: Vec<Piece>,
}

impl ToyDocument {
    /// The text: its pieces joined.
    #[must_use]
    pub fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }
}

impl ToyLanguage {
    /// The language with the documents that this seed draws.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The document with this index. It depends on the seed and the index alone.
    #[must_use]
    pub fn document(&self, index: u64) -> ToyDocument {
        ToyDocument { pieces: Narrator::new(rng_of(self.seed, index)).document() }
    }

    /// The first `n` documents.
    pub fn documents(&self, n: u64) -> impl Iterator<Item = ToyDocument> {
        let language = *self;
        (0..n).map(move |index| language.document(index))
    }

    /// The names that neither give nor receive where two named people are together and one gives to the other: nothing but the
    /// rule tells a model how such a sentence about them goes on.
    pub fn held_out_names() -> impl Iterator<Item = &'static str> {
        lexicon::held_out().map(|person| person.name)
    }
}
