//! Dictionaries explained and scored on fragments of text: what the `interp` nodes and the `interp` command share.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use monosem_activations::HookStore;
use monosem_autointerp::{
    Budget, CorrelationScorer, CurvePoint, Explainer as _, FeatureExamples, Fragments, GatherConfig, Gatherer,
    PatternConfig, PatternExplainer, PatternExplanation, PatternSimulator, Score, Scorer as _, Vocabulary, derangement,
};
use monosem_corpus::Contexts;
use monosem_dictionary::{Dictionary as _, LinearDictionary};
use monosem_lm::Tokenizer;
use monosem_report::{FeatureExample, Fragment};
use ndarray::parallel::prelude::*;
use ndarray::{Array2, Array3, s};

use crate::nodes::Label;

/// Contexts read and encoded at once.
const BATCH: usize = 64;

/// With fewer documents, chance would put too much of a text on one side.
const LEAST_DOCUMENTS: usize = 20;

/// Fragments of each kind that a report shows of a feature.
const SHOWN: usize = 3;

/// The text of every token of a model.
pub(crate) fn vocabulary(d_vocab: usize, tokenizer: &Tokenizer) -> Vocabulary {
    let text = |id: usize| u32::try_from(id).ok().and_then(|id| tokenizer.token(id)).unwrap_or_default();
    Vocabulary::new((0..d_vocab).map(text).collect())
}

/// Latents of a dictionary.
pub(crate) struct Part<'a> {
    pub(crate) dictionary: &'a LinearDictionary,
    pub(crate) latents: Vec<usize>,
}

impl<'a> Part<'a> {
    /// The first `n` latents, all where there are fewer.
    pub(crate) fn first(dictionary: &'a LinearDictionary, n: usize) -> Self {
        Self { dictionary, latents: (0..n.min(dictionary.n_latents())).collect() }
    }
}

/// Contexts cut into fragments, and where their activations are in a store.
pub(crate) struct Cut {
    pub(crate) fragments: Fragments,
    /// For each fragment the context it is from and the first of its positions.
    places: Vec<(usize, usize)>,
    /// Leading positions of a fragment that are context only.
    skip: usize,
    /// For each position of a context its place among the stored ones.
    stored: Vec<Option<usize>>,
    /// Stored rows of a context.
    rows_per_context: usize,
}

