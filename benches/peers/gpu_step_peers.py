# pip install torch==2.15.0 (with its triton)
"""Training steps on an NVIDIA GPU: `gpu_step` and PyTorch by turns in one run, and how far each is from the floor.

usage: gpu_step_peers.py --binary GPU_STEP [--steps 20] [--rounds 3] [--only d=512 ...]     a line of JSON per measurement, then one per case
       gpu_step_peers.py --check                                                          the Triton step's gradients against autograd's; on the CPU with TRITON_INTERPRET=1

The floor of a step is (operations / measured rate of the encoder's product) + (bytes that have to move / measured rate of a copy). Operations and bytes are those `gpu_step` states. The product
is torch.matmul of the same shape, in f32 for f32 and in bf16 for bf16; the copy is one of 1 GiB on the device.

Peers: `eager-tied` and `compiled-tied`, the tied autoencoder as one writes it in PyTorch (TF32 products allowed, fused Adam); `triton-topk`, an untied TopK autoencoder whose decoder and
gradients touch active codes only.
"""
import argparse
import json
import statistics
import subprocess
import sys

import torch
import triton
import triton.language as tl

L0 = 64


@triton.jit
def decode_kernel(indices, values, weights, out, k: tl.constexpr, d: tl.constexpr, BLOCK: tl.constexpr):
    """out[row] = sum over entries of value * weights[index]."""
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(k):
        index, value = tl.load(indices + row * k + i), tl.load(values + row * k + i)
        total += value * tl.load(weights + index * d + columns, mask=inside, other=0.0)
    tl.store(out + row * d + columns, total, mask=inside)


@triton.jit
def dots_kernel(indices, rows, weights, out, k: tl.constexpr, d: tl.constexpr, BLOCK: tl.constexpr):
    """out[row, i] = rows[row] . weights[indices[row, i]]."""
    row, i = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = tl.load(indices + row * k + i)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, d, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < d
        total += tl.load(rows + row * d + columns, mask=inside, other=0.0) * tl.load(weights + index * d + columns, mask=inside, other=0.0)
    tl.store(out + row * k + i, tl.sum(total))


@triton.jit
def gather_kernel(starts, of_row, values, rows, out, d: tl.constexpr, BLOCK: tl.constexpr):
    """out[latent] = sum over its entries of value * rows[row]."""
    latent, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    total = tl.zeros((BLOCK,), tl.float32)
    for entry in range(tl.load(starts + latent), tl.load(starts + latent + 1)):
        row, value = tl.load(of_row + entry), tl.load(values + entry)
        total += value * tl.load(rows + row * d + columns, mask=inside, other=0.0)
    tl.store(out + latent * d + columns, total, mask=inside)


def blocks(d):
    block = min(triton.next_power_of_2(d), 512)
    return block, triton.cdiv(d, block)


class SparseDecoder(torch.autograd.Function):
    """The reconstruction of the k largest codes; gradients of the codes and of the decoder's rows."""

    @staticmethod
    def forward(ctx, indices, values, w_dec):
        (rows, k), d = indices.shape, w_dec.shape[1]
        block, n = blocks(d)
        out = torch.empty(rows, d, device=values.device)
        decode_kernel[(rows, n)](indices, values, w_dec, out, k, d, block)
        ctx.save_for_backward(indices, values, w_dec)
        return out

    @staticmethod
    def backward(ctx, grad):
        indices, values, w_dec = ctx.saved_tensors
        (rows, k), (latents, d) = indices.shape, w_dec.shape
        grad, (block, n) = grad.contiguous(), blocks(d)
        by_value, by_row = torch.empty_like(values), torch.empty_like(w_dec)
        dots_kernel[(rows, k)](indices, grad, w_dec, by_value, k, d, block)
        starts, entries = sorted_entries(indices, latents)
        gather_kernel[(latents, n)](starts, entries // k, values.flatten()[entries], grad, by_row, d, block)
        return None, by_value, by_row


class SparseEncoder(torch.autograd.Function):
    """The k largest pre-activations; the gradient of the encoder's rows."""

    @staticmethod
    def forward(ctx, x, w_enc, b_enc, k):
        values, indices = torch.topk(x @ w_enc.T + b_enc, k, sorted=False)
        ctx.save_for_backward(x, indices)
        ctx.latents = len(w_enc)
        return torch.relu(values), indices, values > 0

    @staticmethod
    def backward(ctx, grad, _indices, _positive):
        x, indices = ctx.saved_tensors
        k, d = indices.shape[1], x.shape[1]
        block, n = blocks(d)
        starts, entries = sorted_entries(indices, ctx.latents)
        grad = grad.flatten()[entries]
        by_row = torch.empty(ctx.latents, d, device=x.device)
        gather_kernel[(ctx.latents, n)](starts, entries // k, grad, x.contiguous(), by_row, d, block)
        by_bias = torch.zeros(ctx.latents, device=x.device).index_add_(0, indices.flatten()[entries], grad)
        return None, by_row, by_bias, None


def sorted_entries(indices, latents):
    """Where the entries of each latent begin, and the entries in that order."""
    flat = indices.flatten()
    entries = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=latents)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), entries


def top_k_loss(x, w_enc, b_enc, w_dec, b_dec, k):
    centred = x - b_dec
    codes, indices, positive = SparseEncoder.apply(centred, w_enc, b_enc, k)
    return (SparseDecoder.apply(indices, codes * positive, w_dec) - centred).pow(2).mean()


def tied_loss(x, w, b):
    directions = w / w.norm(dim=-1, keepdim=True).clamp(1e-8)
    codes = torch.relu(x @ directions.T + b)
    return (codes @ directions - x).pow(2).mean() + 8.6e-4 * codes.sum(-1).mean()


