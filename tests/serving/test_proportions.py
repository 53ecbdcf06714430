"""Intervals of shares: published examples, and coverage where a bootstrap fails."""

from __future__ import annotations

import numpy as np
import pytest

from leankv.serving.proportions import paired_difference, wilson


def pairs(both: int, mine: int, theirs: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    cells = ((1, 1, both), (1, 0, mine), (0, 1, theirs), (0, 0, neither))
    one, other = ([float(cell[side]) for cell in cells for _ in range(cell[2])] for side in (0, 1))
    return np.array(one), np.array(other)


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_as_published(successes: int, n: int, interval: tuple[float, float]) -> None:
    """The examples of Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3."""
    assert wilson(successes, n) == pytest.approx(interval, abs=5e-5)


def test_paired_differences() -> None:
    """The first as published in Newcombe, Statistics in Medicine 17 (1998) 2635-2650; the others by hand."""
    assert paired_difference(*pairs(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    assert paired_difference(*pairs(30, 0, 0, 0)) == pytest.approx((-0.1135, 0.1135), abs=1e-4)
    low, high = paired_difference(*pairs(20, 8, 3, 9))
    assert paired_difference(*pairs(20, 3, 8, 9)) == pytest.approx((-high, -low))


def test_they_cover_as_often_as_they_say_with_a_dozen_samples_near_one() -> None:
    """A bootstrap of twelve covers 0.95 in 46 of 100 draws: where all are right it says [1, 1]."""
    random, share = np.random.default_rng(5), 0.95
    drawn = random.random((4000, 12)) < share
    covered = [low <= share <= high for low, high in (wilson(float(row.sum()), 12) for row in drawn)]
    assert np.mean(covered) > 0.94
    theirs = random.random((1000, 12)) < share
    mine = theirs & (random.random((1000, 12)) < 0.8)
    differences = [paired_difference(*map(np.float64, row)) for row in zip(mine, theirs, strict=True)]
    assert np.mean([low <= 0.8 * share - share <= high for low, high in differences]) > 0.93
