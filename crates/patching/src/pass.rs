//! Passes of batches of prompts, of which only the last position's logits are wanted.

use std::ops::ControlFlow;

use monosem_hooks::{HookPoint, HookedModel, Past, Resumed, Resumption, Site};
use ndarray::{Array2, Array3, ArrayView2, ArrayView3, ArrayViewMut3, Axis, s};

use crate::PatchingError;

/// Prompts in one pass.
const BATCH: usize = 32;

/// Indices of prompts in batches of similar lengths, since a batch is padded to its longest.
pub(crate) fn batches(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| lengths[i]);
    order.chunks(BATCH).map(<[usize]>::to_vec).collect()
}

/// Contexts padded on the right to the longest, `[batch, position]`. Any token would do.
pub(crate) fn padded_tokens(contexts: &[&[u32]]) -> Array2<u32> {
    let longest = contexts.iter().map(|context| context.len()).max().unwrap_or(0);
    Array2::from_shape_fn((contexts.len(), longest), |(i, position)| contexts[i].get(position).copied().unwrap_or(0))
}

/// What may change activations on the way.
pub(crate) type Edit<'a> = dyn FnMut(HookPoint, ArrayViewMut3<'_, f32>) + 'a;

/// The logits `[batch, d_vocab]` at position `ends[i]` of each context.
///
/// The unembedding is the largest product of a small model, so it is done for these positions alone.
pub(crate) fn last_logits(
    model: &dyn HookedModel,
    tokens: ArrayView2<'_, u32>,
    ends: &[usize],
    edit: &mut Edit<'_>,
) -> Array2<f32> {
    let n_layers = model.n_layers();
    let top = HookPoint::new(n_layers - 1, Site::ResidPost);
    let mut found = None;
    let mut hook = |point, mut activations: ArrayViewMut3<'_, f32>| {
        edit(point, activations.view_mut());
        if point != top {
            return ControlFlow::Continue(());
        }
        found = Some(at_ends(activations.view(), ends));
        ControlFlow::Break(())
    };
    let _ = model.forward(tokens, &mut hook);
    let found = found.expect("a pass visits the residual stream that leaves the last block");
    match model.forward_from(n_layers, found, &mut |_, _| ControlFlow::Continue(())) {
        ControlFlow::Continue(logits) => logits.slice_move(s![.., 0, ..]),
        ControlFlow::Break(()) => unreachable!("the hook never ends the pass"),
    }
}

fn at_ends(stream: ArrayView3<'_, f32>, ends: &[usize]) -> Array3<f32> {
    let (batch, _, width) = stream.dim();
    Array3::from_shape_fn((batch, 1, width), |(i, _, k)| stream[[i, ends[i], k]])
}

/// Checks that the model has the hook point, and returns its width.
pub(crate) fn check_site(model: &dyn HookedModel, hook: HookPoint) -> Result<usize, PatchingError> {
    let n_layers = model.n_layers();
    let width = model.width(hook.site).filter(|_| hook.layer < n_layers);
    width.ok_or(PatchingError::NoHookPoint { hook, n_layers })
}

/// Checks that the model has the hook point, of the width that a dictionary reads.
pub(crate) fn check_hook(model: &dyn HookedModel, hook: HookPoint, d_in: usize) -> Result<(), PatchingError> {
    let width = check_site(model, hook)?;
    if width == d_in { Ok(()) } else { Err(PatchingError::Width { d_in, hook, width }) }
}

/// Checks that the model can run a text.
pub(crate) fn check_tokens(model: &dyn HookedModel, tokens: &[u32]) -> Result<(), PatchingError> {
    let error = |problem| Err(PatchingError::Tokens { n_tokens: tokens.len(), problem });
    if tokens.is_empty() || tokens.len() > model.max_context() {
        return error(format!("expected 1 to {} tokens", model.max_context()));
    }
    match tokens.iter().find(|token| **token as usize >= model.d_vocab()) {
        Some(token) => error(format!("token {token} is not in the vocabulary of {}", model.d_vocab())),
        None => Ok(()),
    }
}

