"""The live pool's plan is the memory model's: page size, tokens a page, and pages where lengths decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_named
from leankv.serving.page_bounds import (
    most_growth,
    most_pages,
    most_pages_after,
    most_pages_array,
    most_prompt_pages,
    most_prompt_pages_array,
    row_pages,
)
from leankv.serving.policies.budgets import Residual
from leankv.serving.policies.held_tokens import held_tokens, residual_tokens_array
from leankv.serving.policies.registry import policy_named, registry
from leankv.serving.pool_plan import live_layout, live_pool_pages, page_bytes_of

LIVE = sorted(name for name, policy in registry.items() if policy.live)
SPECS = (*LIVE, "kivi:bits=4,residual=64", "streaming-llm:sink=2,recent=20", "snapkv:budget=40", "h2o:heavy=0.5")
MODELS = ("smollm2-135m", "llama-3.1-8b", "qwen2.5-0.5b")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SPECS)
def test_both_halves_lay_out_the_same_pages(name: str, model: str) -> None:
    policy, spec = policy_named(name), model_named(model)
    memory, laid = MemoryModel(policy, spec), live_layout(policy, spec.head_dim)
    assert page_bytes_of([policy], spec.head_dim) == memory.page_bytes
    assert tuple(layout.tokens for layout in laid.tiers) == memory.tokens_per_page
    for prompt in (1, 17, 130, 1000):
        staged = most_prompt_pages(laid, prompt) * memory.heads
        if held_tokens(policy, prompt, prompt) is None:
            assert staged >= memory.prefill_pages(prompt, prompt)
        else:
            assert staged == memory.prefill_pages(prompt, prompt)
            assert most_pages(laid, prompt, prompt + 90) * memory.heads == memory.pages(prompt, prompt + 90)


@given(st.sampled_from(SPECS), st.integers(1, 700), st.integers(0, 700), st.integers(1, 300))
def test_bounds_hold_and_arrays_are_numbers(name: str, prompt: int, generated: int, steps: int) -> None:
    policy = policy_named(name)
    laid, tokens = live_layout(policy, 64), prompt + generated
    now, later = most_pages(laid, prompt, tokens), most_pages(laid, prompt, tokens + steps)
    assert now <= later <= now + most_pages_after(laid, steps)
    assert most_pages_array(laid, np.array([prompt]), np.array([tokens])).tolist() == [now]
    assert most_prompt_pages_array(laid, np.array([prompt])).tolist() == [most_prompt_pages(laid, prompt)]
    held = held_tokens(policy, prompt, tokens)
    if held is None:
        return
    after = held_tokens(policy, prompt, tokens + steps)
    assert after is not None
    assert row_pages(laid, held) <= now
    assert row_pages(laid, after) <= row_pages(laid, held) + most_pages_after(laid, steps)
    one = held_tokens(policy, prompt, tokens + 1)
    assert one is not None and row_pages(laid, one) <= row_pages(laid, held) + most_growth(laid)
    if isinstance(policy.budget, Residual):
        arrays = residual_tokens_array(policy.budget, np.array([tokens]))
        assert tuple(int(each[0]) for each in arrays) == held


def test_tables_come_out_of_the_pools_memory() -> None:
    """Two layers and KV heads of 64 channels, pages of 16 tokens in 4 KiB; tables of 8 + 1 columns for 3 requests."""
    fp16 = policy_named("fp16")
    pages = live_pool_pages(fp16, 64, 4, 1 << 20, slots=3, max_tokens=128)
    assert pages == ((1 << 20) - 12 * (4 * 9 + 16) - 12 * 1024 - 28) // (4096 + 4)
    assert live_pool_pages(fp16, 64, 4, 100, slots=3, max_tokens=128) == 0
    with pytest.raises(ValueError, match="does not run live"):
        live_pool_pages(policy_named("quest"), 64, 4, 1 << 20, slots=3, max_tokens=128)
