//! Edits of activations by any function, dictionary or not: what they leave of a task, and what else they change.

use monosem_hooks::{HookPoint, HookedModel};
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::report;
use crate::evaluation::{Distribution, log_odds, mean};
use crate::pass::{Captured, Context, Continuation, batches, check_site, check_tokens, padded_tokens};
use crate::prompt::check_prompt;
use crate::{PatchingError, Progress, Prompt};

/// An edit: replaces each row of `[n, width]`, which is the activation at one position, by what it becomes.
pub type ActivationEdit<'a> = dyn Fn(ArrayViewMut2<'_, f32>) + 'a;

/// Where activations are edited.
#[derive(Debug, Clone, PartialEq)]
pub struct EditPlace {
    /// The place in the model.
    pub hook: HookPoint,
    /// Positions that stay as they are. Position 0 is an attention sink in most models.
    pub drop_positions: Vec<usize>,
    /// Activations of a larger norm stay as they are, since a few tokens elsewhere become attention sinks too; infinite for none.
    pub norm_limit: f32,
}

/// From which position of a prompt on activations are edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EditFrom {
    /// From the first.
    Start,
    /// From the first at which the prompt and its counterfactual differ: those before know nothing of what was asked.
    FirstChange,
    /// From the last one on, after which the answer is expected.
    End,
}

impl EditFrom {
    fn first(self, prompt: &Prompt) -> usize {
        match self {
            Self::Start => 0,
            Self::FirstChange => prompt.first_change(),
            Self::End => prompt.end(),
        }
    }
}

/// What an edit leaves of a task, prompt by prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct EditEvaluation {
    /// `ln P(answers) - ln P(wrong)` after the last position.
    pub log_odds: Vec<f64>,
    /// `||x' - x||`, mean over the positions that are edited, in units of the activations; 0 where there is none.
    pub edit_norm: Vec<f64>,
}

impl EditEvaluation {
    /// For how many prompts the answer beats what is wrong.
    #[must_use]
    pub fn right(&self) -> u64 {
        self.log_odds.iter().filter(|odds| **odds > 0.0).count() as u64
    }

    /// `P(answers) / (P(answers) + P(wrong))` for each prompt.
    #[must_use]
    pub fn p_correct(&self) -> Vec<f64> {
        self.log_odds.iter().map(|odds| 1.0 / (1.0 + (-odds).exp())).collect()
    }
}

/// Prompts run up to a hook point, ready for any edit of the activations there.
///
/// ```
/// use monosem_hooks::HookedModel;
/// use monosem_patching::{EditFrom, EditPlace, EditedPrompts, PatchingError, Prompt};
///
/// /// How often a model is right with every activation at a hook point replaced by their mean.
/// fn without_any(model: &dyn HookedModel, prompts: &[Prompt], place: &EditPlace) -> Result<f64, PatchingError> {
///     let edited = EditedPrompts::new(model, prompts, place, EditFrom::Start)?;
///     let (activations, _) = edited.activations();
///     let Some(mean) = activations.mean_axis(ndarray::Axis(0)) else { return Ok(f64::NAN) };
///     let evaluation = edited.evaluate(&|mut x| x.assign(&mean))?;
///     Ok(evaluation.right() as f64 / prompts.len() as f64)
/// }
/// # let _ = without_any;
/// ```
pub struct EditedPrompts<'a> {
    continuation: Continuation<'a>,
    prompts: &'a [Prompt],
    runs: Vec<Run>,
}

/// A prompt at the hook point, padding cut off.
struct Run {
    /// Residual stream `[position, d_model]` before the hook point; `None` where the hook point is on it.
    entering: Option<Array2<f32>>,
    /// Activations `[position, width]`.
    x: Array2<f32>,
    /// Positions that are edited, ascending.
    edited: Vec<usize>,
}

impl<'a> EditedPrompts<'a> {
    /// Runs the prompts up to the hook point.
    ///
    /// # Errors
    /// If there is no prompt, the model has no such hook point, or a prompt does not fit in the model's context or vocabulary.
    pub fn new(
        model: &'a dyn HookedModel,
        prompts: &'a [Prompt],
        place: &EditPlace,
        from: EditFrom,
    ) -> Result<Self, PatchingError> {
        check_site(model, place.hook)?;
        if prompts.is_empty() {
            return Err(PatchingError::NoPrompts);
        }
        prompts.iter().try_for_each(|prompt| check_prompt(model, prompt))?;
        let continuation = Continuation { model, hook: place.hook };
        let lengths: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
        let mut runs: Vec<Option<Run>> = (0..prompts.len()).map(|_| None).collect();
        for batch in batches(&lengths) {
            let tokens = padded_tokens(&batch.iter().map(|&i| prompts[i].tokens.as_slice()).collect::<Vec<_>>());
            let Captured { entering, x } = continuation.capture(tokens.view());
            for (row, &i) in batch.iter().enumerate() {
                let cut = |padded: &Array3<f32>| padded.slice(s![row, ..lengths[i], ..]).to_owned();
                let x = cut(&x);
                let first = from.first(&prompts[i]);
                let edited = place.edited(x.view()).into_iter().filter(|position| *position >= first).collect();
                runs[i] = Some(Run { entering: entering.as_ref().map(cut), x, edited });
            }
        }
        Ok(Self { continuation, prompts, runs: runs.into_iter().flatten().collect() })
    }

