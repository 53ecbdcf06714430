"""What policies cost in answers: quality against compression, by task, needles by place, how outputs grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leankv.app.figures.style import HUES, Chart, blank, faded, ink, looks, number

if TYPE_CHECKING:
    import pyarrow as pa

    from leankv.serving.quality_scores import OutputLengths

GROWN = 1.5


@dataclass(frozen=True)
class Point:
    """One policy by one metric of `samples` samples, in the metric's shown unit; `low` and `high`: its 95 % interval,
    where known.
    """

    policy: str
    ratio: float
    value: float
    low: float | None
    high: float | None
    on_frontier: bool
    samples: int


@dataclass(frozen=True)
class Axis:
    """How a metric is shown: its title, its unit, whether less of it is better, and where the axis is cut off."""

    title: str
    unit: str
    less_is_better: bool
    cut: float | None = None


def frontier(points: Sequence[Point], axis: Axis, dark: bool = False, height: int = 460) -> Chart:
    """Quality against physical compression, a mark a policy with its interval; up and right is better.

    The broken line joins the policies that no other beats in both; these are numbered along it and in the legend.
    A policy beyond the axis' cut stands at its edge.
    """
    import plotly.graph_objects as go

    figure = blank("Compression, physical (log scale)", f"{axis.title} ({axis.unit})", dark, height)
    edge = sorted((point for point in points if point.on_frontier), key=lambda point: point.ratio)
    line = {"color": ink(dark), "dash": "dash", "width": 1.5}
    figure.add_trace(
        go.Scatter(
            x=[point.ratio for point in edge],
            y=[_cut(point.value, axis) for point in edge],
            mode="lines",
            line=line,
            name="frontier",
            hoverinfo="skip",
        )
    )
    found = looks([point.policy for point in points], dark)
    numbers = {point.policy: f"{place}" for place, point in enumerate(edge, start=1)}
    for place, point in enumerate(sorted(points, key=lambda point: point.ratio)):
        look = found[point.policy]
        figure.add_trace(
            go.Scatter(
                x=[point.ratio],
                y=[_cut(point.value, axis)],
                error_y=_bar(point, axis),
                mode="markers+text",
                text=[_figure(point.value, axis) if _beyond(point, axis) else numbers.get(point.policy, "")],
                textposition=_beside(point, axis, place),
                textfont={"color": ink(dark), "size": 13},
                marker={
                    "color": look.colour,
                    "symbol": look.marker,
                    "size": 13,
                    "line": {"width": 1, "color": ink(dark)},
                },
                name=" ".join(filter(None, (numbers.get(point.policy), _short(point.policy)))),
                hovertemplate=f"{point.policy}: {_told(point, axis)} at {point.ratio:.2f}x<extra></extra>",
            )
        )
    beside = {"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top", "font": {"size": 11}}
    figure.update_layout(hovermode="closest", legend=beside)
    ticks = [1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}x" for tick in ticks], range=_reach(points))
    figure.update_yaxes(autorange="reversed" if axis.less_is_better else True)
    return Chart(figure, _alt(points, axis), table(points, axis))


def table(points: Sequence[Point], axis: Axis) -> pa.Table:
    """A row a policy."""
    import pyarrow as pa

    rows = [
        {
            "policy": point.policy,
            "physical compression": point.ratio,
            f"{axis.title} ({axis.unit})": point.value,
            "95 % from": point.low,
            "95 % to": point.high,
            "samples": point.samples,
            "on the frontier": point.on_frontier,
        }
        for point in points
    ]
    return pa.Table.from_pylist(rows)


def by_policy(points: Sequence[Point], axis: Axis, dark: bool = False) -> Chart:
    """One metric, a line a policy from the least to the most compressing; the upright line is fp16's value."""
    import plotly.graph_objects as go

    ordered = sorted(points, key=lambda point: point.ratio)
    figure = blank(f"{axis.title} ({axis.unit})", "", dark, 120 + 26 * len(ordered))
    for point in ordered:
        look = looks([point.policy], dark)[point.policy]
        figure.add_trace(
            go.Scatter(
                x=[_cut(point.value, axis)],
                y=[_short(point.policy)],
                error_x=_bar(point, axis),
                mode="markers",
                marker={"color": look.colour, "symbol": look.marker, "size": 11},
                hovertemplate=f"{_told(point, axis)}<extra></extra>",
                showlegend=False,
            )
        )
        if point.policy == "fp16":
            figure.add_vline(x=point.value, line={"color": ink(dark), "dash": "dot", "width": 1.5})
    figure.update_layout(hovermode="closest", margin={"t": 8})
    figure.update_yaxes(categoryorder="array", categoryarray=[_short(point.policy) for point in ordered][::-1])
    return Chart(figure, _alt(ordered, axis), table(ordered, axis))


