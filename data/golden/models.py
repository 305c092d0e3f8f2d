# pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
"""Writes neox-tiny/, gpt2-tiny/ and llama-tiny/: random checkpoints in Hugging Face layout, each with golden.safetensors (input_ids, logits,
hidden_k and attn_k as transformers computes them; the last hidden_k is after the final norm). Run it in this folder."""
import torch,json,os,numpy as np
torch.manual_seed(0); torch.set_num_threads(1); torch.use_deterministic_algorithms(True)
from transformers import GPTNeoXConfig,GPTNeoXForCausalLM,GPT2Config,GPT2LMHeadModel,LlamaConfig,LlamaForCausalLM
from safetensors.torch import save_file
V=97
cfgs={
 'neox-tiny':(GPTNeoXForCausalLM,GPTNeoXConfig(vocab_size=V,hidden_size=64,num_hidden_layers=2,num_attention_heads=2,intermediate_size=256,max_position_embeddings=64,rotary_pct=0.25,rotary_emb_base=10000,hidden_act='gelu',layer_norm_eps=1e-5,use_parallel_residual=True,tie_word_embeddings=False,bos_token_id=0,eos_token_id=0)),
 'gpt2-tiny':(GPT2LMHeadModel,GPT2Config(vocab_size=V,n_embd=32,n_layer=2,n_head=4,n_positions=64,activation_function='gelu_new',layer_norm_epsilon=1e-5,bos_token_id=0,eos_token_id=0)),
 'llama-tiny':(LlamaForCausalLM,LlamaConfig(vocab_size=V,hidden_size=48,num_hidden_layers=2,num_attention_heads=6,num_key_value_heads=2,intermediate_size=96,max_position_embeddings=64,rope_theta=100000.0,rms_norm_eps=1e-5,hidden_act='silu',tie_word_embeddings=True,bos_token_id=1,eos_token_id=2)),
}
for nm,(cls,cfg) in cfgs.items():
    torch.manual_seed(1234); m=cls(cfg).float().eval()
    g=torch.Generator().manual_seed(7)
    with torch.no_grad():
        for n,p in m.named_parameters():      # non-trivial LayerNorm gains/biases, larger weights so every term matters
            if p.ndim==1: p.copy_((1.0 if n.endswith('weight') else 0.0)+0.3*torch.randn(p.shape,generator=g))
            else: p.copy_(0.2*torch.randn(p.shape,generator=g))
    os.makedirs(nm,exist_ok=True); m.save_pretrained(nm)
    ids=torch.randint(0,V,(2,17),generator=g)
    m.set_attn_implementation('eager')
    with torch.no_grad(): o=m(ids,output_hidden_states=True,output_attentions=True,use_cache=False)
    d={'input_ids':ids.to(torch.int64),'logits':o.logits.contiguous()}
    for i,h in enumerate(o.hidden_states): d[f'hidden_{i}']=h.contiguous()   # last one is AFTER the final norm
    for i,a in enumerate(o.attentions): d[f'attn_{i}']=a.contiguous()
    save_file(d,f'{nm}/golden.safetensors')
    print(nm,os.listdir(nm),sum(p.numel() for p in m.parameters()))
    from safetensors import safe_open
    with safe_open(f'{nm}/model.safetensors','pt') as f:
        print(f.metadata()); 
        for k in f.keys():
            if '.1.' not in k: print('   ',k,list(f.get_slice(k).get_shape()),f.get_slice(k).get_dtype())
    print(open(f'{nm}/config.json').read() if nm!='gpt2-tiny' else '')
