//! A text that is read piece by piece: what was read is not computed again.

use std::ops::ControlFlow;

use monosem_hooks::HookedModel as _;
use ndarray::{Array2, ArrayView2};

use crate::LanguageModel;
use crate::pass::{Before, Pass, Shape};

/// A text that a model has read so far, with the keys and values of its tokens.
///
/// Reading a text in pieces gives the logits of reading it at once, up to the rounding of sums in another order. A session can be cloned, to go on in several
/// ways from one beginning, and cut back to a shorter beginning.
#[derive(Clone)]
pub struct Session<'m> {
    model: &'m LanguageModel,
    tokens: Vec<u32>,
    /// Queries, keys and values of every token, by block.
    past: Vec<Vec<f32>>,
}

impl LanguageModel {
    /// A session that has read nothing yet.
    #[must_use]
    pub fn session(&self) -> Session<'_> {
        Session { model: self, tokens: Vec::new(), past: vec![Vec::new(); self.n_layers()] }
    }
}

impl<'m> Session<'m> {
    /// The model that reads.
    #[must_use]
    pub fn model(&self) -> &'m LanguageModel {
        self.model
    }

    /// What was read.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all but the first `n` tokens.
    pub fn truncate(&mut self, n: usize) {
        if let Some(width) = self.past.first().and_then(|past| past.len().checked_div(self.tokens.len())) {
            self.past.iter_mut().for_each(|past| past.truncate(n * width));
        }
        self.tokens.truncate(n);
    }

    /// Reads more tokens; the states `[tokens, d_model]` behind them, normalised, which [`Self::logits`] takes.
    ///
    /// # Panics
    /// If the text grows beyond the model's context, or a token is not in the vocabulary.
    pub fn read(&mut self, tokens: &[u32]) -> Array2<f32> {
        let (config, first, n) = (self.model.config(), self.tokens.len(), tokens.len());
        let (end, most) = (first + n, config.max_context);
        assert!(end <= most, "{end} positions do not fit in a context of {most}");
        if n == 0 {
            return Array2::zeros((0, config.d_model));
        }
        let row = ArrayView2::from_shape((1, n), tokens).expect("a row of tokens");
        let mut x = self.model.embed(row, first);
        let mut hook = |_, _: ndarray::ArrayViewMut3<'_, f32>| ControlFlow::Continue(());
        let before = Before::Text(&mut self.past);
        let mut pass = Pass { shape: Shape::new(config, 1, n, first), hook: &mut hook, before };
        let ControlFlow::Continue(states) = self.model.states(0, &mut x, &mut pass) else {
            unreachable!("the hook never stops the pass")
        };
        self.tokens.extend_from_slice(tokens);
        Array2::from_shape_vec((n, config.d_model), states.data).expect("a state for every token")
    }

    /// Logits `[rows, d_vocab]` of some of the states.
    ///
    /// # Panics
    /// If the states are not `d_model` wide.
    #[must_use]
    pub fn logits(&self, states: ArrayView2<'_, f32>) -> Array2<f32> {
        let config = self.model.config();
        let (rows, width) = states.dim();
        assert_eq!(width, config.d_model, "states {:?} are not d_model {} wide", states.dim(), config.d_model);
        if rows == 0 {
            return Array2::zeros((0, config.d_vocab));
        }
        let logits = self.model.unembed(states.as_standard_layout().as_slice().expect("standard layout"));
        Array2::from_shape_vec((rows, config.d_vocab), logits).expect("a logit for every entry of the vocabulary")
    }
}