impl Cut {
    /// Cuts contexts into fragments of `length` tokens, leaving out those that span documents, and keeps at most `limit`.
    ///
    /// # Errors
    /// If a fragment is longer than a context, has no position that was kept, or no fragment is left.
    pub(crate) fn new(contexts: &Contexts, length: usize, limit: usize, dropped: &[usize]) -> Result<Self> {
        let skip = dropped.iter().map(|position| position + 1).max().unwrap_or(0);
        ensure!(skip < length, "positions {dropped:?} are dropped: fragments of {length} tokens have none left");
        let (n, context) = contexts.tokens.dim();
        ensure!(length <= context, "fragments of {length} tokens do not fit in contexts of {context}");
        let mut places = Vec::new();
        let mut documents = Vec::new();
        'contexts: for i in 0..n {
            for start in (0..=context.saturating_sub(length)).step_by(length) {
                if places.len() == limit {
                    break 'contexts;
                }
                let origins = contexts.documents.slice(s![i, start..start + length]);
                if origins.iter().all(|origin| *origin == origins[0]) {
                    places.push((i, start));
                    documents.push(origins[0]);
                }
            }
        }
        ensure!(
            !places.is_empty(),
            "no document of the text has {length} tokens within a context: take shorter fragments"
        );
        let mut tokens = Array2::zeros((places.len(), length));
        for (mut row, (i, start)) in tokens.rows_mut().into_iter().zip(&places) {
            row.assign(&contexts.tokens.slice(s![*i, *start..start + length]));
        }
        let mut next = 0;
        let place = |position: usize| {
            (!dropped.contains(&position)).then(|| {
                next += 1;
                next - 1
            })
        };
        let stored: Vec<Option<usize>> = (0..context).map(place).collect();
        Ok(Self { fragments: Fragments { tokens, documents }, places, skip, stored, rows_per_context: next })
    }

    /// Takes consecutive parts of the text for documents where it has too few of them to be divided into two sides; returns how many
    /// documents there were in that case.
    pub(crate) fn divide_few_documents(&mut self) -> Option<usize> {
        let documents = &mut self.fragments.documents;
        let found = documents.iter().collect::<HashSet<_>>().len();
        if found >= LEAST_DOCUMENTS {
            return None;
        }
        let per_part = documents.len().div_ceil(LEAST_DOCUMENTS).max(1);
        for (part, of_part) in (0..).zip(documents.chunks_mut(per_part)) {
            of_part.fill(part);
        }
        Some(found)
    }

    /// The activations on the fragments of each dictionary's latents, gathered in one pass.
    ///
    /// `read(first, n)` gives the activations of contexts `first..first + n` at the positions that are not dropped, a row each.
    /// Rows whose norm is over `norm_limit` count as inactive: attention sinks are left out here as everywhere. `step` hears of fragments done.
    pub(crate) fn gather(
        &self,
        read: &mut dyn FnMut(usize, usize) -> Result<Array2<f32>>,
        norm_limit: f32,
        parts: &[Part<'_>],
        config: &GatherConfig,
        step: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<FeatureExamples>>> {
        let mut gatherers: Vec<Gatherer> = parts.iter().map(|part| Gatherer::of(&part.latents, config)).collect();
        let length = self.fragments.tokens.ncols();
        let kept = length - self.skip;
        let mut first = 0;
        while first < self.places.len() {
            let context = self.places[first].0;
            let end = first + self.places[first..].partition_point(|(i, _)| *i < context + BATCH);
            let places = &self.places[first..end];
            let last = places.last().map_or(context, |(i, _)| *i);
            let rows = read(context, last + 1 - context)?;
            let extreme: Vec<bool> = rows.rows().into_iter().map(|row| row.dot(&row).sqrt() > norm_limit).collect();
            for (part, gatherer) in parts.iter().zip(&mut gatherers) {
                let codes = part.dictionary.encode_latents(rows.view(), &part.latents);
                let mut activations = Array3::zeros((places.len(), kept, codes.ncols()));
                for (mut fragment, (i, start)) in activations.outer_iter_mut().zip(places) {
                    for (at, mut out) in fragment.outer_iter_mut().enumerate() {
                        let Some(stored) = self.stored[start + self.skip + at] else { continue };
                        let row = (i - context) * self.rows_per_context + stored;
                        if !extreme[row] {
                            out.assign(&codes.row(row));
                        }
                    }
                }
                let documents = &self.fragments.documents[first..end];
                gatherer.add(u32::try_from(first)?, documents, activations.view());
            }
            first = end;
            step(first)?;
        }
        Ok(gatherers.into_iter().map(Gatherer::finish).collect())
    }
}

/// The activations of contexts from a store.
pub(crate) fn stored<'s>(store: &'s HookStore, cut: &'s Cut) -> impl FnMut(usize, usize) -> Result<Array2<f32>> + 's {
    |first, n| {
        let mut rows = Array2::zeros((n * cut.rows_per_context, store.width()));
        store.rows(first * cut.rows_per_context, rows.view_mut())?;
        Ok(rows)
    }
}

/// What features are explained with and how they are scored.
pub(crate) struct Settings<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    pub(crate) patterns: PatternConfig,
    /// Budgets at which explanations are scored; the headline is one of them.
    pub(crate) budgets: Vec<Budget>,
    pub(crate) headline: usize,
    pub(crate) seed: u64,
}

/// A feature with its explanation, scored.
pub(crate) struct Explained {
    pub(crate) examples: FeatureExamples,
    /// `None` where there is too little to explain from or to score on.
    pub(crate) scored: Option<Scored>,
}

/// An explanation and its scores.
pub(crate) struct Scored {
    pub(crate) explanation: PatternExplanation,
    pub(crate) curve: Vec<CurvePoint>,
}

impl Scored {
    /// The score at a budget.
    pub(crate) fn at(&self, budget: Budget) -> Option<Score> {
        self.curve.iter().find(|point| point.budget == budget).map(|point| point.score)
    }
}

