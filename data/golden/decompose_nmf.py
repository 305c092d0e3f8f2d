"""Writes decompose-nmf.safetensors beside this file: NMF of rows of decompose.safetensors, of equal scale, above their minimum, by scikit-learn, and
non-negative codes of further rows, by SciPy.

    pip install scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1 safetensors==0.8.0
    OPENBLAS_NUM_THREADS=1 python data/golden/decompose_nmf.py
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.optimize import nnls
from sklearn.decomposition import NMF

HERE = Path(__file__).parent
N, HELD_OUT, K = 600, 100, 7
golden = load_file(HERE / "decompose.safetensors")
rows = (golden["x"] / golden["scale"]).astype(np.float32).astype(np.float64)
x, held_out = rows[:N], rows[N : N + HELD_OUT]
shift = x.min(axis=0)
y = x - shift

rng = np.random.default_rng(20230915)
size = np.sqrt(y.mean() / K)
codes_init, components_init = size * np.abs(rng.normal(size=(N, K))), size * np.abs(rng.normal(size=(K, x.shape[1])))


def fit(max_iter, tol):
    nmf = NMF(K, solver="cd", init="custom", max_iter=max_iter, tol=tol)
    nmf.fit_transform(y, W=codes_init.copy(), H=components_init.copy())
    return nmf


def unit(components):
    return components / np.linalg.norm(components, axis=1, keepdims=True)


early, late = fit(10, 1e-30), fit(2000, 1e-4)
components = unit(late.components_)
# Targets of both signs, for which most codes are zero.
directions = np.abs(rng.normal(size=(9, x.shape[1]))).astype(np.float32).astype(np.float64)
mean = x.mean(axis=0).astype(np.float32).astype(np.float64)


def codes_of(targets, directions):
    return np.stack([nnls(directions.T, row)[0] for row in targets])


codes = codes_of(held_out - shift, components)
codes_around_mean = codes_of(held_out - mean, directions)
error = late.reconstruction_err_ / np.linalg.norm(y)
print("iterations:", late.n_iter_, "relative error:", error, "active codes:", (codes > 0).mean(), (codes_around_mean > 0).mean())
print("rows below the shift somewhere:", (held_out < shift).any(axis=1).sum())

tensors = {
    "shift": shift,
    "codes_init": codes_init,
    "components_init": components_init,
    "components_after_10": unit(early.components_),
    "error_after_10": np.array([early.reconstruction_err_ / np.linalg.norm(y)]),
    "components": components,
    "iterations": np.array([late.n_iter_], dtype=np.float64),
    "error": np.array([error]),
    "held_out_codes": codes,
    "mean": mean,
    "directions": directions,
    "codes_around_mean": codes_around_mean,
}
save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, HERE / "decompose-nmf.safetensors")
