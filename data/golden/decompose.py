"""Writes decompose.safetensors beside this file: PCA and FastICA of a small mixture by scikit-learn.

    pip install scikit-learn==1.9.1 numpy==2.4.6 safetensors==0.8.0
    OPENBLAS_NUM_THREADS=1 python data/golden/decompose.py
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.decomposition import PCA, FastICA
from sklearn.preprocessing import StandardScaler

N, D = 3000, 10
rng = np.random.default_rng(20230915)
sources = rng.laplace(size=(N, D)) * np.where(rng.random((N, D)) < 0.3, 3.0, 0.3)
mixing = rng.normal(size=(D, D)) + 2 * np.eye(D)
# Dimensions of very different size and mean, as activations have.
x = (sources @ mixing * np.geomspace(0.1, 30, D) + np.linspace(-20, 60, D)).astype(np.float32)

pca = PCA(svd_solver="covariance_eigh").fit(x.astype(np.float64))

scaler = StandardScaler().fit(x.astype(np.float64))
w_init = rng.normal(size=(D, D))
settings = dict(algorithm="parallel", whiten="unit-variance", fun="logcosh", whiten_solver="eigh", max_iter=200)
ica = FastICA(**settings, tol=1e-4, w_init=w_init).fit(scaler.transform(x.astype(np.float64)))
w_init_6 = w_init[:6, :6].copy()
ica_6 = FastICA(6, **settings, tol=1e-6, w_init=w_init_6).fit(scaler.transform(x.astype(np.float64)))
print("iterations:", ica.n_iter_, ica_6.n_iter_)

tensors = {
    "x": x,
    "mean": pca.mean_,
    "pca_components": pca.components_,
    "pca_explained_variance": pca.explained_variance_,
    "scale": scaler.scale_,
    "w_init": w_init,
    "ica_components": ica.components_,
    "ica_mixing": ica.mixing_,
    "ica_iterations": np.array([ica.n_iter_], dtype=np.float64),
    "ica_6_w_init": w_init_6,
    "ica_6_components": ica_6.components_,
    "ica_6_mixing": ica_6.mixing_,
    "ica_6_iterations": np.array([ica_6.n_iter_], dtype=np.float64),
}
save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, Path(__file__).with_name("decompose.safetensors"))
