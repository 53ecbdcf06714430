"""Small paged caches with known contents, and float64 attention over them: shared by the tests of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leankv.kernels.attention import LayerCache
from leankv.kernels.layout import locate
from leankv.kernels.store import Tokens, gather, store
from leankv.kernels.transforms import KeyTransform, rotate
from leankv.serving.formats import KVFormat
from leankv.serving.pages import PageLayout, layout_of, page_bytes_for

Lengths = list[list[tuple[int, int]]]
"""[slot][kv head] -> (tokens in the high tier, tokens in the low tier)."""


@dataclass(frozen=True, eq=False)
class Filled:
    cache: LayerCache
    lengths: Lengths


def layouts_for(formats: tuple[KVFormat, ...], head_dim: int) -> tuple[PageLayout, ...]:
    size = page_bytes_for(head_dim, formats)
    return tuple(layout_of(format, head_dim, size) for format in formats)


def filled_cache(
    layouts: tuple[PageLayout, ...],
    tiers: list[tuple[int, int]],
    lengths: Lengths,
    amplitude: float = 1.0,
    rotated: list[bool] | None = None,
    seed: int = 0,
    swing: float = 0.0,
) -> Filled:
    """A cache whose slot s holds lengths[s] tokens a head in the formats tiers[s] (indices into `layouts`, -1: none).

    `amplitude` is that of a few outlier channels of the keys, as in the first layers of real models: alike for all
    tokens. With a `swing` the first two channels of every key are one number, up to that from token to token.
    Everything that is not a stored token (other places, other pages) is filled with bytes that read as NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    head_dim, kv_heads = layouts[0].head_dim, len(lengths[0])
    need = [[_pages_needed(layouts, tiers[s], head) for head in heads] for s, heads in enumerate(lengths)]
    max_pages = max(high + low for heads in need for high, low in heads) + 1
    total = sum(high + low for heads in need for high, low in heads)
    pool = torch.full((total + 3, layouts[0].page_bytes), 0xFF, dtype=torch.uint8)
    numbers = iter(torch.randperm(total + 3, generator=generator).tolist())
    table = torch.full((len(lengths), kv_heads, max_pages), -1, dtype=torch.int32)
    for s, heads in enumerate(need):
        for h, (high, low) in enumerate(heads):
            for column in (*range(high), *range(max_pages - low, max_pages)):
                table[s, h, column] = next(numbers)
    cache = LayerCache(
        pool,
        layouts,
        table,
        torch.tensor(lengths, dtype=torch.int32),
        torch.tensor(tiers, dtype=torch.int32),
        None if rotated is None else torch.tensor(rotated, dtype=torch.int32),
    )
    level = torch.randn(kv_heads, head_dim, generator=generator)
    level[:, :: head_dim // 4] *= amplitude
    for s, heads in enumerate(lengths):
        transform = KeyTransform(rotated=bool(rotated and rotated[s]))
        for h, counts in enumerate(heads):
            for tier, count in enumerate(counts):
                if count:
                    layout = layouts[tiers[s][tier]]
                    pages, places = locate(table[s, h], torch.arange(count), tier, layout)
                    _store(pool, layout, pages, places, _tokens(count, level[h], generator, swing), transform)
    return Filled(cache, lengths)


def _pages_needed(layouts: tuple[PageLayout, ...], tiers: tuple[int, int], counts: tuple[int, int]) -> tuple[int, int]:
    high, low = (-(-count // layouts[tier].tokens) for tier, count in zip(tiers, counts, strict=True))
    return high, low


def _tokens(count: int, level: torch.Tensor, generator: torch.Generator, swing: float) -> Tokens:
    keys = level + torch.randn(count, 1, len(level), generator=generator)
    if swing:
        keys[..., :2] = swing * (2 * torch.rand(count, 1, 1, generator=generator) - 1)
    values = torch.randn(count, 1, len(level), generator=generator)
    return Tokens(keys, values, torch.zeros(count, 1), torch.zeros(count, 1, dtype=torch.int32))


def _store(
    pool: torch.Tensor,
    layout: PageLayout,
    pages: torch.Tensor,
    places: torch.Tensor,
    tokens: Tokens,
    transform: KeyTransform,
) -> None:
    store(pool, layout, pages[:, None], places[:, None], tokens, transform, path="torch")


def attention64(filled: Filled, query: torch.Tensor, scale: float) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    """float64 output [batch, heads, head_dim] and contributions [slot][kv head] over the dequantized cache."""
    cache = filled.cache
    group = query.shape[1] // cache.kv_heads
    output = torch.zeros(query.shape, dtype=torch.float64)
    contributions: list[list[torch.Tensor]] = []
    for s, heads in enumerate(filled.lengths):
        contributions.append([])
        q = query[s].double()
        if cache.rotated is not None and int(cache.rotated[s]):
            q = rotate(q)
        for h, counts in enumerate(heads):
            keys, values = _dequantized(cache, s, h, counts)
            mine = slice(h * group, (h + 1) * group)
            probabilities = torch.softmax(q[mine] @ keys.T * scale, -1)
            output[s, mine] = probabilities @ values
            contributions[s].append(probabilities.amax(0))
    return output, contributions


def _dequantized(cache: LayerCache, slot: int, head: int, counts: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = [], []
    for tier, count in enumerate(counts):
        if count:
            layout = cache.layouts[int(cache.tier_formats[slot, tier])]
            pages, places = locate(cache.page_table[slot, head], torch.arange(count), tier, layout)
            found = gather(cache.pool, layout, pages[:, None], places[:, None], path="torch")
            keys.append(found.keys[:, 0])
            values.append(found.values[:, 0])
    return torch.cat(keys).double(), torch.cat(values).double()
