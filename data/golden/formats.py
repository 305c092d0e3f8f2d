"""Writes formats/: small dictionaries as SAELens, sparsify, dictionary_learning and Gemma Scope write them, each folder with golden.safetensors: activations x, and what
the package itself makes of them (codes, x_hat).

    pip install -r data/golden/formats-requirements.txt
    python data/golden/formats.py
"""

import json
import os
import shutil
from pathlib import Path

os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # There is no GPU to run it.
import numpy as np
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

torch.manual_seed(0)
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.set_grad_enabled(False)
D, F, D_OUT, K, N = 7, 18, 5, 4, 24
OUT = Path(__file__).resolve().parent / "formats"
generator = torch.Generator().manual_seed(2309)


def draw(*shape, scale=1.0):
    return scale * torch.randn(*shape, generator=generator)


def randomise(module):
    """Every parameter random and nonzero, so that no term can be forgotten unseen; thresholds positive but for a few."""
    for name, parameter in module.named_parameters():
        if name.endswith("threshold"):
            parameter.copy_(0.4 + 0.5 * draw(*parameter.shape))
        else:
            parameter.copy_(draw(*parameter.shape, scale=0.6 if parameter.ndim > 1 else 0.4))


def golden(folder, codes, x_hat, x):
    codes, x_hat = codes.float(), x_hat.float()
    density = (codes != 0).float().mean().item()
    assert 0.05 < density < 0.95, f"{folder.name}: {density:.2f} of the codes are nonzero: a test of nothing"
    save_file({"x": x.contiguous(), "codes": codes.contiguous(), "x_hat": x_hat.contiguous()}, folder / "golden.safetensors")
    print(f"{folder.name}: {density:.2f} of the codes are nonzero")


def fresh(name):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def saelens(name, dtype="float32", **config):
    folder = fresh(f"saelens-{name}")
    config = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "metadata": {"model_name": "tiny", "hook_name": "blocks.0.hook_resid_post"}} | config
    sae = SAE.from_dict(config)
    randomise(sae)
    if dtype != "float32":
        sae = sae.to(dtype=getattr(torch, dtype))
    sae.save_model(folder)
    # As it is read back, and in f32: half precision would round codes.
    sae = SAE.load_from_disk(folder, dtype="float32")
    x = draw(N, D)
    codes = sae.encode(x)
    golden(folder, codes, sae.decode(codes), x)


def saelens_batchtopk(name, training, config):
    """Trained with a batch's top k, saved for inference as jumprelu."""
    folder = fresh(f"saelens-{name}")
    sae = training(config)
    randomise(sae)
    sae.topk_threshold.fill_(0.7)
    sae.save_inference_model(folder)
    sae = SAE.load_from_disk(folder)
    assert sae.cfg.architecture() == "jumprelu"
    x = draw(N, D)
    codes = sae.encode(x)
    golden(folder, codes, sae.decode(codes), x)


def sparsify(name, **config):
    folder = fresh(f"sparsify-{name}")
    coder = SparseCoder(D, SparseCoderConfig(k=K, **config))
    randomise(coder)
    coder.save_to_disk(folder)
    coder = SparseCoder.load_from_disk(folder)
    x = draw(N, D)
    encoded = coder.encode(x)
    codes = torch.zeros(N, coder.num_latents).scatter_(1, encoded.top_indices, encoded.top_acts)
    golden(folder, codes, coder.decode(encoded.top_acts, encoded.top_indices), x)


def dictionary_learning(module, threshold=None, config=True, ordered=True, **trainer):
    name = type(module).__name__
    folder = fresh(f"dictionary-learning-{name}")
    randomise(module)
    if threshold is not None:
        module.threshold.fill_(threshold)
    # As the training loop saves it, or with the metadata that a state dict has by itself.
    state = module.state_dict()
    torch.save(state if ordered else {k: v.cpu() for k, v in state.items()}, folder / "ae.pt")
    if config:
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, **trainer}, "buffer": {"d_submodule": D}}, indent=4))
    # The package's own reader, but for the decoder's norms: it may fold them into the codes, which the file does not say.
    options = {"normalize_decoder": False} if name == "AutoEncoder" else {}
    module = type(module).from_pretrained(folder / "ae.pt", **options)
    x = draw(N, D)
    codes = module.encode(x)
    golden(folder, codes, module.decode(codes), x)


