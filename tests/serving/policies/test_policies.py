"""Every policy against the contract of its memory and work models."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leankv.serving.memory import MemoryModel
from leankv.serving.models import ModelSpec, model_named
from leankv.serving.policies.base import Policy
from leankv.serving.policies.budgets import Pyramid
from leankv.serving.policies.registry import policy_named, registry
from leankv.serving.policies.work import Work

LLAMA = model_named("llama-3.1-8b")
VARIANTS = [
    *registry,
    "kivi:bits=4",
    "leankv:alpha_low=0,alpha_high=3",
    "leankv:alpha_low=0.04,alpha_high=0.04",
    "leankv-r:high=K4V4,low=K3V2,prune=0.005,bookkeeping=5",
    "snapkv:budget=128",
    "uniform:format=K2V4",
]
PROMPTS = (1, 17, 63, 64, 65, 300, 1024, 4096, 50_000)
STAGED = {"h2o", "snapkv", "pyramidkv", "ada-kv", "expected-attention", "leankv", "leankv-r"}


def ratios(memory: MemoryModel, prompt: int) -> tuple[float, float]:
    """(nominal, physical) of one request at the end of its prompt."""
    return memory.ratios(np.array([prompt]), np.array([prompt]))


def prefill_work(policy: Policy, chunk: int, context: int, last: bool, model: ModelSpec, tp: int = 1) -> Work:
    """All that one chunk of a prompt costs beyond plain attention."""
    work = policy.chunk_work(chunk, context, model, tp)
    return work + policy.prompt_work(context + chunk, model, tp) if last else work


@pytest.mark.parametrize("name", VARIANTS)
def test_never_holds_more_than_was_cached_and_never_shrinks(name: str) -> None:
    policy = policy_named(name)
    for prompt in PROMPTS:
        before = (0.0,) * len(policy.tiers)
        for context in range(prompt, prompt + 400):
            held = policy.held_tokens(prompt, context)
            assert len(held) == len(policy.tiers)
            assert 0 < sum(held) <= context
            assert all(now >= then for now, then in zip(held, before, strict=True))
            assert sum(policy.read_tokens(prompt, context)) <= sum(held)
            before = held


@pytest.mark.parametrize("name", VARIANTS)
def test_tokens_are_linear_between_breakpoints(name: str) -> None:
    policy = policy_named(name)
    for prompt in PROMPTS[:-1]:
        edges = [prompt, *policy.breakpoints(prompt), 200_000]
        assert edges == sorted(set(edges))
        for low, high in pairwise(edges):
            middle = (low + high) // 2
            for tokens in (policy.held_tokens, policy.read_tokens):
                left, right = np.array(tokens(prompt, low)), np.array(tokens(prompt, high))
                expected = left + (right - left) * (middle - low) / (high - low)
                assert np.allclose(tokens(prompt, middle), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_work_grows_with_the_chunk_and_needs_no_more_than_the_prompt_twice(name: str) -> None:
    policy = policy_named(name)
    half, whole = prefill_work(policy, 512, 0, True, LLAMA), prefill_work(policy, 1024, 0, True, LLAMA)
    assert 0 <= half.bytes <= whole.bytes
    assert 0 <= half.flops <= whole.flops
    assert whole.launches >= half.launches >= 0
    assert policy.decode_work(LLAMA).launches <= 4 * LLAMA.layers
    halved = prefill_work(policy, 1024, 0, True, LLAMA, tp=2)
    assert halved.bytes == pytest.approx(whole.bytes / 2) and halved.flops == pytest.approx(whole.flops / 2)


def test_only_plain_formats_share_prefixes_and_only_score_driven_policies_stage() -> None:
    assert {name for name, policy in registry.items() if policy.staged} == STAGED
    assert not any(policy.shares_prefix for policy in registry.values() if policy.staged)
    assert registry["fp16"].shares_prefix and registry["int4"].shares_prefix


def test_work_waits_for_the_last_chunk_where_its_queries_decide() -> None:
    for name in STAGED - {"h2o"}:
        assert prefill_work(registry[name], 512, 0, False, LLAMA).bytes == 0
        assert prefill_work(registry[name], 512, 512, True, LLAMA).bytes > 0


def test_h2o_pays_a_second_pass_of_queries_over_keys() -> None:
    policy = registry["h2o"]
    short, long = (prefill_work(policy, tokens, 0, False, LLAMA).flops for tokens in (1024, 2048))
    assert long == pytest.approx(4 * short, rel=0.01)
    # The causal half of all pairs, two operations a channel, every query head of every layer.
    assert long == pytest.approx(2 * 128 * 32 * 32 * 2048 * 2049 / 2)
    chunks = sum(prefill_work(policy, 512, start, False, LLAMA).flops for start in range(0, 2048, 512))
    assert chunks == pytest.approx(long)


def test_leankv_scores_with_64_queries_then_reads_and_writes_what_it_keeps() -> None:
    policy = registry["leankv"]
    work = prefill_work(policy, 1000, 0, True, LLAMA)
    high, low = policy.held_tokens(1000, 1000)
    heads = 32 * 8
    scoring = 1000 * (256 + 4)
    selecting = 4 * 4 * 1000
    moving = (high + low) * 512 + high * (200 + 8) + low * (104 + 8)
    assert work.bytes == pytest.approx(heads * (scoring + selecting + moving))
    assert work.launches == 3 * 32
    assert policy.decode_work(LLAMA).bytes == heads * (200 + 104)


def test_kivi_requantizes_each_token_once() -> None:
    work = registry["kivi"].decode_work(LLAMA)
    assert work.bytes == 32 * 8 * (512 + 64 + 16 + 16)
    assert work.launches == 1


def test_plain_caches_add_no_bytes() -> None:
    for name in ("fp16", "fp8", "int8", "int4", "turboquant", "streaming-llm", "duo-attention"):
        assert registry[name].decode_work(LLAMA).bytes == 0
        assert prefill_work(registry[name], 1024, 0, True, LLAMA).bytes == 0


def test_quest_reads_its_budget_and_every_page_s_bounds() -> None:
    policy = registry["quest"]
    memory = MemoryModel(policy, LLAMA)
    full, sparse = 2 * 8 * 10_000, 30 * 8 * 2048
    bounds = 256 * 10_000 * 2 * 256 / 16
    assert memory.kv_read(9_000, 10_000) == (pytest.approx((full + sparse) * 512 + bounds),)
    assert policy.held_tokens(9_000, 10_000) == (10_000,)


@given(budget=st.integers(64, 4096), layers=st.integers(2, 80))
@settings(max_examples=50)
def test_pyramid_layers_share_the_mean_budget(budget: int, layers: int) -> None:
    budgets = Pyramid(budget, 32, 20).layer_budgets(layers)
    assert list(budgets) == sorted(budgets, reverse=True)
    assert min(budgets) >= 32
    # Whole tokens a step leave the later layers at most a step's remainder each.
    assert budget - 1 <= np.mean(budgets) <= budget + layers


def test_turboquant_matches_the_reported_capacity_on_qwen3_4b() -> None:
    model = model_named("qwen3-4b")
    compressed = sum(MemoryModel(registry["turboquant"], model).kv_read(512, 640))
    plain = sum(MemoryModel(registry["fp16"], model).kv_read(512, 640))
    assert plain / compressed == pytest.approx(3.43, abs=0.005)


def test_leankv_keeps_what_the_paper_reports() -> None:
    def memory_share(name: str, context: int) -> float:
        return 1 / ratios(MemoryModel(policy_named(name), LLAMA), context)[0]

    assert 0.193 <= memory_share("leankv", 8192) <= 0.367
    assert memory_share("leankv:alpha_low=0.04,alpha_high=0.04", 4096) == pytest.approx(0.367, abs=0.003)
    assert memory_share("leankv:alpha_low=0,alpha_high=3", 16384) == pytest.approx(0.193, abs=0.002)
    assert 1 / memory_share("leankv:alpha_low=0,alpha_high=1", 1024) == pytest.approx(4.10, abs=0.02)
    assert registry["leankv"].retention is not None and registry["leankv"].retention.source == "literature"


def test_leankv_r_keeps_what_was_measured() -> None:
    model = model_named("qwen2.5-7b")
    rows = {
        "leankv-r": (7.14, 6.25),
        "leankv-r:high=K4V4,low=K3V2,prune=0.005": (7.92, 6.69),
        "leankv-r:high=K4V4,low=K3V2,prune=0.02,low_mass=0.3": (11.36, 9.60),
    }
    for name, (nominal, physical) in rows.items():
        memory = MemoryModel(policy_named(name), model)
        assert ratios(memory, 1024)[0] == pytest.approx(nominal, rel=0.01)
        # The measured page counts had no expected slack of half a page per head and tier.
        assert 0.75 * physical < ratios(memory, 1024)[1] < physical
