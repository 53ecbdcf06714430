from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.serving.made_growth import measured_leankv

from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named, registry

MODELS = {name: model_named(name) for name in ("llama-3.1-8b", "smollm2-135m", "qwen2.5-7b")}
SPECS = [*registry, "kivi:bits=4,residual=33", "leankv:alpha_low=0,alpha_high=3", "leankv-r:recompress_every=7"]
PLAIN = ("fp16", "fp8", "int8", "int4")
POLICIES = [*map(policy_named, SPECS), measured_leankv()]
memories = st.builds(
    lambda policy, model, tp, chunked: MemoryModel(policy, MODELS[model], tp, chunked),
    st.sampled_from(POLICIES),
    st.sampled_from(sorted(MODELS)),
    st.just(1),
    st.booleans(),
)
lengths = st.integers(1, 20_000)


def llama(name: str, tp: int = 1, chunked: bool = True) -> MemoryModel:
    return MemoryModel(policy_named(name), MODELS["llama-3.1-8b"], tp, chunked)


def ratios(memory: MemoryModel, prompt: int, context: int) -> tuple[float, float]:
    """(nominal, physical) of one request."""
    return memory.ratios(np.array([prompt]), np.array([context]))


@example(MemoryModel(policy_named("leankv"), MODELS["smollm2-135m"]), 26, 0, 32)
@given(memories, lengths, st.integers(0, 5_000), st.integers(1, 500))
@settings(max_examples=400, deadline=None)
def test_pages_never_shrink_and_growth_is_bounded(memory: MemoryModel, prompt: int, before: int, tokens: int) -> None:
    start = memory.pages(prompt, prompt + before)
    end = memory.pages(prompt, prompt + before + tokens)
    assert isinstance(start, int) and start > 0
    assert start <= end <= start + memory.growth_bound(tokens, prompt)
    assert memory.growth_bound(tokens, prompt) <= memory.growth_bound(tokens)


