use std::collections::HashMap;

use monosem_hooks::Past;

use crate::evaluation::Outcome;
use crate::patching::{CONTEXTS, Job, mean_kl};
use crate::{Evaluation, Patching};

/// A set of patched features that changes one at a time.
///
/// Only prompts on which the toggled feature's code differs are run again, from the first position where it does, and what was measured is
/// remembered until a change touches the prompt: asking twice costs nothing.
pub struct State<'p, 'a> {
    patching: &'p Patching<'a>,
    set: Vec<bool>,
    outcomes: Vec<Outcome>,
    /// Which patch each prompt has now: two patches of one number are the same.
    patches: Vec<u64>,
    /// The number of the patch that comes of another by toggling a candidate, where it has one.
    toggled: HashMap<(u64, usize), u64>,
    /// Numbers given so far.
    n_patches: u64,
    /// For each candidate, and each prompt it affects: what toggling it does, and to which patch.
    trials: Vec<Vec<Option<(u64, Outcome)>>>,
    /// What is kept of each prompt with the features patched; it holds before position `kept_to`.
    pasts: Vec<Past>,
    kept_to: Vec<usize>,
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
            patches: (0..self.n_prompts() as u64).collect(),
            toggled: HashMap::new(),
            n_patches: self.n_prompts() as u64,
            trials: self.affected.iter().map(|prompts| vec![None; prompts.len()]).collect(),
            pasts: self.runs.iter().map(|run| run.past.clone()).collect(),
            kept_to: self.first_changes(&set),
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
        self.measure(&[(candidate, false)]);
        let mut kl: Vec<f64> = self.outcomes.iter().map(|outcome| outcome.kl).collect();
        for (at, (_, outcome)) in self.patching.affected[candidate].iter().zip(self.trials[candidate].iter().flatten())
        {
            kl[at.prompt] = outcome.kl;
        }
        crate::evaluation::mean(kl.into_iter())
    }

    /// Patches the feature where it is not patched, and un-patches it where it is. A feature that is no candidate changes nothing.
    ///
    /// # Panics
    /// If the feature is not below the dictionary's number of latents.
    pub fn toggle(&mut self, feature: usize) {
        let Some(candidate) = self.patching.candidate(feature) else { return };
        self.measure(&[(candidate, false)]);
        for (i, at) in self.patching.affected[candidate].iter().enumerate() {
            let (_, outcome) = self.trials[candidate][i].expect("what toggling does was measured");
            self.outcomes[at.prompt] = outcome;
            self.patches[at.prompt] = self.number_of(self.patches[at.prompt], candidate);
            self.kept_to[at.prompt] = self.kept_to[at.prompt].min(at.first);
        }
        self.set[candidate] = !self.set[candidate];
    }

    /// Whether toggling the feature would cost nothing now.
    pub(crate) fn knows(&self, feature: usize) -> bool {
        let Some(candidate) = self.patching.candidate(feature) else { return true };
        let mut trials = self.patching.affected[candidate].iter().zip(&self.trials[candidate]);
        trials.all(|(at, trial)| trial.is_some_and(|(patch, _)| patch == self.patches[at.prompt]))
    }

    /// Measures ahead, in shared passes, what toggling these features one after the other does, if those are toggled that are expected to be. What
    /// turns out otherwise is measured again when it is asked for, so that expectations only cost or save time. Stops after about
    /// one pass.
    pub(crate) fn look_ahead(&mut self, visits: impl Iterator<Item = (usize, bool)>) {
        let mut path = Vec::new();
        let mut n = 0;
        for (feature, expected) in visits {
            let Some(candidate) = self.patching.candidate(feature) else { continue };
            n += self.patching.affected[candidate].len();
            if n > CONTEXTS && !path.is_empty() {
                break;
            }
            path.push((candidate, expected));
        }
        self.measure(&path);
    }

    /// The number of the patch that comes of `patch` by toggling a candidate.
    fn number_of(&mut self, patch: u64, candidate: usize) -> u64 {
        let n_patches = &mut self.n_patches;
        *self.toggled.entry((patch, candidate)).or_insert_with(|| {
            *n_patches += 1;
            *n_patches - 1
        })
    }

    /// Brings trials up to date along a path of candidates, each of which is then toggled or not.
    fn measure(&mut self, path: &[(usize, bool)]) {
        /// What led to patches of long ago is forgotten now and then: a patch that comes again is then measured again.
        const REMEMBERED: usize = 1 << 17;
        if self.toggled.len() > REMEMBERED {
            self.toggled.clear();
        }
        struct Trial {
            candidate: usize,
            place: usize,
            patch: u64,
            toggled: Vec<usize>,
            first: usize,
        }
        let patching = self.patching;
        // Where the path has led each prompt: its patch, the candidates toggled, and the first position they change.
        let mut ahead: HashMap<usize, (u64, Vec<usize>, usize)> = HashMap::new();
        let mut trials = Vec::new();
        for &(candidate, expected) in path {
            for (place, at) in patching.affected[candidate].iter().enumerate() {
                let here = (self.patches[at.prompt], Vec::new(), usize::MAX);
                let (patch, toggled, first) = ahead.get(&at.prompt).cloned().unwrap_or(here);
                let first = first.min(at.first);
                let toggled = [&toggled[..], &[candidate]].concat();
                if expected {
                    let next = self.number_of(patch, candidate);
                    ahead.insert(at.prompt, (next, toggled.clone(), first));
                }
                if self.trials[candidate][place].is_none_or(|(known, _)| known != patch) {
                    trials.push(Trial { candidate, place, patch, toggled, first });
                }
            }
        }
        if trials.is_empty() {
            return;
        }
        let prompt = |trial: &Trial| patching.affected[trial.candidate][trial.place].prompt;
        self.keep_pasts(trials.iter().map(|trial| (prompt(trial), trial.first)));
        let job = |trial: &Trial| Job {
            prompt: prompt(trial),
            toggled: trial.toggled.clone(),
            past: &self.pasts[prompt(trial)],
            first: trial.first.min(self.kept_to[prompt(trial)]),
        };
        let jobs: Vec<Job<'_>> = trials.iter().map(job).collect();
        let outcomes = patching.outcomes(&self.set, &jobs, false);
        self.n_runs += jobs.len();
        for (trial, (outcome, _)) in trials.iter().zip(outcomes) {
            self.trials[trial.candidate][trial.place] = Some((trial.patch, outcome));
        }
    }

    /// Brings what is kept of prompts up to date where two or more of the runs to come, each from a position of its prompt on, gain by that.
    fn keep_pasts(&mut self, runs: impl Iterator<Item = (usize, usize)>) {
        let mut gaining: HashMap<usize, usize> = HashMap::new();
        for (prompt, _) in runs.filter(|(prompt, first)| *first > self.kept_to[*prompt]) {
            *gaining.entry(prompt).or_default() += 1;
        }
        let mut stale: Vec<usize> = gaining.into_iter().filter(|(_, n)| *n > 1).map(|(prompt, _)| prompt).collect();
        stale.sort_unstable();
        let job = |&prompt: &usize| Job {
            prompt,
            toggled: Vec::new(),
            past: &self.pasts[prompt],
            first: self.kept_to[prompt],
        };
        let jobs: Vec<Job<'_>> = stale.iter().map(job).collect();
        let kept = self.patching.outcomes(&self.set, &jobs, true);
        self.n_runs += stale.len();
        for (prompt, (_, past)) in stale.into_iter().zip(kept) {
            let newer = past.expect("a pass keeps what it is told to");
            self.pasts[prompt].replace_from(self.kept_to[prompt], &newer);
            self.kept_to[prompt] = self.patching.runs[prompt].x.nrows();
        }
    }
}
