//! GPT-2 (<https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf>): LayerNorm before
//! attention and MLP, learned positions, biases everywhere.
//!
//! ```text
//! mid = x + W_o attention(W_qkv ln(x))
//! out = mid + W_out gelu(W_in ln(mid))
//! ```

use std::ops::ControlFlow;

use monosem_hooks::Site;

use crate::backward::parts::{attention_backward, hidden_units_backward, project_backward};
use crate::backward::walk::{Gradients, Kept, Walk};
use crate::linear::Linear;
use crate::model::Block;
use crate::norm::Norm;
use crate::parts::{add, hidden_units, project, queries_keys_values};
use crate::pass::{Buffers, Pass, Rows};
use crate::weights::Source;
use crate::{Activation, Config, LmError};

#[derive(Clone)]
pub(crate) struct Gpt2Block {
    attn_norm: Norm,
    qkv: Linear,
    attn_out: Linear,
    mlp_norm: Norm,
    mlp_in: Linear,
    mlp_out: Linear,
    activation: Activation,
}

impl Gpt2Block {
    /// Reads a block whose names begin with `prefix`. Weights are in the file as `[in, out]`.
    pub(crate) fn read(source: &dyn Source, prefix: &str, layer: usize, c: &Config) -> Result<Self, LmError> {
        let at = |part: &str| format!("{prefix}h.{layer}.{part}");
        Ok(Self {
            attn_norm: Norm::read_layer_norm(source, &at("ln_1"), c)?,
            qkv: Linear::read_transposed(source, &at("attn.c_attn"), c.d_model, 3 * c.d_model)?,
            attn_out: Linear::read_transposed(source, &at("attn.c_proj"), c.d_model, c.d_model)?,
            mlp_norm: Norm::read_layer_norm(source, &at("ln_2"), c)?,
            mlp_in: Linear::read_transposed(source, &at("mlp.c_fc"), c.d_model, c.d_mlp)?,
            mlp_out: Linear::read_transposed(source, &at("mlp.c_proj"), c.d_mlp, c.d_model)?,
            activation: c.activation,
        })
    }
}

impl Block for Gpt2Block {
    fn run(&self, layer: usize, x: &mut Rows, b: &mut Buffers, pass: &mut Pass<'_>) -> ControlFlow<()> {
        let plan = pass.shape.plan;
        pass.visit(layer, Site::ResidPre, x)?;
        queries_keys_values(x, &self.attn_norm, &self.qkv, &mut b.normed, &mut b.qkv, &pass.shape);
        pass.attend(layer, &b.qkv, &mut b.z);
        pass.narrow(layer, x, b);
        pass.visit(layer, Site::AttnZ, &mut b.z)?;
        project(&b.z, &self.attn_out, &mut b.attn_out, plan);
        pass.visit(layer, Site::AttnOut, &mut b.attn_out)?;
        add(x, &b.attn_out);
        pass.visit(layer, Site::ResidMid, x)?;
        hidden_units(x, &self.mlp_norm, &self.mlp_in, self.activation, &mut b.normed, &mut b.post, plan);
        pass.visit(layer, Site::MlpPost, &mut b.post)?;
        project(&b.post, &self.mlp_out, &mut b.mlp_out, plan);
        pass.visit(layer, Site::MlpOut, &mut b.mlp_out)?;
        add(x, &b.mlp_out);
        pass.visit(layer, Site::ResidPost, x)
    }

    fn backward(
        &self,
        layer: usize,
        kept: &Kept,
        dx: &mut Rows,
        b: &mut Gradients,
        walk: &mut Walk<'_>,
    ) -> ControlFlow<()> {
        let plan = walk.shape.plan;
        walk.visit(layer, Site::ResidPost, dx)?;
        walk.visit(layer, Site::MlpOut, dx)?;
        project_backward(dx, &self.mlp_out, &mut b.post, plan);
        walk.visit(layer, Site::MlpPost, &b.post)?;
        hidden_units_backward((kept, &self.mlp_norm), &self.mlp_in, self.activation, b, dx, plan);
        walk.visit(layer, Site::ResidMid, dx)?;
        walk.visit(layer, Site::AttnOut, dx)?;
        project_backward(dx, &self.attn_out, &mut b.z, plan);
        walk.visit(layer, Site::AttnZ, &b.z)?;
        attention_backward((kept, &self.attn_norm), &self.qkv, b, dx, &walk.shape);
        walk.visit(layer, Site::ResidPre, dx)
    }

    fn writers(&mut self) -> [&mut Linear; 2] {
        [&mut self.attn_out, &mut self.mlp_out]
    }

    fn readers(&mut self) -> [&mut Linear; 2] {
        [&mut self.qkv, &mut self.mlp_in]
    }
}
