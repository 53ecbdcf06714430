"""From a run's tables to its summary, with the names, units and definitions of `vllm bench serve`.

TTFT = first token - arrival. E2EL = last token - arrival. TPOT = (E2EL - TTFT) / (n - 1), for requests of n > 1 tokens.
ITL = each gap between two tokens of one request, those across a preemption included. Goodput counts a request only if
it meets every SLO. Rates are over the duration from the first arrival to the last token. Percentiles interpolate
linearly, as NumPy does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from leankv.serving import bootstrap

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)
POINTS_PER_SEGMENT = 8
UNSTABLE_GROWTH = 1.5
PS_PER_S = 1e12
PS_PER_MS = 1e9


def summarise(
    requests: pa.Table, segments: pa.Table, slo: Mapping[str, float], preemption_gaps_ps: Sequence[int] = ()
) -> dict[str, Any]:
    """The serving metrics of one run.

    Args:
        requests: the table `requests` of a run (see `runs.py`).
        segments: the table `segments` of the same run; its gaps are weighted by the sequences that saw them.
        slo: milliseconds for "ttft", "tpot", "e2el"; a request without a TPOT (one token) meets any TPOT bound.
        preemption_gaps_ps: from a token to the next one of its request, where it lost its cache in between; no step
            of `segments` is such a gap.
    """
    done = requests.filter(_is(requests, "finished"))
    summary: dict[str, Any] = {
        "completed": done.num_rows,
        "rejected": int(_is(requests, "rejected").to_numpy(zero_copy_only=False).sum()),
        "unfinished": int(_is(requests, "unfinished").to_numpy(zero_copy_only=False).sum()),
        "preemptions": int(_numbers(requests, "preemptions").sum()),
        "slo": dict(slo),
    }
    if done.num_rows == 0:
        return summary
    duration_s = (_numbers(done, "finish_ps").max() - _numbers(done, "arrival_ps").min()) / PS_PER_S
    summary["duration_s"] = duration_s
    summary |= _rates(done, duration_s, slo)
    for metric in ("ttft", "tpot", "e2el", "queue"):
        values = _numbers(done, f"{metric}_ms")
        summary |= _spread(metric, values[~np.isnan(values)])
    summary |= _token_gaps(segments, preemption_gaps_ps)
    summary["stable"] = is_stable(_numbers(done, "arrival_ps"), _numbers(done, "admitted_ps"))
    summary["intervals"] = intervals(done, meets_slo(done, slo), summary["request_throughput"])
    summary["interval_kind"] = bootstrap.KIND
    return summary


def meets_slo(done: pa.Table, slo: Mapping[str, float]) -> npt.NDArray[np.bool_]:
    """Which finished requests meet every bound of `slo`, in ms."""
    met = np.ones(done.num_rows, dtype=bool)
    for metric, bound in slo.items():
        values = _numbers(done, f"{metric}_ms")
        met &= np.isnan(values) | (values <= bound)
    return met


def is_stable(arrival_ps: Floats, admitted_ps: Floats) -> bool:
    """Whether the queue stopped growing: an unstable run's latencies measure the length of its trace.

    Compares the requests that wait, at the arrivals of the last quarter, with those of the first quarter; growth by
    more than half, and by more than the Poisson noise of such a count, is unstable.
    """
    if len(arrival_ps) < 8:
        return True
    arrivals, admissions = np.sort(arrival_ps), np.sort(admitted_ps)
    arrived, admitted = (np.searchsorted(times, arrivals, side="right") for times in (arrivals, admissions))
    waiting = arrived - admitted
    quarter = len(arrivals) // 4
    before, after = waiting[:quarter].mean(), waiting[-quarter:].mean()
    return bool(after <= UNSTABLE_GROWTH * before + 4 * np.sqrt(before + 1))


def intervals(done: pa.Table, met: npt.NDArray[np.bool_], throughput: float) -> dict[str, list[float]]:
    """95 % intervals of the latencies and of goodput, by a block bootstrap over time; none for under 40 requests.

    `met`: which of the finished requests meet the SLOs; `throughput`: finished requests a second, taken as it is.
    A metric that no request has (TPOT where all outputs are one token) has no interval.
    """
    if not bootstrap.enough(done.num_rows):
        return {}
    order = np.argsort(_numbers(done, "arrival_ps"), kind="stable")
    found: dict[str, list[float]] = {}
    for metric in ("ttft", "tpot", "e2el"):
        values = _numbers(done, f"{metric}_ms")[order]
        if not np.isnan(values).all():
            bounds = bootstrap.latency_intervals(values)
            found |= {f"{name}_{metric}_ms": bound for name, bound in bounds.items()}
    share = bootstrap.mean_interval(met[order].astype(np.float64))
    return found | {"request_goodput": [bound * throughput for bound in share]}


def weighted_percentiles(values: Floats, weights: Floats, percents: tuple[int, ...]) -> Floats:
    """The least value with at least that percentage of the weight at or below it."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    targets = np.asarray(percents) / 100 * below[-1]
    return values[order][np.minimum(np.searchsorted(below, targets), len(values) - 1)]


