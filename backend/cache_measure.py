"""What a cache holds, measured in pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leankv.kernels import pages as pg
from leankv.serving.formats import FP16

if TYPE_CHECKING:
    from leankv.backend.cache import KVCache


@dataclass(frozen=True)
class Measured:
    """What the cache holds now. Pages by tier (compressed prompts and decoding), pages that stage prompts, free pages.

    Ratios are uncompressed FP16 bytes of all cached positions over payload bits (nominal) and over pages (physical);
    staging prompts are left out of both, and both are 1 for an empty cache.
    """

    tier_pages: tuple[int, int]
    staging_pages: int
    free_pages: int
    nominal_ratio: float
    physical_ratio: float


def measure(cache: KVCache) -> Measured:
    """See `KVCache.measure`."""
    tables = cache.tables
    held = pg.pages_held(tables.counts, tables.tokens_per_page).view(tables.slots, -1, 2).sum(1)
    counts = tables.counts.view(tables.slots, -1, 2).sum(1).tolist()
    ready = [slot for slot, request in cache.requests.items() if request.done >= request.prompt]
    by_tier = held[ready].sum(0).tolist() if ready else [0, 0]
    heads, head_dim = cache.shape.layers * cache.shape.kv_heads, cache.shape.head_dim
    plain = sum(cache.requests[slot].done for slot in ready) * heads * FP16.payload_bytes(head_dim)
    payload = sum(
        count * layout.format.payload_bytes(head_dim)
        for slot in ready
        for count, layout in zip(counts[slot], cache.requests[slot].layout.tiers, strict=False)
    )
    return Measured(
        tier_pages=(by_tier[0], by_tier[1]),
        staging_pages=int(held.sum()) - sum(by_tier),
        free_pages=int(cache.free_pages),
        nominal_ratio=plain / payload if payload else 1.0,
        physical_ratio=plain / (sum(by_tier) * cache.page_bytes) if payload else 1.0,
    )
