"""Goodput against the offered rate: what a policy can carry, and where it gives way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leankv.app.figures.style import Chart, Look, blank, ink, looks, number
from leankv.app.rates import ATTAINMENT, Knee, knee, policies_of, rows_of

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa


WIDE = 40  # highest over lowest rate: beyond this a linear axis shows only the highest
STABLE = {True: "stable", False: "unstable: the queue grows"}


def goodput_by_rate(sweep: pa.Table, here_rps: float | None = None, dark: bool = False, height: int = 380) -> Chart:
    """Goodput against offered rate, one line a policy, its knee ringed; hollow markers are unstable runs.

    Parameters
    ----------
    sweep: one row per policy and rate (as `leankv.simulator.sweep.sweep_row` makes them)
    here_rps: the rate of the comparison on the page, drawn as an upright line; None draws none
    """
    import plotly.graph_objects as go

    figure = blank("Offered rate (requests/s)", "Served within SLO (requests/s)", dark, height)
    offered = [*sweep["offered_rps"].to_pylist(), here_rps or 1.0]
    wide = max(offered) > WIDE * min(offered)
    served = {"color": ink(dark), "dash": "dot", "width": 1.5}
    all_of_it = np.geomspace(min(offered), max(offered), 60) if wide else np.array([0.0, max(offered)])
    figure.add_trace(
        go.Scatter(x=all_of_it, y=all_of_it, mode="lines", name="all in time", line=served, hoverinfo="skip")
    )
    knees = []
    for policy, look in looks(policies_of(sweep), dark).items():
        rows = rows_of(sweep, policy)
        found = knee(rows)
        _add_policy(figure, _label(policy, found), look, rows)
        if found:
            knees.append(found)
            _ring(figure, found, look)
    if here_rps:
        figure.add_vline(x=here_rps, line={"color": ink(dark), "dash": "dash", "width": 1})
        figure.add_annotation(
            x=np.log10(here_rps) if wide else here_rps,
            y=1,
            yref="paper",
            text="this comparison",
            showarrow=False,
            xanchor="left",
            xshift=4,
        )
    if wide:
        figure.update_xaxes(type="log", title_text="Offered rate (requests/s, log scale)")
    else:
        figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return Chart(figure, _alt(sweep, knees), sweep)


def _label(policy: str, found: Knee | None) -> str:
    """The policy with its knee: beside the rings, figures would cover one another."""
    if found is None:
        return policy
    return (
        f"{policy}: knee {number(found.rate_rps)}"
        if found.reached
        else f"{policy}: knee above {number(found.rate_rps)}"
    )


def _add_policy(figure: go.Figure, name: str, look: Look, rows: list[dict]) -> None:
    import plotly.graph_objects as go

    hollow = look.marker if look.marker.endswith("-open") else f"{look.marker}-open"
    figure.add_trace(
        go.Scatter(
            x=[row["offered_rps"] for row in rows],
            y=[row["goodput_rps"] for row in rows],
            customdata=[[row["limited_by"], STABLE[row["stable"]]] for row in rows],
            name=name,
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash, "width": 2.5},
            marker={"symbol": [look.marker if row["stable"] else hollow for row in rows], "size": 9},
            hovertemplate="%{y:.2f} req/s · %{customdata[1]} · limit: %{customdata[0]}",
        )
    )


def _ring(figure: go.Figure, found: Knee, look: Look) -> None:
    import plotly.graph_objects as go

    if not found.reached:
        return
    figure.add_trace(
        go.Scatter(
            x=[found.rate_rps],
            y=[found.goodput_rps],
            mode="markers",
            marker={"symbol": "circle-open", "size": 20, "color": look.colour, "line": {"width": 2.5}},
            showlegend=False,
            name=f"{found.policy} knee",
            hovertemplate=f"{found.policy}: knee at {number(found.rate_rps)} req/s<extra></extra>",
        )
    )


def _alt(sweep: pa.Table, knees: list[Knee]) -> str:
    if not sweep.num_rows:
        return "Goodput against offered rate by policy: no rate simulated yet."
    said = []
    for found in knees:
        verb = "gives way at" if found.reached else "still holds at"
        said.append(f"{found.policy} {verb} {number(found.rate_rps)} requests a second")
    past = [policy for policy in policies_of(sweep) if policy not in {found.policy for found in knees}]
    said += [f"{policy} is past its knee at the lowest rate" for policy in past]
    title = f"Goodput against offered rate by policy; knee at {ATTAINMENT:.0%} of requests within SLO"
    return f"{title}: {'; '.join(said)}."