    /// The activations that edits change, `[n, width]`, and for each row the prompt it is from, by its index.
    #[must_use]
    pub fn activations(&self) -> (Array2<f32>, Vec<usize>) {
        let places = || self.runs.iter().enumerate().flat_map(|(i, run)| run.edited.iter().map(move |p| (i, *p)));
        let prompts: Vec<usize> = places().map(|(i, _)| i).collect();
        let mut rows = Array2::zeros((prompts.len(), self.runs[0].x.ncols()));
        rows.rows_mut().into_iter().zip(places()).for_each(|(mut row, (i, p))| row.assign(&self.runs[i].x.row(p)));
        (rows, prompts)
    }

    /// What an edit of these activations leaves of the task.
    ///
    /// # Errors
    /// If the edit is so large that logits overflow.
    pub fn evaluate(&self, edit: &ActivationEdit<'_>) -> Result<EditEvaluation, PatchingError> {
        let n = self.prompts.len();
        let mut evaluation = EditEvaluation { log_odds: vec![0.0; n], edit_norm: vec![0.0; n] };
        let lengths: Vec<usize> = self.runs.iter().map(|run| run.x.nrows()).collect();
        for batch in batches(&lengths) {
            let edited: Vec<(Array2<f32>, f64)> =
                batch.iter().map(|&i| apply(edit, &self.runs[i].x, &self.runs[i].edited)).collect();
            let contexts = batch.iter().zip(&edited).map(|(&i, (x, _))| {
                let entering = self.runs[i].entering.as_ref();
                Context { entering, x, first: 0, past: None }
            });
            let logits = self.continuation.resume(&contexts.collect::<Vec<_>>(), false).logits;
            check_finite(logits.iter())?;
            for ((&i, (_, norm)), logits) in batch.iter().zip(&edited).zip(logits.rows()) {
                evaluation.log_odds[i] = log_odds(logits, &self.prompts[i].answers, &self.prompts[i].wrong);
                evaluation.edit_norm[i] = *norm;
            }
        }
        Ok(evaluation)
    }
}

impl EditPlace {
    /// The positions of a context, with activations `[position, width]`, that are edited.
    fn edited(&self, x: ArrayView2<'_, f32>) -> Vec<usize> {
        let is_edited = |position: &usize| {
            let row = x.row(*position);
            !self.drop_positions.contains(position) && row.dot(&row).sqrt() <= self.norm_limit
        };
        (0..x.nrows()).filter(is_edited).collect()
    }
}

/// A context's activations with these positions edited, and the mean of `||x' - x||` over them.
fn apply(edit: &ActivationEdit<'_>, x: &Array2<f32>, edited: &[usize]) -> (Array2<f32>, f64) {
    let before = x.select(Axis(0), edited);
    let mut after = before.clone();
    edit(after.view_mut());
    let norm = |moved: ArrayView1<'_, f32>| moved.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>().sqrt();
    let edit_norm = mean((&after - &before).rows().into_iter().map(norm));
    let mut changed = x.clone();
    edited.iter().zip(after.rows()).for_each(|(position, row)| changed.row_mut(*position).assign(&row));
    (changed, edit_norm)
}

/// What edits change besides: `KL(original || edited)` of the next-token distributions on texts, in nats, for each edit and each context the mean
/// over the positions that are not dropped. `contexts` is `[context, position]`.
///
/// # Errors
/// If the model has no such hook point, a context does not fit in the model's context or vocabulary, an edit is so large that logits overflow,
/// or `progress`, which hears of edits done, ends the work.
pub fn kl_of_edits(
    model: &dyn HookedModel,
    contexts: ArrayView2<'_, u32>,
    place: &EditPlace,
    edits: &[&ActivationEdit<'_>],
    progress: &mut Progress<'_>,
) -> Result<Vec<Vec<f64>>, PatchingError> {
    check_site(model, place.hook)?;
    let continuation = Continuation { model, hook: place.hook };
    let mut kl = vec![Vec::with_capacity(contexts.nrows()); edits.len()];
    let counted: Vec<usize> = (0..contexts.ncols()).filter(|p| !place.drop_positions.contains(p)).collect();
    for (i, context) in contexts.axis_chunks_iter(Axis(0), 1).enumerate() {
        check_tokens(model, &context.iter().copied().collect::<Vec<u32>>())?;
        let captured = continuation.capture(context);
        let x = captured.x.index_axis(Axis(0), 0).to_owned();
        let edited = place.edited(x.view());
        let distributions = |x: &Array2<f32>| -> Result<Vec<Distribution>, PatchingError> {
            let logits = continuation.all_logits(captured.entering.as_ref(), x);
            check_finite(logits.iter())?;
            Ok(counted.par_iter().map(|position| Distribution::of(logits.row(*position))).collect())
        };
        let original = distributions(&x)?;
        for (j, (edit, kl)) in edits.iter().zip(&mut kl).enumerate() {
            let changed = distributions(&apply(*edit, &x, &edited).0)?;
            // Summed in order, whatever the number of threads.
            let by_position: Vec<f64> = original.par_iter().zip(&changed).map(|(p, q)| p.kl(q)).collect();
            kl.push(mean(by_position.into_iter()));
            report(progress, i * edits.len() + j + 1, contexts.nrows() * edits.len())?;
        }
    }
    Ok(kl)
}

fn check_finite<'l>(mut logits: impl Iterator<Item = &'l f32>) -> Result<(), PatchingError> {
    if logits.all(|logit| logit.is_finite()) { Ok(()) } else { Err(PatchingError::NotFinite { what: "the edit" }) }
}
