"""Where a projection holds up and where not: distributions laid over one another, errors by regime, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from leankv.app.figures.latency import METRICS, cumulative
from leankv.app.figures.style import Chart, blank, duration, faded, ink, looks, number

if TYPE_CHECKING:
    import pyarrow as pa

QUANTILES = (0.5, 0.9, 0.99)
Rows = Sequence[Mapping[str, Any]]


def overlaid(
    policy: str, live: Sequence[pa.Table], simulated: pa.Table, metric: str, dark: bool = False, height: int = 320
) -> Chart:
    """The distribution of one latency: every live repeat as a thin line, the simulation as a broad broken one."""
    import plotly.graph_objects as go

    colour = looks([policy], dark)[policy].colour
    short, title = METRICS[metric]
    figure = blank(f"{title} (ms, log scale)", "", dark, height)
    for repeat, table in enumerate(live):
        x, share = cumulative(_values(table, metric))
        line = {"color": faded(colour, 0.75), "width": 1.5, "shape": "hv"}
        name = "live" if repeat == 0 else f"live {repeat + 1}"
        figure.add_trace(go.Scatter(x=x, y=100 * share, name=name, mode="lines", line=line, showlegend=repeat == 0))
    x, share = cumulative(_values(simulated, metric))
    line = {"color": ink(dark), "width": 2.5, "dash": "dash", "shape": "hv"}
    figure.add_trace(go.Scatter(x=x, y=100 * share, name="simulated", mode="lines", line=line))
    figure.update_traces(hovertemplate="%{x:,.3~g} ms: %{y:.0f} %")
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(type="log")
    figure.update_yaxes(range=[0, 102], ticksuffix=" %")
    numbers = _quantiles(live, simulated, metric)
    said = "; ".join(
        f"{row['quantile']} simulated {duration(row['simulated (ms)'])}, live {duration(row['live (ms)'])}"
        for row in numbers.to_pylist()
    )
    return Chart(figure, f"Distribution of {short} under {policy}, live and simulated: {said}.", numbers)


def by_regime(rows: Rows, dark: bool = False) -> Chart:
    """The relative error of each regime, a mark a policy; bands of 5 and 10 %."""
    import plotly.graph_objects as go
    import pyarrow as pa

    shown = [row for row in rows if row["relative_error"] is not None]
    regimes = list(dict.fromkeys(row["regime"] for row in shown))
    figure = blank("", "", dark, 110 + 34 * max(1, len(regimes)))
    for band in (10, 5):
        figure.add_vrect(x0=-band, x1=band, fillcolor=faded(ink(dark), 0.10), line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": ink(dark), "dash": "dot", "width": 1.5})
    for policy, look in looks(list(dict.fromkeys(row["policy"] for row in shown)), dark).items():
        mine = [row for row in shown if row["policy"] == policy]
        figure.add_trace(
            go.Scatter(
                x=[100 * row["relative_error"] for row in mine],
                y=[row["regime"] for row in mine],
                name=policy,
                mode="markers",
                marker={"color": look.colour, "symbol": look.marker, "size": 11},
                customdata=[
                    [row["load"], number(row["simulated"]), number(row["live"]), f"{row['count']:,}"] for row in mine
                ],
                hovertemplate="%{customdata[0]}: simulated %{customdata[1]} ms, live %{customdata[2]} ms, "
                "%{x:+.1f} % over %{customdata[3]}",
            )
        )
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(ticksuffix=" %")
    figure.update_yaxes(categoryorder="array", categoryarray=regimes[::-1], title_text="")
    return Chart(figure, _regime_alt(shown), pa.Table.from_pylist([dict(row) for row in rows]))


def drift(machine: Rows, dark: bool = False, height: int = 260) -> Chart:
    """How long a reference step took around each live run, as a multiple of what it took at the calibration."""
    import plotly.graph_objects as go
    import pyarrow as pa

    figure = blank("Live runs", "Times the profile's", dark, height)
    policies = list(dict.fromkeys(row["policy"] for row in machine))
    figure.add_hline(y=1, line={"color": ink(dark), "dash": "dot", "width": 1.5})
    for policy, look in looks(policies, dark).items():
        mine = [(place, row) for place, row in enumerate(machine) if row["policy"] == policy]
        points = [
            (place + shift, row[when], f"{row['load']}, repeat {row['repeat'] + 1}, {when}")
            for place, row in mine
            for shift, when in ((-0.15, "before"), (0.15, "after"))
            if row.get(when)
        ]
        x, y, told = zip(*points, strict=True) if points else ((), (), ())
        marker = {"color": look.colour, "symbol": look.marker, "size": 8}
        figure.add_trace(go.Scatter(x=x, y=y, name=policy, mode="markers", marker=marker, customdata=told))
    figure.update_traces(hovertemplate="%{customdata}: %{y:.2f}")
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(showticklabels=False)
    speeds = [row[when] for row in machine for when in ("before", "after") if row.get(when)]
    said = f"between {min(speeds):.2f} and {max(speeds):.2f}" if speeds else "unknown"
    alt = f"Reference step around each live run, as a multiple of the profile's: {said}."
    return Chart(figure, alt, pa.Table.from_pylist([dict(row) for row in machine]))


def _values(requests: pa.Table, metric: str) -> np.ndarray:
    finished = np.asarray(requests["status"].to_pylist(), dtype=object) == "finished"
    values = requests[metric].to_numpy(zero_copy_only=False)[finished]
    found: np.ndarray = values[~np.isnan(values)]
    return found


def _quantiles(live: Sequence[pa.Table], simulated: pa.Table, metric: str) -> pa.Table:
    import pyarrow as pa

    measured = np.concatenate([_values(table, metric) for table in live])
    predicted = _values(simulated, metric)
    rows = []
    for quantile in QUANTILES:
        ours, theirs = (_quantile(each, quantile) for each in (predicted, measured))
        rows.append(
            {
                "quantile": f"p{100 * quantile:g}",
                "simulated (ms)": ours,
                "live (ms)": theirs,
                "error (%)": 100 * (ours / theirs - 1) if theirs else float("nan"),
            }
        )
    return pa.Table.from_pylist(rows)


def _quantile(values: np.ndarray, quantile: float) -> float:
    return float(np.quantile(values, quantile)) if len(values) else float("nan")


def _regime_alt(rows: Rows) -> str:
    if not rows:
        return "Errors by regime: nothing that can be compared."
    worst = max(rows, key=lambda row: abs(row["relative_error"]))
    told = f"{worst['relative_error']:+.0%} for {worst['policy']} in regime {worst['regime']}"
    return f"Relative errors of {len(rows)} regimes and policies; the largest is {told}."
