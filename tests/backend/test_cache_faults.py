"""What the released LeanKV code gets wrong and this cache must not: one test a fault (of memory, mostly)."""

from __future__ import annotations

import pytest
import torch

from leankv.backend import cache_step
from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.kernels import pages as pg
from leankv.kernels.layout import locate
from leankv.kernels.selectors import score_prompt
from leankv.kernels.store import Tokens, gather
from leankv.serving.policies.registry import policy_named


def _cache(name: str, head_dim: int = 64, heads: int = 4, kv_heads: int = 2, slots: int = 2) -> KVCache:
    shape = CacheShape(1, heads, kv_heads, head_dim)
    return KVCache(shape, [policy_named(name)], slots=slots, memory_bytes=1 << 23, max_tokens=600)


def _prompt(cache: KVCache, tokens: int, slot: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    shape, generator = cache.shape, torch.Generator().manual_seed(seed)
    queries = 2 * torch.randn(tokens, shape.heads, shape.head_dim, generator=generator)
    keys = torch.randn(tokens, shape.kv_heads, shape.head_dim, generator=generator)
    values = torch.arange(tokens).float()[:, None, None].expand_as(keys)
    cache.admit(slot, tokens)
    cache.begin_chunk(slot, tokens)
    cache.store_chunk(slot, 0, queries, keys, values, 0.125)
    cache.end_chunk(slot, tokens)
    assert cache.met
    return queries, keys


def _tokens(cache: KVCache, row: int, tier: int) -> Tokens:
    layout = cache.policies[0].tiers[tier]
    page, place = locate(cache.tables.table[row], torch.arange(int(cache.tables.counts[row, tier])), tier, layout)
    return gather(cache.pool, layout, page[:, None], place[:, None])


@pytest.mark.parametrize("tokens", [1, 30, 64, 65, 100, 500])
def test_scores_and_positions_are_stored_with_their_tokens(tokens: int) -> None:
    """Fault: after sorting a short prompt's tokens the scores are stored in the unsorted order."""
    cache = _cache("leankv:alpha_high=1.2,alpha_low=0.4")
    queries, keys = _prompt(cache, tokens)
    sums = score_prompt(policy_named("leankv"), queries[-64:], keys, 0.125)
    for head in range(2):
        for tier in (0, 1):
            found = _tokens(cache, head, tier)
            position = found.positions[:, 0].long()
            assert torch.equal(found.values[:, 0, 0].round().long(), position)
            assert torch.equal(found.scores[:, 0], sums[head, position])


def test_scores_of_a_low_tier_over_many_pages_grow_by_their_own_gain() -> None:
    """Fault: rescaling scores mis-indexes low-tier pages when a context spans more than one partition."""
    cache = _cache("leankv:alpha_high=100,alpha_low=0")
    _prompt(cache, 500)
    low = cache.policies[0].tiers[1]
    assert cache.tables.counts[0, 1] > 5 * low.tokens
    before = {int(p): float(s) for p, s in zip(*_scored(cache, 0), strict=True)}
    cache.prepare_step([0])
    cache.begin_step(torch.zeros(1, dtype=torch.int32))
    step = cache._step
    assert step is not None and step.contributions is not None
    cache_step.store_new(cache, step, 0, torch.randn(1, 2, 64), torch.full((1, 2, 64), 500.0))
    for head in range(2):
        held = torch.cat([_tokens(cache, head, tier).positions[:, 0] for tier in (0, 1)])
        step.contributions[0, head, : len(held)] = held / 1024
    cache_step.update(cache, step, 0)
    for position, score in zip(*_scored(cache, 0), strict=True):
        assert float(score) == pytest.approx(before.get(int(position), 0.0) + int(position) / 1024, rel=1e-6)


def _scored(cache: KVCache, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    tiers = [_tokens(cache, row, tier) for tier in (0, 1)]
    return torch.cat([t.positions[:, 0] for t in tiers]), torch.cat([t.scores[:, 0] for t in tiers])


@pytest.mark.parametrize("bookkeeping", [5, 8])
def test_reported_memory_counts_all_that_pages_hold(bookkeeping: int) -> None:
    """Fault: reported memory leaves out scales, scores, positions and slack."""
    shape = CacheShape(1, 4, 2, 64)
    policy = policy_named(f"leankv-r:bookkeeping={bookkeeping}")
    cache = KVCache(
        shape,
        [policy],
        slots=2,
        memory_bytes=1 << 22,
        max_tokens=600,
        key_means=KeyMeans(*torch.zeros(2, 1, 2, 64), torch.ones(32)),
    )
    _prompt(cache, 300)
    measured = cache.measure()
    pages = sum(measured.tier_pages)
    assert pages == sum(cache.pages_of(0))
    assert measured.physical_ratio == pytest.approx(300 * 2 * 256 / (pages * cache.page_bytes))
    assert 1 < measured.physical_ratio < measured.nominal_ratio
    assert cache.pool.nbytes + cache.tables.nbytes <= 1 << 22, "tables and counters come out of the given memory"


@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), [(96, 4, 4), (128, 7, 1), (256, 4, 1), (64, 9, 3)])
@pytest.mark.parametrize("name", ["leankv", "kivi:bits=4", "h2o"])
def test_every_head_size_runs(name: str, head_dim: int, heads: int, kv_heads: int) -> None:
    """Fault: one quantization pair per batch, and head_dim 128 only (mixed batches: test_cache.py)."""
    cache = _cache(name, head_dim, heads, kv_heads)
    _prompt(cache, 200)
    cache.prepare_step([0])
    cache.begin_step(torch.zeros(1, dtype=torch.int32))
    new = torch.randn(1, kv_heads, head_dim)
    output = cache.decode(0, torch.randn(1, heads, head_dim), new, new, 0.1)
    assert cache.met and torch.isfinite(output).all()
    cache.check_integrity()


