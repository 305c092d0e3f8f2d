use ndarray::{ArrayView3, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::sample::{Pool, Sample, lot};
use crate::{ConfigError, Example, FeatureExamples, Moments, Quiet};

/// Features that one task transposes together: a cache line of them.
const FEATURES_PER_TASK: usize = 16;

/// Fragments looked at for each quiet one asked for.
const QUIET_SAMPLE: usize = 20;

/// Keeps the lots of documents apart from those of features, whose numbers are small.
const DOCUMENTS: u64 = u64::MAX;

/// Which fragments are kept of each feature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatherConfig {
    /// How fragments are divided into those to explain from and those to score on.
    pub split: SplitRule,
    /// A feature with fewer fragments to explain from is unscored.
    pub explain_min: usize,
    /// Quiet fragments kept of each feature, for scorers that tell active from quiet ones; they are drawn from the side to score on. A feature with fewer
    /// is unscored by those, and only by those.
    #[serde(default)]
    pub quiet: usize,
    /// A fragment is quiet if the feature reaches at most this share of its maximum there: 0 for none at all.
    #[serde(default)]
    pub quiet_below: f32,
    /// Draws the random fragments and, where the rule says so, the side of each document.
    pub seed: u64,
}

impl Default for GatherConfig {
    fn default() -> Self {
        let split = SplitRule::Documents { explain_top: 100, explain_random: 100, score_top: 5, score_random: 5 };
        Self { split, explain_min: 20, quiet: 0, quiet_below: 0.0, seed: 0 }
    }
}

/// How fragments are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SplitRule {
    /// Half of the documents, drawn from the seed, are to explain from, the other half to score on: no text is on both sides.
    Documents {
        /// Strongest fragments to explain from.
        explain_top: usize,
        /// Random active fragments to explain from.
        explain_random: usize,
        /// Strongest fragments to score on.
        score_top: usize,
        /// Random active fragments to score on.
        score_random: usize,
    },
    /// The rule of arXiv 2309.08600: of the strongest fragments in order the numbers 0, 4, 8, ... are to explain from and 2, 6, 10, ... to
    /// score on, besides 1, 4, 7, ... of the random ones. Both sides may share documents.
    Interleaved {
        /// Strongest fragments; 20 in the paper.
        top: usize,
        /// Random active fragments; 20 in the paper.
        random: usize,
        /// At most so many examples to explain from, and from each kind to score on; 5 in the paper.
        per_split: usize,
    },
}

impl GatherConfig {
    /// The paper's rule with its numbers.
    pub fn paper(seed: u64) -> Self {
        Self {
            split: SplitRule::Interleaved { top: 20, random: 20, per_split: 5 },
            explain_min: 5,
            quiet: 0,
            quiet_below: 0.0,
            seed,
        }
    }

    /// Checks that something is asked for on each side and that the minimum can be reached.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the field, its value and what was expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (explain, top, random) = self.asked();
        if top + random == 0 {
            return Err(ConfigError::value("split", format!("is {:?}, which leaves nothing to score on", self.split)));
        }
        if self.explain_min == 0 || self.explain_min > explain {
            let why = format!("is {}, expected 1 to {explain}, the fragments to explain from", self.explain_min);
            return Err(ConfigError::value("explain_min", why));
        }
        if !(0.0..1.0).contains(&self.quiet_below) {
            return Err(ConfigError::value("quiet_below", format!("is {}, expected 0 to below 1", self.quiet_below)));
        }
        Ok(())
    }

    /// How many fragments each part has where there are enough: to explain from at most, and the strongest and random ones to score on, of
    /// which a feature that is scored has just so many.
    pub fn asked(&self) -> (usize, usize, usize) {
        match self.split {
            SplitRule::Documents { explain_top, explain_random, score_top, score_random } => {
                (explain_top + explain_random, score_top, score_random)
            }
            SplitRule::Interleaved { top, random, per_split } => {
                let every = |n: usize, first: usize, step: usize| n.saturating_sub(first).div_ceil(step).min(per_split);
                (every(top, 0, 4), every(top, 2, 4), every(random, 1, 3))
            }
        }
    }
}

/// Collects [`FeatureExamples`] in one pass over the fragments, in memory that does not grow with their number.
///
/// A feature is explained where it is positive: negative activations count as 0. The outcome depends neither on how
/// the fragments are cut into batches nor on the number of threads.
#[derive(Debug, Clone)]
pub struct Gatherer {
    config: GatherConfig,
    features: Vec<Feature>,
}

#[derive(Debug, Clone)]
struct Feature {
    number: usize,
    moments: Moments,
    /// To explain from and to score on; one for both where they are divided at the end.
    pools: Vec<Pool>,
    /// Fragments of the side to score on, however active the feature is there: which of them are quiet shows at the end.
    sample: Sample,
}

impl Gatherer {
    /// For features `0..n_features`.
    pub fn new(n_features: usize, config: &GatherConfig) -> Self {
        Self::of(&(0..n_features).collect::<Vec<_>>(), config)
    }

