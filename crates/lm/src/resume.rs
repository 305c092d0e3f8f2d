//! Contexts that are run from a position of their own on: the keys and values of the positions before are those of an earlier pass.
//!
//! The rows of all contexts follow one another without padding, and the last block computes what follows its attention for the last
//! position of each context alone.

use std::ops::ControlFlow;

use monosem_hooks::{HookPoint, Past, Resumed, Resumption};
use ndarray::{Array2, s};
use rayon::prelude::*;

use crate::LanguageModel;
use crate::attention::Heads;
use crate::pass::{Before, Buffers, Pass, Rows, Shape};

/// Several contexts on their way through the blocks.
pub(crate) struct Continued<'a> {
    contexts: Vec<Resumed<'a>>,
    /// The block where the pass began.
    layer: usize,
    n_layers: usize,
    /// Queries, keys and values of the rows, by block, where they are kept.
    kept: Option<Vec<Vec<f32>>>,
}

impl Continued<'_> {
    /// The rows of each context.
    fn counts(&self) -> impl Iterator<Item = usize> {
        self.contexts.iter().map(|context| context.stream.nrows())
    }

    /// Mixes the values of every head over the positions of each context.
    pub(crate) fn attend(&mut self, layer: usize, heads: Heads, qkv: &Rows, z: &mut Rows) {
        let mut of_contexts = Vec::with_capacity(self.contexts.len());
        let (mut rows, mut mixed) = (&qkv.data[..], &mut z.data[..]);
        for (context, n) in self.contexts.iter().zip(self.counts()) {
            let (of_context, after) = rows.split_at(n * qkv.width);
            let (z_of_context, z_after) = mixed.split_at_mut(n * z.width);
            of_contexts.push((context, of_context, z_of_context));
            (rows, mixed) = (after, z_after);
        }
        let block = layer - self.layer;
        of_contexts.into_par_iter().for_each(|(context, rows, z)| match context.past {
            Some(past) if context.first > 0 => {
                let before = past.blocks[block].slice(s![..context.first, ..]);
                let before = before.as_slice().expect("kept rows follow one another");
                heads.attend_tile(&[before, rows].concat(), z, context.first);
            }
            _ => heads.attend_tile(rows, z, 0),
        });
        if let Some(kept) = &mut self.kept {
            kept.push(qkv.data.clone());
        }
    }

    /// Drops all rows but the last of each context once the last block has their keys and values.
    pub(crate) fn narrow(&self, layer: usize, x: &mut Rows, buffers: &mut Buffers) {
        if layer + 1 != self.n_layers {
            return;
        }
        for rows in [x, &mut buffers.z] {
            self.keep_last(rows);
        }
        let n = self.contexts.len();
        let Buffers { normed, attn_out, mlp_out, post, gate_up, .. } = buffers;
        for rows in [normed, attn_out, mlp_out, post, gate_up] {
            rows.data.truncate(n * rows.width);
        }
    }

    fn keep_last(&self, rows: &mut Rows) {
        let mut end = 0;
        for (i, n) in self.counts().enumerate() {
            end += n;
            rows.data.copy_within((end - 1) * rows.width..end * rows.width, i * rows.width);
        }
        rows.data.truncate(self.contexts.len() * rows.width);
    }

    /// Puts the contexts' own activations in their place.
    pub(crate) fn replace(&self, point: HookPoint, rows: &mut Rows) {
        if point.layer != self.layer {
            return;
        }
        let width = rows.width;
        let narrowed = rows.data.len() < self.counts().sum::<usize>() * width;
        let mut first = 0;
        for context in &self.contexts {
            let n = if narrowed { 1 } else { context.stream.nrows() };
            if let Some((_, x)) = context.replaced.filter(|(site, _)| *site == point.site) {
                assert_eq!(x.dim(), (context.stream.nrows(), width), "activations put at {point}");
                let rows = rows.data[first * width..].chunks_exact_mut(width);
                for (row, x) in rows.zip(x.rows().into_iter().skip(x.nrows() - n)) {
                    row.iter_mut().zip(x).for_each(|(row, x)| *row = *x);
                }
            }
            first += n;
        }
    }

    /// What was kept of each context.
    fn pasts(self, width: usize) -> Vec<Past> {
        let mut pasts = vec![Past::default(); self.contexts.len()];
        let counts: Vec<usize> = self.counts().collect();
        for block in self.kept.unwrap_or_default() {
            let mut rows = &block[..];
            for (past, &n) in pasts.iter_mut().zip(&counts) {
                let (of_context, after) = rows.split_at(n * width);
                let array = Array2::from_shape_vec((n, width), of_context.to_vec());
                past.blocks.push(array.expect("a row for every position"));
                rows = after;
            }
        }
        pasts
    }
}

impl LanguageModel {
    /// [`monosem_hooks::HookedModel::resume`].
    pub(crate) fn resume_contexts(&self, layer: usize, contexts: &[Resumed<'_>], keep: bool) -> Resumption {
        let c = self.config();
        assert!(layer <= c.n_layers, "block {layer} is beyond the {} of the model", c.n_layers);
        let mut positions = Vec::new();
        let mut x = Rows { data: Vec::new(), width: c.d_model };
        for context in contexts {
            let (n, width) = context.stream.dim();
            let end = context.first + n;
            assert!(n > 0 && width == c.d_model, "a residual stream {:?}, d_model {}", (n, width), c.d_model);
            assert!(end <= c.max_context, "{end} positions do not fit in a context of {}", c.max_context);
            assert!(context.first == 0 || context.past.is_some(), "a context resumed at {} has no past", context.first);
            positions.extend(context.first..end);
            x.data.extend(context.stream.iter());
        }
        if contexts.is_empty() {
            return Resumption { logits: Array2::zeros((0, c.d_vocab)), pasts: Vec::new() };
        }
        let contexts: Vec<Resumed<'_>> = contexts.iter().map(Resumed::reborrow).collect();
        let (n_contexts, kept) = (contexts.len(), keep.then(Vec::new));
        let continued = Continued { contexts, layer, n_layers: c.n_layers, kept };
        if layer == c.n_layers {
            continued.keep_last(&mut x);
        }
        let mut hook = |_, _: ndarray::ArrayViewMut3<'_, f32>| ControlFlow::Continue(());
        let shape = Shape::of_rows(c, positions);
        let width = shape.heads.width();
        let mut pass = Pass { shape, hook: &mut hook, before: Before::Contexts(continued) };
        let ControlFlow::Continue(states) = self.states(layer, &mut x, &mut pass) else {
            unreachable!("nothing ends the pass")
        };
        let logits = Array2::from_shape_vec((n_contexts, c.d_vocab), self.unembed(&states.data));
        let logits = logits.expect("a logit for every context and every entry of the vocabulary");
        let Before::Contexts(continued) = pass.before else { unreachable!("the pass began with contexts") };
        Resumption { logits, pasts: if keep { continued.pasts(width) } else { Vec::new() } }
    }
}
