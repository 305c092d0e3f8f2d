# pip install -r requirements-transformers.txt   (torch 2.15.0, transformers 5.23.0, gguf 0.19.0)
"""Tokens per second of Hugging Face transformers through the first layers of SmolLM2-135M: the same weights, batch and threads as the case
`smollm2-135m 8x128 18 layers` of `cargo bench --bench lm_throughput`. Prints one JSON line.

usage: transformers_throughput.py FILE.gguf [--batch 8] [--positions 128] [--layers 18] [--threads 2] [--rounds 9]
"""
import argparse
import json
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file")
for name, default in [("batch", 8), ("positions", 128), ("layers", 18), ("threads", 2), ("rounds", 9)]:
    parser.add_argument(f"--{name}", type=int, default=default)
args = parser.parse_args()

import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(args.threads)
folder, name = os.path.split(os.path.abspath(args.file))
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
config = model.config
body = model.model
body.layers = body.layers[: args.layers]
ids = torch.tensor(
    [[(i * 7919 + j * 104729) % config.vocab_size for j in range(args.positions)] for i in range(args.batch)]
)
d, mlp = config.hidden_size, config.intermediate_size
head = getattr(config, "head_dim", None) or d // config.num_attention_heads
query, key = config.num_attention_heads * head, config.num_key_value_heads * head
flop = 2 * ids.numel() * args.layers * (d * (query + 2 * key) + query * d + 3 * d * mlp)
times = []
with torch.inference_mode():
    body(ids, use_cache=False)
    for _ in range(args.rounds):
        start = time.perf_counter()
        body(ids, use_cache=False)
        times.append(time.perf_counter() - start)
seconds = statistics.median(times)
print(json.dumps({
    "bench": "lm_throughput",
    "case": f"transformers smollm2-135m {args.batch}x{args.positions} {args.layers} layers",
    "tokens_per_s": ids.numel() / seconds,
    "gflops": flop / seconds / 1e9,
    "threads": args.threads,
}))
