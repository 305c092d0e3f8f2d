"""Writes sae-tied/golden.safetensors: a tied ReLU-L1 autoencoder trained for 50 steps by PyTorch's autograd, once with torch.optim.Adam and once with the
step count held at 0 as in the code of arXiv 2309.08600. Needs torch 2.15.0, safetensors 0.8.0, numpy 2.4.6 (CPU)."""

import os

import torch
from safetensors.torch import save_file

torch.manual_seed(0)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
D, N, BATCH, STEPS, LR, ALPHA = 12, 20, 40, 50, 3e-3, 5e-3

generator = torch.Generator().manual_seed(7)
features = torch.nn.functional.normalize(torch.randn(16, D, generator=generator), dim=1)
strength = torch.rand(STEPS, BATCH, 16, generator=generator)
active = torch.rand(STEPS, BATCH, 16, generator=generator) < 0.15
x = (strength * active) @ features * 3 + 0.05 * torch.randn(STEPS, BATCH, D, generator=generator)
w0 = torch.empty(N, D)
torch.nn.init.xavier_uniform_(w0, generator=generator)


def loss_of(w, b, x):
    directions = w / torch.clamp(torch.norm(w, 2, dim=-1), min=1e-8)[:, None]
    codes = torch.relu(x @ directions.T + b)
    mse = (codes @ directions - x).pow(2).mean()
    return mse + ALPHA * codes.norm(p=1, dim=-1).mean(), codes


def train(paper):
    w, b = w0.clone().requires_grad_(), torch.zeros(N).requires_grad_()
    optimiser = torch.optim.Adam([w, b], lr=LR)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in (w, b)]
    losses, l0 = [], []
    for step in range(STEPS):
        optimiser.zero_grad()
        loss, codes = loss_of(w, b, x[step])
        loss.backward()
        losses.append(loss.detach())
        l0.append((codes > 0).float().sum(1).mean())
        if not paper:
            optimiser.step()
            continue
        with torch.no_grad():
            for p, (m, v) in zip((w, b), moments):
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                p -= LR * (m / (1 - 0.9)) / (torch.sqrt(v / (1 - 0.999)) + 1e-8)
    return w.detach(), b.detach(), torch.stack(losses), torch.stack(l0)


tensors = {"x": x, "w0": w0, "lr": torch.tensor([LR]), "alpha": torch.tensor([ALPHA])}
for name, paper in (("standard", False), ("paper", True)):
    for key, value in zip(("w", "b", "loss", "l0"), train(paper)):
        tensors[f"{name}_{key}"] = value.contiguous()
    print(name, tensors[f"{name}_loss"][[0, -1]], tensors[f"{name}_l0"][[0, -1]])
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sae-tied")
os.makedirs(folder, exist_ok=True)
save_file(tensors, os.path.join(folder, "golden.safetensors"))
