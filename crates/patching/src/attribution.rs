//! Attribution patching: the effect of every feature from gradients, to first order.

use std::ops::ControlFlow;

use monosem_hooks::{DifferentiableModel, Readout};
use ndarray::{Array2, Array3, ArrayView2, Axis, s};

use crate::evaluation::Distribution;
use crate::pass::batches;
use crate::ranking::SingleEffect;
use crate::run::Run;
use crate::{Patching, PatchingError};

impl Patching<'_> {
    /// What patching each candidate alone is expected to do, ascending by latent (attribution patching, arXiv 2310.10348): with the gradient `g`
    /// of `KL(patched || target)` at the hook point, the fall of the KL is about `-sum (c_target - c) g . f` over positions, mean over
    /// prompts. One backward pass a prompt, for all features together.
    ///
    /// With one step the gradient is that of the prompt as it is. With more it is the mean of the gradients at so many points between the
    /// activations of the prompt and of its counterfactual, at the middles of equal parts (integrated gradients, arXiv 1703.01365), which the hook
    /// point has to be on the residual stream for. `model` is the one that the prompts were run with.
    ///
    /// # Errors
    /// If `steps` is 0, or above 1 at a hook point inside a block.
    pub fn attribute(&self, model: &dyn DifferentiableModel, steps: usize) -> Result<Vec<SingleEffect>, PatchingError> {
        let on_stream = self.continuation.on_stream();
        if steps == 0 || (steps > 1 && !on_stream) {
            let problem = if steps == 0 {
                "expected 1 or more".into()
            } else {
                format!("{} is inside a block: expected 1", self.continuation.hook)
            };
            return Err(PatchingError::Setting { setting: "steps", problem });
        }
        let mut falls = vec![0.0_f64; self.candidates.len()];
        let lengths: Vec<usize> = self.runs.iter().map(|run| run.x.nrows()).collect();
        for batch in batches(&lengths) {
            let runs: Vec<&Run> = batch.iter().map(|&i| &self.runs[i]).collect();
            for gradient in self.gradients(model, &runs, steps).into_iter().zip(&runs) {
                self.add_falls(gradient, &mut falls);
            }
        }
        let n = self.n_prompts() as f64;
        let effect = |(&feature, fall): (&usize, f64)| SingleEffect { feature, kl_fall: fall / n };
        Ok(self.candidates.iter().zip(falls).map(effect).collect())
    }

    /// The gradient `[position, width]` of the KL of each prompt at the hook point.
    fn gradients(&self, model: &dyn DifferentiableModel, runs: &[&Run], steps: usize) -> Vec<Array2<f32>> {
        let ends: Vec<usize> = runs.iter().map(|run| run.x.nrows() - 1).collect();
        let mut sum: Option<Array3<f32>> = None;
        for step in 0..steps {
            // The one step is at the prompt itself.
            let way = if steps == 1 { 0.0 } else { (step as f32 + 0.5) / steps as f32 };
            let between = |run: &&Run| &run.x + &((&run.x_target - &run.x) * way);
            let stream: Vec<Array2<f32>> = match runs[0].entering {
                Some(_) => runs.iter().filter_map(|run| run.entering.clone()).collect(),
                None => runs.iter().map(between).collect(),
            };
            let mut d_kl = |logits: ndarray::ArrayView3<'_, f32>| d_kl(logits, runs);
            let mut at_hook = None;
            let entering = model.backward(
                self.continuation.layer(),
                padded(&stream),
                Readout::Logits(&ends),
                &mut d_kl,
                &mut |point, gradient| {
                    if point != self.continuation.hook || self.continuation.on_stream() {
                        return ControlFlow::Continue(());
                    }
                    at_hook = Some(gradient.to_owned());
                    ControlFlow::Break(())
                },
            );
            let gradient = at_hook.or(entering.continue_value()).expect("a backward pass reaches where it began");
            match &mut sum {
                Some(sum) => *sum += &gradient,
                None => sum = Some(gradient),
            }
        }
        let mean = sum.expect("one step or more") / steps as f32;
        mean.outer_iter().zip(&ends).map(|(gradient, end)| gradient.slice(s![..=*end, ..]).to_owned()).collect()
    }

    fn add_falls(&self, (gradient, run): (Array2<f32>, &&Run), falls: &mut [f64]) {
        for (gradient, changes) in gradient.rows().into_iter().zip(&run.changes) {
            for &(candidate, change) in changes {
                let along = self.directions.row(candidate as usize).dot(&gradient);
                falls[candidate as usize] -= f64::from(change) * f64::from(along);
            }
        }
    }
}

/// Padded on the right with zeros to the longest, `[batch, position, width]`.
fn padded(contexts: &[Array2<f32>]) -> Array3<f32> {
    let longest = contexts.iter().map(Array2::nrows).max().unwrap_or(0);
    let width = contexts.first().map_or(0, Array2::ncols);
    let mut padded = Array3::zeros((contexts.len(), longest, width));
    for (mut padded, context) in padded.outer_iter_mut().zip(contexts) {
        padded.slice_mut(s![..context.nrows(), ..]).assign(context);
    }
    padded
}

/// `d KL(p || q) / d logits = p (ln p - ln q - KL)`, for logits `[batch, 1, d_vocab]`.
fn d_kl(logits: ndarray::ArrayView3<'_, f32>, runs: &[&Run]) -> Array3<f32> {
    let mut d = Array3::zeros(logits.dim());
    let of_prompt = |logits: ArrayView2<'_, f32>, run: &Run| {
        let p = Distribution::of(logits.row(0));
        p.d_kl(run.target())
    };
    for ((mut d, logits), run) in d.outer_iter_mut().zip(logits.axis_iter(Axis(0))).zip(runs) {
        d.row_mut(0).assign(&of_prompt(logits, run));
    }
    d
}
