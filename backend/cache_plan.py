"""What a unified cache is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheShape:
    """The part of a model that its cache depends on."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