    /// For the features of these numbers, in this order. What is gathered of a feature does not depend on which others are.
    pub fn of(numbers: &[usize], config: &GatherConfig) -> Self {
        let pools = match config.split {
            SplitRule::Documents { explain_top, explain_random, score_top, score_random } => {
                vec![Pool::new(explain_top, explain_random), Pool::new(score_top, score_random)]
            }
            SplitRule::Interleaved { top, random, .. } => vec![Pool::new(top, random)],
        };
        // For a feature that is active on nine fragments of ten, a tenth of the sample is quiet.
        let sample = Sample::new(QUIET_SAMPLE * config.quiet);
        let feature = |&number| {
            let (pools, sample) = (pools.clone(), sample.clone());
            Feature { number, moments: Moments::default(), pools, sample }
        };
        Self { config: *config, features: numbers.iter().map(feature).collect() }
    }

    /// Adds the fragments `first..first + n`, which are from the given documents `[n]`, with their activations
    /// `[n, positions, n_features]`. Each fragment is added once, with the same number of positions: the last ones of the
    /// fragment.
    ///
    /// # Panics
    /// If the shapes do not agree, or an activation is not finite.
    pub fn add(&mut self, first: u32, documents: &[u32], activations: ArrayView3<'_, f32>) {
        let (n, _, n_features) = activations.dim();
        assert_eq!(n, documents.len(), "activations of {n} fragments, documents of {}", documents.len());
        assert_eq!(n_features, self.features.len(), "{n_features} features, expected {}", self.features.len());
        let origins: Vec<(u32, usize)> =
            (first..).zip(documents).map(|(fragment, document)| (fragment, self.pool(*document))).collect();
        let seed = self.config.seed;
        self.features.par_chunks_mut(FEATURES_PER_TASK).enumerate().for_each(|(task, features)| {
            let first = task * FEATURES_PER_TASK;
            let block = activations.slice(s![.., .., first..first + features.len()]);
            for (fragment, (row, pool)) in block.outer_iter().zip(&origins) {
                let by_feature = fragment.t().as_standard_layout().into_owned();
                for (feature, values) in features.iter_mut().zip(by_feature.rows()) {
                    feature.add(seed, *row, *pool, values.to_slice().expect("standard layout"));
                }
            }
        });
    }

    /// Which pool the fragments of a document go to.
    fn pool(&self, document: u32) -> usize {
        match self.config.split {
            SplitRule::Documents { .. } => (lot(self.config.seed, DOCUMENTS, document.into()) >> 63) as usize,
            SplitRule::Interleaved { .. } => 0,
        }
    }

    /// The examples of each feature, in the order of the features.
    pub fn finish(self) -> Vec<FeatureExamples> {
        let config = self.config;
        self.features.into_par_iter().map(|feature| feature.finish(&config)).collect()
    }
}

impl Feature {
    fn add(&mut self, seed: u64, fragment: u32, pool: usize, values: &[f32]) {
        // A sum is finite only if its terms are.
        let finite = values.iter().sum::<f32>().is_finite();
        assert!(finite, "feature {} is not finite on fragment {fragment}", self.number);
        let activations: Vec<f32> = values.iter().map(|value| value.max(0.0)).collect();
        self.moments.add(&activations);
        let max = activations.iter().copied().fold(0.0, f32::max);
        let lot = lot(seed, self.number as u64, fragment.into());
        if pool + 1 == self.pools.len() {
            self.sample.offer(lot, fragment, max);
        }
        if max > 0.0 {
            self.pools[pool].offer(max, lot, fragment, &activations);
        }
    }

    fn finish(self, config: &GatherConfig) -> FeatureExamples {
        let mut pools = self.pools.into_iter().map(Pool::finish);
        let (top, random) = pools.next().expect("a pool");
        let (explain, score_top, score_random) = match config.split {
            SplitRule::Documents { .. } => {
                let (score_top, score_random) = pools.next().expect("a pool to score on");
                (top.into_iter().chain(random).collect(), score_top, score_random)
            }
            SplitRule::Interleaved { per_split, .. } => {
                let every = |from: &[Example], first: usize, step: usize| -> Vec<Example> {
                    from.iter().skip(first).step_by(step).take(per_split).cloned().collect()
                };
                (every(&top, 0, 4), every(&top, 2, 4), every(&random, 1, 3))
            }
        };
        let (_, asked_top, asked_random) = config.asked();
        let limit = config.quiet_below * self.moments.max;
        // What counts as quiet is not shown as active as well.
        let score_random: Vec<Example> = if config.quiet > 0 {
            let loud = |example: &Example| example.activations.iter().any(|activation| *activation > limit);
            score_random.into_iter().filter(loud).collect()
        } else {
            score_random
        };
        let used = |fragment: u32| {
            let (explain, top, random) = (&explain, &score_top, &score_random);
            explain.iter().chain(top).chain(random).any(|example: &Example| example.fragment == fragment)
        };
        let quiet = self.sample.finish().filter(|quiet| quiet.max <= limit && !used(quiet.fragment));
        let quiet: Vec<Quiet> = quiet.take(config.quiet).collect();
        let enough =
            explain.len() >= config.explain_min && (score_top.len(), score_random.len()) == (asked_top, asked_random);
        FeatureExamples { feature: self.number, explain, score_top, score_random, quiet, moments: self.moments, enough }
    }
}
