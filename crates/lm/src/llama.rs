//! Llama (<https://arxiv.org/abs/2302.13971>): RMSNorm, rotary embeddings, grouped queries, a gated MLP.
//!
//! ```text
//! mid = x + W_o attention(turn(W_qkv rms(x)))
//! out = mid + W_down (silu(W_gate rms(mid)) * W_up rms(mid))
//! ```

use std::ops::ControlFlow;

use monosem_hooks::Site;

use crate::backward::parts::{attention_backward, gated_hidden_units_backward, project_backward};
use crate::backward::walk::{Gradients, Kept, Walk};
use crate::linear::Linear;
use crate::model::Block;
use crate::norm::Norm;
use crate::parts::{add, gated_hidden_units, project, queries_keys_values};
use crate::pass::{Buffers, Pass, Rows};
use crate::weights::Source;
use crate::{Activation, Config, LmError};

#[derive(Clone)]
pub(crate) struct LlamaBlock {
    attn_norm: Norm,
    qkv: Linear,
    attn_out: Linear,
    mlp_norm: Norm,
    gate_up: Linear,
    down: Linear,
    activation: Activation,
}

impl LlamaBlock {
    pub(crate) fn read(source: &dyn Source, layer: usize, c: &Config) -> Result<Self, LmError> {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let query = Linear::read(source, &at("self_attn.q_proj"), c.d_model, c.d_query(), c.qkv_bias)?;
        let key = Linear::read(source, &at("self_attn.k_proj"), c.d_model, c.d_key(), c.qkv_bias)?;
        let value = Linear::read(source, &at("self_attn.v_proj"), c.d_model, c.d_key(), c.qkv_bias)?;
        let gate = Linear::read(source, &at("mlp.gate_proj"), c.d_model, c.d_mlp, c.mlp_bias)?;
        let up = Linear::read(source, &at("mlp.up_proj"), c.d_model, c.d_mlp, c.mlp_bias)?;
        Ok(Self {
            attn_norm: Norm::read_rms(source, &at("input_layernorm"), c)?,
            qkv: Linear::stack([query, key, value]),
            attn_out: Linear::read(source, &at("self_attn.o_proj"), c.d_query(), c.d_model, c.attn_out_bias)?,
            mlp_norm: Norm::read_rms(source, &at("post_attention_layernorm"), c)?,
            gate_up: Linear::stack([gate, up]),
            down: Linear::read(source, &at("mlp.down_proj"), c.d_mlp, c.d_model, c.mlp_bias)?,
            activation: c.activation,
        })
    }
}

impl Block for LlamaBlock {
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
        let buffers = (&mut b.normed, &mut b.gate_up, &mut b.post);
        gated_hidden_units((x, &self.mlp_norm), &self.gate_up, self.activation, buffers, plan);
        pass.visit(layer, Site::MlpPost, &mut b.post)?;
        project(&b.post, &self.down, &mut b.mlp_out, plan);
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
        project_backward(dx, &self.down, &mut b.post, plan);
        walk.visit(layer, Site::MlpPost, &b.post)?;
        gated_hidden_units_backward((kept, &self.mlp_norm), &self.gate_up, self.activation, b, dx, plan);
        walk.visit(layer, Site::ResidMid, dx)?;
        walk.visit(layer, Site::AttnOut, dx)?;
        project_backward(dx, &self.attn_out, &mut b.z, plan);
        walk.visit(layer, Site::AttnZ, &b.z)?;
        attention_backward((kept, &self.attn_norm), &self.qkv, b, dx, &walk.shape);
        walk.visit(layer, Site::ResidPre, dx)
    }

    fn writers(&mut self) -> [&mut Linear; 2] {
        [&mut self.attn_out, &mut self.down]
    }

    fn readers(&mut self) -> [&mut Linear; 2] {
        [&mut self.qkv, &mut self.gate_up]
    }
}