def test_a_preempted_request_computed_again_is_as_before() -> None:
    cache = _cache("leankv")
    _prompt(cache, 300)
    first = [_tokens(cache, row, tier) for row in range(2) for tier in (0, 1)]
    _prompt(cache, 100, slot=1, seed=5)
    cache.free([0])
    cache.check_integrity()
    _prompt(cache, 300)
    again = [_tokens(cache, row, tier) for row in range(2) for tier in (0, 1)]
    for one, other in zip(first, again, strict=True):
        for name in ("keys", "values", "scores", "positions"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_a_rehearsal_changes_nothing() -> None:
    """It runs on padding, whose rows must not be taken for the last one's."""
    shape, text = CacheShape(1, 4, 2, 64), torch.Generator().manual_seed(3)
    names = ("kivi:bits=4,residual=32", "leankv-r:recompress_every=1,window=8,low_mass=0.6")
    cache = KVCache(
        shape, [policy_named(name) for name in names], slots=2, memory_bytes=1 << 22, max_tokens=200,
        key_means=KeyMeans(*torch.zeros(2, 1, 2, 64), torch.ones(32)),
    )  # fmt: skip
    for policy, slot in ((1, 0), (0, 1)):
        cache.admit(slot, 96, policy)
        cache.begin_chunk(slot, 96)
        new = torch.randn(96, 2, 64, generator=text)
        cache.store_chunk(slot, 0, torch.randn(96, 4, 64, generator=text), new, new, 0.125)
        cache.end_chunk(slot, 96)
    before = cache.pool.clone(), cache.tables.table.clone(), cache.tables.counts.clone()
    cache.rehearse()
    for one, other in zip(before, (cache.pool, cache.tables.table, cache.tables.counts), strict=True):
        assert torch.equal(one, other)
    cache.prepare_step([1])
    assert not torch.equal(before[2], cache.tables.counts), "the window was full"


def test_a_shortage_in_a_middle_layer_is_not_forgotten_by_the_next() -> None:
    """Layer 1 of 3 finds no pages, layer 2 does: `met` tells until the next begin, `faults` for good."""
    shape, policy = CacheShape(3, 4, 2, 64), policy_named("leankv:alpha_low=0,alpha_high=0")
    cache = KVCache(shape, [policy], slots=1, memory_bytes=1 << 20, max_tokens=600)
    cache.admit(0, 128)
    cache.begin_chunk(0, 128)
    queries, keys = torch.randn(128, 4, 64), torch.randn(128, 2, 64)
    for layer in range(3):
        free = int(cache.free_pages)
        if layer == 1:
            cache.tables.state[pg.FREE] = 1
        cache.store_chunk(0, layer, queries, keys, keys, 0.125)
        assert bool(pg.last_met(cache.tables)) == (layer != 1) and cache.met == (layer == 0)
        if layer == 1:
            cache.tables.state[pg.FREE] = free
    assert cache.faults()[0] > 0 and cache.faults()[1:].tolist() == [0, 0]
    pg.forget_unmet(cache.tables)
    assert cache.met and cache.faults()[0] > 0
