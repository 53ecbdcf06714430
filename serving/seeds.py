"""Runs that differ in nothing but their seed, as one summary: means over seeds, with the means' 95 % intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leankv.serving.student_t import t_975

LISTED_REJECTIONS = 100


def over_seeds(summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """One summary from those of two or more seeds.

    Numbers become means over seeds (None where a seed has none); the run is stable if every seed's is; texts that
    differ are listed by how many seeds say them. `intervals` holds for each number that varies the 95 % interval of its
    mean by Student's t, `interval_kind` says so, and `seeds` names the seeds.
    """
    each = list(summaries.values())
    combined = {key: _combined([summary[key] for summary in each]) for key in each[0]}
    combined["rejections"] = _rejections(summaries)
    varying = {key: values for key in each[0] if _vary(values := [summary[key] for summary in each])}
    combined["intervals"] = {key: mean_interval(values) for key, values in varying.items()}
    combined["interval_kind"] = f"seeds ({len(each)})"
    combined["seeds"] = list(summaries)
    return combined


def mean_interval(values: Sequence[float]) -> list[float]:
    """[low, high] of the mean of two or more independent values, 95 %, by Student's t."""
    n = len(values)
    mean, half = float(np.mean(values)), t_975(n - 1) * float(np.std(values, ddof=1)) / np.sqrt(n)
    return [mean - half, mean + half]


def _combined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, bool):
        return all(values)
    if all(_is_number(value) for value in values):
        return first if values.count(first) == len(values) else float(np.mean(values))
    if isinstance(first, str) and values.count(first) < len(values):
        return ", ".join(
            f"{value} (in {count} of {len(values)} seeds)" for value, count in Counter(values).most_common()
        )
    return None if None in values else first


def _rejections(summaries: Mapping[int, Mapping[str, Any]]) -> list[tuple[int, str]]:
    """The first hundred over all seeds; each seed has requests of its own, so the reason names it."""
    listed = [
        (request, f"seed {seed}: {reason}")
        for seed, summary in summaries.items()
        for request, reason in summary.get("rejections", ())
    ]
    return listed[:LISTED_REJECTIONS]


def _vary(values: list[Any]) -> bool:
    return all(_is_number(value) for value in values) and values.count(values[0]) < len(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
