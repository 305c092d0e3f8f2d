use rand::RngExt;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use super::{Encode, Half, Pair, Stream, Task, check_words, draw_prompts, half_of, rng, single_token};
use crate::{PatchingError, Prompt};

/// Years that have to be greater than another (Hanna et al., arXiv 2305.00586): `The war lasted from the year 1732 to the year 17` is followed
/// by a larger number than 32. The counterfactual begins in an earlier decade.
///
/// Where most numbers of two digits are tokens of the vocabulary, answers are the years after that of the prompt; where digits are tokens, they
/// are the decades after its own. A model is right if it prefers them to what came before. In the counterfactual some of the latter are right:
/// those between its beginning and the prompt's are the answers that it makes likelier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GreaterThanTask {
    /// Sentences with `[EVENT]`, `[CENTURY]` twice and `[YEAR]` right after the first: `The [EVENT] lasted from the year [CENTURY][YEAR] to the year [CENTURY]`.
    pub templates: Vec<String>,
    /// What lasts for years.
    pub events: Vec<String>,
    /// The first two digits of a year.
    pub centuries: Vec<String>,
}

impl GreaterThanTask {
    /// Checks the lists and templates.
    ///
    /// # Errors
    /// If a list is too short or names something twice, or a template is not as [`Self::templates`] says.
    pub fn validate(&self, origin: &str) -> Result<(), PatchingError> {
        let error =
            |what: &str, problem: String| PatchingError::Task { origin: origin.into(), what: what.into(), problem };
        for (what, list) in [("events", &self.events), ("centuries", &self.centuries)] {
            check_words(list, true).map_err(|problem| error(what, problem))?;
        }
        if self.events.len() < 2 || self.templates.len() < 2 {
            let what = if self.events.len() < 2 { "events" } else { "templates" };
            return Err(error(what, "expected two or more".into()));
        }
        for (i, template) in self.templates.iter().enumerate() {
            let good = template.contains("[EVENT]")
                && template.contains("[CENTURY][YEAR]")
                && template.ends_with("[CENTURY]")
                && template.matches('[').count() == 4;
            if !good {
                let expected = "expected [EVENT], [CENTURY][YEAR], and [CENTURY] at the end, once each";
                return Err(error(&format!("template {i}, {template:?}"), expected.into()));
            }
        }
        Ok(())
    }
}

impl Task for GreaterThanTask {
    fn prompts(&self, n: usize, seed: u64, half: Half, encode: &Encode<'_>) -> Result<Vec<Prompt>, PatchingError> {
        let events = half_of(self.events.iter().collect(), &mut rng(seed, Stream::Names), half);
        let templates = half_of((0..self.templates.len()).collect(), &mut rng(seed, Stream::Templates), half);
        let mut taken = 0;
        let seed = seed.wrapping_mul(2).wrapping_add(u64::from(half == Half::Report));
        draw_prompts(n, seed, encode, &mut |rng| {
            let template = templates[taken % templates.len()];
            taken += 1;
            let event = events.choose(rng).expect("a half of two or more events has one");
            let century = self.centuries.choose(rng).expect("there are centuries");
            // At least one decade lies between the two years, and one after the later.
            let decade: u32 = rng.random_range(3..9);
            let earlier: u32 = rng.random_range(0..decade - 1);
            let (year, earlier_year) = (10 * decade + rng.random_range(2..9), 10 * earlier + rng.random_range(2..9));
            let fill = |year: u32| {
                let text = self.templates[template].replace("[EVENT]", event).replace("[CENTURY]", century);
                text.replace("[YEAR]", &format!("{year:02}"))
            };
            let text = fill(year);
            // A few years may be tokens with their century, and are then no answers.
            let single = |year: &i32| single_token(&text, &format!("{year:02}"), encode).is_some();
            let two_digits = (2..100).filter(single).count() > 49;
            let numbers = |range: std::ops::Range<u32>| -> Vec<String> {
                range.map(|n| if two_digits { format!("{n:02}") } else { n.to_string() }).collect()
            };
            let (of, of_earlier, end) = if two_digits { (year, earlier_year, 100) } else { (decade, earlier, 10) };
            Pair {
                target_text: fill(earlier_year),
                text,
                answers: numbers(of + 1..end),
                target_answers: numbers(of_earlier + 1..of),
                // The year or decade itself is neither right nor wrong for certain.
                wrong: numbers(if two_digits { 2 } else { 0 }..of),
                template,
            }
        })
    }
}
