//! Prompts drawn from a task.

use std::collections::{HashMap, HashSet};

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};

use super::{ATTEMPTS, Encode, Half, IoiTask, NameOrder, Stream, Task, drawn_before, half_of, rng, tokens_of};
use crate::prompt::Mark;
use crate::{PatchingError, Prompt};

/// A name that is one token.
#[derive(Clone, Copy)]
struct Name<'a> {
    text: &'a str,
    token: u32,
}

impl IoiTask {
    /// Draws `n` different prompts from a half of the names and of the templates.
    ///
    /// `encode` turns a text into tokens, or into none if it holds a word that the vocabulary does not know; nothing is added, so neither does a prompt begin with a special token unless `encode` puts one
    /// there. Only names are used that are one token after a space and share it with no other name. Templates take turns; the three names,
    /// the place and the object are drawn for each prompt. The halves depend on `seed`, the task and the vocabulary alone, not on `n`; a
    /// larger `n` continues a smaller one.
    ///
    /// # Errors
    /// If no name is a single token, a half has fewer than three names or no template, or a template gives no new prompt: too few
    /// combinations are left, or `encode` merges names with their surroundings.
    pub fn prompts(&self, n: usize, seed: u64, half: Half, encode: &Encode<'_>) -> Result<Vec<Prompt>, PatchingError> {
        let single = self.single_tokens(encode)?;
        let of = single.len();
        let names = half_of(single, &mut rng(seed, Stream::Names), half);
        if names.len() < 3 {
            return Err(PatchingError::TooFewNames { found: names.len(), of, listed: self.names.len() });
        }
        let templates = self.half_of_templates(seed, half);
        if templates.is_empty() {
            return Err(PatchingError::TooFewTemplates { listed: self.templates.len() });
        }
        let mut rng = rng(seed, if half == Half::Choose { Stream::Choose } else { Stream::Report });
        let mut seen = HashSet::new();
        let mut prompts = Vec::new();
        for &template in templates.iter().cycle().take(n) {
            let mut problem = String::new();
            let prompt = (0..ATTEMPTS).find_map(|_| {
                let drawn = self.draw(template, &names, encode, &mut rng);
                match drawn {
                    Ok(prompt) if seen.insert((prompt.text.clone(), prompt.target_text.clone())) => {
                        return Some(prompt);
                    }
                    Ok(prompt) => problem = drawn_before(&prompt),
                    Err(e) => problem = e,
                }
                None
            });
            let found = prompts.len();
            prompts.push(prompt.ok_or(PatchingError::NoPrompt { template, attempts: ATTEMPTS, found, problem })?);
        }
        Ok(prompts)
    }

    /// The names that a vocabulary can be asked for: one token each after a space, and not that of another name.
    ///
    /// # Errors
    /// If there is none.
    pub fn single_token_names(&self, encode: &Encode<'_>) -> Result<Vec<&str>, PatchingError> {
        Ok(self.single_tokens(encode)?.into_iter().map(|name| name.text).collect())
    }

    /// The same task with `n` of these names only, drawn from `seed`. Where a feature stands for a name, few names need few features.
    ///
    /// # Errors
    /// If there is no such name at all; that there are too few for prompts is told by [`Self::prompts`].
    pub fn with_names(&self, n: usize, seed: u64, encode: &Encode<'_>) -> Result<Self, PatchingError> {
        let mut names = self.single_token_names(encode)?;
        names.shuffle(&mut rng(seed, Stream::Names));
        Ok(Self { names: names.into_iter().take(n).map(str::to_owned).collect(), ..self.clone() })
    }

