# pip install torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
"""Trains the toy model and writes tokenizer.json, tokenizer_config.json, config.json, model.safetensors, golden.safetensors and train.log here.

    cargo run -p monosem-corpus --example toy_text -- train.jsonl 60000 1
    cargo run -p monosem-corpus --example toy_text -- valid.jsonl 500 2
    python train.py train.jsonl valid.jsonl
"""
import argparse
import json
import math
import random
import re
import time
import tomllib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
SPLIT = r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]"
END, UNKNOWN = "<|endoftext|>", "<unk>"
CONTEXT, BATCH = 128, 16
FAMILIAR = ["Mary", "Anna", "Emma", "Lucy", "Sarah", "Alice", "John", "Tom", "James", "Peter", "Paul", "David"]


def texts(path):
    with open(path) as lines:
        return [json.loads(line)["text"] for line in lines]


def write_tokenizer(documents):
    """A token is a word or a mark with the space before it: the ids in the order of the characters, after the two special ones."""
    pieces = sorted({piece for text in documents for piece in re.findall(SPLIT, text)})
    ids = {piece: i for i, piece in enumerate([END, UNKNOWN, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken(UNKNOWN, special=True)])
    tokenizer.save(str(HERE / "tokenizer.json"))
    specials = {"eos_token": END, "bos_token": END, "unk_token": UNKNOWN, "tokenizer_class": "PreTrainedTokenizerFast"}
    (HERE / "tokenizer_config.json").write_text(json.dumps(specials, indent=2) + "\n")
    return ids


def encode(ids, text):
    return [ids[piece] for piece in re.findall(SPLIT, text)]


def stream(ids, documents):
    """All documents, each after an end-of-text token, and where each sentence begins."""
    tokens = [ids[END]]
    for text in documents:
        tokens += [*encode(ids, text), ids[END]]
    tokens = torch.tensor(tokens)
    ends = torch.nonzero(tokens == ids[END]).squeeze(1)
    return tokens, ends[ends < len(tokens) - CONTEXT - 1]


def batch(tokens, ends, generator):
    """A quarter of the rows begin with end-of-text, a quarter with a document's first word, the others anywhere."""
    anywhere = torch.randint(0, len(tokens) - CONTEXT, (BATCH // 2,), generator=generator)
    documents = ends[torch.randint(0, len(ends), (BATCH - BATCH // 2,), generator=generator)]
    documents[BATCH // 4 :] += 1
    return tokens[torch.cat([anywhere, documents]).unsqueeze(1) + torch.arange(CONTEXT)]


def prompts(count, names=None, seed=0):
    """Filled templates of data/ioi/toy.toml: the prompt, the receiver and the giver. Its own names are all held out."""
    task = tomllib.loads((HERE.parent / "ioi" / "toy.toml").read_text())
    draw = random.Random(seed)
    for _ in range(count):
        receiver, giver = draw.sample(names or task["names"], 2)
        template = draw.choice(task["templates"])["text"]
        slots = {"IO": receiver, "S": giver, "PLACE": draw.choice(task["places"]), "OBJECT": draw.choice(task["objects"])}
        yield re.sub(r"\[(\w+)\]", lambda slot: slots[slot[1]], template), receiver, giver


@torch.no_grad()
def ioi_accuracy(model, ids, count, first, names=None):
    """The share of prompts where the receiver's logit is above the giver's, and where it is above all others. `first` goes before each prompt."""
    model.eval()
    asked = [(first + encode(ids, text), ids[" " + receiver], ids[" " + giver]) for text, receiver, giver in prompts(count, names)]
    longest = max(len(prompt) for prompt, _, _ in asked)
    # What is on the right of a prompt does not reach it.
    rows = torch.tensor([prompt + [ids[END]] * (longest - len(prompt)) for prompt, _, _ in asked])
    last = torch.tensor([len(prompt) - 1 for prompt, _, _ in asked])
    each = torch.arange(count)
    logits = model(rows).logits[each, last]
    receivers = torch.tensor([receiver for _, receiver, _ in asked])
    givers = torch.tensor([giver for _, _, giver in asked])
    above_giver = (logits[each, receivers] > logits[each, givers]).float().mean().item()
    above_all = (logits.argmax(1) == receivers).float().mean().item()
    model.train()
    return above_giver, above_all


@torch.no_grad()
def mean_loss(model, tokens):
    """Cross-entropy in nats per token over whole contexts."""
    model.eval()
    rows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    loss = sum(model(part, labels=part).loss.item() * len(part) for part in rows.split(BATCH)) / len(rows)
    model.train()
    return loss


def golden(model, ids, tokens):
    """Logits of the stored half-precision weights, computed in single precision."""
    text, _, _ = next(prompts(1))
    length = 20
    prompt = encode(ids, text)
    rows = [([ids[END]] + prompt + prompt)[:length], tokens[: length].tolist(), tokens[1000 : 1000 + length].tolist()]
    rows = torch.tensor(rows)
    with torch.no_grad():
        logits = model.eval()(rows).logits
    save_file({"input_ids": rows, "logits": logits.float().contiguous()}, HERE / "golden.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    log = open(HERE / "train.log", "w")

    def say(line):
        print(line, flush=True)
        print(line, file=log, flush=True)

    documents = texts(options.train)
    ids = write_tokenizer(documents)
    tokens, ends = stream(ids, documents)
    held_out, _ = stream(ids, texts(options.valid))
    config = LlamaConfig(
        vocab_size=len(ids), hidden_size=options.width, intermediate_size=4 * options.width, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CONTEXT, hidden_act="silu", rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, attention_bias=False, use_cache=False,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    size = sum(p.numel() for p in model.parameters())
    say(f"{len(documents)} documents, {len(tokens)} tokens, {len(ids)} in the vocabulary, {size} parameters")
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
    began, recent = time.time(), []
    for step in range(1, options.steps + 1):
        progress = step / options.steps
        rate = options.lr * min(step / 100, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = batch(tokens, ends, generator)
        logits = model(rows).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, len(ids)), rows[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if step % 100 == 0:
            held, _ = ioi_accuracy(model, ids, 200, [ids[END]])
            familiar, _ = ioi_accuracy(model, ids, 200, [ids[END]], FAMILIAR)
            say(f"step {step:5}  loss {np.mean(recent):.4f}  ioi {held:.3f}  with familiar names {familiar:.3f}")
            recent = []
    say(f"trained in {time.time() - began:.0f} s on {options.threads} thread(s)")
    model.half().save_pretrained(HERE)
    model = LlamaForCausalLM.from_pretrained(HERE, dtype=torch.float32)
    say(f"loss on {len(held_out)} held-out tokens: {mean_loss(model, held_out):.4f}")
    for which, names in (("held-out", None), ("familiar", FAMILIAR)):
        for start, first in (("with", [ids[END]]), ("without", [])):
            accuracy, top = ioi_accuracy(model, ids, 1000, first, names)
            say(f"ioi on 1000 prompts with {which} names, {start} end-of-text before them: {accuracy:.3f}, top-1 {top:.3f}")
    golden(model, ids, held_out)
    (HERE / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
