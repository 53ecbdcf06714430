"""Simulated against live: the parity plot with its bands, the error of each figure, and the errors as a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leankv.app.figures.style import Chart, blank, faded, ink, looks, number

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa

    from leankv.simulator.validation_parity import ParityRow

BANDS = (0.10, 0.05)
# part of a metric's name: (family, symbol)
FAMILIES = {
    "ttft": ("TTFT", "circle"),
    "tpot": ("TPOT", "square"),
    "itl": ("ITL", "diamond"),
    "e2el": ("E2E", "triangle-up"),
    "throughput": ("throughput", "star"),
    "pages": ("KV pages", "cross"),
    "preemptions": ("preemptions", "x"),
}
SPOKEN = {
    "output_throughput": "output throughput",
    "request_throughput": "requests a second",
    "peak_kv_pages": "KV pages, peak",
    "mean_kv_pages": "KV pages, mean",
    "kv_pages_per_request": "KV pages per request",
    "preemptions": "preemptions, simulated / live",
    "mean_e2el_ms": "E2E mean",
}
CLIPPED = 0.3  # the map's colours end at this error


def family(metric: str) -> tuple[str, str]:
    """The metric's family and its symbol."""
    return next(found for part, found in FAMILIES.items() if part in metric)


def spoken(metric: str) -> str:
    """`p99_ttft_ms` as people write it: TTFT p99."""
    statistic, _, rest = metric.partition("_")
    if rest.endswith("_ms"):
        return f"{family(metric)[0]} {'p50' if statistic == 'median' else statistic}"
    return SPOKEN.get(metric, metric.replace("_", " "))


def parity(rows: Sequence[ParityRow], dark: bool = False, height: int = 460) -> Chart:
    """Each figure simulated against live on log axes, with bands of 5 and 10 % around equality.

    Colour: policy; symbol: family of metrics; the bar through a point: the range of the live repeats.
    """
    shown = [row for row in rows if row.simulated and row.live]
    figure = blank("Live (log scale)", "Simulated (log scale)", dark, height)
    low, high = _limits([value for row in shown for value in (row.simulated, row.live) if value])
    for band in BANDS:
        _band(figure, low, high, band, dark)
    _line(figure, [low, high], [low, high], dark)
    _points(figure, shown, lambda row: row.simulated, dark)
    axis = {"type": "log", "range": [float(np.log10(low)), float(np.log10(high))], "dtick": 1}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return Chart(figure, _alt("Simulated against live on log axes", shown), table(rows))


def errors(rows: Sequence[ParityRow], dark: bool = False, height: int = 460) -> Chart:
    """The relative error of each figure over its live value, with bands of 5 and 10 %."""
    shown = [row for row in rows if row.relative_error is not None and row.live]
    figure = blank("Live (log scale)", "", dark, height)
    low, high = _limits([row.live for row in shown if row.live])
    for band in BANDS:
        figure.add_hrect(y0=-100 * band, y1=100 * band, fillcolor=faded(ink(dark), 0.10), line_width=0, layer="below")
    _line(figure, [low, high], [0, 0], dark)
    _points(figure, shown, lambda row: 100 * (row.relative_error or 0), dark, bars=False)
    figure.update_xaxes(type="log", range=[float(np.log10(low)), float(np.log10(high))], dtick=1)
    reach = 1.15 * max([100 * abs(row.relative_error or 0) for row in shown] + [12.0])
    figure.update_yaxes(range=[-reach, reach], ticksuffix=" %")
    return Chart(figure, _alt("Relative error of the simulation over the live value", shown), table(rows))


