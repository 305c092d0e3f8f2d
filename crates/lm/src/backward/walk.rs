//! What a backward pass carries from block to block.

use std::ops::ControlFlow;

use monosem_hooks::{GradientHook, HookPoint, Site};
use ndarray::{ArrayView3, ArrayViewMut3};

use crate::Config;
use crate::attention::Heads;
use crate::pass::{Rows, Shape};

/// What is kept of a block on the way forward; everything else in it is computed again on the way back.
pub(crate) struct Kept {
    /// The stream that enters the block.
    pub(crate) resid_pre: Rows,
    /// The stream between attention and MLP, where there is one.
    resid_mid: Option<Rows>,
}

impl Kept {
    /// The stream that the MLP reads.
    pub(crate) fn read_by_mlp(&self) -> &Rows {
        self.resid_mid.as_ref().unwrap_or(&self.resid_pre)
    }

    /// Keeps what a forward pass shows at a hook point, if it is to be kept.
    pub(crate) fn note(kept: &mut Vec<Self>, site: Site, activations: &ArrayViewMut3<'_, f32>) {
        let copy = || Rows { data: activations.iter().copied().collect(), width: activations.dim().2 };
        match site {
            Site::ResidPre => kept.push(Self { resid_pre: copy(), resid_mid: None }),
            Site::ResidMid => kept.last_mut().expect("a block begins with its entry").resid_mid = Some(copy()),
            Site::AttnZ | Site::AttnOut | Site::MlpPost | Site::MlpOut | Site::ResidPost => {}
        }
    }
}

/// One walk back.
pub(crate) struct Walk<'a> {
    pub(crate) shape: Shape,
    pub(crate) hook: &'a mut GradientHook<'a>,
}

impl Walk<'_> {
    /// Shows the gradient at a hook point to the hook.
    pub(crate) fn visit(&mut self, layer: usize, site: Site, gradient: &Rows) -> ControlFlow<()> {
        let shape = (self.shape.batch, self.shape.positions, gradient.width);
        let view = ArrayView3::from_shape(shape, &gradient.data).expect("a buffer has a row for every token");
        (self.hook)(HookPoint::new(layer, site), view)
    }
}

/// The intermediate results of a block, reused by every block of a walk.
pub(crate) struct Gradients {
    /// The normalised residual stream, then its gradient.
    pub(crate) normed: Rows,
    /// Queries, keys and values.
    pub(crate) qkv: Rows,
    /// Their gradient.
    pub(crate) dqkv: Rows,
    /// The gradient of the heads' mixed values.
    pub(crate) z: Rows,
    /// The MLP's hidden units before the non-linearity (gate and up projections, where there is a gate), then their gradient.
    pub(crate) pre: Rows,
    /// The gradient of the MLP's hidden units.
    pub(crate) post: Rows,
}

impl Gradients {
    pub(crate) fn new(config: &Config, rows: usize, gated: bool) -> Self {
        let width = Heads::new(config).width();
        Self {
            normed: Rows::new(rows, config.d_model),
            qkv: Rows::new(rows, width),
            dqkv: Rows::new(rows, width),
            z: Rows::new(rows, config.d_query()),
            pre: Rows::new(rows, if gated { 2 * config.d_mlp } else { config.d_mlp }),
            post: Rows::new(rows, config.d_mlp),
        }
    }
}
