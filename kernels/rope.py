"""Rotary position embeddings (RoFormer, arXiv 2104.09864) as far as stored keys need them: a vector at any position.

A model's bias and mean key are vectors from before RoPE, which turns them by an angle that grows with the position:
channel i and channel i + n of the first 2n turn together, by `frequencies[i]` a position. The channels behind those do
not turn. What is computed here is exact whatever a model does, as long as storing and attention agree.

KVQuant (arXiv 2401.18079) quantizes keys before RoPE, and so turns every key when it is read; here they stay as
attention wants them, and all that is turned is one vector a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def turns_of(frequencies: Tensor, positions: int) -> Tensor:
    """Cosines and sines float32 [positions, 2, n] of frequencies [n], in radians a position."""
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies.double().cpu()
    return torch.stack([angles.cos(), angles.sin()], 1).float()


def turned(vectors: Tensor, turns: Tensor) -> Tensor:
    """float32 vectors [..., head_dim], each turned by its own turns [..., 2, n]; both broadcast."""
    pairs = turns.shape[-1]
    cosine, sine = turns.unbind(-2)
    first, second, rest = vectors.split([pairs, pairs, vectors.shape[-1] - 2 * pairs], -1)
    parts = torch.broadcast_tensors(first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat([*parts, rest.expand(*parts[0].shape[:-1], -1)], -1)


def turned_back(vectors: Tensor, turns: Tensor) -> Tensor:
    """The inverse of `turned`."""
    cosine, sine = turns.unbind(-2)
    return turned(vectors, torch.stack([cosine, -sine], -2))


def against(queries: Tensor, vector: Tensor, pairs: int) -> Tensor:
    """float32 [..., 2, n] whose product with `turns_of` a position is that of the query with the vector turned there.

    Both are float32 [..., head_dim] and broadcast. Channels that do not turn are left out: they add the same to every
    position, which the softmax ignores.
    """
    first, second = queries[..., :pairs], queries[..., pairs : 2 * pairs]
    one, other = vector[..., :pairs], vector[..., pairs : 2 * pairs]
    return torch.stack([first * one + second * other, second * one - first * other], -2)
