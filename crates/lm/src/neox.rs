//! GPT-NeoX (<https://arxiv.org/abs/2204.06745>), of which Pythia (<https://arxiv.org/abs/2304.01373>) is a suite: rotary embeddings on a part
//! of each head, and attention and MLP side by side on the same residual stream.
//!
//! ```text
//! out = x + W_o attention(turn(W_qkv ln1(x))) + W_out gelu(W_in ln2(x))
//! ```
//!
//! With `use_parallel_residual = false` the MLP reads the stream after attention, as in GPT-2.

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
pub(crate) struct NeoXBlock {
    attn_norm: Norm,
    qkv: Linear,
    attn_out: Linear,
    mlp_norm: Norm,
    mlp_in: Linear,
    mlp_out: Linear,
    activation: Activation,
    parallel: bool,
}

impl NeoXBlock {
    pub(crate) fn read(source: &dyn Source, layer: usize, c: &Config) -> Result<Self, LmError> {
        let at = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
        let qkv = Linear::read(source, &at("attention.query_key_value"), c.d_model, 3 * c.d_model, c.qkv_bias)?;
        // The file has query, key and value of head 0, then of head 1, ...; attention takes all queries, all keys, all values.
        let in_file = |i: usize| {
            let (kind, within) = (i / c.d_model, i % c.d_model);
            let (head, dim) = (within / c.head_dim, within % c.head_dim);
            (head * 3 + kind) * c.head_dim + dim
        };
        Ok(Self {
            attn_norm: Norm::read_layer_norm(source, &at("input_layernorm"), c)?,
            qkv: qkv.permute_outputs(in_file),
            attn_out: Linear::read(source, &at("attention.dense"), c.d_model, c.d_model, c.attn_out_bias)?,
            mlp_norm: Norm::read_layer_norm(source, &at("post_attention_layernorm"), c)?,
            mlp_in: Linear::read(source, &at("mlp.dense_h_to_4h"), c.d_model, c.d_mlp, c.mlp_bias)?,
            mlp_out: Linear::read(source, &at("mlp.dense_4h_to_h"), c.d_mlp, c.d_model, c.mlp_bias)?,
            activation: c.activation,
            parallel: c.parallel_residual,
        })
    }
}

impl Block for NeoXBlock {
    fn run(&self, layer: usize, x: &mut Rows, b: &mut Buffers, pass: &mut Pass<'_>) -> ControlFlow<()> {
        let plan = pass.shape.plan;
        pass.visit(layer, Site::ResidPre, x)?;
        queries_keys_values(x, &self.attn_norm, &self.qkv, &mut b.normed, &mut b.qkv, &pass.shape);
        pass.attend(layer, &b.qkv, &mut b.z);
        pass.narrow(layer, x, b);
        pass.visit(layer, Site::AttnZ, &mut b.z)?;
        project(&b.z, &self.attn_out, &mut b.attn_out, plan);
        pass.visit(layer, Site::AttnOut, &mut b.attn_out)?;
        if !self.parallel {
            add(x, &b.attn_out);
            pass.visit(layer, Site::ResidMid, x)?;
        }
        hidden_units(x, &self.mlp_norm, &self.mlp_in, self.activation, &mut b.normed, &mut b.post, plan);
        pass.visit(layer, Site::MlpPost, &mut b.post)?;
        project(&b.post, &self.mlp_out, &mut b.mlp_out, plan);
        pass.visit(layer, Site::MlpOut, &mut b.mlp_out)?;
        if self.parallel {
            add(x, &b.attn_out);
        }
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
        if !self.parallel {
            hidden_units_backward((kept, &self.mlp_norm), &self.mlp_in, self.activation, b, dx, plan);
            walk.visit(layer, Site::ResidMid, dx)?;
        }
        walk.visit(layer, Site::AttnOut, dx)?;
        project_backward(dx, &self.attn_out, &mut b.z, plan);
        walk.visit(layer, Site::AttnZ, &b.z)?;
        if self.parallel {
            // Not before here: what attention adds has the gradient of the stream that leaves the block.
            hidden_units_backward((kept, &self.mlp_norm), &self.mlp_in, self.activation, b, dx, plan);
        }
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
