"""A table of figures measured from a real trace, and a trace generated from it: arrivals by the minute, lengths by
their quantiles, and the rank correlation between prompt and output. The table holds no request of the real trace.

What it keeps: counts in each minute, the CV of gaps inside minutes (gamma gaps; 1.03 in the Azure conversation trace,
where 1 is Poisson), both marginal length distributions and their rank correlation. What it loses: bursts of seconds,
which length follows which, and clusters of (prompt, output) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from leankv.serving.errors import InputError
from leankv.traces.arrivals import bridged_gaps
from leankv.traces.describe import describe, rank_correlation
from leankv.traces.sizes import draw_lengths, read_table, shipped_tables, table_lengths
from leankv.traces.trace import PS_PER_S, Trace

MINUTE_S = 60.0
EMBEDDED_DEFAULT = "azure-conv-2023-like"


def quantile_grid() -> npt.NDArray[np.float64]:
    """Probabilities of the stored quantiles: every 0.1 %, and finer in the last 1 %, where requests cost the most."""
    return np.unique(np.concatenate((np.linspace(0, 1, 1001), np.linspace(0.99, 1, 201))).round(6))


def measure(trace: Trace, name: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The table of figures of a trace (JSON-able); `origin` says source, licence and citation."""
    since_s = (trace.arrival_ps - trace.arrival_ps[0]) / PS_PER_S
    counts = np.bincount((since_s // MINUTE_S).astype(np.int64))
    grid = quantile_grid()
    gaps = np.diff(since_s) if len(trace) > 1 else np.zeros(1)
    return {
        "kind": "trace figures",
        "schema_version": 1,
        "name": name,
        **origin,
        "span_s": round(float(since_s[-1]), 6),
        "arrivals_per_minute": counts.tolist(),
        "gap_cv_within_minutes": round(gap_cv_within(since_s, counts), 4),
        "rank_correlation": round(rank_correlation(trace.prompt_tokens, trace.output_tokens), 4),
        "figures": describe(trace).figures(),
        "gap_probabilities": np.linspace(0, 1, 201).round(4).tolist(),
        "gap_s": np.quantile(gaps, np.linspace(0, 1, 201)).round(5).tolist(),
        "probabilities": grid.tolist(),
        "prompt_tokens": _whole_quantiles(trace.prompt_tokens, grid),
        "output_tokens": _whole_quantiles(trace.output_tokens, grid),
    }


def _whole_quantiles(tokens: npt.NDArray[np.int32], grid: npt.NDArray[np.float64]) -> list[int]:
    return np.quantile(tokens, grid, method="inverted_cdf").astype(int).tolist()


def gap_cv_within(since_s: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> float:
    """CV of the gaps inside each minute, averaged by count over minutes with more than 20 arrivals; 1 is Poisson."""
    minutes = np.split(since_s, np.cumsum(counts)[:-1])
    gaps = [np.diff(minute) for minute in minutes if len(minute) > 20]
    if not gaps:
        return 1.0
    return float(np.average([gap.std() / gap.mean() for gap in gaps], weights=[len(gap) for gap in gaps]))


def generate_like(name: str, seed: int = 0) -> Trace:
    """A trace from the table of figures `name` (a shipped name or a file written by `leankv traces measure`).

    Raises:
        InputError: no such table, or a damaged one.
    """
    table = read_table(name)
    try:
        return _generated(table, name, seed)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: damaged table of figures ({error}); measure it again") from None


def _generated(table: Mapping[str, Any], read_from: str, seed: int) -> Trace:
    rng = np.random.default_rng(seed)
    counts = np.asarray(table["arrivals_per_minute"], dtype=np.int64)
    arrivals = np.concatenate([_minute(rng, table, minute, int(count)) for minute, count in enumerate(counts)])
    prompt, output = draw_lengths(
        rng,
        len(arrivals),
        table_lengths(table, "prompt"),
        table_lengths(table, "output"),
        float(table["rank_correlation"]),
    )
    return Trace(
        name=table["name"],
        arrival_ps=np.rint(arrivals * PS_PER_S).astype(np.int64),
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=output.astype(np.int32),
        provenance={
            "format": "generated from figures",
            "table": read_from,
            "seed": seed,
            **{key: table[key] for key in ("source", "licence", "citation") if key in table},
        },
    )


def _minute(rng: np.random.Generator, table: Mapping[str, Any], minute: int, count: int) -> npt.NDArray[np.float64]:
    start = minute * MINUTE_S
    width = min(MINUTE_S, max(float(table["span_s"]) - start, 1e-6))
    shape = 1 / float(table["gap_cv_within_minutes"]) ** 2
    return start + bridged_gaps(rng, "gamma", shape, count, width)


def embedded_names() -> list[str]:
    """Names of the traces that come with the package and need no data."""
    return shipped_tables()
