"""One scheduler, two clocks: where sizes follow from lengths, live engine and simulator decide alike at every step.

Both get the same requests on the same clock, on which every step lasts as long as every other; the pool is too small.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch

from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.backend.engine import Engine
from leankv.backend.live_request import LiveRequest
from leankv.serving.devices import device_named
from leankv.serving.models import ModelSpec, model_named, model_of_config
from leankv.serving.page_bounds import most_pages, most_prompt_pages
from leankv.serving.policies.registry import policy_named, registry
from leankv.simulator.clock import TICK_BITS
from leankv.simulator.config import SimulationConfig
from leankv.simulator.costs import UNBOUNDED, DecodeLine
from leankv.simulator.recorder import ReplicaLog
from leankv.simulator.run import Deployment, deploy, event_loop
from leankv.simulator.timeline import replica_states
from leankv.traces.trace import Trace

from . import tiny

STEP_PS = 1000
SEQS = 6
POLICIES = (
    "fp16", "int8", "int4", "kivi:residual=32", "kivi:residual=96", "streaming-llm:sink=4,recent=60",
    "h2o:heavy=0.4,recent=0.3", "snapkv:budget=48",
)  # fmt: skip


class EqualSteps:
    """Costs in which every step lasts STEP_PS."""

    def tokens_and_logits(self, tokens: int, sequences: int) -> int:
        return STEP_PS << TICK_BITS

    def decode_line(self, sequences: int, read: int) -> DecodeLine:
        return DecodeLine(STEP_PS << TICK_BITS, 0, 0, UNBOUNDED, STEP_PS << TICK_BITS)

    def decode_beside_prompts(self, sequences: int, read: int) -> int:
        return 0

    def prefill(self, chunk: int, context: int, last: bool) -> int:
        return 0


def trace_of(seed: int, requests: int = 8) -> Trace:
    draw = np.random.default_rng(seed)
    arrivals = np.cumsum(draw.integers(0, 5 * STEP_PS, requests)).astype(np.int64)
    prompts, outputs = draw.integers(3, 50, requests), draw.integers(5, 60, requests)
    return Trace("made", arrivals, prompts.astype(np.int32), outputs.astype(np.int32))


def live_engine(name: str, trace: Trace, batched: int, chunked: bool) -> Engine:
    """With a pool for the largest request and a sixth more, so that requests displace each other."""
    policy = policy_named(name)
    roomy = tiny.engine_of(policy, seqs=SEQS)
    lengths = list(zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    laid = roomy.pages.laid
    largest = max(max(most_prompt_pages(laid, p), most_pages(laid, p, p + out)) for p, out in lengths)
    pages = 7 * roomy.pages.rows * largest // 6
    memory = roomy.cache.tables.nbytes + pages * (roomy.cache.page_bytes + 4) - 4 * roomy.cache.pages
    return tiny.engine_of(policy, memory=memory, seqs=SEQS, batched=batched, chunked=chunked)


def live(engine: Engine, trace: Trace) -> tuple[list[tuple[int, ...]], dict[int, int]]:
    """Of every step the sequences, prompt tokens, running, waiting, preemptions and pages; finishes in ps."""
    rows = zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), trace.arrival_ps.tolist(), strict=True)
    coming = deque(
        LiveRequest(i, tiny.prompt_of(prompt, i), output, tiny.TO_LENGTH, arrival)
        for i, (prompt, output, arrival) in enumerate(rows)
        if engine.refusal(prompt, output) is None
    )
    now, finishes = 0, {}
    while coming or not engine.idle:
        while coming and coming[0].arrival_ps <= now:
            engine.add(coming.popleft())
        if engine.idle:
            now = coming[0].arrival_ps
            continue
        finished = engine.step()
        now += STEP_PS
        finishes |= {request.request_id: now for request in finished}
    names = ("sequences", "prompt_tokens", "running", "waiting", "preemptions", "staging", "tier0", "tier1")
    return list(zip(*(engine.log.column(name).tolist() for name in names), strict=True)), finishes


def shape() -> ModelSpec:
    return model_of_config(tiny.tiny_model().model.config.to_dict(), "tiny", "made up")


def deployed(engine: Engine, trace: Trace, per_step: bool) -> Deployment:
    limits = engine.scheduler.limits
    config = SimulationConfig(
        shape(),
        device_named("a100-80gb"),
        engine.policy,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        chunked_prefill=limits.chunked_prefill,
        kv_pages=engine.cache.pages,
        late_counts=True,
        per_step=per_step,
    )
    return replace(deploy(config), costs=EqualSteps())


def simulated(deployment: Deployment, trace: Trace) -> tuple[list[tuple[int, ...]], dict[int, int]]:
    outcome = event_loop(deployment, trace).run()
    (replica,) = outcome.replicas
    log, finished = replica.engine.log, outcome.records.finished
    starts, sequences, computed, waiting = steps_of(log)
    prompts = trace.prompt_tokens.astype(np.int64)
    middles, late = starts + STEP_PS // 2, deployment.late
    assert late is not None
    states = replica_states(0, log, trace.arrival_ps, prompts, late, deployment.capacity, None, middles)
    names = ("running", "preemptions", "kv_pages_staging", "kv_pages_tier0", "kv_pages_tier1")
    running, *rest = (states[name].tolist() for name in names)
    rows = list(zip(sequences, computed, running, waiting, *rest, strict=True))
    return rows, dict(zip(finished.column("request").tolist(), finished.column("finish_ps").tolist(), strict=True))


def steps_of(log: ReplicaLog) -> tuple[np.ndarray, list[int], list[int], list[int]]:
    """Start in ps, sequences, prompt tokens and requests waiting of every step, jumps taken apart."""
    names = ("start_ps", "steps", "sequences", "prompt_tokens", "waiting")
    start, steps, *columns = (log.segments.column(name) for name in names)
    within = np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps)
    sequences, prompts, waiting = (np.repeat(column, steps).tolist() for column in columns)
    return np.repeat(start, steps) + within * STEP_PS, sequences, prompts, waiting


@pytest.mark.parametrize(("seed", "batched", "chunked"), [(3, 24, True), (2, 128, False)])
@pytest.mark.parametrize("name", POLICIES)
def test_the_same_observations_give_the_same_decisions(name: str, seed: int, batched: int, chunked: bool) -> None:
    trace = trace_of(seed)
    engine = live_engine(name, trace, batched, chunked)
    steps, finishes = live(engine, trace)
    assert engine.preemptions > 0 or not chunked or name.startswith("h2o")
    assert max(waiting for _, _, _, waiting, *_ in steps) > 0
    # A token is a request's first, the first after a preemption, or one step after another.
    assert sum(step[0] for step in steps) + len(engine.log.preemption_gaps_ps) + len(trace) == trace.output_tokens.sum()
    for per_step in (True, False):
        rows, finished = simulated(deployed(engine, trace, per_step), trace)
        for number, (real, projected) in enumerate(zip(steps, rows, strict=False)):
            assert real == projected, f"step {number}, per step: {per_step}"
        assert len(steps) == len(rows) and finishes == finished


@pytest.mark.parametrize("name", sorted(name for name, policy in registry.items() if policy.live))
def test_both_pools_have_the_same_pages_in_the_same_memory(name: str) -> None:
    """SmolLM2's shape; tables for 16 requests of 700 tokens come out of the memory in both."""
    policy, model = registry[name], model_named("smollm2-135m")
    heads = CacheShape(model.layers, model.heads, model.kv_heads, model.head_dim)
    means = KeyMeans(*torch.zeros(2, model.layers, model.kv_heads, model.head_dim), torch.ones(model.head_dim // 2))
    cache = KVCache(heads, [policy], slots=16, memory_bytes=40 << 20, max_tokens=700, key_means=means)
    config = SimulationConfig(
        model, device_named("a100-80gb"), policy, max_num_seqs=16, kv_memory_bytes=40 << 20, late_counts=True
    )
    deployment = deploy(config, longest=700)
    assert (deployment.capacity, deployment.memory.page_bytes) == (cache.pages, cache.page_bytes)
