use monosem_dictionary::Dictionary;
use monosem_hooks::{HookPoint, HookedModel};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::directions::directions;
use crate::evaluation::{Outcome, mean};
use crate::pass::{Continuation, batches, check_hook, check_tokens};
use crate::run::{Run, run_both};
use crate::{Evaluation, IoiPrompt, PatchingError};

/// What is patched, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchingConfig {
    /// Where the dictionary reads and features are patched.
    pub hook: HookPoint,
    /// Positions that are never patched. Position 0 is an attention sink in most models.
    pub drop_positions: Vec<usize>,
    /// Whether the difference of the dictionary's errors `(x_target - x̂_target) - (x - x̂)` is added as well, whatever the set. With it all
    /// features together give `x_target` exactly, and what is left out of a set is all that is missing.
    pub with_error_term: bool,
}

/// Prompts and their counterfactuals, run once, ready for any set of features to be patched.
///
/// Patching the set F at every position that is not dropped gives `x' = x + sum_{j in F} (c_target_j - c_j) f_j`, with codes `c` of the prompt
/// and of its counterfactual and the decoder's rows `f` (arXiv 2309.08600, section 4). How close that comes to the
/// counterfactual is `KL(patched || target)` of the next-token distributions after the last position.
///
/// Features whose codes are the same in both runs do nothing; the others are the [candidates](Self::candidates). A prompt on which no patched
/// feature's code differs is not run again. Both are exact. A prompt's numbers do not depend on the number of threads; the batch it is in may
/// change the last bits of its `f32` logits.
pub struct Patching<'a> {
    pub(crate) continuation: Continuation<'a>,
    pub(crate) with_error_term: bool,
    pub(crate) runs: Vec<Run>,
    pub(crate) n_latents: usize,
    /// Latents that differ somewhere, ascending.
    pub(crate) candidates: Vec<usize>,
    /// Their decoder rows `[candidate, d_in]`.
    pub(crate) directions: Array2<f32>,
    /// For each candidate the prompts on which it differs, ascending.
    pub(crate) affected: Vec<Vec<usize>>,
}

/// A prompt to be run with a set of candidates patched.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) prompt: usize,
    /// A candidate that is in where the set has it not, and out where it has.
    pub(crate) toggled: Option<usize>,
}

impl<'a> Patching<'a> {
    /// Runs the prompts and their counterfactuals and encodes both.
    ///
    /// # Errors
    /// If there is no prompt, the model has no such hook point, the dictionary reads another width, or a prompt does not fit in the
    /// model's context or vocabulary.
    pub fn new(
        model: &'a dyn HookedModel,
        dictionary: &dyn Dictionary,
        prompts: &[IoiPrompt],
        config: &PatchingConfig,
    ) -> Result<Self, PatchingError> {
        check_hook(model, config.hook, dictionary.d_in())?;
        if prompts.is_empty() {
            return Err(PatchingError::NoPrompts);
        }
        prompts.iter().try_for_each(|p| check_tokens(model, &p.tokens).and(check_tokens(model, &p.target_tokens)))?;
        let continuation = Continuation { model, hook: config.hook };
        let lengths: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
        let mut runs: Vec<Option<Run>> = (0..prompts.len()).map(|_| None).collect();
        for batch in batches(&lengths) {
            let of_batch: Vec<&IoiPrompt> = batch.iter().map(|&i| &prompts[i]).collect();
            let ran = run_both(&continuation, dictionary, &of_batch, config);
            batch.iter().zip(ran).for_each(|(&i, run)| runs[i] = Some(run));
        }
        let mut runs: Vec<Run> = runs.into_iter().flatten().collect();
        let n_latents = dictionary.n_latents();
        let candidates = number_candidates(&mut runs, n_latents);
        let directions = directions(dictionary, &candidates);
        let affected = affected(&runs, candidates.len());
        let with_error_term = config.with_error_term;
        Ok(Self { continuation, with_error_term, runs, n_latents, candidates, directions, affected })
    }

    /// Features whose codes differ between a prompt and its counterfactual somewhere, ascending. No other feature does anything.
    #[must_use]
    pub fn candidates(&self) -> &[usize] {
        &self.candidates
    }

    /// Number of prompts.
    #[must_use]
    pub fn n_prompts(&self) -> usize {
        self.runs.len()
    }

    /// The prompts as they are: no feature patched, no error term.
    #[must_use]
    pub fn unpatched(&self) -> Evaluation {
        Evaluation::new(0, &self.runs.iter().map(|run| run.unpatched).collect::<Vec<_>>())
    }

    /// Patches the features of a set, in any order. Features that are no candidates count in the set's size and change nothing.
    ///
    /// # Panics
    /// If a feature is not below the dictionary's number of latents.
    #[must_use]
    pub fn evaluate(&self, features: &[usize]) -> Evaluation {
        let mut distinct = features.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        Evaluation::new(distinct.len(), &self.outcomes_of(&self.set_of(&distinct)))
    }

    /// A candidate's place among them.
    ///
    /// # Panics
    /// If the feature is not below the dictionary's number of latents.
    pub(crate) fn candidate(&self, feature: usize) -> Option<usize> {
        assert!(feature < self.n_latents, "feature {feature} in a dictionary of {} latents", self.n_latents);
        self.candidates.binary_search(&feature).ok()
    }

