"""What a trace looks like: when requests arrive and how long they are."""

from __future__ import annotations

import numpy as np

from leankv.app.figures.latency import cumulative
from leankv.app.figures.style import HUES, Chart, blank, ink, number

BINS = 200
POINTS = 2000
NICE_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
LENGTHS = {"prompt": "blue", "output": "orange"}


def bin_width(span_s: float, bins: int = BINS) -> float:
    """A round number of seconds that cuts the span into at most `bins` bins."""
    return next((width for width in NICE_S if span_s / width <= bins), span_s / bins)


def per_bin(arrival_s: np.ndarray, width_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Start of each bin in seconds, and how many requests arrive in it."""
    counts = np.bincount((arrival_s / width_s).astype(np.int64)) if len(arrival_s) else np.zeros(0, np.int64)
    return np.arange(len(counts)) * width_s, counts


def arrivals(arrival_s: np.ndarray, dark: bool = False) -> Chart:
    """Requests a second over time, and the mean as a dashed line."""
    import plotly.graph_objects as go
    import pyarrow as pa

    span = float(arrival_s[-1]) if len(arrival_s) else 0.0
    width = bin_width(span)
    start, counts = per_bin(arrival_s, width)
    rate = counts / width
    figure = blank("Time (s)", f"Requests/s (bins of {width:g} s)", dark)
    figure.add_trace(
        go.Bar(x=start + width / 2, y=rate, name="arrivals", marker={"color": HUES["blue"][dark]}, showlegend=False)
    )
    mean = len(arrival_s) / span if span else 0.0
    figure.add_hline(y=mean, line={"color": ink(dark), "dash": "dash", "width": 1.5})
    figure.update_layout(bargap=0)
    peak = float(rate.max()) if len(rate) else 0.0
    alt = (
        f"Arrivals over time: {len(arrival_s):,} requests in {number(span)} s, {number(mean)} a second on average, "
        f"{number(peak)} a second in the busiest {width:g} s."
    )
    return Chart(figure, alt, pa.table({"from (s)": start, "requests": counts, "requests/s": rate}))


def burstiness(arrival_s: np.ndarray, dark: bool = False) -> Chart:
    """Index of dispersion of counts (variance over mean) by window length; a Poisson stream stays at 1.

    After Gusella, "Characterizing the variability of arrival processes with indexes of dispersion" (1991).
    """
    import plotly.graph_objects as go
    import pyarrow as pa

    windows, index = dispersion(arrival_s)
    figure = blank("Window (s, log scale)", "Variance / mean of counts", dark)
    figure.add_trace(
        go.Scatter(
            x=windows,
            y=index,
            mode="lines+markers",
            showlegend=False,
            line={"color": HUES["vermillion"][dark], "width": 2.5},
            marker={"size": 8},
            hovertemplate="windows of %{x:g} s: %{y:.2f}<extra></extra>",
        )
    )
    figure.add_hline(y=1, line={"color": ink(dark), "dash": "dash", "width": 1.5}, annotation_text="Poisson")
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    said = "; ".join(f"{number(value)} over {window:g} s" for window, value in zip(windows, index, strict=True))
    return Chart(
        figure,
        f"Index of dispersion of arrival counts by window: {said}. Poisson is 1.",
        pa.table({"window (s)": windows, "variance / mean": index}),
    )


def dispersion(arrival_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Window lengths with at least 20 whole windows in the span, and the variance over the mean of their counts."""
    span = float(arrival_s[-1]) if len(arrival_s) else 0.0
    windows = [width for width in NICE_S if span / width >= 20 and width * len(arrival_s) >= span]
    index = []
    for width in windows:
        counts = per_bin(arrival_s, width)[1][: int(span / width)]
        index.append(float(counts.var() / counts.mean()))
    return np.array(windows, dtype=float), np.array(index)


def lengths(prompt: np.ndarray, output: np.ndarray, dark: bool = False) -> Chart:
    """Cumulative distribution of prompt and output lengths in tokens."""
    import plotly.graph_objects as go
    import pyarrow as pa

    figure = blank("Tokens (log scale)", "", dark)
    quantiles = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
    columns: dict[str, object] = {"share of requests (%)": [100 * quantile for quantile in quantiles]}
    said = []
    for (name, hue), values in zip(LENGTHS.items(), (prompt, output), strict=True):
        x, share = cumulative(values.astype(float))
        line = {"color": HUES[hue][dark], "width": 2.5, "dash": "solid" if name == "prompt" else "dash"}
        figure.add_trace(
            go.Scatter(x=x, y=100 * share, name=name, mode="lines", line=line, hovertemplate="%{x:,.0f}: %{y:.0f} %")
        )
        found = np.quantile(values, quantiles) if len(values) else np.full(len(quantiles), np.nan)
        columns[f"{name} tokens"] = found
        said.append(f"{name} median {number(float(found[3]))}, p99 {number(float(found[6]))}")
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(range=[0, 102], ticksuffix=" %")
    figure.update_layout(hovermode="closest")
    return Chart(figure, f"Cumulative distribution of lengths in tokens: {'; '.join(said)}.", pa.table(columns))


def histogram(prompt: np.ndarray, output: np.ndarray, dark: bool = False) -> Chart:
    """Histogram of prompt and output lengths in bins of equal width on a log axis."""
    import plotly.graph_objects as go
    import pyarrow as pa

    longest = max(int(prompt.max(initial=1)), int(output.max(initial=1)))
    edges = np.unique(np.round(np.geomspace(1, longest + 1, 49)).astype(int))
    figure = blank("Tokens (log scale)", "Requests", dark)
    columns: dict[str, object] = {"from (tokens)": edges[:-1], "to (tokens)": edges[1:] - 1}
    for (name, hue), values in zip(LENGTHS.items(), (prompt, output), strict=True):
        counts = np.histogram(values, edges)[0]
        columns[f"{name}s"] = counts
        figure.add_trace(
            go.Bar(
                x=np.sqrt(edges[:-1] * edges[1:]),
                y=counts,
                width=np.diff(edges),
                name=name,
                marker={"color": HUES[hue][dark], "opacity": 0.65, "line": {"width": 0}},
                hovertemplate="%{y:,} requests around %{x:,.0f} tokens",
            )
        )
    figure.update_xaxes(type="log", dtick=1)
    figure.update_layout(barmode="overlay", hovermode="closest")
    return Chart(figure, f"Histogram of prompt and output lengths of {len(prompt):,} requests.", pa.table(columns))


def scatter(prompt: np.ndarray, output: np.ndarray, dark: bool = False, seed: int = 0) -> Chart:
    """Output against prompt length, one point a request; more than `POINTS` requests are sampled."""
    import plotly.graph_objects as go
    import pyarrow as pa

    chosen = np.arange(len(prompt))
    if len(prompt) > POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(prompt), POINTS, replace=False))
    figure = blank("Prompt (tokens, log scale)", "Output (tokens, log scale)", dark)
    figure.add_trace(
        go.Scatter(
            x=prompt[chosen],
            y=output[chosen],
            mode="markers",
            showlegend=False,
            marker={"color": HUES["green"][dark], "size": 5, "opacity": 0.45},
            hovertemplate="prompt %{x:,}, output %{y:,}<extra></extra>",
        )
    )
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1)
    figure.update_layout(hovermode="closest")
    correlation = rank_correlation(prompt, output)
    shown = f"{len(chosen):,} of {len(prompt):,} requests"
    alt = f"Output against prompt length of {shown}; rank correlation {correlation:.2f}."
    return Chart(figure, alt, pa.table({"prompt tokens": prompt[chosen], "output tokens": output[chosen]}))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; not-a-number where one side is constant."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
