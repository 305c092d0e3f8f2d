use serde::{Deserialize, Serialize};

use crate::error::report;
use crate::patching::{Job, mean_kl};
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureChange {
    /// The latent.
    pub feature: usize,
    /// `sum |c_target - c|` over prompts and patched positions.
    pub total: f64,
    /// Mean `|c_target - c|` over prompts at the position of IO, and of the third name.
    pub at_io: f64,
    /// At the first occurrence of S.
    pub at_s1: f64,
    /// At the second occurrence of S.
    pub at_s2: f64,
    /// At the last position.
    pub at_end: f64,
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
        let features = self.screened(max_candidates);
        let none = vec![false; self.candidates.len()];
        let before = self.outcomes_of(&none);
        let mut effects = Vec::with_capacity(features.len());
        for together in features.chunks(TOGETHER) {
            report(progress, effects.len(), features.len())?;
            let jobs_of = |feature: &usize| {
                let candidate = self.candidate(*feature).expect("what was screened is a candidate");
                self.affected[candidate].iter().map(move |&prompt| Job { prompt, toggled: Some(candidate) })
            };
            let jobs: Vec<Job> = together.iter().flat_map(jobs_of).collect();
            let mut measured = jobs.iter().zip(self.outcomes(&none, &jobs)).peekable();
            for feature in together {
                let toggled = self.candidate(*feature);
                let mut outcomes = before.clone();
                while let Some((job, outcome)) = measured.next_if(|(job, _)| job.toggled == toggled) {
                    outcomes[job.prompt] = outcome;
                }
                effects.push(SingleEffect { feature: *feature, kl_fall: mean_kl(&before) - mean_kl(&outcomes) });
            }
        }
        report(progress, features.len(), features.len())?;
        effects.sort_by(|a, b| b.kl_fall.total_cmp(&a.kl_fall).then(a.feature.cmp(&b.feature)));
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
        let mut of =
            FeatureChange { feature, total: 0.0, at_io: 0.0, at_s1: 0.0, at_s2: 0.0, at_end: 0.0, n_prompts: 0 };
        let Some(candidate) = self.candidate(feature) else { return of };
        let n = self.n_prompts() as f64;
        of.n_prompts = self.affected[candidate].len();
        for run in self.affected[candidate].iter().map(|&prompt| &self.runs[prompt]) {
            let size = |position: usize| {
                let row = &run.changes[position];
                let found = row.binary_search_by_key(&candidate, |(c, _)| *c as usize);
                found.map_or(0.0, |i| f64::from(row[i].1.abs()))
            };
            let p = &run.prompt;
            of.total += (0..run.changes.len()).map(size).sum::<f64>();
            of.at_io += size(p.io_position) / n;
            of.at_s1 += size(p.s1_position) / n;
            of.at_s2 += size(p.s2_position) / n;
            of.at_end += size(p.end()) / n;
        }
        of
    }
}
