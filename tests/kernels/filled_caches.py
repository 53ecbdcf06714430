"""Small paged caches with known contents, and float64 attention over them: shared by the tests of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from leankv.kernels.attention import LayerCache, TurnedCentres
from leankv.kernels.layout import locate
from leankv.kernels.rope import turned, turns_of
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
    turning: list[bool] | None = None,
) -> Filled:
    """A cache whose slot s holds lengths[s] tokens a head in the formats tiers[s] (indices into `layouts`, -1: none).

    `amplitude` is that of a few outlier channels of the keys, as in the first layers of real models: alike for all
    tokens. With a `swing` the first two channels of every key are one number, up to that from token to token.
    Keys of slots that are `turning` have a mean before RoPE of that amplitude and are centred on it by position.
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
        None if turning is None else _centres(kv_heads, head_dim, amplitude, turning, lengths, generator),
    )
    level = torch.randn(kv_heads, head_dim, generator=generator)
    level[:, :: head_dim // 4] *= amplitude
    for s, heads in enumerate(lengths):
        for h, counts in enumerate(heads):
            transform, base = KeyTransform(rotated=bool(rotated and rotated[s])), level[h]
            if cache.centres is not None and turning is not None and turning[s]:
                mean = cache.centres.mean[h : h + 1]
                transform, base = KeyTransform(mean, transform.rotated, cache.centres.turns), 0 * level[h]
            for tier, count in enumerate(counts):
                if count:
                    layout = layouts[tiers[s][tier]]
                    pages, places = locate(table[s, h], torch.arange(count), tier, layout)
                    tokens = _tokens(count, base, generator, swing)
                    if transform.turns is not None:
                        tokens = _turned(tokens, transform, sum(counts), generator)
                    _store(pool, layout, pages, places, tokens, transform)
    return Filled(cache, lengths)


def _centres(
    kv_heads: int, head_dim: int, amplitude: float, turning: list[bool], lengths: Lengths, generator: torch.Generator
) -> TurnedCentres:
    """Half of the channels turn, as with a partial rotary embedding; positions go on beyond the tokens held."""
    longest = max(high + low for heads in lengths for high, low in heads)
    mean = torch.randn(kv_heads, head_dim, generator=generator)
    mean[:, :: head_dim // 4] *= amplitude
    turns = turns_of(100 ** -torch.linspace(0, 1, head_dim // 4), 2 * longest)
    counts = torch.tensor([max(sum(head) for head in heads) for heads in lengths], dtype=torch.int32)
    return TurnedCentres(mean, turns, torch.tensor(turning, dtype=torch.int32), 2 * counts)


def _turned(tokens: Tokens, transform: KeyTransform, held: int, generator: torch.Generator) -> Tokens:
    """The tokens at random positions, with the mean turned there among their keys."""
    positions = torch.randint(0, 2 * held, tokens.positions.shape, generator=generator, dtype=torch.int32)
    centre = transform.centre(positions)
    assert centre is not None
    return Tokens(tokens.keys + centre, tokens.values, tokens.scores, positions)


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
        q = given = query[s].double()
        if cache.rotated is not None and int(cache.rotated[s]):
            q = rotate(q)
        for h, counts in enumerate(heads):
            keys, values, positions = _dequantized(cache, s, h, counts)
            mine = slice(h * group, (h + 1) * group)
            logits = q[mine] @ keys.T
            if cache.centres is not None and int(cache.centres.chosen[s]):
                centres = turned(cache.centres.mean[h].double(), cache.centres.turns[positions].double())
                logits += given[mine] @ centres.T
            probabilities = torch.softmax(logits * scale, -1)
            output[s, mine] = probabilities @ values
            contributions[s].append(probabilities.amax(0))
    return output, contributions


def _dequantized(
    cache: LayerCache, slot: int, head: int, counts: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    keys, values, positions = [], [], []
    for tier, count in enumerate(counts):
        if count:
            layout = cache.layouts[int(cache.tier_formats[slot, tier])]
            pages, places = locate(cache.page_table[slot, head], torch.arange(count), tier, layout)
            found = gather(cache.pool, layout, pages[:, None], places[:, None], path="torch")
            keys.append(found.keys[:, 0])
            values.append(found.values[:, 0])
            positions.append(found.positions[:, 0].long())
    return torch.cat(keys).double(), torch.cat(values).double(), torch.cat(positions)
