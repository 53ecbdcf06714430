"""Paired output lengths, and what the distribution of their differences says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.serving.length_shift import QUANTILES, paired_lengths, shift
from leankv.serving.quality import samples_table

pairs = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500), st.booleans(), st.booleans()), min_size=1)


def table(rows):
    """A prompt a row: fp16's and the policy's output tokens, and whether each ended by itself."""
    return samples_table(
        [
            {
                "policy": policy,
                "task": "answers",
                "sample_id": f"s{place:04}",
                "output_tokens": tokens,
                "stopped": stopped,
            }
            for place, (plain, shifted, plain_stopped, stopped_too) in enumerate(rows)
            for policy, tokens, stopped in (("fp16", plain, plain_stopped), ("leankv", shifted, stopped_too))
        ]
    )


def test_by_hand() -> None:
    """Twice as long, as long, half as long, and one whose true length nobody knows."""
    rows = [(10, 20, True, True), (30, 30, True, True), (40, 20, True, False), (64, 1, False, True)]
    lengths = paired_lengths(table(rows), "leankv")
    assert lengths.shifts.tolist() == [-1.0, 0.0, 0.5]
    assert lengths.left_out == 1
    found = shift("leankv", lengths)
    assert found.mean == pytest.approx(-0.5 / 3)
    assert found.grown_by_half == pytest.approx(1 / 3)
    assert found.shrunk == pytest.approx(1 / 3)
    assert found.total_ratio == pytest.approx(70 / 80)
    assert found.mean_ratio == pytest.approx(3.5 / 3)
    assert found.capped == pytest.approx(1 / 3)


@given(pairs)
def test_figures_agree(rows) -> None:
    if not any(stopped for _, _, stopped, _ in rows):
        with pytest.raises(InputError, match="higher cap"):
            paired_lengths(table(rows), "leankv")
        return
    lengths = paired_lengths(table(rows), "leankv")
    found = shift("leankv", lengths)
    assert found.n + found.left_out == len(rows)
    assert found.mean == pytest.approx(1 - found.mean_ratio)
    assert len(found.quantiles) == len(QUANTILES) and list(found.quantiles) == sorted(found.quantiles)
    assert found.grown_by_half == (lengths.shifts <= -0.5).mean()
    assert found.shrunk == np.mean(3 * lengths.policy <= 2 * lengths.baseline)
    assert found.total_ratio == pytest.approx(sum(lengths.policy) / sum(lengths.baseline))
    for value, interval in ((found.mean, found.mean_interval), (found.total_ratio, found.total_ratio_interval)):
        if interval is not None:
            low, high = interval
            assert low - 1e-9 <= value <= high + 1e-9 or found.n < 20


def test_lengths_that_only_vary_grow_as_often_as_they_shrink_and_their_total_stays() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.5, (400, 2)).round().astype(int).tolist()
    both = [(*pair, True, True) for one, other in lengths for pair in ((one, other), (other, one))]
    found = shift("leankv", paired_lengths(table(both), "leankv"))
    assert found.grown_by_half == found.shrunk > 0.2
    assert found.total_ratio == 1.0 and found.mean_ratio > 1.2
    assert found.total_ratio_interval is not None
    low, high = found.total_ratio_interval
    assert 0.9 < low < 1.0 < high < 1.1


def test_a_policy_that_was_not_evaluated_is_named() -> None:
    with pytest.raises(InputError, match="kivi"):
        paired_lengths(table([(10, 20, True, True)]), "kivi")
