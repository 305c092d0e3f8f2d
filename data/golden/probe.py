"""Writes probe.safetensors beside this file: logistic regressions on standardised columns with balanced classes, by scikit-learn.

    pip install scikit-learn==1.9.1 numpy==2.4.6 safetensors==0.8.0
    python data/golden/probe.py
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

N, D = 240, 5
rng = np.random.default_rng(20230502)
# Columns that are correlated, of very different size and mean, and one that is mostly zero, as codes are.
x = rng.normal(size=(N, D)) @ (np.eye(D) + 0.4 * rng.normal(size=(D, D)))
x = x * np.geomspace(0.01, 100, D) + np.linspace(-3, 40, D)
x[:, 2] = np.maximum(x[:, 2] - np.quantile(x[:, 2], 0.8), 0)
x = x.astype(np.float32)
scaler = StandardScaler().fit(x.astype(np.float64))
z = scaler.transform(x.astype(np.float64))
# About one row in six.
labels = z @ [1.5, -1.0, 2.0, 0.0, 0.7] + rng.logistic(size=N) > 3.0
print("labels that hold:", labels.sum(), "of", N)

tensors = {"x": x, "labels": labels.astype(np.uint8)}
for c in [0.01, 1.0, 1000.0]:
    model = LogisticRegression(C=c, class_weight="balanced", tol=1e-12, max_iter=100_000).fit(z, labels)
    weights = model.coef_[0] / scaler.scale_
    tensors[f"weights_{c:g}"] = weights
    tensors[f"bias_{c:g}"] = model.intercept_ - weights @ scaler.mean_
    tensors[f"logits_{c:g}"] = model.decision_function(z)
    print(c, model.coef_[0], model.intercept_)
save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, Path(__file__).with_name("probe.safetensors"))