def token_gaps(segments: pa.Table) -> tuple[Floats, Floats]:
    """Inter-token latencies in ms, and the tokens that saw each; up to 8 points stand for a segment's line of gaps."""
    steps = _numbers(segments, "steps").astype(np.int64)
    seen = _numbers(segments, "sequences") > 0
    steps, first = steps[seen], _numbers(segments, "first_gap_ps")[seen]
    slope, sequences = _numbers(segments, "slope_ps")[seen], _numbers(segments, "sequences")[seen]
    points = np.minimum(steps, POINTS_PER_SEGMENT)
    rows = np.repeat(np.arange(len(steps)), points)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(points) - points, points)
    share = steps[rows] / points[rows]
    middle = (within + 0.5) * share - 0.5
    return (first[rows] + slope[rows] * middle) / PS_PER_MS, sequences[rows] * share


def _rates(done: pa.Table, duration_s: float, slo: Mapping[str, float]) -> dict[str, float]:
    inputs, outputs = int(_numbers(done, "prompt_tokens").sum()), int(_numbers(done, "output_tokens").sum())
    return {
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": done.num_rows / duration_s,
        "output_throughput": outputs / duration_s,
        "total_token_throughput": (inputs + outputs) / duration_s,
        "request_goodput": float(meets_slo(done, slo).sum()) / duration_s,
    }


def _spread(metric: str, values: Floats) -> dict[str, float | None]:
    names = [f"{name}_{metric}_ms" for name in ("mean", "std", "median", "p90", "p95", "p99")]
    if len(values) == 0:
        return dict.fromkeys(names)
    figures = [values.mean(), values.std(), *np.percentile(values, PERCENTILES)]
    return dict(zip(names, map(float, figures), strict=True))


def _token_gaps(segments: pa.Table, preemption_gaps_ps: Sequence[int]) -> dict[str, float | None]:
    gaps, weights = token_gaps(segments)
    preempted = np.asarray(preemption_gaps_ps, dtype=np.float64) / PS_PER_MS
    gaps, weights = np.append(gaps, preempted), np.append(weights, np.ones(len(preempted)))
    if len(gaps) == 0:
        return _spread("itl", gaps)
    mean = np.average(gaps, weights=weights)
    std = np.sqrt(np.average((gaps - mean) ** 2, weights=weights))
    figures = [mean, std, *weighted_percentiles(gaps, weights, PERCENTILES)]
    return {
        f"{name}_itl_ms": float(f)
        for name, f in zip(("mean", "std", "median", "p90", "p95", "p99"), figures, strict=True)
    }


def _is(requests: pa.Table, status: str) -> pa.Array:
    import pyarrow.compute as pc

    return pc.equal(requests["status"], status).combine_chunks()


def _numbers(table: pa.Table, name: str) -> Floats:
    return table[name].to_numpy().astype(np.float64)
