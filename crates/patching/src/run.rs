//! A prompt and its counterfactual, run and encoded.

use monosem_dictionary::{Codes, Dictionary};
use monosem_hooks::Past;
use ndarray::{Array2, Array3, ArrayView1, ArrayView2, s};

use crate::evaluation::{Distribution, Outcome};
use crate::pass::{Captured, Context, Continuation, padded_tokens};
use crate::{PatchingConfig, Prompt};

/// A prompt and its counterfactual at the hook point, padding cut off.
pub(crate) struct Run {
    /// Residual stream `[position, d_model]` of the prompt before the hook point; `None` where the hook point is on it.
    pub(crate) entering: Option<Array2<f32>>,
    /// Activations `[position, d_in]` of the prompt.
    pub(crate) x: Array2<f32>,
    /// Of the counterfactual; of the prompt at dropped positions.
    pub(crate) x_target: Array2<f32>,
    /// For each position the candidates whose codes differ, ascending, and `c_target - c`.
    pub(crate) changes: Vec<Vec<(u32, f32)>>,
    /// Positions that are not dropped.
    n_patched: usize,
    /// The counterfactual's distribution after the last position.
    target: Distribution,
    pub(crate) prompt: Prompt,
    /// Of the prompt as it is.
    pub(crate) unpatched: Outcome,
    /// What was kept of the prompt as it is, from the hook point on.
    pub(crate) past: Past,
}

impl Run {
    /// The counterfactual's distribution.
    pub(crate) fn target(&self) -> &Distribution {
        &self.target
    }

    /// The first position at which the prompt and its counterfactual differ at the hook point; their number where they do not.
    pub(crate) fn first_difference(&self) -> usize {
        self.x.rows().into_iter().zip(self.x_target.rows()).take_while(|(x, target)| x == target).count()
    }

    pub(crate) fn measure(&self, patched: ArrayView2<'_, f32>, logits: ArrayView1<'_, f32>) -> Outcome {
        let moved = |(a, b): (ArrayView1<'_, f32>, ArrayView1<'_, f32>)| {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let total: f64 = patched.rows().into_iter().zip(self.x.rows()).map(moved).sum();
        Outcome {
            kl: Distribution::of(logits).kl(&self.target),
            logit_diff: self.prompt.logit_diff(logits),
            edit_norm: total / self.n_patched.max(1) as f64,
        }
    }
}

/// Runs a batch of prompts and of their counterfactuals in the same shapes, so that where they are the same their bits are.
pub(crate) fn run_both(
    continuation: &Continuation<'_>,
    dictionary: &dyn Dictionary,
    prompts: &[&Prompt],
    config: &PatchingConfig,
) -> Vec<Run> {
    for p in prompts {
        let (n, n_target) = (p.tokens.len(), p.target_tokens.len());
        assert_eq!(n, n_target, "a prompt of {n} tokens with a counterfactual of {n_target}");
    }
    let lengths: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
    let run = |tokens: &dyn Fn(&Prompt) -> &[u32], keep: bool| {
        let contexts: Vec<&[u32]> = prompts.iter().map(|p| tokens(p)).collect();
        let captured = cut(&continuation.capture(padded_tokens(&contexts).view()), &lengths);
        let context = |(i, x)| Context { entering: captured.0.get(i), x, first: 0, past: None };
        let resumption = continuation.resume(&captured.1.iter().enumerate().map(context).collect::<Vec<_>>(), keep);
        (captured, resumption)
    };
    let ((entering, x), base) = run(&|p| &p.tokens, true);
    let ((_, x_target), target) = run(&|p| &p.target_tokens, false);
    let (mut entering, mut pasts) = (entering.into_iter(), base.pasts.into_iter());
    let dropped = |position: usize| config.drop_positions.contains(&position);
    let mut runs = Vec::with_capacity(prompts.len());
    for (i, (x, mut x_target)) in x.into_iter().zip(x_target).enumerate() {
        let changes = changes(&dictionary.encode(x.view()), &dictionary.encode(x_target.view()), &dropped);
        for position in (0..x.nrows()).filter(|p| dropped(*p)) {
            x_target.row_mut(position).assign(&x.row(position));
        }
        let mut run = Run {
            entering: entering.next(),
            n_patched: (0..x.nrows()).filter(|p| !dropped(*p)).count(),
            x,
            x_target,
            changes,
            target: Distribution::of(target.logits.row(i)),
            prompt: prompts[i].clone(),
            unpatched: Outcome::default(),
            past: pasts.next().expect("something was kept of every prompt"),
        };
        run.unpatched = run.measure(run.x.view(), base.logits.row(i));
        runs.push(run);
    }
    runs
}

/// Cuts off the padding: the residual streams, none where the hook point is on it, and the activations.
fn cut(captured: &Captured, lengths: &[usize]) -> (Vec<Array2<f32>>, Vec<Array2<f32>>) {
    let cut = |padded: &Array3<f32>| -> Vec<Array2<f32>> {
        padded.outer_iter().zip(lengths).map(|(x, &length)| x.slice(s![..length, ..]).to_owned()).collect()
    };
    (captured.entering.as_ref().map(cut).unwrap_or_default(), cut(&captured.x))
}

/// For each position that is not dropped the latents whose codes differ, and `c_target - c`.
fn changes(base: &Codes, target: &Codes, dropped: &dyn Fn(usize) -> bool) -> Vec<Vec<(u32, f32)>> {
    let of_row = |position: usize| {
        let ((latents, values), (target_latents, target_values)) = (base.row(position), target.row(position));
        let mut left = latents.iter().zip(values).peekable();
        let mut right = target_latents.iter().zip(target_values).peekable();
        let mut row = Vec::new();
        while let Some(latent) = left.peek().into_iter().chain(right.peek()).map(|(latent, _)| **latent).min() {
            let code = left.next_if(|(l, _)| **l == latent).map_or(0.0, |(_, value)| *value);
            let code_target = right.next_if(|(l, _)| **l == latent).map_or(0.0, |(_, value)| *value);
            if code != code_target {
                row.push((latent, code_target - code));
            }
        }
        row
    };
    (0..base.n_rows()).map(|position| if dropped(position) { Vec::new() } else { of_row(position) }).collect()
}
