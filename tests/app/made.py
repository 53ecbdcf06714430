"""Hand-made results with the schemas of real ones, so that pages are tested without a model."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from leankv.serving.devices import device_named
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.runs import Run, save_run
from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import simulate
from leankv.simulator.validation import Case, save_validation, validated
from leankv.traces.open import open_trace

if TYPE_CHECKING:
    from leankv.traces.trace import Trace

LOADS = {"low": 1.0, "knee": 2.0}
REPEATS = 2


@cache
def served(policy: str, rate: float, overhead_ms: float) -> Run:
    """One run; another overhead stands for another machine than the simulator knows."""
    from leankv.traces.transforms import rate_scale

    trace: Trace = rate_scale(open_trace(limit=80), rate)
    device = device_named("l40s")
    config = SimulationConfig(
        model=model_named("llama-3.1-8b"), device=device, policy=policy_named(policy), step_overhead_ms=overhead_ms
    )
    return simulate(config, trace)


def validation_folder(folder: Path, policies: tuple[str, ...] = ("fp16", "int8", "leankv"), runs: bool = True) -> Path:
    """A folder as `leankv validate` leaves it: two loads, two repeats, "live" runs on a slightly slower machine."""
    cases, machine = [], []
    for load, rate in LOADS.items():
        for policy in policies:
            simulated = served(policy, rate, 0.7)
            live = {n: replace(served(policy, rate, 1.5 + 0.3 * n), source="live") for n in range(REPEATS)}
            cases.append(Case(policy, load, simulated, live))
            machine += [
                {"load": load, "policy": policy, "repeat": n, "before": 1.0, "after": 1.02 + 0.2 * n}
                for n in range(REPEATS)
            ]
            if runs:
                save_run(simulated, folder / load / policy / "simulated")
                for n, run in live.items():
                    save_run(run, folder / load / policy / f"live-{n + 1}")
    conditions = {
        "device": {"name": "cpu, 2 threads", "backend": "cpu", "dtype": "float32"},
        "model": asdict(model_named("llama-3.1-8b")),
        "trace": {"name": "azure-conv-2023-like", "requests": 80},
        "policies": list(policies),
        "repeats": REPEATS,
        "kv_memory_bytes": 1 << 30,
        "versions": {},
        "profile": {"digest": "0", "created": "2026-11-21T12:00:00", "versions": {}},
    }
    loads = {load: {"rate_scale": rate, "offered_rps": 4 * rate} for load, rate in LOADS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_validation(validated(conditions, loads, cases, machine), folder / "validation.json")
    return folder
