use serde::{Deserialize, Serialize};

use crate::error::report;
use crate::patching::{Affected, Job, mean_kl};
use crate::{Evaluation, Patching, PatchingError, Progress};

/// Features tried together, so that their prompts share passes.
const TOGETHER: usize = 16;

/// A feature and what patching it alone does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SingleEffect {
    /// The latent.
    pub feature: usize,
    /// By how much the mean KL falls, in nats; below zero where it rises.
    pub kl_fall: f64,
}

/// How a feature's codes differ between the prompts and their counterfactuals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureChange {
    /// The latent.
    pub feature: usize,
    /// `sum |c_target - c|` over prompts and patched positions.
    pub total: f64,
    /// Mean `|c_target - c|` over prompts at each named position, in the order of the first prompt's.
    pub at: Vec<(String, f64)>,
    /// Prompts on which it differs anywhere.
    pub n_prompts: usize,
}

impl Patching<'_> {
    /// Patches each candidate alone, the strongest first; among equal ones the lower latent. With `max_candidates` only those with the largest
    /// `sum |c_target - c| * ||f||`.
    ///
    /// # Errors
    /// If `progress` (features done, features) ended the work.
    pub fn rank_by_single_effect(
        &self,
        max_candidates: Option<usize>,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<SingleEffect>, PatchingError> {
        let mut effects = self.single_effects(&self.screened(max_candidates), progress)?;
        effects.sort_by(|a, b| b.kl_fall.total_cmp(&a.kl_fall).then(a.feature.cmp(&b.feature)));
        Ok(effects)
    }

    /// Patches each feature alone, in the order given.
    ///
    /// # Errors
    /// If `progress` (features done, features) ended the work.
    ///
    /// # Panics
    /// If a feature is not below the dictionary's number of latents.
    pub fn single_effects(
        &self,
        features: &[usize],
        progress: &mut Progress<'_>,
    ) -> Result<Vec<SingleEffect>, PatchingError> {
        let none = vec![false; self.candidates.len()];
        let before = self.outcomes_of(&none);
        let base = self.first_changes(&none);
        let mut effects = Vec::with_capacity(features.len());
        for together in features.chunks(TOGETHER) {
            report(progress, effects.len(), features.len())?;
            let affected = |feature: &usize| self.candidate(*feature).map_or(&[][..], |c| &self.affected[c]);
            let jobs_of = |feature: &usize| {
                let candidate = self.candidate(*feature).unwrap_or(usize::MAX);
                affected(feature).iter().map(move |at| (candidate, *at))
            };
            let job = |(candidate, at): (usize, Affected)| Job {
                prompt: at.prompt,
                toggled: vec![candidate],
                past: &self.runs[at.prompt].past,
                first: at.first.min(base[at.prompt]),
            };
            let jobs: Vec<Job<'_>> = together.iter().flat_map(jobs_of).map(job).collect();
            let mut measured = self.outcomes(&none, &jobs, false).into_iter();
            for feature in together {
                let mut outcomes = before.clone();
                for (at, (outcome, _)) in affected(feature).iter().zip(&mut measured) {
                    outcomes[at.prompt] = outcome;
                }
                effects.push(SingleEffect { feature: *feature, kl_fall: mean_kl(&before) - mean_kl(&outcomes) });
            }
        }
        report(progress, features.len(), features.len())?;
        Ok(effects)
    }

    /// Patches the first k features of an order together, for each k.
    ///
    /// # Panics
    /// If a k is larger than the order is long, or a feature is not below the dictionary's number of latents.
    #[must_use]
    pub fn nested(&self, order: &[usize], ks: &[usize]) -> Vec<Evaluation> {
        let first = |&k: &usize| {
            assert!(k <= order.len(), "the first {k} of {} features", order.len());
            self.evaluate(&order[..k])
        };
        ks.iter().map(first).collect()
    }

    /// How the features' codes differ, in the order given.
    ///
    /// # Panics
    /// If a feature is not below the dictionary's number of latents.
    #[must_use]
    pub fn feature_changes(&self, features: &[usize]) -> Vec<FeatureChange> {
        features.iter().map(|&feature| self.feature_change(feature)).collect()
    }

    fn feature_change(&self, feature: usize) -> FeatureChange {
        let mut names: Vec<&str> = Vec::new();
        for mark in self.runs.iter().flat_map(|run| &run.prompt.marks) {
            if !names.contains(&mark.name.as_str()) {
                names.push(&mark.name);
            }
        }
        let at = names.into_iter().map(|name| (name.to_owned(), 0.0)).collect();
        let mut of = FeatureChange { feature, total: 0.0, at, n_prompts: 0 };
        let Some(candidate) = self.candidate(feature) else { return of };
        let n = self.n_prompts() as f64;
        of.n_prompts = self.affected[candidate].len();
        for run in self.affected[candidate].iter().map(|at| &self.runs[at.prompt]) {
            let size = |position: usize| {
                let row = &run.changes[position];
                let found = row.binary_search_by_key(&candidate, |(c, _)| *c as usize);
                found.map_or(0.0, |i| f64::from(row[i].1.abs()))
            };
            of.total += (0..run.changes.len()).map(size).sum::<f64>();
            for (name, mean) in &mut of.at {
                *mean += run.prompt.position(name).map_or(0.0, size) / n;
            }
        }
        of
    }
}
