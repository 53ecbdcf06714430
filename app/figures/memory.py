"""KV memory over time, by tier, under the line of what the pool can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leankv.app.figures.style import Chart, dress, faded, ink, looks, number

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa

GIB = 1 << 30
POINTS = 400


@dataclass(frozen=True)
class Usage:
    """One run's KV memory: `timeline` as in a run folder, `page_bytes` of its pool, names of its tiers (high first)."""

    timeline: pa.Table
    page_bytes: int
    tiers: Sequence[str] = ("tier 0", "tier 1")


def kv_memory(usages: Mapping[str, Usage], dark: bool = False, columns: int = 2) -> Chart:
    """Small multiples, one panel a policy: stacked GiB of each tier over time, and the capacity as a dashed line."""
    from plotly.subplots import make_subplots

    columns = min(columns, len(usages)) or 1
    rows = -(-len(usages) // columns)
    figure = make_subplots(
        rows=max(rows, 1),
        cols=columns,
        shared_xaxes="all",
        shared_yaxes="all",
        subplot_titles=list(usages),
        vertical_spacing=0.28 / max(rows, 1),
        horizontal_spacing=0.03,
    )
    dress(figure, dark, 90 + 200 * max(rows, 1))
    figure.update_layout(hovermode="closest")
    for index, (policy, look) in enumerate(looks(list(usages), dark).items()):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        _add_panel(figure, usages[policy], look.colour, dark, place, first=index == 0)
    figure.update_xaxes(title_text="Time (s)", row=max(rows, 1))
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="KV cache (GiB)", col=1)
    return Chart(figure, _alt(usages), _table(usages))


def by_tier(usage: Usage) -> dict[str, np.ndarray]:
    """GiB over time of staging and of each tier that is ever used."""
    names = {"staging": "kv_pages_staging", usage.tiers[0]: "kv_pages_tier0"}
    if len(usage.tiers) > 1:
        names[usage.tiers[1]] = "kv_pages_tier1"
    series = {
        name: usage.timeline[column].to_numpy(zero_copy_only=False) * usage.page_bytes / GIB
        for name, column in names.items()
    }
    return {name: values for name, values in series.items() if name != "staging" or np.any(values > 0)}


def thinned(time_s: np.ndarray, values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` bins of the series, each drawn at its highest value, so that no peak is lost."""
    if len(time_s) <= points:
        return time_s, values
    edges = np.linspace(0, len(time_s), points + 1).astype(int)[:-1]
    return time_s[edges], np.maximum.reduceat(values, edges)


def _add_panel(figure: go.Figure, usage: Usage, colour: str, dark: bool, place: dict[str, int], first: bool) -> None:
    import plotly.graph_objects as go

    time_s = usage.timeline["time_s"].to_numpy(zero_copy_only=False)
    fills = (0.75, 0.4, 0.2)
    series = by_tier(usage)
    ordered = [name for name in series if name != "staging"] + [name for name in series if name == "staging"]
    for name, fill in zip(ordered, fills, strict=False):
        x, y = thinned(time_s, series[name])
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                name=name,
                mode="lines",
                stackgroup=f"{place}",
                line={"width": 0, "color": colour, "shape": "hv"},
                fillcolor=faded(colour, fill),
                showlegend=False,
                hovertemplate=f"{name}: %{{y:.2f}} GiB at %{{x:.0f}} s<extra></extra>",
            ),
            **place,
        )
    x, capacity = thinned(time_s, _capacity(usage))
    figure.add_trace(
        go.Scatter(
            x=x,
            y=capacity,
            mode="lines",
            name="capacity",
            showlegend=first,
            line={"color": ink(dark), "dash": "dash", "width": 1.5},
            hovertemplate="capacity: %{y:.1f} GiB<extra></extra>",
        ),
        **place,
    )


def _capacity(usage: Usage) -> np.ndarray:
    return usage.timeline["kv_pages_capacity"].to_numpy(zero_copy_only=False) * usage.page_bytes / GIB


def _used(usage: Usage) -> np.ndarray:
    return usage.timeline["kv_pages_used"].to_numpy(zero_copy_only=False) * usage.page_bytes / GIB


def _alt(usages: Mapping[str, Usage]) -> str:
    said = []
    for policy, usage in usages.items():
        used, capacity = _used(usage), _capacity(usage)
        if len(used):
            said.append(f"{policy} peaks at {number(float(used.max()))} of {number(float(capacity.max()))} GiB")
    return "KV memory over time by tier, one panel a policy. " + "; ".join(said) + "."


def _table(usages: Mapping[str, Usage]) -> pa.Table:
    import pyarrow as pa

    rows = []
    for policy, usage in usages.items():
        for name, values in {"all": _used(usage), **by_tier(usage)}.items():
            if len(values):
                rows.append(
                    {
                        "policy": policy,
                        "part": name,
                        "peak (GiB)": float(values.max()),
                        "mean (GiB)": _time_mean(usage, values),
                        "capacity (GiB)": float(_capacity(usage).max()),
                    }
                )
    return pa.Table.from_pylist(rows)


def _time_mean(usage: Usage, values: np.ndarray) -> float:
    """Mean over time of a series whose value holds until the next sample."""
    time_s = usage.timeline["time_s"].to_numpy(zero_copy_only=False)
    gaps = np.diff(time_s)
    return float(np.average(values[:-1], weights=gaps)) if gaps.sum() > 0 else float(values.mean())
