"""Key transforms that leave attention as it is: centring and rotating.

A vector subtracted from every key of a head shifts all its scores alike, which the softmax ignores; an orthogonal
rotation of keys and queries leaves their products. Both shrink the range of a key's channels, so its quantization
step. The rotation is the normalised Hadamard matrix: Sylvester's for powers of two, else in blocks of 32 channels
(head_dim 96). It is symmetric, so it is its own inverse.

A mean key from before RoPE is turned to each token's position and subtracted there. That does shift scores, by the
query's product with it, which attention adds again (`kernels/rope.py`). Keys with a bias, Qwen2.5's, are spread around
the turned mean far more narrowly than around any one vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from leankv.kernels.rope import turned


@dataclass(frozen=True, eq=False)
class KeyTransform:
    """`mean`: float32 [kv_heads, head_dim] to subtract, or None; `rotated`: multiply by the Hadamard matrix after.

    turns: float32 [positions, 2, n] of `rope.turns_of`, where the mean is one from before RoPE; else None.
    """

    mean: Tensor | None = None
    rotated: bool = False
    turns: Tensor | None = None

    def centre(self, positions: Tensor) -> Tensor | None:
        """What is subtracted from keys at positions int [n, kv_heads]: float32 [kv_heads, head_dim], or [n, ...]."""
        if self.mean is None or self.turns is None:
            return self.mean
        return turned(self.mean, self.turns[positions.clamp(min=0).long()])

    def centred(self, keys: Tensor, positions: Tensor) -> Tensor:
        """float32 keys [n, kv_heads, head_dim] at positions [n, kv_heads] after the first of the two."""
        centre = self.centre(positions)
        return keys.float() if centre is None else keys.float() - centre

    def turned(self, centred: Tensor) -> Tensor:
        """Centred keys after the second: as they are stored."""
        return rotate(centred) if self.rotated else centred

    def of_stored(self, stored: Tensor, positions: Tensor) -> Tensor:
        """The inverse of both, float32."""
        keys, centre = rotate(stored.float()) if self.rotated else stored.float(), self.centre(positions)
        return keys if centre is None else keys + centre


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
