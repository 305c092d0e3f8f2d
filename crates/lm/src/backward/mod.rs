//! Gradients with respect to activations: a forward pass that keeps the residual stream at the entries of attention and MLP, and a walk
//! back that computes the rest of each block again (<https://arxiv.org/abs/1604.06174>).

mod attention;
pub(crate) mod parts;
pub(crate) mod walk;

use std::ops::ControlFlow;

use monosem_hooks::{Cotangent, DifferentiableModel, GradientHook, HookPoint, Readout};
use ndarray::{Array3, ArrayView3, ArrayViewMut3};

use crate::backward::parts::norm_backward;
use crate::backward::walk::{Gradients, Kept, Walk};
use crate::parts::norm_rows;
use crate::pass::{Before, Buffers, Pass, Plan, Rows, Shape};
use crate::product::{Into, Matrix, product};
use crate::{Config, LanguageModel};

/// The gradient is taken at the activations that a forward pass in the model's precision gives. Where its maps are in bf16, the walk back multiplies
/// by their weights in `f32` all the same: rounding is passed over, for its own derivative is zero almost everywhere.
///
/// The residual streams at the entries of attention and MLP are kept for all blocks that are passed, two arrays of the size of the stream per block (one with
/// a parallel residual); everything else in a block is computed again.
impl DifferentiableModel for LanguageModel {
    fn backward(
        &self,
        layer: usize,
        stream: Array3<f32>,
        readout: Readout<'_>,
        cotangent: &mut Cotangent<'_>,
        hook: &mut GradientHook<'_>,
    ) -> ControlFlow<(), Array3<f32>> {
        let (batch, positions, _) = stream.dim();
        let config = self.config();
        let end = self.check(layer, &stream, readout);
        if batch * positions == 0 {
            return ControlFlow::Continue(stream);
        }
        let mut x = Rows::of(stream);
        let mut kept = self.keep(layer..end, &mut x, (batch, positions));
        let shape = Shape::new(config, batch, positions, 0);
        let mut dx = match readout {
            Readout::Stream(_) => {
                let view = ArrayView3::from_shape((batch, positions, x.width), &x.data).expect("a row for every token");
                Rows { data: ask(cotangent, view), width: x.width }
            }
            Readout::Logits(ends) => self.logits_backward(&x, ends, positions, cotangent),
        };
        drop(x);
        let mut buffers = Gradients::new(config, if end > layer { batch * positions } else { 0 }, self.gated());
        let mut walk = Walk { shape, hook };
        for layer in (layer..end).rev() {
            let kept = kept.pop().expect("every block that was passed kept its streams");
            self.block(layer).backward(layer, &kept, &mut dx, &mut buffers, &mut walk)?;
        }
        let gradient = Array3::from_shape_vec((batch, positions, dx.width), dx.data);
        ControlFlow::Continue(gradient.expect("a row for every token"))
    }
}

/// The cotangent of a readout.
fn ask(cotangent: &mut Cotangent<'_>, readout: ArrayView3<'_, f32>) -> Vec<f32> {
    let answer = cotangent(readout);
    let (got, want) = (answer.shape(), readout.shape());
    assert_eq!(got, want, "the cotangent {got:?} is not as large as its readout {want:?}");
    Rows::of(answer).data
}

impl LanguageModel {
    /// The block before which the readout is taken, after a look at the arguments.
    fn check(&self, layer: usize, stream: &Array3<f32>, readout: Readout<'_>) -> usize {
        let (batch, positions, width) = stream.dim();
        let Config { n_layers, d_model, max_context, .. } = *self.config();
        assert_eq!(width, d_model, "a residual stream {:?} is not d_model {d_model} wide", stream.shape());
        assert!(positions <= max_context, "{positions} positions do not fit in a context of {max_context}");
        let end = match readout {
            Readout::Stream(end) => end,
            Readout::Logits(ends) => {
                assert_eq!(ends.len(), batch, "{} ends for {batch} contexts", ends.len());
                if let Some(end) = ends.iter().find(|&&end| end >= positions) {
                    panic!("position {end} is not among the {positions} of the stream");
                }
                n_layers
            }
        };
        assert!(end <= n_layers, "block {end} is beyond the {n_layers} of the model");
        assert!(layer <= end, "block {layer} is beyond the readout before block {end}");
        end
    }

    /// Takes the stream through some blocks, and keeps what the way back needs of each.
    fn keep(&self, layers: std::ops::Range<usize>, x: &mut Rows, (batch, positions): (usize, usize)) -> Vec<Kept> {
        let mut kept = Vec::with_capacity(layers.len());
        let mut note = |point: HookPoint, activations: ArrayViewMut3<'_, f32>| {
            Kept::note(&mut kept, point.site, &activations);
            ControlFlow::Continue(())
        };
        let shape = Shape::new(self.config(), batch, positions, 0);
        let mut buffers =
            Buffers::new(self.config(), if layers.is_empty() { 0 } else { batch * positions }, self.gated());
        let mut pass = Pass { shape, hook: &mut note, before: Before::Nothing };
        for layer in layers {
            let passed = self.block(layer).run(layer, x, &mut buffers, &mut pass);
            assert!(passed.is_continue(), "a hook that keeps streams never ends the pass");
        }
        kept
    }

    /// The gradient of the stream that leaves the last block, where the readout is the logits of one position of each context.
    fn logits_backward(&self, x: &Rows, ends: &[usize], positions: usize, cotangent: &mut Cotangent<'_>) -> Rows {
        let Config { d_vocab, d_model, .. } = *self.config();
        let (batch, plan) = (ends.len(), Plan::new(ends.len()));
        let row = |(i, end): (usize, &usize)| (i * positions + end) * d_model;
        let last = ends.iter().enumerate().flat_map(|end| &x.data[row(end)..][..d_model]).copied().collect();
        let last = Rows { data: last, width: d_model };
        let mut normed = Rows::new(batch, d_model);
        norm_rows(&last, self.final_norm(), &mut normed, plan);
        let logits = self.unembed(&normed.data);
        let logits = ArrayView3::from_shape((batch, 1, d_vocab), &logits).expect("a row of logits for every context");
        let dlogits = ask(cotangent, logits);
        let unembed = Matrix::new(self.unembedding(), d_vocab, d_model);
        let dlogits = Matrix::new(&dlogits, batch, d_vocab);
        product(&mut normed.data, dlogits, unembed, Into::Replace, rayon::current_num_threads());
        let mut dlast = Rows::new(batch, d_model);
        norm_backward(&last, self.final_norm(), &mut normed, &mut dlast, plan);
        let mut dx = Rows::new(batch * positions, d_model);
        for (end, d) in ends.iter().enumerate().zip(dlast.data.chunks_exact(d_model)) {
            dx.data[row(end)..][..d_model].copy_from_slice(d);
        }
        dx
    }
}
