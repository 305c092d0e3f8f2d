//! Passes that go on in the middle of a context.

use std::ops::ControlFlow;

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use crate::{HookPoint, HookedModel, Site};

/// What a model keeps of the positions of a context that it has run, so that a change at a later position costs the positions from there on.
///
/// The model that made it decides what is in it (a transformer: keys and values); whoever holds it only cuts it and puts it together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Past {
    /// Rows `[position, width]`, one array for each block from the one where the pass began.
    pub blocks: Vec<Array2<f32>>,
}

impl Past {
    /// Replaces the positions from `first` on by those of a later pass over the same context.
    ///
    /// # Panics
    /// If the two are not of the same blocks, or `newer` does not have as many positions as there are from `first` on.
    pub fn replace_from(&mut self, first: usize, newer: &Self) {
        assert_eq!(self.blocks.len(), newer.blocks.len(), "pasts of other blocks");
        for (block, newer) in self.blocks.iter_mut().zip(&newer.blocks) {
            block.slice_mut(s![first.., ..]).assign(newer);
        }
    }
}

/// A context whose positions from some place on are run.
#[derive(Debug, Clone, Copy)]
pub struct Resumed<'a> {
    /// What an earlier pass over the context kept; `None` where all positions are run.
    pub past: Option<&'a Past>,
    /// The first position that is run: so many positions of `past` are used.
    pub first: usize,
    /// The residual stream `[position, d_model]` that enters the first block, from `first` on; at least one position.
    pub stream: ArrayView2<'a, f32>,
    /// Activations `[position, width]` put in their place at a site of the first block, from `first` on.
    pub replaced: Option<(Site, ArrayView2<'a, f32>)>,
}

impl<'a> Resumed<'a> {
    /// The same for a shorter time: a view's lifetime does not shorten by itself.
    #[must_use]
    pub fn reborrow<'b>(&self) -> Resumed<'b>
    where
        'a: 'b,
    {
        let replaced = self.replaced.map(|(site, x)| (site, x.reborrow()));
        Resumed { past: self.past, first: self.first, stream: self.stream.reborrow(), replaced }
    }
}

/// What a resumed pass gives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resumption {
    /// Logits `[context, d_vocab]` at the last position of each context.
    pub logits: Array2<f32>,
    /// For each context what to keep of the positions that were run; empty if that was not asked for.
    pub pasts: Vec<Past>,
}

/// [`HookedModel::resume`] through [`HookedModel::forward_from`]: the past is the residual stream that enters the block, and what replaced
/// activations in it.
pub(crate) fn by_whole_contexts<M: HookedModel + ?Sized>(
    model: &M,
    layer: usize,
    contexts: &[Resumed<'_>],
    keep: bool,
) -> Resumption {
    let whole: Vec<Vec<Array2<f32>>> = contexts.iter().map(whole_context).collect();
    let mut logits = Array2::zeros((contexts.len(), model.d_vocab()));
    for ((mut logits, arrays), context) in logits.rows_mut().into_iter().zip(&whole).zip(contexts) {
        let stream = arrays[0].view().insert_axis(Axis(0)).to_owned();
        let of_context = model.forward_from(layer, stream, &mut |point, mut activations| {
            if context.replaced.is_some_and(|(site, _)| point == HookPoint::new(layer, site)) {
                activations.index_axis_mut(Axis(0), 0).assign(&arrays[1]);
            }
            ControlFlow::Continue(())
        });
        let ControlFlow::Continue(of_context) = of_context else { unreachable!("the hook never ends the pass") };
        logits.assign(&of_context.slice(s![0, -1, ..]));
    }
    let from = |(arrays, context): (Vec<Array2<f32>>, &Resumed<'_>)| Past {
        blocks: arrays.into_iter().map(|array| array.slice_move(s![context.first.., ..])).collect(),
    };
    Resumption { logits, pasts: if keep { whole.into_iter().zip(contexts).map(from).collect() } else { Vec::new() } }
}

/// The stream of all positions, and what replaces activations if anything does.
fn whole_context(context: &Resumed<'_>) -> Vec<Array2<f32>> {
    let arrays = std::iter::once(context.stream).chain(context.replaced.map(|(_, x)| x));
    let with_past = |(i, after): (usize, ArrayView2<'_, f32>)| match context.past {
        Some(past) if context.first > 0 => {
            let before = past.blocks[i].slice(s![..context.first, ..]);
            concatenate(Axis(0), &[before, after]).expect("positions of one width")
        }
        _ => after.to_owned(),
    };
    arrays.enumerate().map(with_past).collect()
}
