"""KV memory over time, by tier, under the line of what the pool can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from leankv.app.figures.style import Chart, blank, faded, ink, looks, number

if TYPE_CHECKING:
    import pyarrow as pa

GIB = 1 << 30
POINTS = 400
PREFILLING = "prompts in progress"
FILLS = (0.8, 0.42, 0.2)  # opacity of the first series, the second, the third


@dataclass(frozen=True)
class Usage:
    """One run's KV memory: `timeline` as in a run folder, `page_bytes` of its pool, names of its tiers (high first)."""

    timeline: pa.Table
    page_bytes: int
    tiers: Sequence[str] = ("tier 0", "tier 1")


def kv_memory(policy: str, usage: Usage, top_gib: float | None = None, dark: bool = False, height: int = 240) -> Chart:
    """Stacked GiB of each tier over time, and the capacity as a dashed line.

    Parameters
    ----------
    policy: whose look the panel takes
    usage: the run's memory
    top_gib: where the axis ends, so that panels side by side share it (see `capacity_gib`); None takes the capacity
    """
    import plotly.graph_objects as go

    colour = looks([policy], dark)[policy].colour
    figure = blank("Time (s)", "KV cache (GiB)", dark, height)
    series = by_tier(usage)
    # all series at the same instants: each at its own peaks would stack higher than the pool ever was
    shown = peaks(_gib(usage, "kv_pages_used"))
    time_s = _times(usage)[shown]
    for (name, values), fill in zip(series.items(), FILLS, strict=False):
        figure.add_trace(
            go.Scatter(
                x=time_s,
                y=values[shown],
                name=name,
                mode="lines",
                stackgroup="tiers",
                line={"width": 0, "color": colour, "shape": "hv"},
                fillcolor=faded(colour, fill),
                hovertemplate="%{y:.2f} GiB",
            )
        )
    figure.add_trace(
        go.Scatter(
            x=time_s,
            y=_gib(usage, "kv_pages_capacity")[shown],
            mode="lines",
            name="capacity",
            line={"color": ink(dark), "dash": "dash", "width": 1.5},
            hovertemplate="%{y:.1f} GiB",
        )
    )
    figure.update_yaxes(range=[0, 1.06 * (top_gib or capacity_gib(usage))])
    figure.update_xaxes(hoverformat=".0f", rangemode="tozero")
    return Chart(figure, _alt(policy, usage), _table(policy, usage))


def capacity_gib(usage: Usage) -> float:
    """The most that the pool can hold."""
    return float(_gib(usage, "kv_pages_capacity").max(initial=0))


def by_tier(usage: Usage) -> dict[str, np.ndarray]:
    """GiB over time of each tier, high first, and of prompts not yet complete, where there ever are any."""
    columns = {usage.tiers[0]: "kv_pages_tier0"}
    if len(usage.tiers) > 1:
        columns[usage.tiers[1]] = "kv_pages_tier1"
    columns[PREFILLING] = "kv_pages_staging"
    series = {name: _gib(usage, column) for name, column in columns.items()}
    return {name: values for name, values in series.items() if name != PREFILLING or np.any(values > 0)}


def peaks(values: np.ndarray, points: int = POINTS) -> np.ndarray:
    """At most `points` indices into the series, each where its bin is highest, so that no peak is lost."""
    if len(values) <= points:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), points + 1).astype(int)
    return np.array([low + int(np.argmax(values[low:high])) for low, high in pairwise(edges)])


def _times(usage: Usage) -> np.ndarray:
    return usage.timeline["time_s"].to_numpy(zero_copy_only=False)


def _gib(usage: Usage, column: str) -> np.ndarray:
    return usage.timeline[column].to_numpy(zero_copy_only=False) * usage.page_bytes / GIB


def _alt(policy: str, usage: Usage) -> str:
    used = _gib(usage, "kv_pages_used")
    if not len(used):
        return f"KV memory of {policy} over time: no samples."
    peaks = ", ".join(f"{name} {number(float(values.max()))} GiB" for name, values in by_tier(usage).items())
    pool = f"{number(float(used.max()))} of {number(capacity_gib(usage))} GiB"
    return f"KV memory of {policy} over time by tier: at most {pool} ({peaks} at their own peaks)."


def _table(policy: str, usage: Usage) -> pa.Table:
    import pyarrow as pa

    series = {"all": _gib(usage, "kv_pages_used"), **by_tier(usage)}
    rows = [
        {
            "policy": policy,
            "part": name,
            "peak (GiB)": float(values.max()),
            "mean (GiB)": _time_mean(usage, values),
            "capacity (GiB)": capacity_gib(usage),
        }
        for name, values in series.items()
        if len(values)
    ]
    return pa.Table.from_pylist(rows)


def _time_mean(usage: Usage, values: np.ndarray) -> float:
    """Mean over time of a series whose value holds until the next sample."""
    gaps = np.diff(_times(usage))
    return float(np.average(values[:-1], weights=gaps)) if gaps.sum() > 0 else float(values.mean())
