"""95 % intervals of what one run measured, by a block bootstrap over time.

Requests in order of arrival are cut into blocks, and whole blocks are drawn with replacement (Carlstein, Annals of
Statistics 14(3), 1986). Blocks keep bursts whole, so that an interval covers the variation of the traffic itself and
not only that of single requests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BLOCKS = 20
RESAMPLES = 100
KIND = "block bootstrap over time"
PERCENTS = (2.5, 97.5)


def enough(requests: int) -> bool:
    """Whether there are requests enough for blocks of at least two."""
    return requests >= 2 * BLOCKS


def mean_interval(values: Floats) -> list[float]:
    """[low, high] of the mean of `values`, float64[n >= 40] in order of arrival; NaN ones are left out."""
    return _middle(_means(values, _times_drawn(1000)))


def latency_intervals(values: Floats) -> dict[str, list[float]]:
    """[low, high] of mean, median and p99 of `values`, float64[n >= 40] in order of arrival; NaN ones are left out."""
    drawn = _times_drawn(RESAMPLES)
    quantiles = _quantiles(values, drawn, (0.5, 0.99))
    figures = {"mean": _means(values, drawn), "median": quantiles[:, 0], "p99": quantiles[:, 1]}
    return {name: _middle(resampled) for name, resampled in figures.items()}


def _times_drawn(resamples: int) -> Ints:
    """How often each block is drawn, int64[resamples, BLOCKS]; the same for everyone, so that runs share this noise."""
    draws = np.random.default_rng(0).integers(0, BLOCKS, size=(resamples, BLOCKS))
    return np.array([np.bincount(draw, minlength=BLOCKS) for draw in draws])


def _means(values: Floats, drawn: Ints) -> Floats:
    blocks = [block[~np.isnan(block)] for block in np.array_split(values, BLOCKS)]
    sums, counts = np.array([block.sum() for block in blocks]), np.array([len(block) for block in blocks])
    with np.errstate(invalid="ignore"):
        means: Floats = (drawn @ sums) / (drawn @ counts)
    return means


def _quantiles(values: Floats, drawn: Ints, shares: tuple[float, ...]) -> Floats:
    """float64[resamples, len(shares)]. Sorted once: a resample only weighs each value by its block."""
    sizes = [len(block) for block in np.array_split(values, BLOCKS)]
    order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]
    ranked, owner = values[order], np.repeat(np.arange(BLOCKS), sizes)[order]
    found = np.full((len(drawn), len(shares)), np.nan)
    for row, times in enumerate(drawn):
        below = np.cumsum(times[owner])
        if len(below) and below[-1]:
            found[row] = ranked[np.searchsorted(below, np.asarray(shares) * below[-1])]
    return found


def _middle(resampled: Floats) -> list[float]:
    if np.isnan(resampled).all():
        return [float("nan"), float("nan")]
    low, high = np.nanpercentile(resampled, PERCENTS)
    return [float(low), float(high)]
