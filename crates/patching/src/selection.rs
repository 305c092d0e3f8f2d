use std::collections::HashMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::report;
use crate::{Evaluation, Patching, PatchingError, Progress};

/// How features are un-patched, from all to few.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectionConfig {
    /// Rises of the mean KL in nats, ascending. The paper has 50, from 1e-5 to 1 in equal ratios: [`Self::log_spaced`].
    pub thresholds: Vec<f64>,
    /// Seed of the order in which features are visited, drawn anew for each threshold.
    pub seed: u64,
    /// Where to start from: all candidates by default, as in the paper.
    #[serde(default)]
    pub start: Start,
}

/// The candidates that are patched when un-patching begins. Not in the paper; it bounds the time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// All of them.
    #[default]
    All,
    /// So many, those with the largest `sum |c_target - c| * ||f||` over prompts and positions.
    LargestChanges(usize),
    /// The first so many of an order of features, the most important first: [`Patching::attribute`] gives one at the cost of a pass.
    First(usize, Vec<usize>),
}

impl SelectionConfig {
    /// `n` thresholds from 1e-5 to 1 in equal ratios; the paper has 50 (arXiv 2309.08600).
    #[must_use]
    pub fn log_spaced(n: usize) -> Vec<f64> {
        let steps = n.saturating_sub(1).max(1) as f64;
        (0..n).map(|i| 10f64.powf(-5.0 + 5.0 * i as f64 / steps)).collect()
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// If there is no threshold, or they are not finite and ascending.
    pub fn validate(&self) -> Result<(), PatchingError> {
        let setting = "thresholds";
        if self.thresholds.is_empty() {
            return Err(PatchingError::Setting { setting, problem: "the list is empty, expected one or more".into() });
        }
        if !self.thresholds.iter().all(|t| t.is_finite()) || !self.thresholds.is_sorted() {
            let problem = format!("expected finite numbers in ascending order, not {:?}", self.thresholds);
            return Err(PatchingError::Setting { setting, problem });
        }
        Ok(())
    }
}

/// A set of features that a selection went through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// The features, ascending.
    pub features: Vec<usize>,
    /// What patching them does to the prompts they were chosen on.
    pub evaluation: Evaluation,
}

/// The sets that un-patching went through, each within the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// All candidates.
    pub full: Accepted,
    /// Candidates that screening left un-patched from the start; 0 without it.
    pub screened_out: usize,
    /// With screening, the sets between [`Self::full`] and [`Self::start`]: twice as many candidates as the start, four times as many and so on, by
    /// the same order; the largest first.
    pub wider: Vec<Accepted>,
    /// The set from which un-patching started: [`Self::full`] without screening.
    pub start: Accepted,
    /// For each threshold, the set that is left after it.
    pub steps: Vec<(f64, Accepted)>,
    /// The prompts as they are.
    pub empty: Evaluation,
    /// Prompts that were run to decide: the cost.
    pub n_runs: usize,
}

impl Selection {
    /// The sets, from the largest to the smallest, each once; the empty one is the last.
    #[must_use]
    pub fn sets(&self) -> Vec<&[usize]> {
        let first = std::iter::once(&self.full).chain(&self.wider).chain([&self.start]);
        let all = first.chain(self.steps.iter().map(|(_, accepted)| accepted));
        let mut sets: Vec<&[usize]> = all.map(|accepted| accepted.features.as_slice()).chain([&[][..]]).collect();
        sets.dedup();
        sets
    }
}