/// How the activations at a hook point take effect.
pub(crate) struct Continuation<'a> {
    pub(crate) model: &'a dyn HookedModel,
    pub(crate) hook: HookPoint,
}

/// One batch as it passes the hook point, padded: `[batch, position, width]`.
pub(crate) struct Captured {
    /// The residual stream from which the pass continues; `None` where the hook point is on it.
    pub(crate) entering: Option<Array3<f32>>,
    /// Activations at the hook point.
    pub(crate) x: Array3<f32>,
}

impl Continuation<'_> {
    /// The block whose input the hook point is; `None` where the hook point is inside a block.
    fn enters(&self) -> Option<usize> {
        match self.hook.site {
            Site::ResidPre => Some(self.hook.layer),
            Site::ResidPost => Some(self.hook.layer + 1),
            _ => None,
        }
    }

    /// Runs tokens up to the hook point.
    pub(crate) fn capture(&self, tokens: ArrayView2<'_, u32>) -> Captured {
        let before = HookPoint::new(self.hook.layer, Site::ResidPre);
        let (mut entering, mut x) = (None, None);
        let _ = self.model.forward(tokens, &mut |point, activations| {
            if point == self.hook {
                x = Some(activations.to_owned());
                return ControlFlow::Break(());
            }
            if point == before && self.enters().is_none() {
                entering = Some(activations.to_owned());
            }
            ControlFlow::Continue(())
        });
        Captured { entering, x: x.expect("a pass visits every hook point whose site the model has") }
    }

    /// Whether the hook point is on the residual stream.
    pub(crate) fn on_stream(&self) -> bool {
        self.enters().is_some()
    }

    /// The block from which a pass goes on.
    pub(crate) fn layer(&self) -> usize {
        self.enters().unwrap_or(self.hook.layer)
    }

    /// Runs contexts from a position of each on, and returns the logits `[context, d_vocab]` at their last positions; with `keep` also what later
    /// passes need of these positions.
    pub(crate) fn resume(&self, contexts: &[Context<'_>], keep: bool) -> Resumption {
        let mut resumed = Vec::with_capacity(contexts.len());
        for c in contexts {
            let (past, first) = (c.past, c.first);
            let x = c.x.slice(s![first.., ..]);
            resumed.push(match c.entering {
                None => Resumed { past, first, stream: x, replaced: None },
                Some(entering) => {
                    let replaced = Some((self.hook.site, x));
                    Resumed { past, first, stream: entering.slice(s![first.., ..]), replaced }
                }
            });
        }
        self.model.resume(self.layer(), &resumed, keep)
    }

    /// Runs one context with activations `x` `[position, width]` at the hook point, and returns the logits `[position, d_vocab]` at every
    /// position. `entering` is as in [`Captured`], of this context alone.
    pub(crate) fn all_logits(&self, entering: Option<&Array3<f32>>, x: &Array2<f32>) -> Array2<f32> {
        let stream = entering.cloned().unwrap_or_else(|| x.clone().insert_axis(Axis(0)));
        let mut put = |point, mut activations: ArrayViewMut3<'_, f32>| {
            if point == self.hook && entering.is_some() {
                activations.index_axis_mut(Axis(0), 0).assign(x);
            }
            ControlFlow::Continue(())
        };
        match self.model.forward_from(self.layer(), stream, &mut put) {
            ControlFlow::Continue(logits) => logits.index_axis_move(Axis(0), 0),
            ControlFlow::Break(()) => unreachable!("the hook never ends the pass"),
        }
    }
}

/// One context from the hook point on.
pub(crate) struct Context<'a> {
    /// The residual stream `[position, d_model]` from which the pass goes on; `None` where the hook point is on it.
    pub(crate) entering: Option<&'a Array2<f32>>,
    /// Activations `[position, width]` at the hook point.
    pub(crate) x: &'a Array2<f32>,
    /// The first position that is run.
    pub(crate) first: usize,
    /// What was kept of the positions before it.
    pub(crate) past: Option<&'a Past>,
}
