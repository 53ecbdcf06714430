"""What every figure shares: one look per policy, one layout, and the `Chart` that carries a figure's words and numbers.

Colours are Okabe and Ito's set (Color Universal Design, 2008), each shade moved just far enough to reach a contrast of
3:1 on its background. A colour is a family of policies; dash and marker tell its members apart, so no reader needs the
colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa

HEIGHT = 340
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon", "cross")

# hue: (on a light page, on a dark page)
HUES = {
    "grey": ("#50555E", "#C3C8D0"),
    "orange": ("#C08A00", "#F2B01E"),
    "sky": ("#2E93CF", "#56B4E9"),
    "green": ("#00916A", "#12B886"),
    "blue": ("#0072B2", "#4C8DFF"),
    "vermillion": ("#C24A00", "#FF6A1F"),
    "purple": ("#B8608F", "#D98AB5"),
    "yellow": ("#9C8F00", "#F0E442"),
}

# policy: (hue, dash, marker)
_FAMILIES = {
    "fp16": ("grey", "dot", "circle"),
    "fp8": ("sky", "dash", "square"),
    "int8": ("blue", "longdash", "diamond"),
    "int4": ("blue", "dash", "diamond-open"),
    "kivi": ("orange", "dashdot", "triangle-up"),
    "turboquant": ("orange", "longdash", "triangle-down"),
    "streaming-llm": ("purple", "solid", "x"),
    "h2o": ("purple", "dash", "cross"),
    "duo-attention": ("purple", "dot", "x-open"),
    "snapkv": ("green", "solid", "pentagon"),
    "pyramidkv": ("green", "dash", "hexagon"),
    "ada-kv": ("green", "dot", "hexagon2"),
    "expected-attention": ("green", "dashdot", "octagon"),
    "quest": ("yellow", "longdash", "bowtie"),
    "leankv": ("vermillion", "solid", "star"),
    "leankv-r": ("vermillion", "dash", "star-open"),
}


@dataclass(frozen=True)
class Look:
    """How one policy is drawn, everywhere."""

    colour: str
    dash: str
    marker: str


@dataclass(frozen=True)
class Chart:
    """A figure, what it shows in a sentence (for screen readers), and the numbers that it draws."""

    figure: go.Figure
    alt: str
    table: pa.Table


def looks(policies: Sequence[str], dark: bool = False) -> dict[str, Look]:
    """The look of each policy; variants of one (`kivi:bits=2`, `kivi:bits=4`) share its colour and differ in dash."""
    seen: dict[str, int] = {}
    result = {}
    for policy in policies:
        family = policy.partition(":")[0]
        hue, dash, marker = _FAMILIES.get(family, ("yellow", "dashdot", "pentagon-open"))
        variant = seen.get(family, 0)
        seen[family] = variant + 1
        if variant:
            dash = DASHES[(DASHES.index(dash) + variant) % len(DASHES)]
            marker = MARKERS[(variant - 1) % len(MARKERS)]
        result[policy] = Look(HUES[hue][dark], dash, marker)
    return result


def ink(dark: bool) -> str:
    """The colour of rules and notes that belong to no policy."""
    return "#C9CED6" if dark else "#4A4F57"


def faded(colour: str, opacity: float) -> str:
    """`#RRGGBB` with an opacity, as plotly's fills want it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def blank(x_title: str, y_title: str, dark: bool = False, height: int = HEIGHT) -> go.Figure:
    """An empty figure with the house's layout: legend above, one hover box, no background of its own."""
    import plotly.graph_objects as go

    figure = go.Figure()
    dress(figure, dark, height)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def dress(figure: go.Figure, dark: bool, height: int) -> None:
    """Apply the house's layout to a figure, with subplots or without."""
    grid = "rgba(255,255,255,0.10)" if dark else "rgba(0,0,0,0.08)"
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 12, "t": 36, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": ink(dark), "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title_text": ""},
        hovermode="x unified",
        showlegend=True,
        hoverlabel={"namelength": -1},
    )
    axis = {"gridcolor": grid, "zeroline": False, "automargin": True, "title_standoff": 16}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)


def number(value: float) -> str:
    """A figure for people: three significant digits, thousands separated, no exponent."""
    if value != value:
        return "n/a"
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.2f}" if magnitude >= 0.1 else f"{value:.2g}"


def duration(milliseconds: float) -> str:
    """A time for people, in the unit that reads best."""
    if milliseconds != milliseconds:
        return "n/a"
    if milliseconds < 1000:
        return f"{number(milliseconds)} ms"
    return f"{number(milliseconds / 1000)} s" if milliseconds < 120_000 else f"{number(milliseconds / 60_000)} min"
