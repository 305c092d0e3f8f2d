# pip install -r requirements-sae.txt   (torch 2.15.0, sae-lens 6.54.12, dictionary-learning 0.1.0)
"""Vectors per second of one training step: `cargo bench --bench sae_step` and the Python libraries, by turns, on the same machine and threads.

Every round starts each of them once, so that what else the machine does disturbs all alike; a line of JSON for each, then one with the medians and the ratio of
monosem's vectors/s to those of the fastest peer. Peers: `eager-tied`, the tied autoencoder as one writes it in PyTorch; the standard and TopK trainers of SAELens and
dictionary_learning.

usage: sae_step_peers.py [--n-latents 2304] [--d 576] [--batch 2048] [--l0 32] [--threads 2] [--steps 15] [--rounds 3] [--rows FILE]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PEERS = ["eager-tied", "saelens-standard", "saelens-topk", "dictionary-learning-standard", "dictionary-learning-topk"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [("n-latents", 2304), ("d", 576), ("batch", 2048), ("l0", 32), ("threads", 2), ("steps", 15), ("rounds", 3)]
    for name, default in sizes:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rows", help="a file activations-*.safetensors of a store, for monosem and the peers alike")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def batches(args, torch):
    """Eight batches of unit mean square, round and round."""
    if args.rows:
        from safetensors.torch import load_file

        rows = load_file(args.rows)["activations"].float()
        norms = rows.norm(dim=-1)
        rows = rows[norms <= 20 * norms.median()][: 8 * args.batch]
    else:
        features = torch.randn(4 * args.d, args.d) / args.d**0.5
        strengths = (torch.rand(8 * args.batch, 4 * args.d) < 0.01).float() * torch.rand(8 * args.batch, 4 * args.d) * 5
        rows = strengths @ features + 0.1 * torch.randn(8 * args.batch, args.d)
    rows = rows / rows.pow(2).mean().sqrt()
    chunks = rows.split(args.batch)
    while True:
        yield from chunks


def step_of(peer, args, torch):
    d, n = args.d, args.n_latents
    if peer == "eager-tied":
        w = torch.nn.Parameter(torch.nn.init.xavier_uniform_(torch.empty(n, d)))
        b = torch.nn.Parameter(torch.zeros(n))
        adam = torch.optim.Adam([w, b], lr=1e-3)

        def step(x):
            directions = w / w.norm(dim=-1, keepdim=True).clamp(1e-8)
            codes = torch.relu(x @ directions.T + b)
            loss = (codes @ directions - x).pow(2).mean() + 8.6e-4 * codes.sum(-1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()

        return step
    if peer.startswith("saelens"):
        import sae_lens
        from sae_lens.saes.sae import TrainStepInput

        shape = dict(d_in=d, d_sae=n, device="cpu", dtype="float32")
        if peer == "saelens-standard":
            sae = sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(l1_coefficient=1.0, **shape))
        else:
            sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(k=args.l0, **shape))
        adam = torch.optim.Adam(sae.parameters(), lr=3e-4)
        done = [0]

        def step(x):
            done[0] += 1
            out = sae.training_forward_pass(TrainStepInput(
                sae_in=x, coefficients={"l1": 1.0}, dead_neuron_mask=None, n_training_steps=done[0], is_logging_step=False
            ))
            adam.zero_grad()
            out.loss.backward()
            adam.step()

        return step
    common = dict(steps=10_000, activation_dim=d, dict_size=n, layer=0, lm_name="none", device="cpu")
    if peer == "dictionary-learning-standard":
        from dictionary_learning.trainers.standard import StandardTrainer

        trainer = StandardTrainer(
            lr=1e-3, l1_penalty=1e-1, warmup_steps=1000, sparsity_warmup_steps=2000, resample_steps=None, **common
        )
    else:
        from dictionary_learning.trainers.top_k import TopKTrainer

        trainer = TopKTrainer(k=args.l0, **common)
    done = [0]

    def step(x):
        done[0] += 1
        trainer.update(done[0], x)

    return step


def run_peer(args):
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    data, step = batches(args, torch), step_of(args.peer, args, torch)
    for _ in range(3):
        step(next(data))
    times = []
    for _ in range(args.steps):
        x = next(data)
        start = time.perf_counter()
        step(x)
        times.append(time.perf_counter() - start)
    return {"peer": args.peer, "step_ms": statistics.median(times) * 1e3}


def ours(args, precision):
    filters = ["tied", f"n_latents={args.n_latents}", f"l0={args.l0},{precision}"]
    rows = ["--rows", os.path.abspath(args.rows)] if args.rows else []
    command = ["cargo", "bench", "--quiet", "--bench", "sae_step", "--", "--json", *rows, *filters]
    env = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    line = json.loads([line for line in out.splitlines() if line.startswith("{")][0])
    return {"peer": f"monosem-{precision}", "step_ms": line["step_ms"], "l0": line["l0"]}


def main():
    args = arguments()
    if args.peer:
        print(json.dumps(run_peer(args)))
        return
    times = {}
    for number in range(args.rounds):
        results = [ours(args, "f32"), ours(args, "bf16")]
        for peer in PEERS:
            command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--peer", peer]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
        for result in results:
            times.setdefault(result["peer"], []).append(result["step_ms"])
            result.update(bench="sae_step_peers", round=number, vectors_per_s=args.batch / result["step_ms"] * 1e3)
            result.update(d=args.d, n_latents=args.n_latents, batch=args.batch, threads=args.threads)
            print(json.dumps(result), flush=True)
    medians = {peer: statistics.median(of) for peer, of in times.items()}
    fastest = min(PEERS, key=medians.get)
    summary = {"bench": "sae_step_peers", "d": args.d, "n_latents": args.n_latents, "batch": args.batch, "threads": args.threads}
    summary.update(median_ms={peer: round(ms, 2) for peer, ms in medians.items()}, fastest_peer=fastest)
    for precision in ["f32", "bf16"]:
        summary[f"times_fastest_{precision}"] = round(medians[fastest] / medians[f"monosem-{precision}"], 2)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