def stepper(loss, parameters):
    adam = torch.optim.Adam(parameters, lr=1e-7, fused=True)

    def step(x):
        adam.zero_grad(set_to_none=True)
        loss(x, *parameters).backward()
        adam.step()

    return step


def parameters(d, n, device, tied):
    rows = torch.nn.functional.normalize(torch.randn(n, d, device=device), dim=-1)
    if tied:
        bias = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(L0 / n)).item()
        made = [rows, torch.full((n,), bias, device=device)]
    else:
        made = [rows, torch.zeros(n, device=device), rows.clone(), torch.zeros(d, device=device)]
    return [torch.nn.Parameter(values) for values in made]


def peer_step(peer, d, n):
    if peer == "triton-topk":
        return stepper(lambda x, *p: top_k_loss(x, *p, L0), parameters(d, n, "cuda", tied=False))
    loss = torch.compile(tied_loss) if peer == "compiled-tied" else tied_loss
    return stepper(loss, parameters(d, n, "cuda", tied=True))


def milliseconds(work, steps):
    for _ in range(3):
        work()
    times = []
    for _ in range(steps):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def rates(batch, d, n, steps):
    """Operations a second of the encoder's product, and bytes a second of a copy."""
    found = {}
    for name, kind, tf32 in [("f32", torch.float32, False), ("tf32", torch.float32, True), ("bf16", torch.bfloat16, False)]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x, w = torch.randn(batch, d, device="cuda", dtype=kind), torch.randn(n, d, device="cuda", dtype=kind)
        out = torch.empty(batch, n, device="cuda", dtype=kind)
        found[name] = 2 * batch * d * n / milliseconds(lambda: torch.matmul(x, w.T, out=out), steps) * 1e3
        del x, w, out
    source, target = torch.empty(1 << 28, device="cuda"), torch.empty(1 << 28, device="cuda")
    found["copy"] = 2 * 4 * (1 << 28) / milliseconds(lambda: target.copy_(source), steps) * 1e3
    return found


def show(**line):
    print(json.dumps({"bench": "gpu_step_peers", **line}), flush=True)


def measure(args):
    torch.backends.cuda.matmul.allow_tf32 = True
    device = torch.cuda.get_device_name()
    for d in (512, 1024, 4096):
        for n in (8 * d, 32 * d):
            if not all(text in f"d={d},n_latents={n}" for text in args.only):
                continue
            measure_case(args, device, d, n)


def measure_case(args, device, d, n):
    batch = 8192
    of = rates(batch, d, n, args.steps)
    show(device=device, d=d, n_latents=n, **{f"{name}_rate": rate for name, rate in of.items()})
    torch.backends.cuda.matmul.allow_tf32 = True
    times, known = {}, {}
    for _ in range(args.rounds):
        for peer in ("eager-tied", "compiled-tied", "triton-topk"):
            x = torch.randn(batch, d, device="cuda")
            step = peer_step(peer, d, n)
            times.setdefault(peer, []).append(milliseconds(lambda: step(x), args.steps))
            del x, step
            torch.cuda.empty_cache()
        command = [args.binary, "--bench", "--json", f"d={d},", f"n_latents={n},"]
        for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
            case = json.loads(line)
            if "not_run" in case:
                sys.exit(f"{args.binary}: {case['not_run']}")
            name = f"{case['family']}-{case['precision']}-{case['product']}"
            times.setdefault(name, []).append(case["step_ms"])
            known[name] = case
    eager = statistics.median(times["eager-tied"])
    for name, all_ms in times.items():
        ms = statistics.median(all_ms)
        line = dict(device=device, d=d, n_latents=n, batch=batch, who=name, ms=ms, all_ms=all_ms, vectors_per_s=batch / ms * 1e3, over_eager=eager / ms)
        if name in known:
            case = known[name]
            floor = (case["flops"] + case["sparse_flops"]) / of[case["precision"]] + case["bytes"] / of["copy"]
            line |= dict(tflops=(case["flops"] + case["sparse_flops"]) / ms / 1e9, bytes=case["bytes"], floor_ms=floor * 1e3, over_floor=ms / floor / 1e3, run_ms=case["run_ms"])
        show(**line)


def check():
    """Gradients of the Triton step against those of the same loss written with dense codes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    d, n, k, x = 24, 50, 5, torch.randn(33, 24, device=device)
    ours = parameters(d, n, device, tied=False)
    for parameter in ours:
        parameter.data += 0.1 * torch.randn_like(parameter)
    dense = [parameter.detach().clone().requires_grad_() for parameter in ours]
    top_k_loss(x, *ours, k).backward()
    w_enc, b_enc, w_dec, b_dec = dense
    centred = x - b_dec
    # In the Triton step the subtracted bias is not trained through the encoder.
    pre = centred.detach() @ w_enc.T + b_enc
    values, indices = torch.topk(pre, k)
    codes = torch.zeros_like(pre).scatter(1, indices, torch.relu(values))
    (codes @ w_dec - centred).pow(2).mean().backward()
    for name, a, b in zip(("w_enc", "b_enc", "w_dec", "b_dec"), ours, dense):
        off = ((a.grad - b.grad).norm() / b.grad.norm()).item()
        show(check=name, off=off)
        if off > 1e-4:
            sys.exit(f"the gradient of {name} is off by {off}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="the built benchmark gpu_step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose id holds all of these")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        check()
    elif not args.binary:
        parser.error("--binary is needed")
    elif not torch.cuda.is_available():
        sys.exit("gpu_step_peers: not run: PyTorch finds no NVIDIA GPU")
    else:
        measure(args)


if __name__ == "__main__":
    main()
