"""Latency distributions: what share of the requests came back within a given time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from leankv.app.figures.style import Chart, blank, duration, ink, looks

if TYPE_CHECKING:
    import pyarrow as pa

POINTS = 400
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)
LONG_TAIL = 20.0  # p99 over median: beyond this a linear axis shows only the tail

SECONDS_FROM_MS = 5000.0  # beyond this an axis in seconds reads better

METRICS = {
    "ttft_ms": ("TTFT", "Time to first token"),
    "tpot_ms": ("TPOT", "Time per output token"),
    "e2el_ms": ("E2E", "End-to-end latency"),
}


def cumulative(values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` steps (value, share of all requests at or below it) of the distribution of `values`.

    Not-a-number is a request without an answer: it counts in the share's denominator and is never reached, so a curve
    that stays below 1 says that requests were lost.
    """
    answered = np.sort(values[~np.isnan(values)])
    if not len(answered):
        return np.empty(0), np.empty(0)
    ranks = np.arange(1, len(answered) + 1)
    if len(answered) > points:
        # half of the points over the whole, half over the upper tenth, where an SLO usually cuts
        body, tail = np.linspace(0, 0.9, points // 2), np.linspace(0.9, 1, points - points // 2)
        chosen = np.unique(np.concatenate([body, tail]) * (len(answered) - 1) + 0.5).astype(int)
        answered, ranks = answered[chosen], ranks[chosen]
    return answered, ranks / len(values)


def latency_cdf(
    requests: Mapping[str, pa.Table], metric: str, slo_ms: float | None = None, dark: bool = False, height: int = 320
) -> Chart:
    """Share of requests answered within a time, one line a policy; the SLO is the dashed upright line.

    Parameters
    ----------
    requests: policy -> requests table of a run (columns as in a run folder)
    metric: "ttft_ms", "tpot_ms" or "e2el_ms"
    slo_ms: the service level objective for this metric; None draws no line
    """
    import plotly.graph_objects as go

    short, title = METRICS[metric]
    values = {policy: _values(table, metric) for policy, table in requests.items()}
    unit, per_unit = ("s", 1000) if _longest(values) > SECONDS_FROM_MS else ("ms", 1)
    figure = blank(f"{title} ({unit})", "Requests answered (%)", dark, height)
    for policy, look in looks(list(requests), dark).items():
        x, share = cumulative(values[policy])
        figure.add_trace(
            go.Scatter(
                x=x / per_unit,
                y=100 * share,
                name=policy,
                mode="lines",
                line={"color": look.colour, "dash": look.dash, "width": 2.5, "shape": "hv"},
                hovertemplate=f"%{{x:,.3~g}} {unit}: %{{y:.1f}} %",
            )
        )
    figure.update_layout(hovermode="closest")
    figure.update_yaxes(range=[0, 102], ticksuffix=" %", title_text="")
    if _long_tailed(values):
        figure.update_xaxes(type="log", title_text=f"{title} ({unit}, log scale)", dtick=1)
    if slo_ms:
        figure.add_vline(x=slo_ms / per_unit, line={"color": ink(dark), "dash": "dash", "width": 1.5})
        figure.add_annotation(
            x=np.log10(slo_ms / per_unit) if _long_tailed(values) else slo_ms / per_unit,
            y=0.03,
            yref="paper",
            text=f"SLO {duration(slo_ms)}",
            showarrow=False,
            xanchor="left",
            xshift=4,
            font={"size": 12},
        )
    return Chart(figure, _alt(short, values, slo_ms), _quantile_table(values, slo_ms))


def _values(requests: pa.Table, metric: str) -> np.ndarray:
    """The metric of every request that could have one; not-a-number where the answer never came.

    A finished request of one output token has no TPOT: it is left out, not counted as lost.
    """
    values = requests[metric].to_numpy(zero_copy_only=False)
    finished = np.asarray(requests["status"].to_pylist(), dtype=object) == "finished"
    return values[~(finished & np.isnan(values))]


def _longest(values: Mapping[str, np.ndarray]) -> float:
    """The largest p99 of the distributions, in ms; 0 where nothing was answered."""
    answered = [value[~np.isnan(value)] for value in values.values()]
    return max((float(np.quantile(value, 0.99)) for value in answered if len(value)), default=0.0)


def _long_tailed(values: Mapping[str, np.ndarray]) -> bool:
    """Whether any distribution's p99 is so far above its median that a linear axis would hide the body."""
    for value in values.values():
        answered = value[~np.isnan(value)]
        if len(answered) and answered.min() > 0:
            median, high = np.quantile(answered, [0.5, 0.99])
            if high > LONG_TAIL * median:
                return True
    return False


def _within(values: np.ndarray, slo_ms: float) -> float:
    return float(np.mean(values <= slo_ms)) if len(values) else float("nan")


def _alt(short: str, values: Mapping[str, np.ndarray], slo_ms: float | None) -> str:
    parts = []
    for policy, value in values.items():
        answered = value[~np.isnan(value)]
        if not len(answered):
            parts.append(f"{policy}: no answers")
            continue
        median, high = np.quantile(answered, [0.5, 0.99])
        within = f", {100 * _within(value, slo_ms):.0f} % within the SLO" if slo_ms else ""
        parts.append(f"{policy}: median {duration(float(median))}, p99 {duration(float(high))}{within}")
    return f"Cumulative distribution of {short} by policy. " + "; ".join(parts) + "."


def _quantile_table(values: Mapping[str, np.ndarray], slo_ms: float | None) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, list[object]] = {"policy": list(values)}
    answered = [value[~np.isnan(value)] for value in values.values()]
    for quantile in QUANTILES:
        columns[f"p{100 * quantile:g} (ms)"] = [
            float(np.quantile(value, quantile)) if len(value) else None for value in answered
        ]
    if slo_ms:
        columns["within SLO (%)"] = [100 * _within(value, slo_ms) for value in values.values()]
    columns["requests"] = [len(value) for value in values.values()]
    columns["without an answer"] = [int(np.isnan(value).sum()) for value in values.values()]
    return pa.table(columns)