@given(memories, lengths, st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_no_single_step_shrinks_the_pages(memory: MemoryModel, prompt: int, start: int) -> None:
    counts = [memory.pages(prompt, prompt + start + step) for step in range(150)]
    bound = memory.growth_bound(1, prompt)
    assert all(0 <= after - before <= bound for before, after in pairwise(counts))


@given(memories, st.lists(st.tuples(lengths, st.integers(0, 100_000)), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_arrays_agree_with_numbers(memory: MemoryModel, cases: list[tuple[int, int]]) -> None:
    prompts = np.array([prompt for prompt, _ in cases], dtype=np.int64)
    contexts = prompts + np.array([generated for _, generated in cases], dtype=np.int64)
    expected = [memory.pages(int(p), int(c)) for p, c in zip(prompts, contexts, strict=True)]
    counts = memory.pages_array(prompts, contexts)
    assert counts.dtype == np.int64
    assert counts.tolist() == expected
    by_tier = [list(memory.pages_by_tier(int(p), int(c))) for p, c in zip(prompts, contexts, strict=True)]
    assert memory.tier_pages_array(prompts, contexts).tolist() == by_tier


@given(memories, lengths, st.integers(0, 5_000))
@settings(max_examples=200, deadline=None)
def test_tiers_sum_to_the_pages_and_pages_hold_the_tokens(memory: MemoryModel, prompt: int, generated: int) -> None:
    context = prompt + generated
    by_tier = memory.pages_by_tier(prompt, context)
    assert sum(by_tier) == memory.pages(prompt, context)
    held = memory.policy.held_tokens(prompt, context, memory.model.layers, memory.heads // memory.model.layers)
    for pages, tokens, capacity in zip(by_tier, held, memory.tokens_per_page, strict=True):
        assert pages * capacity >= memory.heads * tokens * (1 - 1e-12)


@given(memories, lengths, st.integers(0, 20_000))
@settings(max_examples=200, deadline=None)
def test_a_prompt_in_progress_reserves_what_it_will_hold(memory: MemoryModel, prompt: int, done: int) -> None:
    done = min(done, prompt)
    pages = memory.prefill_pages(prompt, done)
    assert pages <= memory.prefill_pages(prompt, prompt)
    assert memory.prefill_pages(prompt, prompt) >= memory.pages(prompt, prompt)
    if memory.policy.staged:
        assert pages == memory.prefill_pages(prompt, 0)


@given(memories, lengths, st.integers(0, 5_000))
@settings(max_examples=200, deadline=None)
def test_pages_cost_more_than_payload(memory: MemoryModel, prompt: int, generated: int) -> None:
    context = prompt + generated
    nominal, physical = ratios(memory, prompt, context)
    assert physical <= nominal * (1 + 1e-12)


def test_uncompressed_pages_are_blocks_of_16_tokens_without_slack() -> None:
    memory = llama("fp16")
    assert memory.page_bytes == 16 * 512
    assert memory.tokens_per_page == (16,)
    for context in (1, 16, 17, 1000):
        assert memory.pages(1, context) == 256 * ceil(context / 16)
    assert ratios(memory, 16, 1600) == (1.0, 1.0)
    assert memory.kv_read(16, 1600) == (1600 * 128 * 1024,)


def test_plain_formats_compress_by_their_bytes() -> None:
    expected = {"fp16": (1, 1), "fp8": (2, 2), "int8": (2, 512 / 264), "int4": (4, 512 / 136)}
    for name, (nominal, with_scales) in expected.items():
        memory = llama(name)
        assert ratios(memory, 1600, 1600)[0] == nominal
        assert sum(memory.kv_read(1600, 1600)) * with_scales == pytest.approx(1600 * 128 * 1024)
        # Segments start at multiples of 32 and 128 bytes: at most 8 % of a page of 16 tokens.
        assert 0.92 * with_scales <= ratios(memory, 1600, 1600)[1] <= with_scales


def test_leankv_pages_are_the_published_ones() -> None:
    memory = llama("leankv")
    assert memory.page_bytes == 6784
    assert memory.tokens_per_page == (32, 60)
    assert llama("leankv-r").page_bytes == 6784


def test_heads_that_differ_pay_half_a_page_each_and_tier() -> None:
    memory = llama("leankv")
    high, low = memory.policy.held_tokens(2000, 2500)
    assert memory.pages_by_tier(2000, 2500) == (ceil(256 * (high / 32 + 0.5)), ceil(256 * (low / 60 + 0.5)))
    # One token a head still takes a page a head; a compressed short context can need more than an uncompressed one.
    assert memory.pages(1, 1) == 256
    assert ratios(memory, 20, 20)[1] < 2 < ratios(memory, 200, 200)[1] < ratios(memory, 2000, 2000)[1]


def test_ada_kv_pays_for_uneven_heads_where_snapkv_does_not() -> None:
    assert llama("ada-kv").pages(4096, 4096) == 256 * (1024 // 16) + 128
    assert llama("snapkv").pages(4096, 4096) == 256 * (1024 // 16)


def test_prompt_only_policies_keep_generated_tokens() -> None:
    memory = llama("snapkv")
    assert memory.pages(500, 500) == 256 * 32
    assert memory.pages(8000, 8000 + 160) == 256 * (1024 + 160) // 16
    assert llama("h2o").pages(8000, 8000) == llama("h2o").pages(8000, 9000) == 256 * 1600 // 16


def test_staging_needs_the_whole_prompt_in_fp16_when_chunked() -> None:
    chunked, unchunked = llama("leankv"), llama("leankv", chunked=False)
    assert chunked.prefill_pages(4096, 0) == 256 * ceil(4096 / 13)
    assert unchunked.prefill_pages(4096, 0) == chunked.pages(4096, 4096) + 8 * ceil(4096 / 13)
    assert llama("snapkv").prefill_pages(4096, 512) == 256 * 4096 // 16
    assert llama("fp16").prefill_pages(4096, 512) == 256 * 512 // 16


def test_kivi_holds_its_residual_in_full_precision() -> None:
    memory = llama("kivi")
    assert memory.policy.held_tokens(1000, 1100) == (128, 972)
    assert memory.policy.held_tokens(50, 100) == (100, 0)
    full, quantized = memory.tokens_per_page
    assert quantized % 32 == 0
    assert memory.pages_by_tier(1000, 1100) == (256 * ceil(128 / full), 256 * ceil(972 / quantized))


def test_boundary_layers_stay_in_16_bits() -> None:
    memory = llama("turboquant")
    full, quantized = memory.tokens_per_page
    assert memory.pages_by_tier(100, 1000) == (4 * 8 * ceil(1000 / full), 28 * 8 * ceil(1000 / quantized))


def test_the_fullest_rank_counts_and_few_heads_are_replicated() -> None:
    for name in registry:
        whole = llama(name).pages(2000, 2400)
        assert llama(name, tp=4).pages(2000, 2400) >= whole / 4
        assert llama(name, tp=16).pages(2000, 2400) == llama(name, tp=8).pages(2000, 2400)
    assert llama("fp16", tp=4).pages(2000, 2400) == llama("fp16").pages(2000, 2400) / 4
    qwen = MODELS["qwen2.5-7b"]
    assert MemoryModel(registry["fp16"], qwen, tp=7).heads == qwen.layers


def test_capacity_pays_for_tables_and_counters() -> None:
    gib = 2**30
    fp16, leankv = llama("fp16"), llama("leankv")
    assert fp16.capacity(gib) == 256 * ((gib - 8 * 256) // (256 * 8192 + 8))
    assert leankv.capacity(gib) == (gib - 8 * 256 * 512) // (6784 + 8)
    assert llama("leankv-r").capacity(gib) < leankv.capacity(gib)
    assert leankv.capacity(gib, sequences=1024) < leankv.capacity(gib)
    for name in registry:
        memory = llama(name)
        assert 0.98 * gib < memory.capacity(gib) * memory.page_bytes < gib
        assert memory.capacity(0) == 0


def test_score_keeping_moves_its_bookkeeping_every_step() -> None:
    assert llama("h2o").kv_read(1000, 1000) == (256 * 200 * (512 + 16),)
    high, low = llama("leankv").policy.held_tokens(1000, 1000)
    assert llama("leankv").kv_read(1000, 1000) == (
        pytest.approx(256 * high * (200 + 16)),
        pytest.approx(256 * low * (104 + 16)),
    )


def test_ratios_are_those_of_all_requests_together() -> None:
    """SnapKV keeps short prompts whole: a mean request says nothing of the long ones, which hold the bytes."""
    prompts = np.array([100] * 9 + [9000])
    nominal, physical = llama("snapkv").ratios(prompts, prompts + 100)
    assert nominal == pytest.approx((9 * 200 + 9100) / (9 * 200 + 1024 + 100))
    assert 0.95 * nominal < physical < nominal
    for name in registry:
        memory = llama(name)
        held = memory.policy.held_tokens(1000, 1234, 32, 8)
        payload = sum(n * tier.format.payload_bytes(128) for n, tier in zip(held, memory.policy.tiers, strict=True))
        whole = 1234 * 512
        assert ratios(memory, 1000, 1234) == pytest.approx(
            (whole / payload, 256 * whole / (memory.pages(1000, 1234) * memory.page_bytes))
        )


def test_only_keys_and_values_are_decoded() -> None:
    """A token of LeanKV's high tier moves 216 bytes a step, 16 of them its score and position, read and written."""
    assert [llama("leankv").cached_share(tier) for tier in (0, 1)] == [200 / 216, 104 / 120]
    for name in ("fp16", "fp8", "kivi", "snapkv"):
        memory = llama(name)
        assert all(memory.cached_share(tier) == 1 for tier in range(len(memory.policy.tiers)))


def test_other_head_sizes_have_pages_too() -> None:
    small = MODELS["smollm2-135m"]
    for name in registry:
        memory = MemoryModel(policy_named(name), small)
        assert memory.page_bytes % 128 == 0
        assert 0.5 < ratios(memory, 2000, 2000)[1] < 12