impl Patching<'_> {
    /// Un-patches features as the paper does: all are patched at first; for each threshold, ascending, those that are left are visited in
    /// random order, and one is un-patched if the mean KL rises by less than the threshold.
    ///
    /// The decisions depend on one another, so they are made one after the other; but the runs for a few of them share a pass, on the guess
    /// that each will be as the last rise seen of the feature says, and are made again where the guess was wrong. What is recorded is evaluated
    /// afresh. A visit costs nothing where no set changed on the feature's prompts since the visit before; sparse codes and few thresholds
    /// are therefore cheap, while with a dense basis nearly every visit runs every prompt.
    ///
    /// # Errors
    /// If the settings are out of range, patching every feature overflows, or `progress` (visits done, visits at most) ended the work.
    pub fn select(&self, config: &SelectionConfig, progress: &mut Progress<'_>) -> Result<Selection, PatchingError> {
        config.validate()?;
        let accepted = |features: Vec<usize>| {
            let evaluation = self.evaluate(&features);
            Accepted { features, evaluation }
        };
        let full = accepted(self.candidates.clone());
        if !full.evaluation.mean_kl().is_finite() {
            return Err(PatchingError::NotFinite { what: "patching every feature" });
        }
        let kept = self.started(&config.start, None);
        let screened_out = full.features.len() - kept.len();
        let doublings = std::iter::successors(Some(kept.len().max(1)), |n| n.checked_mul(2));
        let sizes: Vec<usize> = doublings.skip(1).take_while(|n| *n < full.features.len()).collect();
        let wider = sizes.into_iter().rev().map(|n| accepted(self.started(&config.start, Some(n)))).collect();
        let start = if screened_out == 0 { full.clone() } else { accepted(kept) };
        let mut state = self.state(&start.features);
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let n_start = start.features.len();
        let total = n_start * config.thresholds.len();
        let mut steps: Vec<(f64, Accepted)> = Vec::with_capacity(config.thresholds.len());
        // Most features can be un-patched, so one that was never tried is expected to be.
        let mut rises: HashMap<usize, f64> = HashMap::new();
        for (i, &threshold) in config.thresholds.iter().enumerate() {
            let mut order = state.features();
            let before = order.len();
            order.shuffle(&mut rng);
            for (visited, &feature) in order.iter().enumerate() {
                report(progress, i * n_start + visited, total)?;
                if !state.knows(feature) {
                    let expected = |f: &usize| (*f, rises.get(f).is_none_or(|rise| *rise < threshold));
                    state.look_ahead(order[visited..].iter().map(expected));
                }
                let rise = state.kl_toggled(feature) - state.kl();
                rises.insert(feature, rise);
                if rise < threshold {
                    state.toggle(feature);
                }
            }
            let features = state.features();
            let last = steps.last().map_or(&start, |(_, accepted)| accepted);
            let now = if features.len() == before { last.clone() } else { accepted(features) };
            steps.push((threshold, now));
        }
        report(progress, total, total)?;
        Ok(Selection { full, screened_out, wider, start, steps, empty: self.unpatched(), n_runs: state.n_runs() })
    }

    /// The candidates to start with, ascending; with `n`, so many of the same order. What the order of [`Start::First`] does not name comes last.
    fn started(&self, start: &Start, n: Option<usize>) -> Vec<usize> {
        match start {
            Start::All => self.candidates.clone(),
            Start::LargestChanges(most) => self.screened(Some(n.unwrap_or(*most))),
            Start::First(most, order) => {
                let named = order.iter().copied().filter(|feature| self.candidates.binary_search(feature).is_ok());
                let rest = self.candidates.iter().copied().filter(|feature| !order.contains(feature));
                let mut kept: Vec<usize> = named.chain(rest).take(n.unwrap_or(*most)).collect();
                kept.sort_unstable();
                kept.dedup();
                kept
            }
        }
    }

    /// The candidates with the largest `sum |c_target - c| * ||f||`, ascending by latent; among equal ones the lower latent wins.
    pub(crate) fn screened(&self, most: Option<usize>) -> Vec<usize> {
        let Some(most) = most.filter(|most| *most < self.candidates.len()) else { return self.candidates.clone() };
        let mut sizes = vec![0.0_f64; self.candidates.len()];
        for (candidate, change) in self.runs.iter().flat_map(|run| run.changes.iter().flatten()) {
            sizes[*candidate as usize] += f64::from(change.abs());
        }
        for (size, direction) in sizes.iter_mut().zip(self.directions.rows()) {
            *size *= f64::from(direction.dot(&direction)).sqrt();
        }
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by(|&a, &b| sizes[b].total_cmp(&sizes[a]));
        let mut kept: Vec<usize> = order[..most].iter().map(|&candidate| self.candidates[candidate]).collect();
        kept.sort_unstable();
        kept
    }
}
