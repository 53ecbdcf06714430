"""Simulated TTFT and TPOT beside measured ones: Qwen3-32B in bf16 on H100 under vLLM 0.12, a closed loop.

The measured rows come with the package `aiconfigurator-core` (`systems/silicon_sample.csv`, mean values). They say the
lengths, the concurrency and the tensor parallelism; how they were taken is filled in from the tools that took them, and
nothing is fitted on them:
- requests: ten per concurrent one, after a warm-up that drains first, so that the run starts with a burst
  (aiconfigurator, `eval/benchmarks/genai_perf_runner.py`: `--request-count` concurrency * 10; standard deviations 0);
- tokens a step: prompt + 1,500 + concurrency (aiconfigurator's generator, `rule_plugin/benchmark/vllm.rule`). The file
  does not say it, and TTFT hangs on it: with 2,048 or vLLM's own default of 8,192 the medians are 19 % and 30 %, where
  this gives 13 %; TPOT stays between 3 and 4 %. `leankv bench silicon --max-num-batched-tokens` shows any other;
- KV memory: 0.9 of the device (vLLM 0.12's default) less the weights and what the device file of aiconfigurator-core
  sets aside for NCCL and the rest (`h100_sxm.yaml`, `misc`);
- everything else as in any other simulation, host overhead and sampler included.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import median

import numpy as np

from leankv.serving.devices import DeviceSpec, device_named
from leankv.serving.models import ModelSpec, model_named
from leankv.serving.policies.registry import policy_named
from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import simulate
from leankv.simulator.step_time.tables import systems_folder
from leankv.traces.trace import Trace

MODEL, DEVICE = "qwen3-32b", "h100"
MEASURED_MODEL, MEASURED_SYSTEM, BACKEND = "Qwen/Qwen3-32B", "h100_sxm", "vllm"
ROUNDS = 10
EXTRA_STEP_TOKENS = 1500
MEMORY_UTILIZATION = 0.9
SET_ASIDE_BYTES = 3_758_096_384
NCCL_BYTES = {1: 0, 2: 358_612_992, 4: 411_041_792, 8: 411_041_792}
CONDITIONS: Mapping[str, object] = {
    "model": MEASURED_MODEL,
    "device": MEASURED_SYSTEM,
    "engine": "vLLM 0.12, bf16 weights and cache",
    "requests_per_concurrent_one": ROUNDS,
    "max_num_batched_tokens": f"prompt + {EXTRA_STEP_TOKENS} + concurrency",
    "memory_utilization": MEMORY_UTILIZATION,
    "statistic": "mean over all requests, the first burst included",
    "fitted": "nothing",
}


@dataclass(frozen=True)
class ServingPoint:
    """One measured row: lengths in tokens, requests in flight, ranks, and mean latencies."""

    isl: int
    osl: int
    concurrency: int
    tp: int
    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True)
class Latencies:
    """Predicted mean latencies of one row."""

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True)
class Errors:
    """Median absolute relative errors over `rows` rows."""

    rows: int
    ttft: float
    tpot: float


def measured_points() -> tuple[ServingPoint, ...]:
    """The bf16 rows, in the file's order.

    Raises:
        InputError: the package is not installed.
    """
    with (systems_folder() / "silicon_sample.csv").open(newline="") as lines:
        return tuple(_point(row) for row in csv.DictReader(lines) if _is_wanted(row))


def _is_wanted(row: Mapping[str, str]) -> bool:
    same = (row["model_path"], row["system"], row["backend"]) == (MEASURED_MODEL, MEASURED_SYSTEM, BACKEND)
    return same and row["mode"] == "agg" and not row["gemm_quant_mode"]


def _point(row: Mapping[str, str]) -> ServingPoint:
    return ServingPoint(
        isl=int(row["isl"]),
        osl=int(row["osl"]),
        concurrency=int(float(row["batch_size"])),
        tp=int(float(row["tp_size"])),
        ttft_ms=float(row["silicon_ttft_ms"]),
        tpot_ms=float(row["silicon_tpot_ms"]),
    )


def simulated(point: ServingPoint, step_time: str = "silicon", step_tokens: int | None = None) -> Latencies:
    """What the simulator says of a row, knowing nothing of its measured latencies.

    `step_tokens` replaces the tokens that a step may compute.
    """
    model, device = model_named(MODEL), device_named(DEVICE)
    config = SimulationConfig(
        model=model,
        device=device,
        policy=policy_named("fp16"),
        tp=point.tp,
        max_num_batched_tokens=step_tokens or point.isl + EXTRA_STEP_TOKENS + point.concurrency,
        kv_memory_bytes=kv_memory_bytes(model, device, point.tp),
        step_time=step_time,
        max_concurrency=point.concurrency,
    )
    summary = simulate(config, closed_loop(point.isl, point.osl, ROUNDS * point.concurrency)).summary
    return Latencies(summary["mean_ttft_ms"], summary["mean_tpot_ms"])


def kv_memory_bytes(model: ModelSpec, device: DeviceSpec, tp: int) -> int:
    """KV pool of one GPU as vLLM would size it."""
    taken = model.weight_bytes / tp + SET_ASIDE_BYTES + NCCL_BYTES[tp]
    return int(device.memory_bytes * MEMORY_UTILIZATION - taken)


def closed_loop(prompt: int, output: int, requests: int) -> Trace:
    """Requests of one length, all there from the start: a closed loop sends them as others finish."""
    same = np.ones(requests, dtype=np.int32)
    return Trace(
        f"closed-{prompt}x{output}",
        arrival_ps=np.zeros(requests, dtype=np.int64),
        prompt_tokens=prompt * same,
        output_tokens=output * same,
    )


def errors(points: Iterable[ServingPoint], predictions: Iterable[Latencies]) -> Errors:
    """Median absolute relative errors of predictions against their points."""
    pairs = list(zip(points, predictions, strict=True))
    return Errors(
        rows=len(pairs),
        ttft=median(abs(guess.ttft_ms / point.ttft_ms - 1) for point, guess in pairs),
        tpot=median(abs(guess.tpot_ms / point.tpot_ms - 1) for point, guess in pairs),
    )


GROUPS: Mapping[str, Callable[[ServingPoint], int]] = {
    "ISL": lambda point: point.isl,
    "OSL": lambda point: point.osl,
    "concurrency": lambda point: point.concurrency,
    "TP": lambda point: point.tp,
}


def errors_by_group(points: Iterable[ServingPoint], predictions: Iterable[Latencies]) -> dict[str, dict[int, Errors]]:
    """Errors by ISL, OSL, concurrency and TP."""
    pairs = list(zip(points, predictions, strict=True))
    return {name: _grouped(pairs, key) for name, key in GROUPS.items()}


def _grouped(pairs: list[tuple[ServingPoint, Latencies]], key: Callable[[ServingPoint], int]) -> dict[int, Errors]:
    ordered = sorted(pairs, key=lambda pair: key(pair[0]))
    return {
        value: errors(*zip(*members, strict=True)) for value, members in groupby(ordered, key=lambda pair: key(pair[0]))
    }
