"""Writes delphi/: latent caches that delphi's own `LatentCache` wrote of a small random GPT-2 with random sparse encoders, and dense.safetensors, what the
encoders returned while it did, without the cache between. Needs eai-delphi 0.1.3, torch 2.15.0, transformers 5.23.0, numpy 2.4.6 (CPU);
`pip install --no-deps eai-delphi` and what `delphi.latents` imports will do, without vllm. eai-delphi 0.0.2 and 0.1.0 to 0.1.2 write the same bytes.

usage: delphi_cache.py [FOLDER]

- delphi/h.0, delphi/h.1: two hook points, 20 latents in 3 files, 8 contexts of 12 tokens; locations in uint16
- delphi/wide/h.0: 70,000 latents in one file, so that locations are in uint32
- delphi/no-tokens/h.0: as delphi/h.0, saved without tokens

The caches are read back with delphi's own `TensorBuffer` and compared with the dense arrays before the script is content.
"""

import sys
from pathlib import Path

import torch
from delphi.config import CacheConfig
from delphi.latents.cache import LatentCache
from delphi.latents.loader import TensorBuffer
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2Model

torch.manual_seed(0)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
ROWS, CTX, BATCH, D, N, WIDE = 8, 12, 4, 8, 20, 70_000
HOOKS = ["h.0", "h.1"]
# Of the wide encoder these latents are ever active.
ACTIVE = [0, 3, 65_535, 65_536, 69_999]

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "delphi"
model = GPT2Model(GPT2Config(vocab_size=50, n_positions=CTX, n_embd=D, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)).eval()
# Two more contexts than fill whole batches: delphi drops them.
tokens = torch.randint(0, 50, (ROWS + 2, CTX), generator=torch.Generator().manual_seed(1))
seen = {}


def encoder(name, n, keep, generator):
    w = 20 * torch.randn(D, n, generator=generator)

    def encode(x):
        pre = x @ w
        latents = torch.relu(torch.where(pre >= pre.topk(keep, dim=-1).values[..., -1:], pre, 0.0))
        # Latent 7 is never active; latent 1 sometimes so weakly that the cache leaves it out (below 1e-5) or that it is subnormal in float16.
        latents[..., 7] = 0
        latents[..., 1] *= torch.where(latents[..., 1] > 1, 4e-6, 3e-5)
        seen.setdefault(name, []).append(latents.clone())
        return latents

    return encode


def wide(generator):
    w = 20 * torch.randn(D, len(ACTIVE), generator=generator)

    def encode(x):
        latents = torch.zeros(*x.shape[:2], WIDE)
        latents[..., ACTIVE] = torch.relu(x @ w - 1)
        seen.setdefault("wide", []).append(latents[..., ACTIVE].clone())
        return latents

    return encode


def run(encoders, out, splits, save_tokens=True):
    config = CacheConfig(
        dataset_repo="none", dataset_split="train", batch_size=BATCH, cache_ctx_len=CTX, n_tokens=tokens.numel(), n_splits=splits
    )
    cache = LatentCache(model, encoders, batch_size=BATCH)
    cache.run(config.n_tokens, tokens)
    cache.save_splits(splits, out, save_tokens=save_tokens)
    cache.save_config(out, config, "random-gpt2")


def check(hook_folder, dense, numbers):
    """What delphi itself reads from the files is `dense` [rows, positions, latents]."""
    read = torch.zeros_like(dense)
    for path in sorted(hook_folder.glob("*.safetensors")):
        locations, activations, _ = TensorBuffer(str(path), "").load()
        for (row, position, latent), activation in zip(locations.tolist(), activations.tolist()):
            read[row, position, numbers.index(latent)] = activation
    assert torch.equal(read, dense), hook_folder


generator = torch.Generator().manual_seed(2)
run({hook: encoder(hook, N, 4, generator) for hook in HOOKS}, folder, 3)
run({"h.0": wide(generator)}, folder / "wide", 1)
dense = {"tokens": tokens[:ROWS]}
for name, batches in seen.items():
    latents = torch.cat(batches)
    dense[name] = torch.where(latents.abs() > 1e-5, latents, 0.0).half().float()
generator = torch.Generator().manual_seed(2)
run({"h.0": encoder("again", N, 4, generator)}, folder / "no-tokens", 3, save_tokens=False)

for hook in HOOKS:
    check(folder / hook, dense[hook], list(range(N)))
check(folder / "wide" / "h.0", dense["wide"], ACTIVE)
check(folder / "no-tokens" / "h.0", dense["h.0"], list(range(N)))
for name, latents in dense.items():
    print(name, tuple(latents.shape), "nonzero:", int((latents != 0).sum()))
weak = (torch.cat(seen["h.0"])[..., 1] > 0) & (dense["h.0"][..., 1] == 0)
print("left out by the cache:", int(weak.sum()), "kept below 6e-5:", int(((dense["h.0"] > 0) & (dense["h.0"] < 6e-5)).sum()))
save_file(dense, folder / "dense.safetensors")
