"""Every live policy through a prompt and decode steps, token for token against the NumPy oracle.

Attention is replaced by given gains per position, so that both sides decide on the same numbers. A token is recognised
by its values, which hold its position (a constant group is quantized exactly).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from leankv.backend import cache_step
from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.kernels.layout import locate
from leankv.kernels.selectors import score_prompt, scored_queries
from leankv.kernels.store import gather
from leankv.serving.policies.budgets import MassTiers
from leankv.serving.policies.registry import policy_named

_spec = importlib.util.spec_from_file_location("kernel_oracle", Path(__file__).parents[1] / "kernels" / "oracle.py")
assert _spec is not None and _spec.loader is not None
oracle = sys.modules["kernel_oracle"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

LAYERS, KV_HEADS, PROMPT, STEPS = 2, 2, 90, 50
POLICIES = (
    "fp16", "int8", "int4", "kivi:bits=2,residual=64", "kivi:bits=4", "streaming-llm:sink=4,recent=30",
    "streaming-llm:sink=4,recent=120", "h2o:heavy=0.3,recent=0.2", "h2o", "snapkv:budget=64",
    "leankv:alpha_high=1,alpha_low=0.1,window=16", "leankv:alpha_high=2,alpha_low=0.8,window=8",
    "leankv:alpha_high=0.04,alpha_low=0.04", "leankv-r:recompress_every=16,prune=0.05,low_mass=0.3,window=8",
)  # fmt: skip


def _gains(generator: np.random.Generator, tokens: int) -> np.ndarray:
    """A few tokens get much of each query, and some nothing at all, so that ties occur."""
    return (generator.random((LAYERS, KV_HEADS, tokens)) ** 8 * generator.integers(0, 2, tokens)).astype(np.float32)


def _held(cache: KVCache, layer: int, head: int) -> dict[int, int]:
    row = layer * KV_HEADS + head
    found = {}
    for tier, layout in enumerate(cache.policies[0].tiers):
        page, place = locate(cache.tables.table[row], torch.arange(int(cache.tables.counts[row, tier])), tier, layout)
        values = gather(cache.pool, layout, page[:, None], place[:, None]).values
        for position in values[:, 0, 0].round().int().tolist():
            assert position not in found, "a token is held twice"
            found[position] = tier
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_selector_is_the_oracles(name: str) -> None:
    policy = policy_named(name)
    torch.manual_seed(1)
    keys, queries = torch.randn(LAYERS, PROMPT, KV_HEADS, 64), 2 * torch.randn(LAYERS, PROMPT, 4, 64)
    values = torch.arange(PROMPT).float()[:, None, None].expand(-1, KV_HEADS, 64)
    cache = KVCache(
        CacheShape(LAYERS, 4, KV_HEADS, 64), [policy], slots=1, memory_bytes=1 << 22, max_tokens=256,
        key_means=KeyMeans(*torch.zeros(2, LAYERS, KV_HEADS, 64), torch.ones(32)),
    )  # fmt: skip
    cache.admit(0, PROMPT)
    cache.begin_chunk(0, PROMPT)
    heads = {}
    for layer in range(LAYERS):
        cache.store_chunk(0, layer, queries[layer], keys[layer], values, 0.125)
        window = scored_queries(policy, PROMPT)
        sums = torch.zeros(KV_HEADS, PROMPT)
        if window:
            sums = score_prompt(policy, queries[layer, -window:], keys[layer], 0.125)
        for head in range(KV_HEADS):
            heads[layer, head] = oracle.Head(policy, sums[head].numpy())
    cache.end_chunk(0, PROMPT)

    random = np.random.default_rng(2)
    for p in range(PROMPT, PROMPT + STEPS):
        gains = _gains(random, p + 1)
        cache.prepare_step([0])
        cache.begin_step(torch.zeros(1, dtype=torch.int32))
        step = cache._step
        assert cache.met and step is not None
        new = torch.full((1, KV_HEADS, 64), float(p))
        for layer in range(LAYERS):
            cache_step.store_new(cache, step, layer, torch.randn(1, KV_HEADS, 64), new)
            for head in range(KV_HEADS):
                oracle_head, given = heads[layer, head], gains[layer, head]
                oracle_head.step(p)
                oracle_head.attend(given)
                held = _held(cache, layer, head)
                assert held == oracle_head.held(), (p, layer, head)
                if step.contributions is not None:
                    step.contributions[0, head, : len(held)] = torch.tensor([given[i] for i in held])
            cache_step.update(cache, step, layer)
        cache.end_step([0])
        budget = policy.budget
        if isinstance(budget, MassTiers) and (p + 1 - PROMPT) % budget.recompress_every == 0:
            for (layer, head), oracle_head in heads.items():
                oracle_head.recompress(p + 1)
                assert _held(cache, layer, head) == oracle_head.held(), (p, layer, head)
        cache.check_integrity()
