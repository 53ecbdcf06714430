"""The scheduler's late view of the pool: whatever the requests do, no step runs short of pages."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leankv.backend.engine import Engine
from leankv.backend.exact import fp32
from leankv.backend.live_request import LiveRequest
from leankv.serving.page_bounds import most_pages
from leankv.serving.policies.registry import policy_named

from . import tiny

# Thresholds that keep all, demote all, or depend on each score; windows and intervals small enough to act in 30 steps.
ADVERSARIES = (
    "fp16", "int4", "kivi:residual=32", "streaming-llm:sink=2,recent=20", "h2o:heavy=0.5,recent=0.3",
    "snapkv:budget=40", "leankv:alpha_low=0,alpha_high=0", "leankv:alpha_low=0,alpha_high=1000000,window=2",
    "leankv:alpha_low=0.8,alpha_high=1.2,window=8", "leankv-r:recompress_every=2,prune=0.0,low_mass=0.9,window=2",
    "leankv-r:recompress_every=5,prune=0.3,low_mass=0.6,window=8",
)  # fmt: skip
BY_RULE = ADVERSARIES[:6]


def pressed(name: str, pages: int, seqs: int, batched: int) -> Engine:
    policy = policy_named(name)
    page = tiny.engine_of(policy, seqs=seqs).cache.page_bytes
    return tiny.engine_of(policy, memory=pages * (page + 4) + 40_000, seqs=seqs, batched=batched)


def held_now(engine: Engine) -> int:
    return engine.cache.pages - int(engine.cache.free_pages)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(ADVERSARIES),
    lengths=st.lists(st.tuples(st.integers(1, 120), st.integers(1, 30)), min_size=2, max_size=7),
    pages=st.integers(60, 200),
    batched=st.sampled_from((8, 40, 300)),
    preempted=st.sets(st.integers(1, 60), max_size=3),
)
def test_no_step_runs_short(
    name: str, lengths: list[tuple[int, int]], pages: int, batched: int, preempted: set[int]
) -> None:
    engine = pressed(name, pages, seqs=6, batched=batched)
    requests = [LiveRequest(i, tiny.prompt_of(n, i), out, tiny.TO_LENGTH) for i, (n, out) in enumerate(lengths)]
    fitting = [r for r in requests if engine.refusal(r.prompt_tokens, r.output_tokens) is None]
    for request in fitting:
        engine.add(request)
    while not engine.idle:
        engine.step()
        engine.cache.check_integrity()
        assert held_now(engine) <= engine.pages.most_held()
        if len(engine.log.rows) in preempted and engine.scheduler.running:
            engine.scheduler._preempt_last()
    assert all(len(request.output) == request.output_tokens for request in fitting)
    assert held_now(engine) == 0


@pytest.mark.parametrize("reserved", [True, False])
def test_it_is_the_reserve_that_keeps_steps_from_running_short(reserved: bool) -> None:
    """Six requests of one length cross page boundaries in the same step: the second time the pool has no room."""
    name = "leankv:alpha_low=0,alpha_high=0"
    per_page = tiny.engine_of(policy_named(name)).pages.laid.tiers[0].tokens
    engine = pressed(name, pages=24 * -(-60 // per_page) + 30, seqs=6, batched=400)
    if not reserved:
        engine.pages.growth = 0
    for i in range(6):
        engine.add(LiveRequest(i, tiny.prompt_of(60, i), 60, tiny.TO_LENGTH))
    with nullcontext() if reserved else pytest.raises(RuntimeError, match="pages short"):
        while not engine.idle:
            engine.step()


@pytest.mark.parametrize("name", BY_RULE)
def test_sizes_that_follow_from_lengths_are_known_exactly(name: str) -> None:
    engine = pressed(name, pages=400, seqs=6, batched=300)
    request = LiveRequest(0, tiny.prompt_of(75, 0), 40, tiny.TO_LENGTH)
    engine.add(request)
    exact = 0
    while not engine.idle:
        engine.step()
        if request.slot >= 0:
            bound = engine.pages.rows * most_pages(engine.pages.laid, 75, request.cached)
            assert held_now(engine) <= bound
            exact += held_now(engine) == bound
    # KIVI's bound is that of the moment in which a block leaves the full window.
    assert exact >= (1 if name.startswith("kivi") else 39)


def test_neither_watermark_nor_reserve_keep_out_who_fits() -> None:
    """Four requests of 16 pages in a pool that is hardly larger."""
    engine = pressed("fp16", pages=64, seqs=6, batched=300)
    assert 64 <= engine.cache.pages < 80
    for i in range(5):
        engine.add(LiveRequest(i, tiny.prompt_of(57, i), 8, tiny.TO_LENGTH))
    engine.step()
    assert engine.scheduler.running == 4
    while not engine.idle:
        engine.step()
    assert engine.preemptions == 0


def test_float32_takes_twice_the_pages_bytes_of_float16() -> None:
    assert tiny.engine_of(fp32()).cache.page_bytes == 2 * tiny.engine_of(policy_named("fp16")).cache.page_bytes
