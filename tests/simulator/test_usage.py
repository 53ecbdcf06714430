"""What held a run back, and what it cost: deployments made short of one thing each."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leankv.app.commands import _deployment
from leankv.serving.bottleneck import limiting_resource
from leankv.serving.devices import device_named
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.scheduler import SchedulerLimits
from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import deploy, simulate
from leankv.simulator.step_time.overhead import STEP_S
from leankv.traces.open import open_trace
from leankv.traces.trace import PrefixBlocks, Trace

LIMITS = SchedulerLimits(max_num_seqs=8, max_num_batched_tokens=100)
DECODE, FULL, BLOCKED, CROWDED = (5, 0), (5, 95), (5, 20), (8, 0)
"""(sequences, prompt tokens) of a step: one that only decodes, one with its budget spent, one with room for more."""


@cache
def requests() -> Trace:
    return open_trace("poisson:rate=10,n=300,prompt=600,output=150")


def summary(rate: str = "10", trace: Trace | None = None, **settings: Any) -> dict[str, Any]:
    asked = trace or open_trace(f"poisson:rate={rate},n=300,prompt=600,output=150")
    model, device = model_named("llama-3.1-8b"), device_named("a100-80gb")
    return dict(simulate(SimulationConfig(model, device, policy_named("fp16"), **settings), asked).summary)


@pytest.mark.parametrize(
    ("rate", "settings", "expected"),
    [
        ("1", {}, "arrivals"),
        ("100", {"max_num_seqs": 400}, "compute"),
        ("10", {"max_num_seqs": 4}, "batch slots"),
        ("10", {"kv_memory_bytes": 2**30}, "KV capacity"),
        ("10", {"max_num_batched_tokens": 64, "max_num_seqs": 64}, "memory bandwidth"),
        ("10", {"max_concurrency": 4}, "concurrency"),
        ("1", {"max_concurrency": 200}, "arrivals"),
        ("10", {"max_concurrency": 4, "replicas": 2}, "concurrency"),
    ],
)
def test_what_is_scarce_is_named(rate: str, settings: dict[str, Any], expected: str) -> None:
    assert summary(rate, **settings)["limited_by"] == expected


def table(rows: list[tuple[tuple[int, int], int, int]]) -> pa.Table:
    """Steps one after the other, each of (kind, milliseconds, requests waiting)."""
    lasting = [ms * 10**9 for _, ms, _ in rows]
    return pa.table(
        {
            "replica": [0] * len(rows),
            "start_ps": [sum(lasting[:index]) for index in range(len(rows))],
            "steps": [1] * len(rows),
            "first_gap_ps": [float(ps) for ps in lasting],
            "slope_ps": [0.0] * len(rows),
            "sequences": [kind[0] for kind, _, _ in rows],
            "prompt_tokens": [kind[1] for kind, _, _ in rows],
            "waiting": [waiting for _, _, waiting in rows],
        }
    )


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(DECODE, 99, 0), (FULL, 1, 9)], "arrivals"),
        ([(DECODE, 10, 0), (FULL, 40, 3)], "compute"),
        ([(DECODE, 10, 0), (FULL, 15, 3)], "memory bandwidth"),
        ([(DECODE, 10, 0), (FULL, 40, 3), (BLOCKED, 20, 7)], "KV capacity"),
        ([(DECODE, 10, 0), (CROWDED, 10, 30), (FULL, 40, 3)], "batch slots"),
        ([(FULL, 40, 3)], "compute"),
    ],
)
def test_the_cause_of_most_waiting_is_named(rows: list[tuple[tuple[int, int], int, int]], expected: str) -> None:
    assert limiting_resource(LIMITS, table(rows)) == expected


def test_the_time_before_the_first_request_costs_nothing() -> None:
    early = requests()
    late = replace(early, arrival_ps=early.arrival_ps + 10**15)
    costs = [summary(trace=trace)["usd_per_million_output_tokens"] for trace in (early, late)]
    assert costs[0] == pytest.approx(costs[1])
    found = summary(trace=early)
    assert costs[0] == pytest.approx(1.79 * found["duration_s"] / 3600 / (300 * 150) * 1e6)


def test_the_host_s_time_of_a_step_can_be_set_and_its_default_is_the_one_stated() -> None:
    stated = "default: 0.71, measured on vLLM's engine loop"
    assert stated in inspect.getsource(_deployment) and pytest.approx(0.71e-3) == STEP_S
    plain, same, slow = (summary(trace=requests(), step_overhead_ms=ms)["mean_itl_ms"] for ms in (None, 0.71, 5.71))
    assert plain == same
    assert plain + 5 < slow < plain + 10, "5 ms more a step, and a larger batch for it"


def test_rejected_prompts_are_not_asked_of_the_prefix_cache() -> None:
    """Four equal prompts of ten blocks: three find nine of them, since a prompt's last token is always computed."""
    blocks = PrefixBlocks(np.arange(6) * 10, np.tile(np.arange(10), 5), 100)
    prompts = np.array([1000, 1000, 1000, 1000, 10**6])
    trace = Trace("five", np.arange(5) * 10**12, prompts, np.full(5, 20), blocks)
    found = summary(trace=trace, prefix_caching=True)
    assert (found["completed"], found["rejected"]) == (4, 1)
    assert found["prefix_hit_rate"] == pytest.approx(2700 / 4000)


def test_the_most_running_is_counted_not_sampled() -> None:
    """Two requests of a few milliseconds meet once in a thousand seconds, between two instants of the timeline."""
    arrival = np.array([0, 500_400, 500_400, 1_000_000]) * 10**9
    trace = Trace("rare", arrival, np.full(4, 10), np.full(4, 5))
    assert summary(trace=trace)["max_running"] == 2
    assert summary("100", max_num_seqs=7)["max_running"] == 7


def test_counters_are_paid_for_as_many_requests_as_may_run() -> None:
    model, device = model_named("llama-3.1-8b"), device_named("a100-80gb")
    few, many = (
        deploy(SimulationConfig(model, device, policy_named("leankv"), max_num_seqs=n, kv_memory_bytes=2**30)).capacity
        for n in (16, 2048)
    )
    assert few > many
