"""Key transforms that leave attention as it is: centring and rotating.

A vector subtracted from every key of a head shifts all its scores alike, which the softmax ignores; an orthogonal
rotation of keys and queries leaves their products. Both shrink the range of a key's channels, so its quantization
step. The rotation is the normalised Hadamard matrix: Sylvester's for powers of two, else in blocks of 32 channels
(head_dim 96). It is symmetric, so it is its own inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KeyTransform:
    """`mean`: float32 [kv_heads, head_dim] to subtract, or None; `rotated`: multiply by the Hadamard matrix after."""

    mean: Tensor | None = None
    rotated: bool = False

    def centred(self, keys: Tensor) -> Tensor:
        """float32 keys [..., kv_heads, head_dim] after the first of the two."""
        return keys.float() if self.mean is None else keys.float() - self.mean

    def turned(self, centred: Tensor) -> Tensor:
        """Centred keys after the second: as they are stored."""
        return rotate(centred) if self.rotated else centred

    def of_stored(self, stored: Tensor) -> Tensor:
        """The inverse of both, float32."""
        keys = rotate(stored.float()) if self.rotated else stored.float()
        return keys if self.mean is None else keys + self.mean


AS_THEY_ARE = KeyTransform()


def rotate(x: Tensor) -> Tensor:
    """x [..., head_dim] times the Hadamard matrix, in x's dtype; its own inverse."""
    return x @ hadamard(x.shape[-1]).to(x)


@lru_cache(maxsize=8)
def hadamard(head_dim: int) -> Tensor:
    """float32 [head_dim, head_dim], orthogonal and symmetric: (-1)^popcount(i & j) / sqrt(block) within a block."""
    block = rotation_block(head_dim)
    index = torch.arange(head_dim)
    parity = index[:, None] & index[None, :] & (block - 1)
    for shift in (16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    same_block = index[:, None] // block == index[None, :] // block
    return torch.where(same_block, 1.0 - 2.0 * (parity & 1), 0.0) / block**0.5


def rotation_block(head_dim: int) -> int:
    """Channels that a rotation mixes: all of them for a power of two, else 32."""
    return head_dim if head_dim & (head_dim - 1) == 0 else 32
