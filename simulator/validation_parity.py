"""Simulated figures beside live ones, metric by metric: both values, the live spread, the error.

A live figure is the median over repeats, its spread the least and the greatest of them. An error is
(simulated - live) / live; there is none where live is 0 and simulated is not, or where either has no such figure (TPOT
of one-token outputs). Counts of preemptions are judged as counts, since one preemption more or less is chance.

Pages in use follow from what a request holds and from how many requests there are at once; the latter follows from
latencies. Pages per request tell the accounting of memory apart from the times of steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median
from typing import Any, Literal

Kind = Literal["latency", "rate", "pages", "held", "count"]
Summary = Mapping[str, Any]

KV_PAGES_TARGET = 0.03
PREEMPTION_TARGET, PREEMPTIONS_BY_CHANCE = 0.1, 2


@dataclass(frozen=True)
class Metric:
    """A key of a run's summary, or `ratio_of` two; all but latencies are better the higher, or neither."""

    key: str
    unit: str
    kind: Kind
    ratio_of: tuple[str, str] | None = None

    def of(self, summary: Summary) -> float | None:
        """Its value in a run, None where there is no such figure."""
        if self.ratio_of is None:
            return number(summary.get(self.key))
        above, below = (number(summary.get(key)) for key in self.ratio_of)
        return above / below if above is not None and below else None


METRICS = (
    *(
        Metric(f"{statistic}_{latency}_ms", "ms", "latency")
        for latency in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "median", "p90", "p99")
    ),
    Metric("output_throughput", "tokens/s", "rate"),
    Metric("request_throughput", "requests/s", "rate"),
    Metric("peak_kv_pages", "pages", "pages"),
    Metric("mean_kv_pages", "pages", "pages"),
    Metric("kv_pages_per_request", "pages", "held", ratio_of=("mean_kv_pages", "mean_running")),
    Metric("preemptions", "", "count"),
)


@dataclass(frozen=True)
class ParityRow:
    """One metric of one policy under one load. holds: whether it meets a target of its own; None where it has none.

    live_low, live_high: least and greatest of the `repeats` live runs. None: no such figure.
    """

    policy: str
    load: str
    metric: str
    unit: str
    kind: Kind
    simulated: float | None
    live: float | None
    live_low: float | None
    live_high: float | None
    repeats: int
    relative_error: float | None
    holds: bool | None


def parity_rows(policy: str, load: str, simulated: Summary, live: Sequence[Summary]) -> list[ParityRow]:
    """A row a metric. live: summaries of the repeats, at least one."""
    return [_row(metric, policy, load, simulated, live) for metric in METRICS]


def paced_rows(policy: str, load: str, pairs: Sequence[tuple[Summary, Summary]]) -> list[ParityRow]:
    """A row a metric over (simulated, live) pairs that each have a pace of their own; none without pairs.

    Values are medians, and so is the error, of the errors pair by pair.
    """
    rows = []
    for metric in METRICS if pairs else ():
        each = [_row(metric, policy, load, simulated, [live]) for simulated, live in pairs]
        whole = _row(metric, policy, load, pairs[0][0], [live for _, live in pairs])
        predicted = median_of(row.simulated for row in each if row.simulated is not None)
        error = median_of(row.relative_error for row in each if row.relative_error is not None)
        holds = _holds(metric.kind, predicted, whole.live, error)
        rows.append(replace(whole, simulated=predicted, relative_error=error, holds=holds))
    return rows


def relative_error(simulated: float | None, live: float | None) -> float | None:
    """(simulated - live) / live; 0 where both are 0, None where that says nothing."""
    if simulated is None or live is None:
        return None
    if live == 0:
        return 0.0 if simulated == 0 else None
    return (simulated - live) / live


def number(value: Any) -> float | None:
    """A figure that can be compared, or None: absent, NaN or infinite."""
    return float(value) if value is not None and isfinite(value) else None


def median_absolute_error(rows: Iterable[ParityRow]) -> float | None:
    """Over latencies and rates, which have no target of their own; None where no row has an error."""
    return median_of(abs(row.relative_error) for row in timed(rows) if row.relative_error is not None)


def timed(rows: Iterable[ParityRow]) -> list[ParityRow]:
    """The rows of latencies and rates."""
    return [row for row in rows if row.kind in ("latency", "rate")]


def median_of(values: Iterable[float]) -> float | None:
    """None where there are no values."""
    found = list(values)
    return median(found) if found else None


def _row(metric: Metric, policy: str, load: str, simulated: Summary, live: Sequence[Summary]) -> ParityRow:
    found = [value for summary in live if (value := metric.of(summary)) is not None]
    middle, predicted = median_of(found), metric.of(simulated)
    error = relative_error(predicted, middle)
    low, high = (min(found), max(found)) if found else (None, None)
    holds = _holds(metric.kind, predicted, middle, error)
    return ParityRow(
        policy, load, metric.key, metric.unit, metric.kind, predicted, middle, low, high, len(live), error, holds
    )


def _holds(kind: Kind, simulated: float | None, live: float | None, error: float | None) -> bool | None:
    if kind in ("latency", "rate"):
        return None
    if simulated is None or live is None:
        return False
    if kind == "count":
        return abs(simulated - live) <= max(PREEMPTIONS_BY_CHANCE, PREEMPTION_TARGET * live)
    return error is not None and abs(error) <= KV_PAGES_TARGET