impl Settings<'_> {
    /// Explains and scores each feature.
    pub(crate) fn explain(&self, fragments: &Fragments, features: Vec<FeatureExamples>) -> Vec<Explained> {
        let explainer = PatternExplainer { vocabulary: self.vocabulary, config: self.patterns };
        let simulator = PatternSimulator { vocabulary: self.vocabulary };
        let explain = |examples: FeatureExamples| {
            let scored = examples.enough.then(|| {
                let Ok(explanation) = explainer.explain(&fragments.examples(&examples.explain));
                let (top, random) =
                    (fragments.examples(&examples.score_top), fragments.examples(&examples.score_random));
                let curve = monosem_autointerp::score_curve(simulator, &explanation, &top, &random, &self.budgets);
                Scored { explanation, curve }
            });
            Explained { examples, scored }
        };
        features.into_par_iter().map(explain).collect()
    }

    /// The headline scores where each feature is simulated by the explanation of another: what an explanation of nothing in particular scores.
    pub(crate) fn shuffled(&self, fragments: &Fragments, features: &[Explained]) -> Vec<Score> {
        let scored: Vec<(&FeatureExamples, &Scored)> =
            features.iter().filter_map(|f| f.scored.as_ref().map(|scored| (&f.examples, scored))).collect();
        let Some(order) = derangement(scored.len(), self.seed) else { return Vec::new() };
        let score = |((examples, _), other): (&(&FeatureExamples, &Scored), &usize)| {
            self.score(fragments, examples, &scored[*other].1.explanation)
        };
        scored.par_iter().zip(&order).map(score).collect()
    }

    /// The score of an explanation, cut to the headline length, on the fragments of a feature.
    pub(crate) fn score(
        &self,
        fragments: &Fragments,
        examples: &FeatureExamples,
        explanation: &PatternExplanation,
    ) -> Score {
        let scorer = CorrelationScorer { simulator: PatternSimulator { vocabulary: self.vocabulary } };
        let (top, random) = (fragments.examples(&examples.score_top), fragments.examples(&examples.score_random));
        let Ok(score) = scorer.score(&explanation.first(self.headline), &top, &random);
        score
    }

    /// The explanation at the headline length, in words.
    pub(crate) fn sentence(&self, feature: &Explained) -> Option<String> {
        let scored = feature.scored.as_ref()?;
        Some(scored.explanation.first(self.headline).sentence(self.vocabulary))
    }

    /// A feature to be looked at: what its explanation says at the headline length, and a few fragments.
    pub(crate) fn example(&self, label: &Label, fragments: &Fragments, feature: &Explained) -> FeatureExample {
        let moments = &feature.examples.moments;
        let score = |scored: &Scored| Some(scored.at(Budget::Patterns(self.headline))?.combined);
        FeatureExample {
            experiment: label.experiment.into(),
            method: label.method.clone(),
            hook: label.hook.clone(),
            setting: label.setting.clone(),
            feature: feature.examples.feature,
            explanation: self.sentence(feature).unwrap_or_default(),
            score: feature.scored.as_ref().and_then(score),
            skew: moments.skew(),
            kurtosis: moments.kurtosis(),
            note: String::new(),
            fragments: self.shown(fragments, feature),
        }
    }

    /// A few fragments of a feature with true and predicted activations.
    fn shown(&self, fragments: &Fragments, feature: &Explained) -> Vec<Fragment> {
        let explanation = feature.scored.as_ref().map(|scored| scored.explanation.first(self.headline));
        let examples = &feature.examples;
        let kinds = [("top", &examples.score_top), ("random", &examples.score_random)];
        let of_kind = |(kind, examples): (&str, &Vec<monosem_autointerp::Example>)| -> Vec<Fragment> {
            let shown = fragments.examples(&examples[..examples.len().min(SHOWN)]);
            let fragment = |example: &monosem_autointerp::ExampleRef<'_>| {
                let mut activations = vec![0.0; example.skip()];
                activations.extend_from_slice(example.activations);
                let predict = |explanation: &PatternExplanation| -> Vec<f32> {
                    let value = |at| explanation.value(self.vocabulary, example.tokens, at) * explanation.max;
                    (0..example.tokens.len()).map(value).collect()
                };
                Fragment {
                    kind: kind.into(),
                    tokens: example.tokens.iter().map(|token| self.vocabulary.text(*token).to_owned()).collect(),
                    activations,
                    predicted: explanation.as_ref().map(predict).unwrap_or_default(),
                }
            };
            shown.iter().map(fragment).collect()
        };
        kinds.into_iter().flat_map(of_kind).collect()
    }
}
