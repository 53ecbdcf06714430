"""Intervals of shares, and of paired differences of shares, that hold for few samples and near 0 and 1.

A bootstrap of twelve right answers out of twelve draws the same twelve every time, and says [100 %, 100 %].
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]
Z = NormalDist().inv_cdf(0.975)


def wilson(successes: float, n: int) -> Interval:
    """The 95 % score interval of a share (E. B. Wilson, JASA 22, 1927)."""
    share, spread = successes / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * sqrt(share * (1 - share) / n + spread / (4 * n))
    # The ends at which all or none succeed are exact, but for a last digit.
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def paired_difference(mine: Floats, theirs: Floats) -> Interval:
    """The 95 % interval of the share of `mine` less that of `theirs`, both 0 or 1 [n], of the same samples.

    R. G. Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10: Wilson's intervals of both shares, joined by
    their correlation.
    """
    n = len(mine)
    one, other = float(mine.mean()), float(theirs.mean())
    (low_one, high_one), (low_other, high_other) = wilson(one * n, n), wilson(other * n, n)
    correlation = _correlation(mine, theirs)

    def reach(a: float, b: float) -> float:
        return sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    difference = one - other
    return (
        difference - reach(one - low_one, high_other - other),
        difference + reach(high_one - one, other - low_other),
    )


def _correlation(mine: Floats, theirs: Floats) -> float:
    """Phi of the two by two table, with Newcombe's correction for continuity; 0 where a margin is empty."""
    n = len(mine)
    both, ours, other = float(mine @ theirs), float(mine.sum()), float(theirs.sum())
    margins = ours * (n - ours) * other * (n - other)
    if margins == 0:
        return 0.0
    product = both * (n - ours - other + both) - (ours - both) * (other - both)
    return (max(0.0, product - n / 2) if product > 0 else product) / sqrt(margins)
