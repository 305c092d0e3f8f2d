use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::pattern::{next_same, patterns_at};
use crate::{ExampleRef, Pattern, Vocabulary};

/// The patterns that the examples of a feature show, and where. Tokens are numbered through the examples, those that
/// have an activation only.
pub(crate) struct Candidates {
    pub(crate) patterns: Vec<Pattern>,
    /// The tokens that show each pattern.
    pub(crate) tokens_of: Lists,
    /// The patterns that each token shows.
    pub(crate) patterns_of: Lists,
}

impl Candidates {
    /// All patterns that show in at least `min_examples` examples.
    pub(crate) fn new(vocabulary: &Vocabulary, examples: &[ExampleRef<'_>], min_examples: usize) -> Self {
        let mut seen = Seen::default();
        let mut shown = Lists::default();
        for (number, example) in examples.iter().enumerate() {
            let next = next_same(example.tokens);
            for at in example.skip()..example.tokens.len() {
                patterns_at(vocabulary, example.tokens, &next, at, |pattern| {
                    shown.items.push(seen.note(pattern, number as u32));
                });
                shown.close();
            }
        }
        let mut kept = Vec::new();
        let new_ids: Vec<Option<u32>> = (seen.patterns.iter().zip(&seen.examples))
            .map(|(pattern, (examples, _))| {
                (*examples as usize >= min_examples).then(|| {
                    kept.push(*pattern);
                    kept.len() as u32 - 1
                })
            })
            .collect();
        let mut patterns_of = Lists::default();
        for token in 0..shown.len() {
            patterns_of.items.extend(shown.get(token).iter().filter_map(|id| new_ids[*id as usize]));
            patterns_of.close();
        }
        Self { tokens_of: patterns_of.transposed(kept.len()), patterns: kept, patterns_of }
    }
}

/// Patterns, numbered as they first come.
#[derive(Default)]
struct Seen {
    ids: HashMap<Pattern, u32, BuildHasherDefault<Mixer>>,
    patterns: Vec<Pattern>,
    /// In how many examples each was seen, and in which one last.
    examples: Vec<(u32, u32)>,
}

impl Seen {
    fn note(&mut self, pattern: Pattern, example: u32) -> u32 {
        let id = *self.ids.entry(pattern).or_insert(self.patterns.len() as u32);
        match self.examples.get_mut(id as usize) {
            None => {
                self.patterns.push(pattern);
                self.examples.push((1, example));
            }
            Some((_, last)) if *last == example => {}
            Some((n, last)) => (*n, *last) = (*n + 1, example),
        }
        id
    }
}

/// Lists of numbers, one after the other.
pub(crate) struct Lists {
    starts: Vec<u32>,
    items: Vec<u32>,
}

impl Default for Lists {
    fn default() -> Self {
        Self { starts: vec![0], items: Vec::new() }
    }
}

impl Lists {
    /// Ends the list that `items` were pushed to.
    fn close(&mut self) {
        self.starts.push(self.items.len() as u32);
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub(crate) fn get(&self, index: usize) -> &[u32] {
        &self.items[self.starts[index] as usize..self.starts[index + 1] as usize]
    }

    /// For each of `n` numbers the lists that hold it, in rising order.
    fn transposed(&self, n: usize) -> Self {
        let mut starts = vec![0; n + 1];
        for item in &self.items {
            starts[*item as usize + 1] += 1;
        }
        for index in 0..n {
            starts[index + 1] += starts[index];
        }
        let mut ends = starts.clone();
        let mut items = vec![0; self.items.len()];
        for list in 0..self.len() {
            for item in self.get(list) {
                items[ends[*item as usize] as usize] = list as u32;
                ends[*item as usize] += 1;
            }
        }
        Self { starts, items }
    }
}

/// A hash for small keys: most of the time of an explanation would go to the default one, which withstands chosen keys.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
