"""What a trace looks like in figures: rate, burstiness, lengths, correlation, prefix sharing; and KS distances."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from leankv.traces.trace import PS_PER_S, PrefixBlocks, Trace

DISPERSION_WINDOWS_S = (1, 10, 60)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LengthFigures:
    """Of one length in tokens."""

    mean: float
    median: float
    p90: float
    p99: float
    max: int


@dataclass(frozen=True)
class TraceFigures:
    """A trace in figures.

    rate_per_s: (n - 1) / span. gap_cv: standard deviation of the gaps over their mean (1 for Poisson).
    dispersion: variance over mean of the counts in windows of 1, 10 and 60 s (1 for Poisson), None where the trace
    has fewer than two such windows. rank_correlation: Spearman's, prompt against output. prefix_hit_rate: share of
    prompt tokens whose block an infinite cache would hold already; None without hashes.
    """

    name: str
    requests: int
    span_s: float
    rate_per_s: float
    gap_cv: float
    dispersion: dict[str, float | None]
    prompt: LengthFigures
    output: LengthFigures
    rank_correlation: float
    prefix_hit_rate: float | None
    warnings: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """JSON-able, rounded to 6 significant digits."""
        return _rounded(asdict(self))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def describe(trace: Trace) -> TraceFigures:
    """The figures of a trace."""
    rate = (len(trace) - 1) / trace.span_s if trace.span_s > 0 else 0.0
    return TraceFigures(
        name=trace.name,
        requests=len(trace),
        span_s=trace.span_s,
        rate_per_s=rate,
        gap_cv=gap_cv(trace),
        dispersion={f"{width}s": index_of_dispersion(trace, width) for width in DISPERSION_WINDOWS_S},
        prompt=length_figures(trace.prompt_tokens),
        output=length_figures(trace.output_tokens),
        rank_correlation=rank_correlation(trace.prompt_tokens, trace.output_tokens),
        prefix_hit_rate=None if trace.prefix_hashes is None else prefix_hit_rate(trace),
        warnings=trace.warnings,
    )


def length_figures(tokens: npt.NDArray[np.int32]) -> LengthFigures:
    median, p90, p99 = np.percentile(tokens, (50, 90, 99)).tolist()
    return LengthFigures(float(tokens.mean()), median, p90, p99, int(tokens.max()))


def gaps_s(trace: Trace) -> npt.NDArray[np.float64]:
    """Seconds between one arrival and the next, float64[n - 1]."""
    return np.diff(trace.arrival_ps) / PS_PER_S


def gap_cv(trace: Trace) -> float:
    """Coefficient of variation of the gaps; 0 for fewer than two requests or all at one time."""
    gaps = gaps_s(trace)
    return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else 0.0


def arrival_counts(trace: Trace, width_s: float) -> npt.NDArray[np.int64]:
    """Arrivals in each window of `width_s` from the first arrival on, the last window possibly cut short."""
    since = trace.arrival_ps - trace.arrival_ps[0]
    return np.bincount(since // round(width_s * PS_PER_S))


def index_of_dispersion(trace: Trace, width_s: float) -> float | None:
    """Variance over mean of the counts in whole windows; None where there are fewer than two."""
    windows = int(trace.span_s // width_s)
    if windows < 2 or windows > 10**8:
        return None
    counts = arrival_counts(trace, width_s)[:windows]
    return float(counts.var() / counts.mean())


def rank_correlation(first: Array, second: Array) -> float:
    """Spearman's rank correlation, ties by their mean rank; 0 where one of them is constant."""
    ranks = [_mean_ranks(values) for values in (first, second)]
    if min(rank.std() for rank in ranks) == 0:
        return 0.0
    centred = [rank - rank.mean() for rank in ranks]
    return float((centred[0] * centred[1]).mean() / (centred[0].std() * centred[1].std()))


def _mean_ranks(values: Array) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def prefix_hit_rate(trace: Trace) -> float:
    """Share of prompt tokens in blocks that an earlier request held too, with a cache that never forgets."""
    if trace.prefix_hashes is None:
        return 0.0
    hits = hit_blocks(trace.prefix_hashes) * trace.prefix_hashes.block_tokens
    return float(np.minimum(hits, trace.prompt_tokens).sum() / trace.prompt_tokens.sum())


def hit_blocks(blocks: PrefixBlocks) -> npt.NDArray[np.int64]:
    """Blocks of each request seen in an earlier request (or block), int64[n]. A hash names its whole prefix."""
    _, first = np.unique(blocks.hashes, return_index=True)
    seen = np.ones(len(blocks.hashes), np.int64)
    seen[first] = 0
    return np.diff(np.concatenate(([0], np.cumsum(seen)))[blocks.offsets])


def ks_distance(first: Array, second: Array) -> float:
    """Kolmogorov-Smirnov distance: the largest difference between two empirical distribution functions."""
    points = np.union1d(first, second)
    shares = [np.searchsorted(np.sort(values), points, side="right") / len(values) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def ks_to_quantiles(sample: Array, probabilities: Array, quantiles: Array) -> float:
    """Kolmogorov-Smirnov distance of a sample from a quantile table, taken at the table's distinct values."""
    points, last = np.unique(np.asarray(quantiles)[::-1], return_index=True)
    shares = np.asarray(probabilities)[len(quantiles) - 1 - last]
    found = np.searchsorted(np.sort(sample), points, side="right") / len(sample)
    return float(np.abs(found - shares).max())
