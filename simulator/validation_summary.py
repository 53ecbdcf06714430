"""A validation in a few figures: median errors, and each target with what was reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leankv.simulator.validation_order import OUTCOMES
from leankv.simulator.validation_parity import KV_PAGES_TARGET, ParityRow, median_absolute_error, median_of, timed

CPU_TARGET, GPU_TARGET = 0.1, 0.05
"""Median absolute error of latencies and rates; a CPU shares its cores with everything else, a GPU does not."""
Rows = Sequence[Mapping[str, Any]]


def summary(
    parity: Sequence[ParityRow], ranking: Rows, signs: Rows, backend: str | None, paced: Sequence[ParityRow] = ()
) -> dict[str, Any]:
    """`ranking` and `signs` as validation.json has them; backend: "cpu" or "cuda"; paced: no target rests on it."""
    target = CPU_TARGET if backend == "cpu" else GPU_TARGET
    pairs = [pair for each in ranking for pair in each["pairs"]]
    return {
        "median_absolute_error": median_absolute_error(parity),
        "worst_absolute_error": max(_errors(timed(parity)), default=None),
        "by_policy": _medians(parity, lambda row: row.policy),
        "by_load": _medians(parity, lambda row: row.load),
        "by_metric": _medians(parity, lambda row: row.metric),
        "paced_median_absolute_error": median_absolute_error(paced),
        "paced_worst_kv_pages_error": max(_errors(_of(paced, "pages")), default=None),
        "kv_pages_median_absolute_error": median_of(_errors(_of(parity, "pages"))),
        "pairs": _outcomes(pairs),
        "signs": _outcomes(signs),
        "targets": [
            _error_target("median absolute error of latencies and rates", median_absolute_error(parity), target),
            _pages_target("worst error of KV pages", _of(parity, "pages")),
            _pages_target("worst error of KV pages per request", _of(parity, "held")),
            _all("preemptions within 10 % or 2", [row.holds is True for row in _of(parity, "count")]),
            _all("rankings right", [each["holds"] for each in ranking]),
            _all("signs of compression right", [each["holds"] for each in signs]),
        ],
    }


def _of(parity: Sequence[ParityRow], kind: str) -> list[ParityRow]:
    return [row for row in parity if row.kind == kind]


def _errors(rows: Sequence[ParityRow]) -> list[float]:
    return [abs(row.relative_error) for row in rows if row.relative_error is not None]


def _medians(parity: Sequence[ParityRow], of: Callable[[ParityRow], str]) -> dict[str, float | None]:
    rows = timed(parity)
    return {
        name: median_absolute_error([row for row in rows if of(row) == name]) for name in dict.fromkeys(map(of, rows))
    }


def _outcomes(differences: Rows) -> dict[str, int]:
    return {outcome: sum(each["outcome"] == outcome for each in differences) for outcome in OUTCOMES}


def _error_target(name: str, value: float | None, target: float) -> dict[str, Any]:
    return {"name": name, "value": value, "target": target, "holds": value is not None and value <= target}


def _pages_target(name: str, rows: Sequence[ParityRow]) -> dict[str, Any]:
    worst = max(_errors(rows), default=None)
    return {**_error_target(name, worst, KV_PAGES_TARGET), "holds": all(row.holds for row in rows)}


def _all(name: str, held: Sequence[bool]) -> dict[str, Any]:
    """A target that counts cases: value and target are how many hold and how many there are."""
    return {"name": name, "value": sum(held), "target": len(held), "holds": all(held)}
