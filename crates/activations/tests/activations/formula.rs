//! A model whose activations are a formula, so that every stored value is known.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use monosem_activations::SourceInfo;
use monosem_hooks::{Hook, HookPoint, HookedModel, Site};
use ndarray::{Array2, Array3, ArrayView2};

pub(crate) const WIDTH: usize = 6;
pub(crate) const VOCABULARY: u32 = 1000;

/// Visits `ResidPre`, `MlpPost` (twice as wide) and `ResidPost` of each of three blocks.
#[derive(Default)]
pub(crate) struct Formula {
    /// A value to put at (layer, token id), dimension 2, of `ResidPost`.
    pub(crate) poison: Option<(usize, u32, f32)>,
    /// Hook points visited so far.
    pub(crate) visits: AtomicUsize,
    /// Forward passes so far.
    pub(crate) passes: AtomicUsize,
}

/// What the model has at a hook point for a token.
pub(crate) fn value(point: HookPoint, token: u32, position: usize, dimension: usize) -> f32 {
    let site = point.site as usize as f32;
    (token as f32 * 0.37 + position as f32 * 1.3 + dimension as f32 * 0.11 + point.layer as f32 + site).sin() * 3.0
}

impl HookedModel for Formula {
    fn n_layers(&self) -> usize {
        3
    }

    fn d_vocab(&self) -> usize {
        VOCABULARY as usize
    }

    fn max_context(&self) -> usize {
        64
    }

    fn width(&self, site: Site) -> Option<usize> {
        match site {
            Site::ResidPre | Site::ResidPost => Some(WIDTH),
            Site::MlpPost => Some(2 * WIDTH),
            // Announced, but never visited.
            Site::MlpOut => Some(WIDTH),
            _ => None,
        }
    }

    fn forward(&self, tokens: ArrayView2<'_, u32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        let (batch, length) = tokens.dim();
        for layer in 0..self.n_layers() {
            for site in [Site::ResidPre, Site::MlpPost, Site::ResidPost] {
                self.visits.fetch_add(1, Ordering::Relaxed);
                let point = HookPoint::new(layer, site);
                let width = self.width(site).unwrap();
                let mut acts =
                    Array3::from_shape_fn((batch, length, width), |(b, p, d)| value(point, tokens[[b, p]], p, d));
                if let Some((at, token, poison)) = self.poison
                    && site == Site::ResidPost
                    && at == layer
                {
                    for (index, _) in tokens.indexed_iter().filter(|(_, id)| **id == token) {
                        acts[[index.0, index.1, 2]] = poison;
                    }
                }
                hook(point, acts.view_mut())?;
            }
        }
        ControlFlow::Continue(Array3::zeros((batch, length, self.d_vocab())))
    }

    fn forward_from(&self, _: usize, _: Array3<f32>, _: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>> {
        ControlFlow::Break(())
    }
}

pub(crate) fn point(name: &str) -> HookPoint {
    name.parse().unwrap()
}

/// Token ids and documents, `[contexts, length]`, each token id unique below the vocabulary.
pub(crate) fn tokens(contexts: usize, length: usize) -> (Array2<u32>, Array2<u32>) {
    let ids = Array2::from_shape_fn((contexts, length), |(c, p)| ((c * length + p) as u32 * 7) % VOCABULARY);
    let documents = Array2::from_shape_fn((contexts, length), |(c, p)| ((c * length + p) / 11) as u32);
    (ids, documents)
}

pub(crate) fn source() -> SourceInfo {
    SourceInfo {
        model: "formula".to_owned(),
        weights_hash: "w".to_owned(),
        tokenizer_hash: "t".to_owned(),
        text: "counting".to_owned(),
    }
}

pub(crate) fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}
