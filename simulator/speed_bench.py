"""How fast the event loop is: jumping against stepping, and how its cost grows with the number of requests."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import assemble, deploy, event_loop
from leankv.traces import transforms
from leankv.traces.trace import Trace

REPEATS = 5
MIB_PER_MAXRSS = 2**20 if sys.platform == "darwin" else 2**10


@dataclass(frozen=True)
class LoopTime:
    """`seconds`: processor time of the event loop, the least of its repeats. `tables_s`: of making a run's tables."""

    policy: str
    requests: int
    mode: str
    seconds: float
    tables_s: float
    steps: int

    @property
    def us_per_request(self) -> float:
        return 1e6 * self.seconds / self.requests

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "us_per_request": self.us_per_request}


def time_loop(config: SimulationConfig, trace: Trace, repeats: int = REPEATS) -> LoopTime:
    """Time the event loop, token latencies included; building its models and tables is not part of it."""
    seconds, tables_s, steps = [], [], 0
    for _ in range(repeats):
        deployment = deploy(config)
        loop = event_loop(deployment, trace)
        began = time.process_time()
        outcome = loop.run()
        ended = time.process_time()
        run = assemble(deployment, trace, outcome)
        seconds.append(ended - began)
        tables_s.append(time.process_time() - ended)
        steps = int(run.segments["steps"].to_numpy().sum())
    mode = "per step" if config.per_step else "jumping"
    return LoopTime(config.policy.name, len(trace), mode, min(seconds), min(tables_s), steps)


def measure(
    configs: list[SimulationConfig], trace: Trace, few: int, many: int, report: Callable[[float], None]
) -> dict[str, Any]:
    """Every policy on the first `few` requests in both modes; then the first policy on `many`, the trace repeated.

    Peak memory is the process's, after the largest run.
    """
    short = transforms.limit(trace, min(few, len(trace)))
    rows = []
    for index, config in enumerate(configs):
        rows += [time_loop(config, short), time_loop(replace(config, per_step=True), short, repeats=1)]
        report((index + 1) / (len(configs) + 2))
    growth = [
        time_loop(configs[0], transforms.repeat(trace, count), repeats) for count, repeats in ((10_000, 3), (many, 1))
    ]
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB_PER_MAXRSS
    return {
        "loops": [row.as_dict() for row in rows],
        "jump_ratio": {
            jump.policy: step.seconds / jump.seconds for jump, step in zip(rows[::2], rows[1::2], strict=True)
        },
        "growth": [row.as_dict() for row in growth],
        "cost_ratio_many_to_10k": growth[1].us_per_request / growth[0].us_per_request,
        "peak_memory_mib": peak_mib,
        "python_loop_ms": python_loop_ms(),
    }


def python_loop_ms() -> float:
    """Milliseconds for 100,000 turns of an empty Python loop here and now: the yardstick of this machine's mood."""
    best = float("inf")
    for _ in range(10):
        began = time.process_time()
        for _turn in range(100_000):
            pass
        best = min(best, time.process_time() - began)
    return 1e3 * best
