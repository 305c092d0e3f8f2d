use std::collections::BTreeMap;

use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use super::{Encode, Half, Pair, Stream, Task, check_words, draw_prompts, half_of, rng, slots};
use crate::{PatchingError, Prompt};

/// Sentences that differ in one word, which decides what comes next: a man's name or a woman's before a pronoun, one key or several before
/// a verb, an opening bracket or an opening quote.
///
/// ```
/// let task: monosem_patching::MinimalPairs = toml::from_str(
///     r#"
///     templates = ["The [NOUN] near the [PLACE]", "The [NOUN] behind the [PLACE]"]
///     words = { PLACE = ["door", "wall"] }
///     classes = [
///         { name = "singular", changed = { NOUN = ["key", "lamp"] }, answers = [" is", " was"] },
///         { name = "plural", changed = { NOUN = ["keys", "lamps"] }, answers = [" are", " were"] },
///     ]
///     "#,
/// )
/// .unwrap();
/// task.validate("example").unwrap();
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MinimalPairs {
    /// Sentences that end before the answer, with `[SLOTS]`.
    pub templates: Vec<String>,
    /// What may fill a slot, the same in a prompt and its counterfactual.
    #[serde(default)]
    pub words: BTreeMap<String, Vec<String>>,
    /// A prompt is of one class and its counterfactual of another.
    pub classes: Vec<Class>,
}

/// One kind of sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// What makes a sentence one of this class: for each such slot as many words as in every other class. Words of one place in their lists
    /// change into each other. Each half of the prompts has a half of them; both have a word that stands alone.
    pub changed: BTreeMap<String, Vec<String>>,
    /// What may fill other slots where the prompt is of this class: an attractor, for instance.
    #[serde(default)]
    pub words: BTreeMap<String, Vec<String>>,
    /// What comes next, each with its space if it has one.
    pub answers: Vec<String>,
}

impl MinimalPairs {
    /// Checks the lists and the templates.
    ///
    /// # Errors
    /// If a list is empty, names something twice or is of another length than that of another class, or a template has a slot that nothing fills
    /// or lacks one that the classes change.
    pub fn validate(&self, origin: &str) -> Result<(), PatchingError> {
        let error =
            |what: &str, problem: String| PatchingError::Task { origin: origin.into(), what: what.into(), problem };
        let [first, rest @ ..] = &self.classes[..] else {
            return Err(error("classes", "expected two or more".into()));
        };
        if rest.is_empty() || self.templates.len() < 2 {
            let what = if rest.is_empty() { "classes" } else { "templates" };
            return Err(error(what, "expected two or more".into()));
        }
        for (i, class) in self.classes.iter().enumerate() {
            if self.classes[..i].iter().any(|other| other.name == class.name) {
                return Err(error("classes", format!("{:?} is named twice", class.name)));
            }
            let of = |what: &str| format!("class {:?}, {what}", class.name);
            for (slot, words) in class.changed.iter().chain(&class.words).chain(&self.words) {
                check_words(words, true).map_err(|problem| error(&of(slot), problem))?;
            }
            let answers = &class.answers;
            if answers.is_empty() || answers.iter().any(String::is_empty) {
                return Err(error(&of("answers"), "expected one or more, none of them empty".into()));
            }
            if let Some((_, twice)) = answers.iter().enumerate().find(|(i, answer)| answers[..*i].contains(answer)) {
                return Err(error(&of("answers"), format!("{twice:?} is named twice")));
            }
            let lengths = |class: &Class| -> Vec<(String, usize)> {
                class.changed.iter().map(|(slot, words)| (slot.clone(), words.len())).collect()
            };
            if lengths(class) != lengths(first) {
                let problem = format!("expected the slots and numbers of words of class {:?}", first.name);
                return Err(error(&of("changed"), problem));
            }
        }
        let lists = self.classes.iter().flat_map(|class| class.words.keys()).chain(self.words.keys());
        for slot in lists {
            if !self.templates.iter().any(|template| template.contains(&format!("[{slot}]"))) {
                return Err(error("words", format!("no template has the slot [{slot}]")));
            }
        }
        for (i, template) in self.templates.iter().enumerate() {
            let what = format!("template {i}, {template:?}");
            let found = slots(template).map_err(|problem| error(&what, problem))?;
            for class in &self.classes {
                let filled = |slot: &str| {
                    class.changed.contains_key(slot) || class.words.contains_key(slot) || self.words.contains_key(slot)
                };
                if let Some((_, slot)) = found.iter().find(|(_, slot)| !filled(slot)) {
                    return Err(error(&what, format!("nothing fills [{slot}] in class {:?}", class.name)));
                }
                if let Some(slot) = class.changed.keys().find(|slot| !found.iter().any(|(_, s)| s == slot)) {
                    return Err(error(&what, format!("expected the slot [{slot}]")));
                }
            }
            if template.ends_with(char::is_whitespace) {
                return Err(error(&what, "expected no space at the end: the answer brings its own".into()));
            }
        }
        Ok(())
    }
}

impl Task for MinimalPairs {
    fn n_classes(&self) -> Option<usize> {
        Some(self.classes.len())
    }

    fn prompts(&self, n: usize, seed: u64, half: Half, encode: &Encode<'_>) -> Result<Vec<Prompt>, PatchingError> {
        let templates = half_of((0..self.templates.len()).collect(), &mut rng(seed, Stream::Templates), half);
        // The words that change, by their place in the lists: one half of the places for each slot.
        let mut of_words = rng(seed, Stream::Names);
        let places: BTreeMap<&str, Vec<usize>> = self.classes[0]
            .changed
            .iter()
            .map(|(slot, words)| {
                let places: Vec<usize> = (0..words.len()).collect();
                (slot.as_str(), if places.len() == 1 { places } else { half_of(places, &mut of_words, half) })
            })
            .collect();
        let mut taken = 0;
        let seed = seed.wrapping_mul(2).wrapping_add(u64::from(half == Half::Report));
        draw_prompts(n, seed, encode, &mut |rng| {
            let template = templates[taken % templates.len()];
            taken += 1;
            let classes: Vec<&Class> = self.classes.sample(rng, 2).collect();
            let [class, target] = if rand::RngExt::random_bool(rng, 0.5) { [0, 1] } else { [1, 0] }.map(|i| classes[i]);
            let (mut text, mut target_text) = (self.templates[template].clone(), self.templates[template].clone());
            for (slot, words) in &class.changed {
                let place = *places[slot.as_str()].choose(rng).expect("either half has a place");
                let slot_text = format!("[{slot}]");
                text = text.replace(&slot_text, &words[place]);
                target_text = target_text.replace(&slot_text, &target.changed[slot][place]);
            }
            for (slot, words) in class.words.iter().chain(&self.words) {
                let word = words.choose(rng).expect("lists of words are not empty");
                let slot_text = format!("[{slot}]");
                text = text.replace(&slot_text, word);
                target_text = target_text.replace(&slot_text, word);
            }
            let (answers, target_answers) = (class.answers.clone(), target.answers.clone());
            Pair { text, target_text, answers, target_answers, wrong: Vec::new(), template }
        })
    }
}
