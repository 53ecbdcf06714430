"""Two policies on the same windows of text: on which of them which one loses, and how much."""

from __future__ import annotations

from collections.abc import Mapping

from leankv.app.figures.style import Chart, blank, ink, looks, number


def by_window(losses: Mapping[str, float], policy: str, against: str, dark: bool = False, height: int = 340) -> Chart:
    """losses: by window, nats a token that `policy` costs more than `against`. A bar a window, from least to most."""
    import plotly.graph_objects as go
    import pyarrow as pa

    ordered = sorted(losses.items(), key=lambda each: each[1])
    colours = [looks([against], dark)[against].colour, looks([policy], dark)[policy].colour]
    figure = blank("Windows, sorted", f"Nats a token more under {policy}", dark, height)
    figure.add_trace(
        go.Bar(
            x=list(range(1, len(ordered) + 1)),
            y=[loss for _, loss in ordered],
            customdata=[window for window, _ in ordered],
            marker={"color": [colours[loss > 0] for _, loss in ordered], "line": {"width": 1, "color": ink(dark)}},
            hovertemplate="%{customdata}: %{y:+.4f} nats a token<extra></extra>",
            showlegend=False,
        )
    )
    mean = sum(losses.values()) / len(losses)
    figure.add_hline(y=mean, line={"color": ink(dark), "dash": "dash", "width": 1.5})
    figure.update_layout(hovermode="closest", margin={"t": 8})
    worse = sum(loss > 0 for _, loss in ordered)
    alt = (
        f"{policy} against {against} window by window: higher loss on {worse} of {len(ordered)} windows, "
        f"{number(mean)} nats a token on average, from {number(ordered[0][1])} to {number(ordered[-1][1])}."
    )
    rows = [{"window": window, f"nats a token, {policy} minus {against}": loss} for window, loss in ordered]
    return Chart(figure, alt, pa.Table.from_pylist(rows))