    /// For each candidate whether it is among the features.
    pub(crate) fn set_of(&self, features: &[usize]) -> Vec<bool> {
        let mut set = vec![false; self.candidates.len()];
        for candidate in features.iter().filter_map(|&feature| self.candidate(feature)) {
            set[candidate] = true;
        }
        set
    }

    /// What patching a set of candidates does to every prompt.
    pub(crate) fn outcomes_of(&self, set: &[bool]) -> Vec<Outcome> {
        let mut outcomes: Vec<Outcome> = self.runs.iter().map(|run| run.unpatched).collect();
        let mut changed = vec![self.with_error_term; self.runs.len()];
        for prompts in self.affected.iter().zip(set).filter_map(|(prompts, patched)| patched.then_some(prompts)) {
            prompts.iter().for_each(|&prompt| changed[prompt] = true);
        }
        let jobs: Vec<Job> =
            (0..changed.len()).filter(|&prompt| changed[prompt]).map(|prompt| Job { prompt, toggled: None }).collect();
        for (job, outcome) in jobs.iter().zip(self.outcomes(set, &jobs)) {
            outcomes[job.prompt] = outcome;
        }
        outcomes
    }

    /// Runs the jobs in batches.
    pub(crate) fn outcomes(&self, set: &[bool], jobs: &[Job]) -> Vec<Outcome> {
        let lengths: Vec<usize> = jobs.iter().map(|job| self.runs[job.prompt].x.nrows()).collect();
        let mut outcomes = vec![Outcome::default(); jobs.len()];
        for batch in batches(&lengths) {
            let runs: Vec<&Run> = batch.iter().map(|&i| &self.runs[jobs[i].prompt]).collect();
            let patched: Vec<Array2<f32>> = batch
                .par_iter()
                .map(|&i| self.patch(&self.runs[jobs[i].prompt], &|c| set[c] != (jobs[i].toggled == Some(c))))
                .collect();
            let entering: Vec<ArrayView2<'_, f32>> =
                runs.iter().filter_map(|r| Some(r.entering.as_ref()?.view())).collect();
            let x: Vec<ArrayView2<'_, f32>> = patched.iter().map(|x| x.view()).collect();
            let logits = self.continuation.last_logits(&entering, &x);
            let measured: Vec<Outcome> =
                (0..batch.len()).into_par_iter().map(|i| runs[i].measure(x[i], logits.row(i))).collect();
            batch.iter().zip(measured).for_each(|(&i, outcome)| outcomes[i] = outcome);
        }
        outcomes
    }

    /// The activations of a prompt with a set of candidates patched. The sum is in the order of the latents, whatever the order in which
    /// they came into the set.
    fn patch(&self, run: &Run, contains: &(dyn Fn(usize) -> bool + Sync)) -> Array2<f32> {
        // With the error term all candidates are patched in `x_target`, and those that are not in the set are taken out again.
        let error = self.with_error_term;
        let mut patched = if error { run.x_target.clone() } else { run.x.clone() };
        for (mut row, changes) in patched.axis_iter_mut(Axis(0)).zip(&run.changes) {
            let mut sum = Array1::<f32>::zeros(row.len());
            let mut any = false;
            for &(candidate, change) in changes.iter().filter(|(c, _)| contains(*c as usize) != error) {
                sum.scaled_add(change, &self.directions.row(candidate as usize));
                any = true;
            }
            match (any, error) {
                (true, false) => row += &sum,
                (true, true) => row -= &sum,
                (false, _) => {}
            }
        }
        patched
    }
}

/// The latents that differ anywhere; in the runs each is replaced by its place among them.
fn number_candidates(runs: &mut [Run], n_latents: usize) -> Vec<usize> {
    let mut place: Vec<Option<u32>> = vec![None; n_latents];
    for (latent, _) in runs.iter().flat_map(|run| run.changes.iter().flatten()) {
        place[*latent as usize] = Some(0);
    }
    let candidates: Vec<usize> = (0..n_latents).filter(|&latent| place[latent].is_some()).collect();
    for (number, &latent) in (0u32..).zip(&candidates) {
        place[latent] = Some(number);
    }
    for (latent, _) in runs.iter_mut().flat_map(|run| run.changes.iter_mut().flatten()) {
        *latent = place[*latent as usize].expect("every latent that differs was numbered");
    }
    candidates
}

fn affected(runs: &[Run], n_candidates: usize) -> Vec<Vec<usize>> {
    let mut affected: Vec<Vec<usize>> = vec![Vec::new(); n_candidates];
    for (prompt, run) in runs.iter().enumerate() {
        for (candidate, _) in run.changes.iter().flatten() {
            let prompts = &mut affected[*candidate as usize];
            if prompts.last() != Some(&prompt) {
                prompts.push(prompt);
            }
        }
    }
    affected
}

/// Mean over prompts of the KL.
pub(crate) fn mean_kl(outcomes: &[Outcome]) -> f64 {
    mean(outcomes.iter().map(|outcome| outcome.kl))
}
