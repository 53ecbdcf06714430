"""A model's mean keys, measured once and kept, so that every run centres keys on the same vectors.

They lie beside the converted models, a file for each model and text: what two runs of a policy that centres keys
computed can differ by its requests alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.weights import Loaded, models_folder
from leankv.kernels.rope import turned_back, turns_of
from leankv.serving.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from leankv.backend.capture import Captured

SAMPLES = 64
"""Elements that stand for a parameter in a model's fingerprint; training moves all of them."""


def key_means_of(loaded: Loaded, tokens: Tensor) -> KeyMeans:
    """Mean keys of a text (int64 [n]) that stands for all, on the CPU.

    The mean moves little from one text to the next, and centring is exact with any. Raises InputError where the file
    cannot be written.
    """
    file, frequencies = key_means_file(loaded, tokens), rope_frequencies(loaded)
    kept = _read(file, frequencies)
    if kept is not None and kept.plain.shape == (loaded.layers, loaded.kv_heads, loaded.head_dim):
        return kept
    from safetensors.torch import save_file

    from leankv.backend.capture import capture

    means = mean_keys([capture(loaded, tokens)], frequencies)
    named = {"key_means": means.plain, "before_rope": means.before_rope}
    tensors = {name: mean.contiguous() for name, mean in named.items() if mean is not None}
    with atomic_write(file) as beside:
        save_file(tensors, beside, {"model": loaded.name, "tokens": str(len(tokens))})
    return means


def mean_keys(texts: Sequence[Captured], frequencies: Tensor | None) -> KeyMeans:
    """Mean key of every layer and KV head over texts captured from their first token on, on the CPU.

    frequencies: of the model's RoPE, as `rope_frequencies` tells them.
    """
    plain = torch.stack([torch.stack([keys.float().mean(0) for keys in text.keys]) for text in texts]).mean(0).cpu()
    if frequencies is None:
        return KeyMeans(plain)
    before = torch.stack([_before_rope(text, frequencies) for text in texts]).mean(0)
    return KeyMeans(plain, before, frequencies)


def _before_rope(text: Captured, frequencies: Tensor) -> Tensor:
    turns = turns_of(frequencies, text.tokens)[:, None]
    return torch.stack([turned_back(keys.float().cpu(), turns).mean(0) for keys in text.keys])


def rope_frequencies(loaded: Loaded) -> Tensor | None:
    """Radians a position, float32 [n] on the CPU, by which the model's RoPE turns channel i with channel i + n.

    None where the model has no rotary embedding, or layers with different ones.
    """
    modules = (getattr(module, "inv_freq", None) for module in loaded.model.modules())
    found = [each.float().cpu() for each in modules if isinstance(each, torch.Tensor)]
    return found[0] if found and all(torch.equal(each, found[0]) for each in found) else None


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


def _read(file: Path, frequencies: Tensor | None) -> KeyMeans | None:
    """What the file holds; None where there is none, or one that lacks something: it is made anew."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        held = load_file(file)
    except (OSError, SafetensorError):
        return None
    plain, before = held.get("key_means"), held.get("before_rope")
    if plain is None or (frequencies is not None and before is None):
        return None
    return KeyMeans(plain, before, frequencies) if frequencies is not None else KeyMeans(plain)
