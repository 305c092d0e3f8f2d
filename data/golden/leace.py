"""Writes leace.safetensors beside this file: rows after least-squares concept erasure and after the orthogonal projection, by the authors' package, of well-conditioned rows and of fewer rows than
dimensions.

    pip install concept-erasure==0.2.4 torch==2.15.0 numpy==2.4.6 safetensors==0.8.0
    python data/golden/leace.py
"""

from pathlib import Path

import numpy as np
import torch
from concept_erasure import LeaceFitter
from safetensors.numpy import save_file

rng = np.random.default_rng(20230606)
tensors = {}
for name, n, d, k in [("plain", 150, 9, 4), ("wide", 24, 30, 3)]:
    labels = np.concatenate([np.arange(k), rng.integers(0, k, size=n - k)])
    mixing = rng.normal(size=(d, d)) * np.geomspace(0.3, 3, d)
    x = rng.normal(size=(n, d)) @ mixing + rng.normal(size=(k, d))[labels] + np.linspace(-5, 8, d)
    if name == "wide":
        x[:, 4] = 2.5
    x = x.astype(np.float32)
    tensors |= {f"{name}_x": x, f"{name}_labels": labels.astype(np.float64)}
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), k).double()
    for method in ["leace", "orth"]:
        # The closed form of the paper: no shrinkage of the covariance, no limit on the trace, no singular value dropped that is not rounding.
        fitter = LeaceFitter(
            d, k, method, dtype=torch.float64, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-7
        )
        fitter.update(torch.from_numpy(x).double(), one_hot)
        erased = fitter.eraser(torch.from_numpy(x).double()).numpy()
        print(name, method, "rank", int((fitter.eraser.proj_right.norm(dim=1) * fitter.eraser.proj_left.norm(dim=0) > 0).sum()), "edit", ((erased - x) ** 2).sum(1).mean())
        tensors[f"{name}_{method}"] = erased

save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, Path(__file__).with_name("leace.safetensors"))
