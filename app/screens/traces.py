"""Traces: what a whole trace looks like, before anything is simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from leankv.app import narrative
from leankv.app.controls import traffic_controls
from leankv.app.figures import traffic as figures
from leankv.app.live import opened_traffic
from leankv.app.scenario import Scenario
from leankv.app.scoreboard import Card
from leankv.app.views import draw_cards, is_dark, numbers, show
from leankv.serving.errors import InputError
from leankv.traces.trace import PS_PER_S

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.traces.describe import TraceFigures
    from leankv.traces.trace import Trace


def page() -> None:
    """Draw the page."""
    with st.sidebar:
        chosen = Scenario(**traffic_controls(limited=False))
    st.title("What the traffic looks like", anchor=False)
    try:
        trace = opened_traffic(chosen)
    except InputError as error:
        st.error(str(error), icon=":material/error:")
        return
    _draw(trace)


def _draw(trace: Trace) -> None:
    from leankv.traces.describe import describe

    found = describe(trace)
    st.caption(f"**{trace.name}** · {_steps(trace)}")
    for warning in trace.warnings:
        st.warning(warning, icon=":material/warning:")
    with st.container(border=True, key="verdict"):
        st.markdown(narrative.traffic(found))
    _cards(found)
    dark = is_dark()
    arrival_s = (trace.arrival_ps - trace.arrival_ps[0]) / PS_PER_S
    prompt, output = trace.prompt_tokens, trace.output_tokens
    st.header("Arrivals", anchor=False)
    wide, narrow = st.columns([3, 2])
    with wide:
        show(figures.arrivals(arrival_s, dark), "arrivals")
    with narrow:
        show(figures.burstiness(arrival_s, dark), "burstiness")
    st.header("Lengths", anchor=False)
    panels = {
        "histogram": figures.histogram(prompt, output, dark),
        "lengths": figures.lengths(prompt, output, dark),
        "scatter": figures.scatter(prompt, output, dark),
    }
    for column, (name, chart) in zip(st.columns(3), panels.items(), strict=True):
        with column:
            show(chart, name)
    st.header("In figures", anchor=False)
    numbers(figures_table(found), "trace")


def _steps(trace: Trace) -> str:
    steps = trace.provenance.get("steps", ())
    return "as read" if not steps else "as read, then " + ", ".join(map(str, steps))


def _cards(found: TraceFigures) -> None:
    hits = "n/a" if found.prefix_hit_rate is None else f"{found.prefix_hit_rate:.0%}"
    draw_cards(
        [
            Card("Requests", f"{found.requests:,}", "In the whole trace."),
            Card("Rate", f"{found.rate_per_s:.2f}/s", "Requests over the time from the first to the last."),
            Card(
                "Burstiness (CV)", f"{found.gap_cv:.2f}", "Spread of the gaps over their mean; 1 for a Poisson stream."
            ),
            Card("Prompt", f"{found.prompt.mean:,.0f} tok", "Mean length of a prompt."),
            Card("Output", f"{found.output.mean:,.0f} tok", "Mean length of an answer."),
            Card(
                "Prefix hits", hits, "Prompt tokens that an infinite prefix cache would hold; known with prefix hashes."
            ),
        ]
    )


def figures_table(found: TraceFigures) -> pa.Table:
    """The description as rows of figure and value; nested figures are joined with a dot."""
    import pyarrow as pa

    rows = []
    for key, value in found.figures().items():
        for part, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if not isinstance(inner, list):
                rows.append({"figure": f"{key}.{part}".strip("."), "value": _said(inner)})
    return pa.Table.from_pylist(rows)


def _said(value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "n/a"
    return f"{value:,.6g}" if isinstance(value, (int, float)) else str(value)
