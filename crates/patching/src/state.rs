use crate::evaluation::Outcome;
use crate::patching::{Job, mean_kl};
use crate::{Evaluation, Patching};

/// A set of patched features that changes one at a time.
///
/// Only prompts on which the toggled feature's code differs are run again, and what was measured is remembered until a change touches the
/// prompt: asking twice costs nothing.
pub struct State<'p, 'a> {
    patching: &'p Patching<'a>,
    set: Vec<bool>,
    outcomes: Vec<Outcome>,
    /// How often each prompt's patch has changed.
    versions: Vec<u32>,
    /// For each candidate, and each prompt it affects: what toggling it does, and the version that this is about.
    trials: Vec<Vec<Option<(u32, Outcome)>>>,
    n_runs: usize,
}

impl<'a> Patching<'a> {
    /// The state with these features patched.
    ///
    /// # Panics
    /// If a feature is not below the dictionary's number of latents.
    #[must_use]
    pub fn state<'p>(&'p self, features: &[usize]) -> State<'p, 'a> {
        let set = self.set_of(features);
        State {
            outcomes: self.outcomes_of(&set),
            versions: vec![0; self.n_prompts()],
            trials: self.affected.iter().map(|prompts| vec![None; prompts.len()]).collect(),
            n_runs: 0,
            patching: self,
            set,
        }
    }
}

impl State<'_, '_> {
    /// The patched candidates, ascending.
    #[must_use]
    pub fn features(&self) -> Vec<usize> {
        let candidates = self.patching.candidates.iter();
        candidates.zip(&self.set).filter_map(|(&latent, &patched)| patched.then_some(latent)).collect()
    }

    /// Mean KL over prompts.
    #[must_use]
    pub fn kl(&self) -> f64 {
        mean_kl(&self.outcomes)
    }

    /// What this set does, as [`Patching::evaluate`] of [`Self::features`] up to the last bits of `f32` logits.
    #[must_use]
    pub fn evaluation(&self) -> Evaluation {
        Evaluation::new(self.set.iter().filter(|patched| **patched).count(), &self.outcomes)
    }

    /// Prompts that were run so far: the cost.
    #[must_use]
    pub fn n_runs(&self) -> usize {
        self.n_runs
    }

    /// Mean KL if the feature were patched where it is not, or not where it is. The state stays as it is.
    ///
    /// # Panics
    /// If the feature is not below the dictionary's number of latents.
    pub fn kl_toggled(&mut self, feature: usize) -> f64 {
        let Some(candidate) = self.patching.candidate(feature) else { return self.kl() };
        self.try_toggle(candidate);
        let mut kl: Vec<f64> = self.outcomes.iter().map(|outcome| outcome.kl).collect();
        for (&prompt, (_, outcome)) in
            self.patching.affected[candidate].iter().zip(self.trials[candidate].iter().flatten())
        {
            kl[prompt] = outcome.kl;
        }
        crate::evaluation::mean(kl.into_iter())
    }

    /// Patches the feature where it is not patched, and un-patches it where it is. A feature that is no candidate changes nothing.
    ///
    /// # Panics
    /// If the feature is not below the dictionary's number of latents.
    pub fn toggle(&mut self, feature: usize) {
        let Some(candidate) = self.patching.candidate(feature) else { return };
        self.try_toggle(candidate);
        for (&prompt, (_, outcome)) in
            self.patching.affected[candidate].iter().zip(self.trials[candidate].iter().flatten())
        {
            self.outcomes[prompt] = *outcome;
            self.versions[prompt] += 1;
        }
        self.set[candidate] = !self.set[candidate];
    }

    /// Brings the candidate's trials up to date.
    fn try_toggle(&mut self, candidate: usize) {
        let prompts = &self.patching.affected[candidate];
        let trials = &mut self.trials[candidate];
        let stale: Vec<usize> = (0..prompts.len())
            .filter(|&i| trials[i].is_none_or(|(version, _)| version != self.versions[prompts[i]]))
            .collect();
        let jobs: Vec<Job> = stale.iter().map(|&i| Job { prompt: prompts[i], toggled: Some(candidate) }).collect();
        for (&i, outcome) in stale.iter().zip(self.patching.outcomes(&self.set, &jobs)) {
            trials[i] = Some((self.versions[prompts[i]], outcome));
        }
        self.n_runs += jobs.len();
    }
}
