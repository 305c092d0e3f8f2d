# pip install gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
"""Writes quant.safetensors: for every GGUF block type some random blocks and what the gguf package's reference decoder makes of them."""
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import GGML_QUANT_SIZES, dequantize
from safetensors.numpy import save_file

# Where each type keeps its f16 scales, in bytes from the start of a block.
SCALES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q6_K: [208],
}
PLAIN = {T.F32: np.float32, T.F16: np.float16}
rng = np.random.default_rng(0)
out = {}
for kind in [*SCALES, *PLAIN, T.BF16]:
    values, size = GGML_QUANT_SIZES[kind]
    blocks = max(3, 64 // values)
    if kind in PLAIN:
        raw = rng.standard_normal(blocks).astype(PLAIN[kind]).view(np.uint8)
    elif kind == T.BF16:
        raw = (rng.standard_normal(blocks).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        raw = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
        for at in SCALES[kind]:
            raw[:, at:at + 2] = rng.normal(0, 0.1, blocks).astype(np.float16).view(np.uint8).reshape(blocks, 2)
        raw = raw.reshape(-1)
    out[f"{kind.name}.bytes"] = raw.reshape(-1).copy()
    out[f"{kind.name}.values"] = np.ascontiguousarray(dequantize(raw.reshape(1, -1), kind).reshape(-1), dtype=np.float32)
save_file(out, "quant.safetensors")
