"""Requests as bars over time: waiting, prefill, decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leankv.app.figures.style import HUES, Chart, blank, ink

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa

ROWS = 200
PS = 1e12
# phase: (begins at, ends at, hue)
PHASES = {
    "waiting": ("arrival_ps", "admitted_ps", "vermillion"),
    "prefill": ("admitted_ps", "first_token_ps", "orange"),
    "decode": ("first_token_ps", "finish_ps", "blue"),
}


def shown(requests: pa.Table, start_s: float, end_s: float, rows: int = ROWS) -> pa.Table:
    """The requests present at any time in [start_s, end_s), by arrival; evenly thinned to at most `rows` of them."""
    arrival = requests["arrival_ps"].to_numpy(zero_copy_only=False)
    finish = requests["finish_ps"].to_numpy(zero_copy_only=False)
    present = (arrival < end_s * PS) & ((finish >= start_s * PS) | (finish < 0))
    admitted = np.asarray(requests["status"].to_pylist(), dtype=object) != "rejected"
    chosen = np.flatnonzero(present & admitted)
    chosen = chosen[np.argsort(arrival[chosen], kind="stable")]
    if len(chosen) > rows:
        chosen = chosen[np.linspace(0, len(chosen) - 1, rows).astype(int)]
    return requests.take(chosen)


def request_gantt(requests: pa.Table, start_s: float, end_s: float, dark: bool = False, rows: int = ROWS) -> Chart:
    """One bar a request: waiting, prefill, decode; a cross marks the requests that were preempted on the way.

    Parameters
    ----------
    requests: requests table of a run
    start_s, end_s: the window of time shown, in seconds since the trace began
    rows: at most this many requests; more are thinned evenly
    """
    table = shown(requests, start_s, end_s, rows)
    figure = blank("Time (s)", "Requests by arrival", dark, height=max(260, min(640, 120 + 4 * table.num_rows)))
    positions = np.arange(table.num_rows)
    for phase, (begin, end, hue) in PHASES.items():
        _add_phase(figure, table, positions, phase, (begin, end), HUES[hue][dark], end_s)
    _add_preemptions(figure, table, positions, dark)
    figure.update_layout(barmode="overlay", bargap=0.15, hovermode="closest")
    figure.update_xaxes(range=[start_s, end_s])
    figure.update_yaxes(autorange="reversed", showticklabels=False)
    return Chart(figure, _alt(requests, table, start_s, end_s), _table(table))


def _seconds(table: pa.Table, column: str) -> np.ndarray:
    picoseconds = table[column].to_numpy(zero_copy_only=False)
    return np.where(picoseconds < 0, np.nan, picoseconds / PS)


def _add_phase(
    figure: go.Figure,
    table: pa.Table,
    positions: np.ndarray,
    phase: str,
    ends: tuple[str, str],
    colour: str,
    now_s: float,
) -> None:
    import plotly.graph_objects as go

    begin, end = (_seconds(table, column) for column in ends)
    # a phase that has begun and not ended is open: draw it to the edge of the window
    end = np.where(np.isnan(end) & ~np.isnan(begin), now_s, end)
    figure.add_trace(
        go.Bar(
            base=begin,
            x=end - begin,
            y=positions,
            orientation="h",
            name=phase,
            marker={"color": colour, "line": {"width": 0}},
            customdata=table["request_id"].to_numpy(zero_copy_only=False),
            hovertemplate=f"request %{{customdata}}: {phase} %{{x:.2f}} s from %{{base:.2f}} s<extra></extra>",
        )
    )


def _add_preemptions(figure: go.Figure, table: pa.Table, positions: np.ndarray, dark: bool) -> None:
    import plotly.graph_objects as go

    preempted = table["preemptions"].to_numpy(zero_copy_only=False) > 0
    if not preempted.any():
        return
    figure.add_trace(
        go.Scatter(
            x=_seconds(table, "arrival_ps")[preempted],
            y=positions[preempted],
            mode="markers",
            name="preempted",
            marker={"symbol": "x", "size": 7, "color": ink(dark)},
            customdata=table["preemptions"].to_numpy(zero_copy_only=False)[preempted],
            hovertemplate="preempted %{customdata} times<extra></extra>",
        )
    )


def _table(table: pa.Table) -> pa.Table:
    columns = ["request_id", "status", "prompt_tokens", "output_tokens", "queue_ms", "ttft_ms", "tpot_ms", "e2el_ms"]
    return table.select([*columns, "preemptions"])


def _alt(requests: pa.Table, table: pa.Table, start_s: float, end_s: float) -> str:
    preempted = int((table["preemptions"].to_numpy(zero_copy_only=False) > 0).sum())
    return (
        f"Gantt chart of {table.num_rows} of {requests.num_rows} requests between {start_s:.0f} and {end_s:.0f} s: "
        f"waiting, prefill and decode of each; {preempted} of those shown were preempted."
    )
