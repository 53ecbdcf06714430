"""Pages that the cache holds are those of the memory model that the simulator uses, where scores have no say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape
from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named

SHAPE = CacheShape(layers=2, heads=4, kv_heads=2, head_dim=64)


@pytest.mark.parametrize("prompt", [20, 100, 260])
@pytest.mark.parametrize(
    "name",
    [
        "fp16",
        "fp8",
        "int8",
        "int4",
        "kivi",
        "kivi:bits=4",
        "streaming-llm:sink=4,recent=124",
        "h2o",
        "snapkv:budget=96",
    ],
)
def test_pages_are_the_memory_models(name: str, prompt: int) -> None:
    policy = policy_named(name)
    model = replace(model_named("llama-3-8b"), layers=2, heads=4, kv_heads=2, head_dim=64)
    memory = MemoryModel(policy, model)
    cache = KVCache(SHAPE, [policy], slots=1, memory_bytes=1 << 22, max_tokens=400)
    assert cache.page_bytes == memory.page_bytes
    cache.admit(0, prompt)
    for start in range(0, prompt, 48):
        tokens = min(48, prompt - start)
        cache.begin_chunk(0, tokens)
        if start + tokens < prompt:
            assert cache.pages - int(cache.free_pages) <= memory.prefill_pages(prompt, start + tokens)
        for layer in range(2):
            new = torch.randn(tokens, 2, 64)
            cache.store_chunk(0, layer, torch.randn(tokens, 4, 64), new, new, 0.125)
        cache.end_chunk(0, tokens)
    for context in range(prompt, prompt + 70):
        held = cache.pages_of(0)
        expected = memory.pages_by_tier(prompt, context)
        if name.startswith("kivi"):
            # The model counts a full window; the window empties by a block at a time, so one page or two less are held.
            assert sum(held) <= memory.pages(prompt, context) <= sum(held) + 4 * 3, (context, held, expected)
        else:
            assert held[: len(expected)] == expected, context
        cache.prepare_step([0])
        cache.begin_step(torch.zeros(1, dtype=torch.int32))
        assert cache.met
        new = torch.randn(1, 2, 64)
        for layer in range(2):
            cache.decode(layer, torch.randn(1, 4, 64), new, new, 0.125)
        cache.end_step([0])
