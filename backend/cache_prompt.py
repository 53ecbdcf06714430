"""Prompts into the unified cache, chunk by chunk.

A policy that scores prompts keeps the chunks in FP16 staging pages until the last, then compresses layer by layer; a
prompt that comes in one chunk is never staged. Other policies store each chunk as it will stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.backend.cache_slots import Request
from leankv.kernels import bookkeeping
from leankv.kernels import pages as pg
from leankv.kernels.classify import HIGH, LOW
from leankv.kernels.layout import locate
from leankv.kernels.prefill_compress import store_in_tiers
from leankv.kernels.selectors import (
    place_prompt,
    ring_place,
    score_prompt,
    select_prompt,
)
from leankv.kernels.significance import over_group, prefill_scores, queries_seen
from leankv.kernels.store import Tokens, gather, store
from leankv.kernels.transforms import AS_THEY_ARE, KeyTransform
from leankv.serving.pages import PageLayout
from leankv.serving.policies.budgets import Residual, SinkRecent
from leankv.serving.policies.held_tokens import residual_low

if TYPE_CHECKING:
    from leankv.backend.cache import KVCache


def reserve(cache: KVCache, slot: int, tokens: int) -> None:
    """See `KVCache.begin_chunk`."""
    request = cache.requests[slot]
    assert request.done + tokens <= request.prompt, "a chunk passes the prompt's end"
    if request.layout.staging is not None and tokens == request.prompt:
        return
    rows = cache.rows_of(slot)
    # KIVI's window may shrink, but not before every layer has read it: `settle` does that.
    wanted = torch.maximum(_counts(rows, request, request.done + tokens), cache.tables.counts[rows.long()])
    layouts = (request.layout.staging,) if request.layout.staging else request.layout.tiers
    high, low, *_ = [layout.tokens for layout in layouts] + [0]
    pg.resize(cache.tables, rows, wanted, _pairs(rows, high, low), path=cache.path)


def settle(cache: KVCache, slot: int) -> None:
    """Give back what the chunk that was just stored no longer needs."""
    request = cache.requests[slot]
    if isinstance(request.layout.policy.budget, Residual):
        rows = cache.rows_of(slot)
        pg.resize(cache.tables, rows, _counts(rows, request, request.done), path=cache.path)


def prefix(cache: KVCache, slot: int, layer: int) -> Tokens:
    """See `KVCache.prefix`: low tier first, which is the order of positions but for StreamingLLM's ring."""
    request = cache.requests[slot]
    rows = _rows(cache, slot, layer)
    high, low = _tier_tokens(request, request.done)
    parts = []
    for tier, held in ((LOW, low), (HIGH, high)):
        if held:
            parts.append(_read(cache, rows, request, layer, tier, torch.arange(held, device=cache.pool.device)))
    if not parts:
        empty = torch.zeros(0, cache.shape.kv_heads, cache.shape.head_dim, device=cache.pool.device)
        return Tokens(empty, empty, empty[..., 0], empty[..., 0].int())
    return _joined(parts)


def store_chunk(
    cache: KVCache, slot: int, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float
) -> None:
    """See `KVCache.store_chunk`."""
    request = cache.requests[slot]
    chunk = _chunk(cache, request.done, keys, values)
    if request.layout.staging is None:
        _store_as_it_stays(cache, slot, layer, request, chunk)
        return
    last = request.done + len(keys) == request.prompt
    everything = chunk
    if request.done and (last or request.layout.policy.score.source == "all-queries"):
        staged = prefix(cache, slot, layer)
        so_far = torch.cat([staged.keys, keys.float()]), torch.cat([staged.values, values.float()])
        everything = _chunk(cache, 0, *so_far)
    _note_queries(cache, request, layer, queries, everything.keys, scale)
    if not last:
        _store_at(cache, _rows(cache, slot, layer), request.layout.staging, HIGH, request.done, chunk, AS_THEY_ARE)
        return
    _compress(cache, slot, layer, request, everything, scale)


def _tier_tokens(request: Request, tokens: int) -> tuple[int, int]:
    """Tokens of the high and the low tier when `tokens` of an incomplete or unscored prompt are stored."""
    budget = request.layout.policy.budget
    if isinstance(budget, Residual):
        low = residual_low(budget, tokens)
        return tokens - low, low
    if isinstance(budget, SinkRecent):
        return min(tokens, budget.sink + budget.recent), 0
    return tokens, 0


def _counts(rows: Tensor, request: Request, tokens: int) -> Tensor:
    return _pairs(rows, *_tier_tokens(request, tokens))


def _pairs(rows: Tensor, high: int, low: int) -> Tensor:
    """int32 [len(rows), 2], filled on the device: a copy from the host would wait for it."""
    pairs = torch.full((len(rows), 2), low, dtype=torch.int32, device=rows.device)
    pairs[:, 0] = high
    return pairs


def _chunk(cache: KVCache, first: int, keys: Tensor, values: Tensor) -> Tokens:
    """Tokens of neighbouring positions from `first` on, without a score yet."""
    positions = torch.arange(first, first + len(keys), dtype=torch.int32, device=keys.device)
    positions = positions[:, None].expand(-1, cache.shape.kv_heads).contiguous()
    return Tokens(keys, values, torch.zeros(positions.shape, device=keys.device), positions)


