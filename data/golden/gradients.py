# pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
"""Writes gradients.safetensors beside each checkpoint of models.py: the gradients that autograd finds at every hook point. Run it in this folder.

The contexts are input_ids of golden.safetensors. The loss is the sum over contexts of KL(softmax(logits at position ends[i]) || target[i]); a file has ends,
target, loss, and a gradient [batch, position, width] under the name of each hook point. hook_resid_post is there for the last block only: elsewhere it is
hook_resid_pre of the next."""
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def points(name, m):
    """For each hook point the module whose input, or output, is the activation; then the module that reads the last stream."""
    if name == 'neox-tiny':
        blocks, norm = m.gpt_neox.layers, m.gpt_neox.final_layer_norm
        parts = lambda b: (b.attention.dense, None, b.mlp.dense_4h_to_h)
    elif name == 'gpt2-tiny':
        blocks, norm = m.transformer.h, m.transformer.ln_f
        parts = lambda b: (b.attn.c_proj, b.ln_2, b.mlp.c_proj)
    else:
        blocks, norm = m.model.layers, m.model.norm
        parts = lambda b: (b.self_attn.o_proj, b.post_attention_layernorm, b.mlp.down_proj)
    for layer, block in enumerate(blocks):
        attention, middle, mlp = parts(block)
        at = f'blocks.{layer}.'
        yield at + 'hook_resid_pre', block, 'input'
        yield at + 'attn.hook_z', attention, 'input'
        yield at + 'hook_attn_out', attention, 'output'
        if middle is not None:  # with a parallel residual there is no stream between attention and MLP
            yield at + 'hook_resid_mid', middle, 'input'
        yield at + 'mlp.hook_post', mlp, 'input'
        yield at + 'hook_mlp_out', mlp, 'output'
    yield at + 'hook_resid_post', norm, 'input'


for name in ['neox-tiny', 'gpt2-tiny', 'llama-tiny']:
    m = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation='eager').eval()
    ids = load_file(f'{name}/golden.safetensors')['input_ids']
    batch, positions = ids.shape
    g = torch.Generator().manual_seed(11)
    ends = torch.tensor([positions - 1, 10])
    # Far enough from the model for the gradient to be large, near enough for no term to drown the others.
    target = torch.softmax(torch.randn((batch, m.config.vocab_size), generator=g), -1)
    seen = {}

    def keep(point, tensor):
        tensor.retain_grad()
        seen[point] = tensor

    for point, module, side in points(name, m):
        if side == 'input':
            module.register_forward_pre_hook(
                lambda _, args, kwargs, point=point: keep(point, args[0] if args else kwargs['hidden_states']), with_kwargs=True)
        else:
            module.register_forward_hook(lambda _, args, out, point=point: keep(point, out))
    logits = m(ids, use_cache=False).logits[torch.arange(batch), ends]
    logp = torch.log_softmax(logits, -1)
    loss = (logp.exp() * (logp - target.log())).sum()
    loss.backward()
    d = {point: tensor.grad.reshape(batch, positions, -1).contiguous() for point, tensor in seen.items()}
    for point, grad in d.items():
        assert grad.abs().max() > 1e-4, point
        assert all(grad[i, end + 1:].abs().max() == 0 for i, end in enumerate(ends) if end + 1 < positions), point
        print(name, point, list(grad.shape), f'{grad.abs().max():.3g}')
    d.update(ends=ends, target=target, loss=loss.detach().reshape(1))
    save_file(d, f'{name}/gradients.safetensors')
    print(name, 'loss', loss.item())
