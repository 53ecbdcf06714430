"""Whether a gap between two policies may be chance."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from leankv.app.paired import in_time, share_gap

SLO = {"ttft": 300.0}


def test_lost_requests_are_not_in_time(sample: SimpleNamespace) -> None:
    table = sample.requests(100)
    met = in_time(table, {"ttft": 1e9})
    assert met.sum() == 98
    assert not met[0]


def test_the_same_run_twice_has_no_gap(sample: SimpleNamespace) -> None:
    table = sample.requests(400)
    assert share_gap(table, table, SLO) == (0.0, 0.0)


def test_order_of_rows_does_not_matter(sample: SimpleNamespace) -> None:
    table = sample.requests(400)
    shuffled = table.take(np.random.default_rng(0).permutation(400))
    assert share_gap(table, shuffled, SLO) == (0.0, 0.0)


def test_a_clear_gap_lies_around_the_difference(sample: SimpleNamespace) -> None:
    fast, slow = sample.requests(1000), sample.requests(1000, slow=2.0)
    difference = in_time(fast, SLO).mean() - in_time(slow, SLO).mean()
    gap = share_gap(fast, slow, SLO)
    assert gap is not None
    low, high = gap
    assert 0 < low < difference < high
    assert share_gap(slow, fast, SLO) == pytest.approx((-high, -low), abs=0.01)


def test_too_few_requests_say_nothing(sample: SimpleNamespace) -> None:
    assert share_gap(sample.requests(30), sample.requests(30), SLO) is None
