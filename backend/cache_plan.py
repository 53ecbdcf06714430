"""What a unified cache is made for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class CacheShape:
    """The part of a model that its cache depends on."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, eq=False)
class KeyMeans:
    """What centred keys are centred on, float32 [layers, kv_heads, head_dim] each.

    plain: mean keys as attention sees them. before_rope: mean keys before RoPE, which turns them by `frequencies`
    float32 [n], radians a position; None for a model without one rotary embedding for all layers.
    """

    plain: Tensor
    before_rope: Tensor | None = None
    frequencies: Tensor | None = None
