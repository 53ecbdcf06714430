"""The three loads of a validation, found by the simulator alone: low, knee and overload, and a pool that feels them.

The knee is the highest rate at which the run is stable and 90 % of its requests stay within `SLO_SCALE` times the
latency of an idle deployment (the SLO scale of AlpaServe, OSDI 2023, section 6.1). Low is two thirds of it, overload
half as much again. Without a stated pool, it is what fp16 needs for half of the requests that may run at once, so that
memory, too, gives way under load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from leankv.serving.errors import InputError
from leankv.serving.memory import MemoryModel
from leankv.serving.policies.registry import policy_named
from leankv.simulator.run import simulate
from leankv.simulator.sweep import ATTAINMENT, attainment, offered_rps
from leankv.traces.transforms import rate_scale

if TYPE_CHECKING:
    from leankv.simulator.config import SimulationConfig
    from leankv.traces.trace import Trace

LOADS: Mapping[str, float] = {"low": 2 / 3, "knee": 1.0, "overload": 1.5}
"""Rates as multiples of the knee's."""
SLO_SCALE = 5.0
PRECISION = 1.04
SCALES = (2.0**-12, 2.0**12)
SEATS_HELD = 0.5
POOL_SLACK = 1.05
MISSED = f"fewer than {ATTAINMENT:.0%} of the requests stay within {SLO_SCALE:g} times an idle deployment's latency"


@dataclass(frozen=True)
class Load:
    """Arrivals `rate_scale` times as fast as the trace's own: `offered_rps` requests a second."""

    name: str
    rate_scale: float
    offered_rps: float

    def as_dict(self) -> dict[str, float]:
        return {"rate_scale": self.rate_scale, "offered_rps": self.offered_rps}


def loads_of(names: Iterable[str], knee: float, trace: Trace) -> list[Load]:
    """The named loads, from the rate scale of the knee. Scales have three digits, so that their names are exact."""
    scales = {name: float(f"{LOADS[name] * knee:.3g}") for name in names}
    return [Load(name, scale, offered_rps(rate_scale(trace, scale))) for name, scale in scales.items()]


def knee_scale(config: SimulationConfig, trace: Trace) -> float:
    """The rate scale of the knee, within 4 %, by bisection.

    Raises InputError where no rate is slow enough: too many requests are rejected, or late even on their own.
    """
    bounded = replace(config, slo=idle_bounds(config, trace))
    burst = simulate(config, rate_scale(trace, SCALES[1])).summary
    _require_few_rejections(burst)
    low = high = burst["request_throughput"] / offered_rps(trace)
    while _holds(bounded, trace, high) and high < SCALES[1]:
        low, high = high, 2 * high
    while not _holds(bounded, trace, low):
        if low < SCALES[0]:
            raise InputError(f"{trace.name}: {MISSED} at any rate; state a rate with --knee, or lower --max-prompt")
        low, high = low / 2, low
    while high / low > PRECISION:
        middle = sqrt(low * high)
        low, high = (middle, high) if _holds(bounded, trace, middle) else (low, middle)
    return low


def idle_bounds(config: SimulationConfig, trace: Trace) -> dict[str, float]:
    """Service levels in ms: `SLO_SCALE` times what 90 % of the requests need with the deployment to themselves."""
    alone = simulate(replace(config, max_concurrency=1), trace).summary
    found = {metric: alone[f"p90_{metric}_ms"] for metric in ("ttft", "tpot")}
    return {metric: SLO_SCALE * value for metric, value in found.items() if value}


def pool_bytes(model: Any, trace: Trace, max_num_seqs: int) -> int:
    """Bytes of a KV pool in which fp16 holds half of `max_num_seqs` requests, and the longest request at least.

    Raises InputError where no request fits the model's context.
    """
    memory = MemoryModel(policy_named("fp16"), model, 1)
    prompts, outputs = trace.prompt_tokens.astype(np.int64), trace.output_tokens.astype(np.int64)
    fitting = prompts + outputs <= model.max_context
    if not fitting.any():
        raise InputError(
            f"{trace.name}: no request fits the context of {model.name}, {model.max_context} tokens; cut them with "
            "--max-prompt and --max-output"
        )
    pages = memory.pages_array(prompts[fitting], (prompts + outputs)[fitting])
    wanted = int(max(SEATS_HELD * max_num_seqs * pages.mean(), pages.max()) * POOL_SLACK) + 1
    size = wanted * memory.page_bytes
    while memory.capacity(size, max_num_seqs) < wanted:
        size = int(size * 1.02) + memory.page_bytes
    return size


def _require_few_rejections(summary: Mapping[str, Any]) -> None:
    """A rejected request is late at every rate. Raises InputError where they alone are too many."""
    rejected, requests = summary["rejected"], summary["rejected"] + summary["completed"]
    if summary["completed"] < ATTAINMENT * requests:
        _, reason = summary["rejections"][0]
        raise InputError(
            f"{rejected} of {requests} requests are rejected, the first: {reason}; so there is no knee to find: lower "
            "--max-prompt, raise --kv-memory-gib, or state a rate with --knee"
        )


def _holds(config: SimulationConfig, trace: Trace, scale: float) -> bool:
    summary = simulate(config, rate_scale(trace, scale)).summary
    return bool(summary["stable"]) and attainment(summary) >= ATTAINMENT
