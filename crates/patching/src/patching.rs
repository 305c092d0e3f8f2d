use monosem_dictionary::Dictionary;
use monosem_hooks::{HookPoint, HookedModel, Past};
use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::directions::directions;
use crate::evaluation::{Outcome, mean};
use crate::pass::{Context, Continuation, batches, check_hook};
use crate::prompt::check_prompt;
use crate::run::{Run, run_both};
use crate::{Evaluation, PatchingError, Prompt};

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
/// feature's code differs is not run again; one that is run again is run from the first position that changes, since what is kept of
/// those before still holds. All of this is exact. A prompt's numbers do not depend on the number of threads; the batch it is in may change the
/// last bits of its `f32` logits.
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
    pub(crate) affected: Vec<Vec<Affected>>,
}

/// A prompt on which a candidate's code differs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affected {
    pub(crate) prompt: usize,
    /// The first position where it does.
    pub(crate) first: usize,
}

/// A prompt to be run with a set of candidates patched.
pub(crate) struct Job<'a> {
    pub(crate) prompt: usize,
    /// Candidates that are in where the set has them not, and out where it has.
    pub(crate) toggled: Vec<usize>,
    /// What was kept of the positions before `first`.
    pub(crate) past: &'a Past,
    /// The first position that is run.
    pub(crate) first: usize,
}

/// Rows in one pass, about: enough for the products to reach their rate.
const ROWS: usize = 512;

/// Contexts in one pass: each has logits as wide as the vocabulary.
pub(crate) const CONTEXTS: usize = 64;

impl<'a> Patching<'a> {
    /// Runs the prompts and their counterfactuals and encodes both.
    ///
    /// # Errors
    /// If there is no prompt, the model has no such hook point, the dictionary reads another width, or a prompt does not fit in the
    /// model's context or vocabulary.
    pub fn new(
        model: &'a dyn HookedModel,
        dictionary: &dyn Dictionary,
        prompts: &[Prompt],
        config: &PatchingConfig,
    ) -> Result<Self, PatchingError> {
        check_hook(model, config.hook, dictionary.d_in())?;
        if prompts.is_empty() {
            return Err(PatchingError::NoPrompts);
        }
        prompts.iter().try_for_each(|prompt| check_prompt(model, prompt))?;
        let continuation = Continuation { model, hook: config.hook };
        let lengths: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
        let mut runs: Vec<Option<Run>> = (0..prompts.len()).map(|_| None).collect();
        for batch in batches(&lengths) {
            let of_batch: Vec<&Prompt> = batch.iter().map(|&i| &prompts[i]).collect();
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
        let firsts = self.first_changes(set);
        let changed = (0..outcomes.len()).filter(|&prompt| firsts[prompt] < self.runs[prompt].x.nrows());
        let job = |prompt| Job { prompt, toggled: Vec::new(), past: &self.runs[prompt].past, first: firsts[prompt] };
        let jobs: Vec<Job<'_>> = changed.map(job).collect();
        for (job, (outcome, _)) in jobs.iter().zip(self.outcomes(set, &jobs, false)) {
            outcomes[job.prompt] = outcome;
        }
        outcomes
    }

    /// For each prompt the first position that patching the set changes; its length where it changes nothing.
    pub(crate) fn first_changes(&self, set: &[bool]) -> Vec<usize> {
        let unless_error = |run: &Run| if self.with_error_term { run.first_difference() } else { run.x.nrows() };
        let mut firsts: Vec<usize> = self.runs.iter().map(unless_error).collect();
        for at in self.affected.iter().zip(set).filter(|(_, patched)| **patched).flat_map(|(affected, _)| affected) {
            firsts[at.prompt] = firsts[at.prompt].min(at.first);
        }
        firsts
    }

    /// Runs the jobs in batches; with `keep`, what later jobs need of the positions that were run.
    pub(crate) fn outcomes(&self, set: &[bool], jobs: &[Job<'_>], keep: bool) -> Vec<(Outcome, Option<Past>)> {
        let mut outcomes = Vec::with_capacity(jobs.len());
        let mut rest = jobs;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(self.batch(rest));
            rest = after;
            let contains = |job: &Job<'_>, c: usize| set[c] != job.toggled.contains(&c);
            let patched: Vec<Array2<f32>> =
                batch.par_iter().map(|job| self.patch(&self.runs[job.prompt], &|c| contains(job, c))).collect();
            let jobs = batch.iter().zip(&patched);
            let contexts: Vec<Context<'_>> = jobs
                .map(|(job, x)| {
                    let entering = self.runs[job.prompt].entering.as_ref();
                    Context { entering, x, first: job.first, past: Some(job.past) }
                })
                .collect();
            let resumption = self.continuation.resume(&contexts, keep);
            let measure = |i: usize| self.runs[batch[i].prompt].measure(patched[i].view(), resumption.logits.row(i));
            let measured: Vec<Outcome> = (0..batch.len()).into_par_iter().map(measure).collect();
            let mut pasts = resumption.pasts.into_iter();
            outcomes.extend(measured.into_iter().map(|outcome| (outcome, pasts.next())));
        }
        outcomes
    }

    /// How many of the jobs to run in one pass.
    fn batch(&self, jobs: &[Job<'_>]) -> usize {
        let mut rows = 0;
        let fits = |job: &&Job<'_>| {
            rows += self.runs[job.prompt].x.nrows() - job.first;
            rows <= ROWS
        };
        jobs.iter().take(CONTEXTS).take_while(fits).count().max(1)
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

fn affected(runs: &[Run], n_candidates: usize) -> Vec<Vec<Affected>> {
    let mut affected: Vec<Vec<Affected>> = vec![Vec::new(); n_candidates];
    for (prompt, run) in runs.iter().enumerate() {
        for (first, changes) in run.changes.iter().enumerate() {
            for (candidate, _) in changes {
                let of_candidate = &mut affected[*candidate as usize];
                if of_candidate.last().is_none_or(|last| last.prompt != prompt) {
                    of_candidate.push(Affected { prompt, first });
                }
            }
        }
    }
    affected
}

/// Mean over prompts of the KL.
pub(crate) fn mean_kl(outcomes: &[Outcome]) -> f64 {
    mean(outcomes.iter().map(|outcome| outcome.kl))
}
