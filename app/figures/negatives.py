"""How many samples a policy gets wrong that fp16 gets right, as the bar for "wrong" is raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leankv.app.figures.style import Chart, blank, ink, looks

if TYPE_CHECKING:
    from leankv.serving.negative_samples import Count

TOGETHER = "all of them"


def by_theta(counts: Sequence[Count], here: float, dark: bool = False, height: int = 340) -> Chart:
    """Negative samples by theta over all tasks given: a line a policy, and one for those that fail under every policy.

    Each is named with the benign samples that it is a part of, as policies may not have been given the same. here: the
    theta of the page, drawn as an upright line.
    """
    import plotly.graph_objects as go
    import pyarrow as pa

    sets = list(dict.fromkeys(count.policies for count in counts))
    thetas = sorted({count.theta for count in counts})
    found = looks([members[0] for members in sets if len(members) == 1], dark)
    figure = blank("Theta: share of fp16's score that is lost (%)", "Negative samples", dark, height)
    for members in sets:
        alone = len(members) == 1
        look = found[members[0]] if alone else None
        line = (
            {"color": look.colour, "dash": look.dash, "width": 2}
            if look
            else {"color": ink(dark), "dash": "solid", "width": 4}
        )
        figure.add_trace(
            go.Scatter(
                x=[100 * theta for theta in thetas],
                y=[_sum(counts, members, theta)[0] for theta in thetas],
                name=f"{members[0] if alone else TOGETHER}, of {_sum(counts, members, thetas[0])[1]}",
                mode="lines+markers",
                line=line,
                marker={"symbol": look.marker if look else "circle", "size": 7},
                hovertemplate="%{y}",
            )
        )
    figure.add_vline(x=100 * here, line={"color": ink(dark), "dash": "dash", "width": 1})
    figure.update_yaxes(rangemode="tozero")
    nearest = min(thetas, key=lambda theta: abs(theta - here), default=here)
    said = "; ".join(
        "{} {} of {}".format(members[0] if len(members) == 1 else TOGETHER, *_sum(counts, members, nearest))
        for members in sets
    )
    rows = [
        {
            "task": count.task,
            "policies": ", ".join(count.policies),
            "theta": count.theta,
            "samples": count.samples,
            "benign": count.benign,
            "negative": count.negative,
        }
        for count in counts
    ]
    return Chart(figure, f"Negative samples by theta; at {here:.0%}: {said or 'none'}.", pa.Table.from_pylist(rows))


def _sum(counts: Sequence[Count], members: tuple[str, ...], theta: float) -> tuple[int, int]:
    """Negative and benign samples of a set over its tasks."""
    these = [count for count in counts if count.policies == members and count.theta == theta]
    return sum(count.negative for count in these), sum(count.benign for count in these)