def _joined(parts: list[Tokens]) -> Tokens:
    return Tokens(
        torch.cat([part.keys.float() for part in parts]),
        torch.cat([part.values.float() for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.positions for part in parts]),
    )


def _rows(cache: KVCache, slot: int, layer: int) -> Tensor:
    return cache.rows_of(slot, slice(layer, layer + 1))


def _read(cache: KVCache, rows: Tensor, request: Request, layer: int, tier: int, tokens: Tensor) -> Tokens:
    staging = request.layout.staging
    layout = staging or request.layout.tiers[tier]
    transform = AS_THEY_ARE if staging else cache.transform(request.policy, layer)
    page, place = locate(cache.tables.table[rows.long()], tokens.expand(len(rows), -1), tier, layout)
    return gather(cache.pool, layout, page.T.contiguous(), place.T.contiguous(), transform, cache.path)


def _store_at(
    cache: KVCache,
    rows: Tensor,
    layout: PageLayout,
    tier: int,
    first: int | Tensor,
    tokens: Tokens,
    transform: KeyTransform,
) -> None:
    """Store tokens of all heads at the numbers from `first` on (or at the numbers given) of a tier."""
    number = first if isinstance(first, Tensor) else first + torch.arange(len(tokens.keys), device=rows.device)
    page, place = locate(cache.tables.table[rows.long()], number.expand(len(rows), -1), tier, layout)
    target = page.T.contiguous(), place.T.contiguous()
    store(cache.pool, layout, *target, tokens, transform, cache.errors, cache.path)


def _cut(tokens: Tokens, part: slice) -> Tokens:
    return Tokens(tokens.keys[part], tokens.values[part], tokens.scores[part], tokens.positions[part])


def _store_as_it_stays(cache: KVCache, slot: int, layer: int, request: Request, chunk: Tokens) -> None:
    budget, rows = request.layout.policy.budget, _rows(cache, slot, layer)
    transform, tiers = cache.transform(request.policy, layer), request.layout.tiers
    if isinstance(budget, SinkRecent):
        length = request.done + len(chunk.keys)
        of_sink = slice(0, max(0, min(budget.sink, length) - request.done))
        of_ring = slice(max(budget.sink, length - budget.recent, request.done) - request.done, None)
        for part in (of_sink, of_ring):
            position = torch.arange(request.done, length, device=rows.device)[part]
            _store_at(cache, rows, tiers[0], HIGH, ring_place(budget, position), _cut(chunk, part), transform)
    elif isinstance(budget, Residual):
        _store_residual(cache, rows, layer, request, budget, chunk)
    else:
        _store_at(cache, rows, tiers[0], HIGH, request.done, chunk, transform)


def _store_residual(
    cache: KVCache, rows: Tensor, layer: int, request: Request, budget: Residual, chunk: Tokens
) -> None:
    """Quantize the blocks that leave the window, from it or from the chunk, and write the window anew."""
    low_before = residual_low(budget, request.done)
    moved = residual_low(budget, request.done + len(chunk.keys)) - low_before
    held = request.done - low_before
    if held:
        window = torch.arange(held, device=rows.device)
        chunk = _joined([_read(cache, rows, request, layer, HIGH, window), chunk])
    high, low = request.layout.tiers
    if moved:
        _store_at(cache, rows, low, LOW, low_before, _cut(chunk, slice(0, moved)), AS_THEY_ARE)
    _store_at(cache, rows, high, HIGH, 0, _cut(chunk, slice(moved, None)), AS_THEY_ARE)


def _note_queries(cache: KVCache, request: Request, layer: int, queries: Tensor, keys: Tensor, scale: float) -> None:
    """Keep what the prompt's score will need of this chunk's queries; `keys`: all so far, where all queries score."""
    policy = request.layout.policy
    if policy.score.source != "all-queries":
        earlier = request.queries.get(layer, queries[:0])
        request.queries[layer] = torch.cat([earlier, queries])[-policy.score.window :].clone()
        return
    given = prefill_scores(queries, keys, scale, None, cache.path)
    if layer in request.scores:
        given[:, : len(keys) - len(queries)] += request.scores[layer]
    request.scores[layer] = given


def _compress(cache: KVCache, slot: int, layer: int, request: Request, tokens: Tokens, scale: float) -> None:
    """Sort a complete prompt's tokens into tiers, scores and positions with them."""
    policy = request.policy_in_force
    if layer in request.scores:
        scores = over_group(request.scores.pop(layer), cache.shape.kv_heads, policy.score.over_group)
    else:
        scores = score_prompt(policy, request.queries.pop(layer), tokens.keys, scale, cache.path)
    tiers = select_prompt(policy, scores, cache.path)
    places, counts = place_prompt(policy, tiers)
    if policy.bookkeeping == bookkeeping.LEAN:
        scores = scores / queries_seen(len(tokens.keys), policy.score.window, scores.device)
    scored = Tokens(tokens.keys, tokens.values, scores.T.contiguous(), tokens.positions)
    rows, transform = _rows(cache, slot, layer), cache.transform(request.policy, layer)
    store_in_tiers(
        cache.pool, cache.tables, request.layout.tiers, rows, scored, tiers, places, counts, transform, cache.errors,
        cache.path,
    )  # fmt: skip
