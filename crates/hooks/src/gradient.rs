//! Gradients at hook points.

use std::ops::ControlFlow;

use ndarray::{Array3, ArrayView3};

use crate::{HookPoint, HookedModel};

/// The activations that a loss is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readout<'a> {
    /// The residual stream `[batch, position, d_model]` that enters block `n`; with `n == n_layers`, the one that leaves the last block.
    Stream(usize),
    /// The logits `[batch, 1, d_vocab]` at one position of each context: position `ends[i]` of context `i`.
    Logits(&'a [usize]),
}

/// What a backward pass asks for the derivative of the loss: given the readout, returns d loss / d readout in the same shape.
///
/// The loss itself stays with the closure, which may note it on the way.
pub type Cotangent<'a> = dyn FnMut(ArrayView3<'_, f32>) -> Array3<f32> + 'a;

/// What a backward pass calls at each hook point: the point, and the gradient `[batch, position, width]` of the loss with respect to
/// the activations there.
///
/// Returning [`ControlFlow::Break`] ends the walk at once; nothing below that point is computed.
pub type GradientHook<'a> = dyn FnMut(HookPoint, ArrayView3<'_, f32>) -> ControlFlow<()> + 'a;

/// A model that can be differentiated with respect to its activations. Its weights are constants.
///
/// Gradients are total: an activation's counts every way on which it reaches the readout, as autograd's `retain_grad` does. So the
/// gradient at [`Site::AttnOut`](crate::Site::AttnOut) is that of the stream it is added to, and the gradient at
/// [`Site::ResidPre`](crate::Site::ResidPre) covers the way past the block and those through it.
///
/// Attribution patching (<https://arxiv.org/abs/2310.10348>) estimates with it what a patch would do to the loss, to first order:
///
/// ```
/// use std::ops::ControlFlow;
/// use monosem_hooks::{DifferentiableModel, HookPoint, Readout};
/// use ndarray::{Array3, Zip};
///
/// /// About how much the loss changes when the activations at a hook point change by `by` `[batch, position, width]`.
/// fn effect(
///     model: &dyn DifferentiableModel,
///     stream: Array3<f32>, // enters block 0
///     ends: &[usize],
///     d_loss: &mut dyn FnMut(ndarray::ArrayView3<f32>) -> Array3<f32>,
///     at: HookPoint,
///     by: &Array3<f32>,
/// ) -> f32 {
///     let mut sum = 0.0;
///     let _ = model.backward(0, stream, Readout::Logits(ends), d_loss, &mut |point, gradient| {
///         if point != at {
///             return ControlFlow::Continue(());
///         }
///         Zip::from(gradient).and(by).for_each(|g, b| sum += g * b);
///         ControlFlow::Break(())
///     });
///     sum
/// }
/// # let _ = effect;
/// ```
pub trait DifferentiableModel: HookedModel {
    /// Runs the blocks from `layer` on, on the residual stream `[batch, position, d_model]` that enters it, up to the readout; shows the
    /// readout to `cotangent`; then walks back and shows `hook` the gradient at every hook point between the two, in the reverse of the
    /// order in which a forward pass visits them. Returns the gradient with respect to `stream`, unless the hook ended the walk.
    ///
    /// Where no block lies between the two, no hook point does either: the hook is not called. An empty stream gives an empty gradient,
    /// and neither closure is called.
    ///
    /// Padding on the right does not matter: at the positions after `ends[i]` the gradient of logits is zero.
    ///
    /// # Panics
    /// If `layer` is beyond the readout or the readout beyond the model, the last dimension of `stream` is not `d_model`, its positions
    /// are more than [`HookedModel::max_context`], `ends` does not name one of the positions for every context, or what `cotangent` returns is
    /// not as large as the readout.
    fn backward(
        &self,
        layer: usize,
        stream: Array3<f32>,
        readout: Readout<'_>,
        cotangent: &mut Cotangent<'_>,
        hook: &mut GradientHook<'_>,
    ) -> ControlFlow<(), Array3<f32>>;
}
