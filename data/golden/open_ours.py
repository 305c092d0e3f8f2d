"""Opens dictionaries that monosem wrote with the packages they were written for, and compares codes and reconstructions. Fails where one differs by 1e-5.

    cargo run -p monosem-dictionary --example export -- target/export
    pip install -r data/golden/formats-requirements.txt
    python data/golden/open_ours.py target/export | tee data/golden/formats/open_ours.txt
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # There is no GPU to run it.
import torch
from safetensors.torch import load_file

print(", ".join(f"{package} {version(package)}" for package in ("sae-lens", "eai-sparsify", "torch")), flush=True)
from sae_lens import SAE
from sparsify import SparseCoder

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def with_saelens(folder, x):
    sae = SAE.load_from_disk(folder)
    assert sae.cfg.metadata.hook_name == "blocks.3.hook_resid_post" and sae.cfg.metadata.model_name == "gpt2"
    sparsity = load_file(folder / "sparsity.safetensors")["sparsity"]
    frequency = torch.linspace(0, 1, sae.cfg.d_sae, dtype=torch.float64)
    assert torch.allclose(sparsity.double(), torch.log10(frequency + 1e-10), atol=1e-5)
    codes = sae.encode(x)
    x_hat = sae.decode(codes)
    assert torch.equal(sae(x), x_hat)
    return type(sae).__name__, codes, x_hat


def with_sparsify(folder, x):
    coder = SparseCoder.load_from_disk(folder)
    encoded = coder.encode(x)
    codes = torch.zeros(len(x), coder.num_latents).scatter_(1, encoded.top_indices, encoded.top_acts)
    x_hat = coder(x).sae_out
    return f"{type(coder).__name__}(transcode={coder.cfg.transcode})", codes, x_hat


folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
assert len(folders) == 10, f"{len(folders)} folders, expected the 10 that the example writes"
for folder in folders:
    ours = load_file(folder / "ours.safetensors")
    opened, codes, x_hat = (with_saelens if folder.name.startswith("saelens") else with_sparsify)(folder, ours["x"])
    density = (codes != 0).float().mean().item()
    of_codes = (codes - ours["codes"]).abs().max().item()
    of_x_hat = (x_hat - ours["x_hat"]).abs().max().item()
    print(f"{folder.name:30} opened as {opened:30} codes {density:4.0%} nonzero, differ by {of_codes:.1e}; x_hat by {of_x_hat:.1e}")
    assert of_codes < 1e-5 and of_x_hat < 1e-5 and 0.05 < density < 0.95
print(f"{len(folders)} of {len(folders)} agree within 1e-5")
