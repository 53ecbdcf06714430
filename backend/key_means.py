"""A model's mean keys, measured once and kept, so that every run centres keys on the same vectors.

They lie beside the converted models, a file for each model and text: what two runs of a policy that centres keys
computed can differ by its requests alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from leankv.backend.weights import Loaded, models_folder
from leankv.serving.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 64
"""Elements that stand for a parameter in a model's fingerprint; training moves all of them."""


def key_means_of(loaded: Loaded, tokens: Tensor) -> Tensor:
    """Mean keys float32 [layers, kv_heads, head_dim] of a text (int64 [n]) that stands for all, on the CPU.

    The mean moves little from one text to the next, and centring is exact with any. Raises InputError where the file
    cannot be written.
    """
    file = key_means_file(loaded, tokens)
    kept = _read(file)
    if kept is not None and kept.shape == (loaded.layers, loaded.kv_heads, loaded.head_dim):
        return kept
    from safetensors.torch import save_file

    from leankv.backend.capture import capture, mean_keys

    means = mean_keys(capture(loaded, tokens)).cpu()
    with atomic_write(file) as beside:
        save_file({"key_means": means.contiguous()}, beside, {"model": loaded.name, "tokens": str(len(tokens))})
    return means


def key_means_file(loaded: Loaded, tokens: Tensor) -> Path:
    """Named after the model's fingerprint (weights and their precision) and the text's."""
    text = hashlib.sha256(str(tokens.tolist()).encode()).hexdigest()
    return models_folder() / f"key-means-{fingerprint(loaded)[:12]}-{text[:8]}.safetensors"


def fingerprint(loaded: Loaded) -> str:
    """Of a model's weights: shape, precision and some elements of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in loaded.model.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLES)].double().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path) -> Tensor | None:
    """What the file holds; None where there is none, or one that cannot be read: it is made anew."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file).get("key_means")
    except (OSError, SafetensorError):
        return None