    fn single_tokens(&self, encode: &Encode<'_>) -> Result<Vec<Name<'_>>, PatchingError> {
        if self.names.is_empty() {
            return Err(PatchingError::TooFewNames { found: 0, of: 0, listed: 0 });
        }
        let first = |list: &[String]| list.first().cloned().unwrap_or_default();
        // The place where an answer stands is where a name has to be one token.
        let fill = |name: &String| self.templates[0].fill(name, name, &first(&self.places), &first(&self.objects));
        let name = self.names.iter().find(|name| !encode(&fill(name)).is_empty()).unwrap_or(&self.names[0]).clone();
        let before = fill(&name);
        let length = encode(&before).len();
        let added = |name: &str| encode(&format!("{before} {name}")).get(length..).unwrap_or_default().to_vec();
        let single = |name: &String| <[u32; 1]>::try_from(added(name)).ok().map(|[token]| token);
        let tokens: Vec<Option<u32>> = self.names.iter().map(single).collect();
        let mut uses: HashMap<u32, usize> = HashMap::new();
        tokens.iter().flatten().for_each(|token| *uses.entry(*token).or_default() += 1);
        let named = self.names.iter().zip(tokens).filter_map(|(text, token)| Some(Name { text, token: token? }));
        let names: Vec<Name<'_>> = named.filter(|name| uses[&name.token] == 1).collect();
        if names.is_empty() {
            let n_tokens = added(&name).len();
            return Err(PatchingError::NoSingleTokenName { name, n_tokens, before });
        }
        Ok(names)
    }

    /// A half of each order's templates by their places in the list, in seeded order.
    fn half_of_templates(&self, seed: u64, half: Half) -> Vec<usize> {
        let mut rng = rng(seed, Stream::Templates);
        let of_order = |order| (0..self.templates.len()).filter(|&i| self.templates[i].order == order).collect();
        let mut templates = half_of(of_order(NameOrder::Abba), &mut rng, half);
        templates.extend(half_of(of_order(NameOrder::Baba), &mut rng, half));
        templates.shuffle(&mut rng);
        templates
    }

    fn draw(
        &self,
        template: usize,
        names: &[Name<'_>],
        encode: &Encode<'_>,
        rng: &mut impl Rng,
    ) -> Result<Prompt, String> {
        let drawn: Vec<Name<'_>> = names.sample(rng, 3).copied().collect();
        let mut drawn = <[Name<'_>; 3]>::try_from(drawn).map_err(|_| "expected three names")?;
        // Which are drawn is random; their order is not promised to be.
        drawn.shuffle(rng);
        let [io, s, third] = drawn;
        let mut word = |list: &[String]| list.choose(rng).cloned().unwrap_or_default();
        let (place, object) = (word(&self.places), word(&self.objects));
        let [text, target_text] =
            [io, third].map(|name| self.templates[template].fill(name.text, s.text, &place, &object));
        let tokens = [tokens_of(&text, encode)?, tokens_of(&target_text, encode)?];
        prompt_of([text, target_text], tokens, [io, s, third].map(|name| name.token), template)
    }
}

/// Finds the names' positions and checks that the two texts differ in the one token that names IO.
fn prompt_of(
    [text, target_text]: [String; 2],
    [tokens, target_tokens]: [Vec<u32>; 2],
    [io, s, third]: [u32; 3],
    template: usize,
) -> Result<Prompt, String> {
    let places = |name: u32| tokens.iter().enumerate().filter(move |(_, t)| **t == name).map(|(i, _)| i);
    if tokens.len() != target_tokens.len() {
        return Err(format!("{text:?} has {} tokens, its counterfactual {}", tokens.len(), target_tokens.len()));
    }
    let (Some(io_position), 1) = (places(io).next(), places(io).count()) else {
        return Err(format!("{text:?} does not hold the token {io} of IO once"));
    };
    let differ = |i: &usize| tokens[*i] != target_tokens[*i];
    if (0..tokens.len()).filter(differ).ne([io_position]) || target_tokens[io_position] != third {
        return Err(format!("the counterfactual of {text:?} differs in more than the token of IO"));
    }
    let [s1, s2] = places(s).collect::<Vec<_>>()[..] else {
        return Err(format!("{text:?} does not hold the token {s} of S twice"));
    };
    if places(third).next().is_some() {
        return Err(format!("{text:?} holds the token {third} of the third name"));
    }
    let mut marks = vec![Mark::new("IO", io_position), Mark::new("S1", s1), Mark::new("S2", s2)];
    marks.push(Mark::new("END", tokens.len() - 1));
    marks.sort_by_key(|mark| mark.position);
    Ok(Prompt {
        text,
        target_text,
        tokens,
        target_tokens,
        answers: vec![io],
        target_answers: vec![third],
        wrong: vec![s],
        template,
        marks,
    })
}

impl Task for IoiTask {
    fn n_names(&self) -> Option<usize> {
        Some(self.names.len())
    }

    fn prompts(&self, n: usize, seed: u64, half: Half, encode: &Encode<'_>) -> Result<Vec<Prompt>, PatchingError> {
        self.prompts(n, seed, half, encode)
    }

    fn with_names(&self, n: usize, seed: u64, encode: &Encode<'_>) -> Result<Box<dyn Task>, PatchingError> {
        Ok(Box::new(self.with_names(n, seed, encode)?))
    }
}
