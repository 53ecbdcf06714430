"""Every policy, in too little memory: the jumping engine against the per-step oracle, and what must be conserved."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from leankv.serving.devices import device_named
from leankv.serving.memory import MemoryModel
from leankv.serving.models import model_named
from leankv.serving.policies.registry import registry
from leankv.serving.runs import Run
from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import assemble, deploy, event_loop
from leankv.traces.open import open_trace
from leankv.traces.trace import Trace
from leankv.traces.transforms import cap_lengths, limit, rate_scale

MODEL = "qwen2.5-0.5b"
MODES: dict[str, dict[str, Any]] = {
    "chunked": {"max_num_batched_tokens": 512},
    "unchunked": {"chunked_prefill": False, "max_num_batched_tokens": 4096},
    "two GPUs": {"tp": 2, "max_num_batched_tokens": 512},
    "closed loop": {"max_concurrency": 12, "replicas": 2, "router": "least-kv-use"},
}
CASES = (
    ("conversations", "chunked"),
    ("conversations", "unchunked"),
    ("conversations", "two GPUs"),
    ("long answers", "chunked"),
    ("long answers", "unchunked"),
    ("long answers", "closed loop"),
)


@cache
def traces() -> dict[str, Trace]:
    """Conversations in a rush; and short questions with long answers, whose pages are claimed while they decode."""
    conversations = cap_lengths(limit(open_trace("azure-conv-2023-like"), 60), 2000, 120)
    return {
        "conversations": rate_scale(conversations, 3),
        "long answers": open_trace("gamma:rate=20,cv=2,n=60,prompt=lognormal:60:0.4,output=lognormal:250:0.5"),
    }


def tight_pool(memory: MemoryModel, trace: Trace) -> int:
    """Bytes that hold the largest request and a third more, so that requests displace each other."""
    prompts, outputs = trace.prompt_tokens.astype(np.int64), trace.output_tokens.astype(np.int64)
    needs = np.maximum(memory.prefill_pages_array(prompts), memory.pages_array(prompts, prompts + outputs))
    target = int(1.33 * needs.max())
    size = target * memory.page_bytes
    while memory.capacity(size) < target:
        size = int(1.05 * size)
    return size


def run(policy: str, trace: str, mode: str, per_step: bool) -> Run:
    return run_and_prefills(policy, trace, mode, per_step)[0]


@cache
def run_and_prefills(policy: str, trace: str, mode: str, per_step: bool) -> tuple[Run, int]:
    """A run, and how often a prompt was computed to its end, first or anew: each time gave a token."""
    settings = MODES[mode]
    model, requests = model_named(MODEL), traces()[trace]
    memory = MemoryModel(
        registry[policy], model, settings.get("tp", 1), chunked_prefill=settings.get("chunked_prefill", True)
    )
    config = SimulationConfig(
        model=model,
        device=device_named("l40"),
        policy=registry[policy],
        max_num_seqs=32,
        kv_memory_bytes=tight_pool(memory, requests),
        per_step=per_step,
        **settings,
    )
    deployment = deploy(config)
    outcome = event_loop(deployment, requests).run()
    prefills = sum(int((replica.engine.log.stays.column("decode_ps") >= 0).sum()) for replica in outcome.replicas)
    return assemble(deployment, requests, outcome), prefills


def column(table: Any, name: str) -> np.ndarray:
    values: np.ndarray = table[name].to_numpy()
    return values


every_case = pytest.mark.parametrize(
    ("policy", "trace", "mode"), [(policy, trace, mode) for policy in registry for trace, mode in CASES]
)


@every_case
def test_jumps_and_steps_agree_on_every_timestamp(policy: str, trace: str, mode: str) -> None:
    jumped, stepped = (run(policy, trace, mode, per_step) for per_step in (False, True))
    assert jumped.requests.equals(stepped.requests)
    for name in ("steps", "prompt_tokens"):
        assert column(jumped.segments, name).sum() == column(stepped.segments, name).sum()
    assert jumped.segments.num_rows < stepped.segments.num_rows


@every_case
def test_tokens_requests_and_pages_are_conserved(policy: str, trace: str, mode: str) -> None:
    (found, prefills), asked = run_and_prefills(policy, trace, mode, False), traces()[trace]
    requests, segments, states = found.requests, found.segments, found.timeline
    assert set(requests["status"].to_pylist()) == {"finished"}
    assert column(requests, "output_tokens").tolist() == asked.output_tokens.tolist()

    # One that loses its cache again before its prompt is computed to the end gets no token from it.
    preemptions = int(column(requests, "preemptions").sum())
    assert len(asked) <= prefills <= len(asked) + preemptions
    decoded = int((column(segments, "steps") * column(segments, "sequences")).sum())
    assert decoded + prefills == asked.output_tokens.sum()
    computed, prompts = int(column(segments, "prompt_tokens").sum()), int(asked.prompt_tokens.sum())
    assert computed == prompts if preemptions == 0 else computed > prompts

    used, capacity = column(states, "kv_pages_used"), column(states, "kv_pages_capacity")
    assert ((used >= 0) & (used <= capacity)).all() and used.max() > 0.6 * capacity.max()
    for replica in np.unique(column(states, "replica")):
        assert used[column(states, "replica") == replica][-1] == 0
    parts = [column(states, name) for name in ("kv_pages_staging", "kv_pages_tier0", "kv_pages_tier1")]
    assert (np.sum(parts, axis=0) == used).all()


@every_case
def test_nothing_happens_before_its_cause(policy: str, trace: str, mode: str) -> None:
    requests = run(policy, trace, mode, False).requests
    order = [column(requests, f"{moment}_ps") for moment in ("arrival", "admitted", "first_token", "finish")]
    for earlier, later in pairwise(order):
        assert (earlier <= later).all()
    assert (order[2] > order[1]).all()
    several = column(requests, "output_tokens") > 1
    assert (order[3] > order[2])[several].all() and (order[3] == order[2])[~several].all()


@every_case
def test_inter_token_latencies_fill_the_time_from_first_to_last_token(policy: str, trace: str, mode: str) -> None:
    """Gaps across a preemption included, every gap is counted once, so that their sum is known."""
    found = run(policy, trace, mode, False)
    requests = found.requests
    decoding_ms = (column(requests, "finish_ps") - column(requests, "first_token_ps")).sum() / 1e9
    gaps = (column(requests, "output_tokens") - 1).sum()
    assert found.summary["mean_itl_ms"] * gaps == pytest.approx(decoding_ms, rel=1e-6)
    assert found.summary["p99_itl_ms"] <= column(requests, "e2el_ms").max()


@pytest.mark.parametrize("policy", registry)
def test_memory_was_tight_enough_to_take_pages_back(policy: str) -> None:
    """Where a request's pages grow as it decodes, some run above had to preempt; otherwise they would prove little."""
    memory = MemoryModel(registry[policy], model_named(MODEL))
    asked = traces()["long answers"]
    prompts, outputs = asked.prompt_tokens.astype(np.int64), asked.output_tokens.astype(np.int64)
    grows = (memory.pages_array(prompts, prompts + outputs) > memory.pages_array(prompts, prompts + 1)).any()
    preempted = sum(run(policy, trace, mode, False).summary["preemptions"] for trace, mode in CASES)
    assert (preempted > 0) == grows
