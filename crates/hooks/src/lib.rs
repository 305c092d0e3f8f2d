//! The seam between a language model and whatever reads or edits it.
//!
//! A [`HookPoint`] names a place in a transformer: a layer and a [`Site`] within it. A [`HookedModel`] calls one closure at every
//! hook point it passes, with a mutable view of the activations there; the closure reads them, edits them, or ends the pass. Nothing
//! is registered and nothing is global: the closure is an argument of the call, so it ends with it.
//!
//! ```
//! use std::ops::ControlFlow;
//! use monosem_hooks::{HookPoint, HookedModel};
//! use ndarray::{Array2, ArrayView2};
//!
//! /// The residual stream at one hook point, `[batch x position, width]`; layers above it are never computed.
//! fn read(model: &dyn HookedModel, at: HookPoint, tokens: ArrayView2<u32>) -> Option<Array2<f32>> {
//!     let mut found = None;
//!     let _ = model.forward(tokens, &mut |point, activations| {
//!         if point != at {
//!             return ControlFlow::Continue(());
//!         }
//!         let (batch, position, width) = activations.dim();
//!         found = activations.to_owned().into_shape_with_order((batch * position, width)).ok();
//!         ControlFlow::Break(())
//!     });
//!     found
//! }
//! # let _ = read;
//! assert_eq!("blocks.3.hook_resid_post".parse::<HookPoint>().unwrap().layer, 3);
//! ```

mod gradient;
mod resume;

use std::fmt;
use std::ops::ControlFlow;
use std::str::FromStr;

use ndarray::{Array3, ArrayView2, ArrayViewMut3};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use gradient::{Cotangent, DifferentiableModel, GradientHook, Readout};
pub use resume::{Past, Resumed, Resumption};

/// A place inside one transformer block. The order of the variants is the order in which a pass of a sequential block visits them.
///
/// A block with a parallel residual (GPT-NeoX) has no residual stream between attention and MLP; it visits no [`Site::ResidMid`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The residual stream that enters the block, `d_model` wide.
    ResidPre,
    /// The attention heads' mixed values before the output projection, heads concatenated, `n_heads * head_dim` wide.
    AttnZ,
    /// What attention adds to the residual stream, `d_model` wide.
    AttnOut,
    /// The residual stream between attention and MLP, `d_model` wide.
    ResidMid,
    /// The MLP's hidden units after the non-linearity (and the gate, where there is one), `d_mlp` wide.
    MlpPost,
    /// What the MLP adds to the residual stream, `d_model` wide.
    MlpOut,
    /// The residual stream that leaves the block, `d_model` wide.
    ResidPost,
}

impl Site {
    /// Every site, in the order in which a pass visits them.
    pub const ALL: [Self; 7] =
        [Self::ResidPre, Self::AttnZ, Self::AttnOut, Self::ResidMid, Self::MlpPost, Self::MlpOut, Self::ResidPost];

    /// The name after `blocks.L.`, as TransformerLens writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ResidPre => "hook_resid_pre",
            Self::AttnZ => "attn.hook_z",
            Self::AttnOut => "hook_attn_out",
            Self::ResidMid => "hook_resid_mid",
            Self::MlpPost => "mlp.hook_post",
            Self::MlpOut => "hook_mlp_out",
            Self::ResidPost => "hook_resid_post",
        }
    }
}

/// A layer and a site in it. Prints and parses as TransformerLens names it: `blocks.3.hook_resid_post`.
///
/// The order is the order in which a forward pass reaches the points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookPoint {
    /// Index of the block, from 0.
    pub layer: usize,
    /// The place inside the block.
    pub site: Site,
}

impl HookPoint {
    /// The hook point of `site` in block `layer`.
    #[must_use]
    pub fn new(layer: usize, site: Site) -> Self {
        Self { layer, site }
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks.{}.{}", self.layer, self.site.name())
    }
}

/// A string that names no hook point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a hook point: expected blocks.LAYER.SITE with SITE one of {}", site_names())]
pub struct ParseHookPointError {
    given: String,
}

fn site_names() -> String {
    Site::ALL.map(Site::name).join(", ")
}

