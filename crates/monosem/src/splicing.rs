//! The model's loss on text with activations replaced by their reconstruction.

use std::ops::ControlFlow;

use anyhow::{Result, ensure};
use monosem_dictionary::Dictionary;
use monosem_hooks::{HookPoint, HookedModel, Site};
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array3, ArrayView1, ArrayView2, ArrayViewMut3, Axis, s};

/// What takes the place of the activations.
pub(crate) enum Edit<'a> {
    /// Nothing: the model as it is.
    None,
    /// The mean activation, at every position.
    Mean(&'a Array1<f32>),
    /// Zeros.
    Zero,
    /// The dictionary's reconstruction of each activation.
    Reconstruction(&'a dyn Dictionary),
}

/// Losses of next-token predictions in one context.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContextLoss {
    /// Sum of the losses, in nats.
    pub(crate) sum: f64,
    /// Number of predictions.
    pub(crate) predictions: f64,
}

/// A model, a hook point, and the positions that are left as they are and out of the loss.
pub(crate) struct Splicer<'a> {
    pub(crate) model: &'a dyn HookedModel,
    pub(crate) hook: HookPoint,
    pub(crate) drop_positions: &'a [usize],
    /// Activations of a larger norm are left as they are too; predictions from their positions count.
    pub(crate) norm_limit: f32,
}

impl Splicer<'_> {
    /// The loss of each context `[n, position]` under each edit, `[edit][context]`, in batches of `batch` contexts.
    ///
    /// Layers below the hook point run once per batch; each edit pays only for what is above. `step` is told after each pass.
    pub(crate) fn losses(
        &self,
        contexts: ArrayView2<'_, u32>,
        edits: &[Edit<'_>],
        batch: usize,
        step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<ContextLoss>>> {
        let mut losses = vec![Vec::with_capacity(contexts.nrows()); edits.len()];
        for tokens in contexts.axis_chunks_iter(Axis(0), batch) {
            let (layer, entering) = self.entering(tokens)?;
            step()?;
            for (edit, losses) in edits.iter().zip(&mut losses) {
                let logits = self.continue_with(layer, &entering, edit)?;
                for (context, logits) in tokens.rows().into_iter().zip(logits.axis_iter(Axis(0))) {
                    losses.push(self.loss(context, logits));
                }
                step()?;
            }
        }
        Ok(losses)
    }

    /// The residual stream to start from, and the block it enters. What leaves a block enters the next one, so that block is not run
    /// again.
    fn entering(&self, tokens: ArrayView2<'_, u32>) -> Result<(usize, Array3<f32>)> {
        let (at, layer) = match self.hook.site {
            Site::ResidPost => (self.hook, self.hook.layer + 1),
            _ => (HookPoint::new(self.hook.layer, Site::ResidPre), self.hook.layer),
        };
        let mut found = None;
        let _ = self.model.forward(tokens, &mut |point, activations| {
            if point != at {
                return ControlFlow::Continue(());
            }
            found = Some(activations.to_owned());
            ControlFlow::Break(())
        });
        ensure!(found.is_some(), "the model has no hook point {}", self.hook);
        Ok((layer, found.unwrap_or_default()))
    }

    fn continue_with(&self, layer: usize, entering: &Array3<f32>, edit: &Edit<'_>) -> Result<Array3<f32>> {
        let mut start = entering.clone();
        let mut edited = self.hook.site == Site::ResidPost;
        if edited {
            self.apply(edit, start.view_mut());
        }
        let logits = self.model.forward_from(layer, start, &mut |point, activations| {
            if point == self.hook {
                self.apply(edit, activations);
                edited = true;
            }
            ControlFlow::Continue(())
        });
        ensure!(edited, "the model has no hook point {}", self.hook);
        match logits {
            ControlFlow::Continue(logits) => Ok(logits),
            ControlFlow::Break(()) => unreachable!("the hook never ends the pass"),
        }
    }

    fn apply(&self, edit: &Edit<'_>, mut activations: ArrayViewMut3<'_, f32>) {
        for mut context in activations.axis_iter_mut(Axis(0)) {
            let stays = |(position, row): (usize, ArrayView1<'_, f32>)| {
                let stays = self.drop_positions.contains(&position) || row.dot(&row).sqrt() > self.norm_limit;
                stays.then_some(position)
            };
            let kept: Vec<usize> = context.rows().into_iter().enumerate().filter_map(stays).collect();
            let originals: Vec<Array1<f32>> = kept.iter().map(|p| context.row(*p).to_owned()).collect();
            match edit {
                Edit::None => {}
                Edit::Mean(mean) => context.assign(mean),
                Edit::Zero => context.fill(0.0),
                Edit::Reconstruction(dictionary) => {
                    let reconstruction = dictionary.decode(&dictionary.encode(context.view()));
                    context.assign(&reconstruction);
                }
            }
            for (position, original) in kept.iter().zip(originals) {
                context.row_mut(*position).assign(&original);
            }
        }
    }

    /// Cross-entropy of the next token at every position that is not dropped.
    fn loss(&self, context: ArrayView1<'_, u32>, logits: ArrayView2<'_, f32>) -> ContextLoss {
        let last = context.len() - 1;
        let targets = context.slice(s![1..]);
        let losses: Vec<f64> =
            logits
                .slice(s![..last, ..])
                .axis_iter(Axis(0))
                .into_par_iter()
                .enumerate()
                .map(|(position, logits)| {
                    if self.drop_positions.contains(&position) { 0.0 } else { cross_entropy(logits, targets[position]) }
                })
                .collect();
        let dropped = self.drop_positions.iter().filter(|position| **position < last).count();
        ContextLoss { sum: losses.iter().sum(), predictions: (last - dropped) as f64 }
    }
}

/// `-log softmax(logits)[target]`, in nats.
fn cross_entropy(logits: ArrayView1<'_, f32>, target: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from((logit - largest).exp())).sum();
    total.ln() - f64::from(logits[target as usize] - largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn cross_entropy_is_minus_the_log_probability() {
        let logits = array![1000.0_f32, 1001.0, 999.0];
        let total: f64 = [0.0_f64, 1.0, -1.0].iter().map(|l| l.exp()).sum();
        let expected = -(1.0 - total.ln());
        assert!((cross_entropy(logits.view(), 1) - expected).abs() < 1e-6);
    }
}