def parameters():
    """Parameters in place of tensors, in the pickle of protocol 4: other opcodes, the same values."""
    folder = fresh("dictionary-learning-parameters")
    module = AutoEncoder(D, F)
    randomise(module)
    torch.save(dict(module.named_parameters()), folder / "ae.pt", pickle_protocol=4)
    x = draw(N, D)
    codes = module.encode(x)
    golden(folder, codes, module.decode(codes), x)


def gemma_scope(name, d_out, stored=lambda array: array):
    """The format of huggingface.co/google/gemma-scope-*: float32 arrays of numpy.savez, encoded as SAELens does (which reads them so)."""
    folder = fresh(name)
    arrays = {
        "W_enc": draw(D, F, scale=0.6), "W_dec": draw(F, d_out, scale=0.6), "b_enc": draw(F, scale=0.4), "b_dec": draw(d_out, scale=0.4),
        "threshold": 0.4 + 0.5 * draw(F),
    }
    np.savez(folder / "params.npz", **{k: stored(v.numpy()) for k, v in arrays.items()})
    transcoder = {} if d_out == D else {"d_out": d_out}
    sae = SAE.from_dict({"architecture": "jumprelu_transcoder" if transcoder else "jumprelu", "d_in": D, "d_sae": F, "apply_b_dec_to_input": False} | transcoder)
    sae.load_state_dict(arrays)
    x = draw(N, D)
    codes = sae.encode(x)
    golden(folder, codes, sae.decode(codes), x)


saelens("standard", architecture="standard")
saelens("standard-f16", architecture="standard", dtype="float16")
saelens("standard-bf16", architecture="standard", dtype="bfloat16", apply_b_dec_to_input=False)
saelens("topk", architecture="topk", k=K)
saelens("topk-rescaled", architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
saelens("jumprelu", architecture="jumprelu")
saelens("jumprelu-plain-input", architecture="jumprelu", apply_b_dec_to_input=False)
saelens("gated", architecture="gated")
saelens("transcoder", architecture="transcoder", d_out=D_OUT, apply_b_dec_to_input=False)
saelens("jumprelu-transcoder", architecture="jumprelu_transcoder", d_out=D_OUT, apply_b_dec_to_input=False)
saelens_batchtopk("batchtopk", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=K))
saelens_batchtopk("matryoshka", MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=K, matryoshka_widths=[6, F]))
# Refused by the Rust reader, which has no skip connection.
skip = fresh("saelens-skip-transcoder")
sae = SAE.from_dict({"architecture": "skip_transcoder", "d_in": D, "d_sae": F, "d_out": D_OUT, "apply_b_dec_to_input": False})
randomise(sae)
sae.save_model(skip)

sparsify("topk", num_latents=F)
sparsify("expansion", expansion_factor=2)
sparsify("transcode", num_latents=F, transcode=True)

dictionary_learning(AutoEncoder(D, F))
dictionary_learning(AutoEncoderNew(D, F), config=False)
dictionary_learning(GatedAutoEncoder(D, F), config=False, ordered=False)
dictionary_learning(AutoEncoderTopK(D, F, K), threshold=0.5, ordered=False, k=K)
dictionary_learning(BatchTopKSAE(D, F, K), threshold=0.7, k=K)
dictionary_learning(JumpReluAutoEncoder(D, F), config=False)
dictionary_learning(MatryoshkaBatchTopKSAE(D, F, K, [6, 12]), threshold=0.7, ordered=False, k=K)

gemma_scope("gemma-scope", D)
gemma_scope("gemma-scope-transcoder", D_OUT)
gemma_scope("gemma-scope-fortran", D, lambda array: np.asfortranarray(array, dtype=np.float64))
parameters()
# Refused, too: what is compressed could be any number of times as long as the file.
np.savez_compressed(fresh("gemma-scope-compressed") / "params.npz", **np.load(OUT / "gemma-scope" / "params.npz"))