impl FromStr for HookPoint {
    type Err = ParseHookPointError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (layer, site) = given.strip_prefix("blocks.")?.split_once('.')?;
            // `usize::from_str` takes "+3" and "03", which would print differently from what was read.
            let canonical = layer == "0" || (!layer.starts_with('0') && layer.bytes().all(|b| b.is_ascii_digit()));
            let layer = canonical.then(|| layer.parse().ok()).flatten()?;
            let site = Site::ALL.into_iter().find(|s| s.name() == site)?;
            Some(Self { layer, site })
        };
        parse().ok_or_else(|| ParseHookPointError { given: given.to_owned() })
    }
}

impl Serialize for HookPoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HookPoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a pass calls at each hook point: the point, and a mutable view `[batch, position, width]` of the activations there.
///
/// Returning [`ControlFlow::Break`] ends the pass at once; nothing above that point is computed.
pub type Hook<'a> = dyn FnMut(HookPoint, ArrayViewMut3<'_, f32>) -> ControlFlow<()> + 'a;

/// A causal language model whose forward pass can be read and edited at every hook point.
///
/// Batches are right-padded: attention is causal, so a padding token of any id never reaches the positions before it. The results at
/// padded positions mean nothing.
pub trait HookedModel: Send + Sync {
    /// Number of blocks.
    fn n_layers(&self) -> usize;

    /// Number of tokens in the vocabulary: the last dimension of the logits.
    fn d_vocab(&self) -> usize;

    /// Longest context the model takes, in tokens.
    fn max_context(&self) -> usize;

    /// Width of the activations at a site; `None` where this architecture has no such site.
    fn width(&self, site: Site) -> Option<usize>;

    /// Runs `tokens` `[batch, position]` through the model and returns the logits `[batch, position, d_vocab]`, unless the hook ended
    /// the pass.
    ///
    /// # Panics
    /// If a token is not below [`Self::d_vocab`] or a context is longer than [`Self::max_context`].
    fn forward(&self, tokens: ArrayView2<'_, u32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>>;

    /// Continues from the residual stream `resid` `[batch, position, d_model]` that enters block `layer`; the first hook point visited
    /// is that block's [`Site::ResidPre`]. With `layer == n_layers()` only the final normalisation and the unembedding are left.
    ///
    /// # Panics
    /// If `layer > n_layers()` or the last dimension of `resid` is not `d_model`.
    fn forward_from(&self, layer: usize, resid: Array3<f32>, hook: &mut Hook<'_>) -> ControlFlow<(), Array3<f32>>;

    /// Runs contexts of any lengths from block `layer` on, each from a position of its own on, and returns the logits at their last positions.
    /// With `keep` the result holds what later passes over the same contexts from the same block on need of these positions.
    ///
    /// Attention is causal, so this gives what [`Self::forward_from`] gives for whole contexts, up to the rounding of sums in another order. A
    /// model that does not implement it keeps the residual stream and runs whole contexts.
    ///
    /// # Panics
    /// If `layer > n_layers()`, a context has no position to run or more than [`Self::max_context`], or arrays do not fit the model or each
    /// other.
    fn resume(&self, layer: usize, contexts: &[Resumed<'_>], keep: bool) -> Resumption {
        resume::by_whole_contexts(self, layer, contexts, keep)
    }

    /// Width of the residual stream.
    ///
    /// # Panics
    /// Never for a model that has a residual stream, which every implementor does.
    fn d_model(&self) -> usize {
        self.width(Site::ResidPost).expect("every model has a residual stream")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_hook_point_prints_and_parses(layer in 0usize..10_000, site in 0usize..Site::ALL.len()) {
            let point = HookPoint::new(layer, Site::ALL[site]);
            prop_assert_eq!(point.to_string().parse::<HookPoint>(), Ok(point));
        }

        #[test]
        fn what_parses_prints_the_same(text in "blocks\\.[+0-9]{0,3}\\.(hook_resid_pre|attn\\.hook_z|mlp\\.hook_post|hook_q)") {
            if let Ok(point) = text.parse::<HookPoint>() {
                prop_assert_eq!(point.to_string(), text);
            }
        }
    }

    #[test]
    fn a_wrong_name_lists_the_sites() {
        let error = "blocks.1.hook_q".parse::<HookPoint>().unwrap_err().to_string();
        assert!(Site::ALL.iter().all(|s| error.contains(s.name())), "{error}");
    }

    #[test]
    fn points_are_ordered_as_a_pass_visits_them() {
        let names =
            ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"];
        let points: Vec<HookPoint> = names.iter().map(|n| n.parse().unwrap()).collect();
        assert!(points.is_sorted());
    }
}