def error_map(rows: Sequence[ParityRow], dark: bool = False) -> Chart:
    """Metric by policy: the error in each cell, orange where simulated is too high, blue where it is too low."""
    import plotly.graph_objects as go

    policies = list(dict.fromkeys(row.policy for row in rows))
    metrics = list(dict.fromkeys(row.metric for row in rows))
    cells = {(row.metric, row.policy): row for row in rows}
    shown = [[cells.get((metric, policy)) for policy in policies] for metric in metrics]
    middle = "#12151C" if dark else "#FFFFFF"
    figure = blank("", "", dark, 90 + 24 * len(metrics))
    figure.add_trace(
        go.Heatmap(
            x=policies,
            y=[spoken(metric) for metric in metrics],
            z=[[_clipped(cell) for cell in line] for line in shown],
            text=[[_told(cell) for cell in line] for line in shown],
            customdata=[[_both(cell) for cell in line] for line in shown],
            texttemplate="%{text}",
            hovertemplate="%{x}, %{y}: %{customdata}<extra></extra>",
            colorscale=[[0, "#0072B2"], [0.5, middle], [1, "#D55E00"]],
            zmid=0,
            zmin=-100 * CLIPPED,
            zmax=100 * CLIPPED,
            showscale=False,
            xgap=2,
            ygap=2,
        )
    )
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(side="top", showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return Chart(figure, _alt("Map of relative errors, metric by policy", rows), table(rows))


def table(rows: Sequence[ParityRow]) -> pa.Table:
    """Both values, the live range and the error, a row a figure."""
    import pyarrow as pa

    return pa.Table.from_pylist(
        [
            {
                "policy": row.policy,
                "load": row.load,
                "metric": row.metric,
                "unit": row.unit,
                "simulated": row.simulated,
                "live": row.live,
                "live, least": row.live_low,
                "live, most": row.live_high,
                "repeats": row.repeats,
                "error (%)": None if row.relative_error is None else 100 * row.relative_error,
            }
            for row in rows
        ]
    )


def _points(figure: go.Figure, rows: Sequence[ParityRow], y: Any, dark: bool, bars: bool = True) -> None:
    """One trace a policy; then the symbols' own legend, drawn nowhere."""
    import plotly.graph_objects as go

    for policy, look in looks(list(dict.fromkeys(row.policy for row in rows)), dark).items():
        mine = [row for row in rows if row.policy == policy]
        figure.add_trace(
            go.Scatter(
                x=[row.live for row in mine],
                y=[y(row) for row in mine],
                error_x=_range(mine) if bars else None,
                name=policy,
                mode="markers",
                marker={
                    "color": look.colour,
                    "symbol": [family(row.metric)[1] for row in mine],
                    "size": 9,
                    "line": {"width": 1, "color": ink(dark)},
                },
                customdata=[[f"{row.load}, {spoken(row.metric)}", _both(row)] for row in mine],
                hovertemplate="%{customdata[0]}<br>%{customdata[1]}",
            )
        )
    for name, symbol in dict.fromkeys(family(row.metric) for row in rows):
        marker = {"symbol": f"{symbol}-open", "size": 9, "color": ink(dark)}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker))
    figure.update_layout(hovermode="closest")


def _range(rows: Sequence[ParityRow]) -> dict[str, Any]:
    over = [(row.live_high or 0) - (row.live or 0) for row in rows]
    under = [(row.live or 0) - (row.live_low or 0) for row in rows]
    return {"type": "data", "symmetric": False, "array": over, "arrayminus": under, "thickness": 1, "width": 0}


def _band(figure: go.Figure, low: float, high: float, share: float, dark: bool) -> None:
    import plotly.graph_objects as go

    figure.add_trace(
        go.Scatter(
            x=[low, high, high, low],
            y=[low * (1 - share), high * (1 - share), high * (1 + share), low * (1 + share)],
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=faded(ink(dark), 0.12),
            name=f"within {share:.0%}",
            hoverinfo="skip",
            showlegend=False,
        )
    )


def _line(figure: go.Figure, x: Sequence[float], y: Sequence[float], dark: bool) -> None:
    import plotly.graph_objects as go

    line = {"color": ink(dark), "dash": "dot", "width": 1.5}
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    return (min(values) / 1.4, max(values) * 1.4) if values else (1.0, 10.0)


def _clipped(row: ParityRow | None) -> float | None:
    error = None if row is None else row.relative_error
    return None if error is None else 100 * max(-CLIPPED, min(CLIPPED, error))


def _told(row: ParityRow | None) -> str:
    """What a cell of the map says: the error, or for a count both counts."""
    if row is not None and row.kind == "count" and row.simulated is not None and row.live is not None:
        return f"{row.simulated:.0f} / {row.live:.0f}"
    return _percent(row)


def _percent(row: ParityRow | None) -> str:
    return "" if row is None or row.relative_error is None else f"{100 * row.relative_error:+.1f} %"


def _both(row: ParityRow | None) -> str:
    if row is None or row.simulated is None or row.live is None:
        return "no such figure"
    unit = f" {row.unit}" if row.unit else ""
    return f"simulated {number(row.simulated)}{unit}, live {number(row.live)}{unit}, {_percent(row) or 'no error'}"


def _alt(what: str, rows: Sequence[ParityRow]) -> str:
    found = [abs(row.relative_error) for row in rows if row.relative_error is not None]
    if not found:
        return f"{what}: no figure that can be compared."
    within = "; ".join(f"{np.mean(np.array(found) <= band):.0%} within {band:.0%}" for band in BANDS)
    return f"{what}: {len(found)} figures, median absolute error {np.median(found):.1%}; {within}."
