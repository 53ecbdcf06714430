"""One run over time: requests running and waiting, KV pages, tokens a step, preemptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leankv.app.figures.style import HUES, Chart, dress, faded, ink, number
from leankv.app.timelines import across_replicas, resampled

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa

POINTS = 600
PANELS = ("Requests", "KV pages", "Tokens a step", "Preemptions (cumulative)")


def run_timeline(timeline: pa.Table, dark: bool = False, height: int = 720) -> Chart:
    """Four panels over one time axis: running and waiting, KV pages under capacity, batch tokens, preemptions."""
    from plotly.subplots import make_subplots

    table = resampled(across_replicas(timeline), POINTS)
    figure = make_subplots(
        rows=4,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.06,
        row_heights=[0.3, 0.3, 0.2, 0.2],
        subplot_titles=PANELS,
    )
    dress(figure, dark, height)
    figure.update_layout(legend={"y": 1.05})
    draw = _Drawer(figure, table, dark)
    draw.line(1, "running", "running", "blue", filled=True)
    draw.line(1, "waiting", "waiting", "vermillion")
    draw.line(2, "kv_pages_used", "KV pages used", "green", filled=True)
    draw.line(2, "kv_pages_staging", "of them prompts in progress", "orange")
    draw.line(2, "kv_pages_capacity", "capacity", None, dash="dash")
    draw.line(3, "batch_tokens", "tokens a step", "purple")
    draw.line(4, "preemptions", "preemptions", "vermillion", filled=True)
    figure.update_xaxes(title_text="Time (s)", row=4)
    figure.update_yaxes(rangemode="tozero")
    return Chart(figure, _alt(table), table)


class _Drawer:
    """Adds series of one table to the panels of one figure."""

    def __init__(self, figure: go.Figure, table: pa.Table, dark: bool) -> None:
        self.figure, self.table, self.dark = figure, table, dark

    def line(
        self, row: int, column: str, name: str, hue: str | None, filled: bool = False, dash: str = "solid"
    ) -> None:
        import plotly.graph_objects as go

        colour = HUES[hue][self.dark] if hue else ink(self.dark)
        self.figure.add_trace(
            go.Scatter(
                x=self.table["time_s"].to_numpy(zero_copy_only=False),
                y=self.table[column].to_numpy(zero_copy_only=False),
                name=name,
                mode="lines",
                line={"color": colour, "width": 1.5, "shape": "hv", "dash": dash},
                fill="tozeroy" if filled else None,
                fillcolor=faded(HUES[hue][self.dark], 0.18) if filled and hue else None,
                hovertemplate="%{y:,.0f}",
            ),
            row=row,
            col=1,
        )


def _alt(table: pa.Table) -> str:
    if not table.num_rows:
        return "Timeline of the run: no samples."
    top = {
        name: float(np.max(table[name].to_numpy(zero_copy_only=False)))
        for name in ("running", "waiting", "kv_pages_used", "kv_pages_capacity", "preemptions")
    }
    share = 100 * top["kv_pages_used"] / top["kv_pages_capacity"] if top["kv_pages_capacity"] else 0
    return (
        f"Timeline of the run: at most {number(top['running'])} requests running and {number(top['waiting'])} waiting, "
        f"KV pages peak at {share:.0f} % of capacity, {number(top['preemptions'])} preemptions."
    )