def needles(policy: str, samples: pa.Table, dark: bool = False, height: int = 300) -> Chart:
    """Share of needles found by where they lie: length of the context across, depth downwards."""
    import plotly.graph_objects as go
    import pyarrow as pa

    rows = samples.select(["context_tokens", "depth", "score"]).to_pylist()
    contexts = sorted({row["context_tokens"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    scores: dict[tuple[int, float], list[float]] = {}
    for row in rows:
        scores.setdefault((row["context_tokens"], row["depth"]), []).append(row["score"])
    cells = [[scores.get((context, depth), []) for context in contexts] for depth in depths]
    low, high = ("#5A2E0C", "#1B5E8F") if dark else ("#FBE3D2", "#9CCBEA")
    figure = blank("Context (tokens)", "Depth", dark, height)
    figure.add_trace(
        go.Heatmap(
            x=[f"{context:,}" for context in contexts],
            y=[f"{depth:.0%}" for depth in depths],
            z=[[float(np.mean(cell)) if cell else None for cell in line] for line in cells],
            text=[[f"{sum(cell):.0f}/{len(cell)}" if cell else "" for cell in line] for line in cells],
            texttemplate="%{text}",
            textfont={"color": "#FFFFFF" if dark else "#1B2430"},
            colorscale=[[0, low], [1, high]],
            zmin=0,
            zmax=1,
            showscale=False,
            xgap=2,
            ygap=2,
            hovertemplate="%{x} tokens, depth %{y}: %{text} found<extra></extra>",
        )
    )
    figure.update_layout(hovermode="closest", margin={"t": 8})
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    found = sum(row["score"] for row in rows)
    alt = f"Needles found under {policy} by context and depth: {found:.0f} of {len(rows)}; {_worst(scores)}."
    numbers = [
        {"policy": policy, "context (tokens)": c, "depth": d, "found": sum(cell), "of": len(cell)}
        for (c, d), cell in sorted(scores.items())
    ]
    return Chart(figure, alt, pa.Table.from_pylist(numbers))


def growth(
    ratios: Mapping[str, Sequence[float]], lengths: Mapping[str, OutputLengths], dark: bool = False, height: int = 380
) -> Chart:
    """How much longer outputs get: the distribution of a policy's length over fp16's, prompt by prompt.

    lengths: of each policy of `ratios`, and maybe others.
    """
    import plotly.graph_objects as go
    import pyarrow as pa

    figure = blank("Length over fp16's (log scale)", "", dark, height)
    rows, said = [], []
    for policy, look in looks(list(ratios), dark).items():
        values = np.sort(np.asarray(ratios[policy], dtype=float))
        about = lengths[policy]
        figure.add_trace(
            go.Scatter(
                x=values,
                y=100 * np.arange(1, len(values) + 1) / len(values),
                name=f"{policy}, {about.grown_by_half:.0%} of {about.n}",
                mode="lines",
                line={"color": look.colour, "dash": look.dash, "width": 2.5, "shape": "hv"},
                hovertemplate="%{y:.0f} % of outputs at most %{x:.2f}x",
            )
        )
        low, high = about.grown_by_half_interval or (None, None)
        rows.append(
            {
                "policy": policy,
                "outputs": about.n,
                "median": float(np.median(values)),
                "grown by half": about.grown_by_half,
                "95 % from": low,
                "95 % to": high,
                "cut off": about.unfinished,
                "left out": about.left_out,
            }
        )
        between = "" if low is None else f" ({low:.0%} to {high:.0%})"
        said.append(f"{policy} {about.grown_by_half:.0%} of {about.n}{between}")
    figure.add_vline(x=GROWN, line={"color": ink(dark), "dash": "dash", "width": 1.5})
    figure.add_annotation(
        x=float(np.log10(GROWN)), y=0.03, yref="paper", text="half longer", showarrow=False, xanchor="left", xshift=4
    )
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(type="log", tickvals=[0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8])
    figure.update_yaxes(range=[0, 102], ticksuffix=" %")
    alt = f"Distribution of output lengths over fp16's; share that grows by half or more: {', '.join(said) or 'none'}."
    return Chart(figure, alt, pa.Table.from_pylist(rows))


def kept_by_head(shares: np.ndarray, of: str, dark: bool = False) -> Chart:
    """Share of a prompt that each KV head of each layer keeps. shares: float[layers, heads]; of: what, in words."""
    import plotly.graph_objects as go
    import pyarrow as pa

    figure = blank("KV head", "Layer", dark, 110 + 14 * len(shares))
    figure.add_trace(
        go.Heatmap(
            z=100 * shares,
            colorscale=[[0, faded(HUES["blue"][dark], 0.04)], [1, faded(HUES["blue"][dark], 1)]],
            zmin=0,
            zmax=100 * float(shares.max(initial=0.01)),
            colorbar={"ticksuffix": " %", "thickness": 12},
            xgap=1,
            ygap=1,
            hovertemplate="layer %{y}, head %{x}: %{z:.0f} % kept<extra></extra>",
        )
    )
    figure.update_layout(hovermode="closest", margin={"t": 8})
    figure.update_xaxes(dtick=1 if shares.shape[1] <= 16 else 4, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    layer, head = np.unravel_index(int(shares.argmin()), shares.shape)
    alt = (
        f"Share of {of} kept by layer and KV head: {shares.mean():.0%} on average, least "
        f"{shares.min():.0%} in layer {layer}, head {head}, most {shares.max():.0%}."
    )
    rows = [
        {"layer": layer, "head": head, "kept (%)": float(100 * share)}
        for layer, line in enumerate(shares)
        for head, share in enumerate(line)
    ]
    return Chart(figure, alt, pa.Table.from_pylist(rows))


def _cut(value: float, axis: Axis) -> float:
    if axis.cut is None:
        return value
    return min(value, axis.cut) if axis.less_is_better else max(value, axis.cut)


def _beyond(point: Point, axis: Axis) -> bool:
    return _cut(point.value, axis) != point.value


def _bar(point: Point, axis: Axis) -> dict[str, object] | None:
    """The interval around the point, within the axis."""
    if point.low is None or point.high is None or _beyond(point, axis):
        return None
    over, under = _cut(point.high, axis) - point.value, point.value - _cut(point.low, axis)
    return {"type": "data", "symmetric": False, "array": [over], "arrayminus": [under], "thickness": 1.5, "width": 4}


def _beside(point: Point, axis: Axis, place: int) -> str:
    """Numbers off the intervals' bars; figures at the edge above and below in turn, since marks are close there."""
    if not _beyond(point, axis):
        return "top right"
    return "top center" if place % 2 else "bottom center"


def _short(policy: str) -> str:
    return policy.replace("key_transform=", "").replace("format=", "")


def _told(point: Point, axis: Axis) -> str:
    interval = "" if point.low is None or point.high is None else f" ({number(point.low)} to {number(point.high)})"
    return f"{_figure(point.value, axis)}{interval}"


def _figure(value: float, axis: Axis) -> str:
    sign = "+" if value > 0 and "against" in axis.title else ""
    return f"{sign}{number(value)} {axis.unit}"


def _reach(points: Sequence[Point]) -> list[float]:
    ratios = [point.ratio for point in points] or [1.0]
    return [float(np.log10(min([*ratios, 1.0]) * 0.9)), float(np.log10(max(ratios) * 1.15))]


def _worst(scores: Mapping[tuple[int, float], Sequence[float]]) -> str:
    if not scores:
        return "none was hidden"
    (context, depth), cell = min(scores.items(), key=lambda each: float(np.mean(each[1])))
    return f"fewest at {context:,} tokens and depth {depth:.0%}, {sum(cell):.0f} of {len(cell)}"


def _alt(points: Sequence[Point], axis: Axis) -> str:
    edge = ", ".join(
        f"{point.policy} ({point.ratio:.2f}x, {_figure(point.value, axis)})" for point in points if point.on_frontier
    )
    return f"{axis.title} against physical compression for {len(points)} policies. On the frontier: {edge or 'none'}."
