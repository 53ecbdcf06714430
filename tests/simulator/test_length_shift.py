"""Output lengths scaled by measured ratios: by the right amount, the same request alike under every policy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.simulator.length_shift import LengthShift, length_ratios, shifted
from leankv.traces.open import open_trace
from leankv.traces.trace import Trace

ratios = st.lists(st.floats(0.05, 8.0), min_size=1, max_size=30)


def made(outputs: list[int], prompt: int = 50) -> Trace:
    count = len(outputs)
    return Trace(
        "made", np.arange(count, dtype=np.int64), np.full(count, prompt, np.int32), np.array(outputs, np.int32)
    )


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), ratios, st.integers(0, 99))
def test_each_output_is_scaled_by_one_of_the_ratios_and_nothing_else_changes(outputs, ratios, seed) -> None:
    trace = made(outputs)
    found = shifted(trace, ratios, seed)
    for before, after in zip(outputs, found.output_tokens.tolist(), strict=True):
        assert after in {max(1, round(before * ratio)) for ratio in ratios}
    assert found.prompt_tokens.tolist() == trace.prompt_tokens.tolist()
    assert found.arrival_ps.tolist() == trace.arrival_ps.tolist()
    assert found.output_tokens.tolist() == shifted(trace, ratios, seed).output_tokens.tolist()


@given(ratios, st.integers(0, 99), st.integers(60, 400))
def test_no_output_grows_beyond_the_context(ratios, seed, context) -> None:
    trace = made([10, 300, 500])
    found = shifted(trace, ratios, seed, max_context=context)
    allowed = np.maximum(trace.output_tokens, context - 50)
    assert (found.output_tokens >= 1).all() and (found.output_tokens <= allowed).all()


def test_many_outputs_grow_by_the_mean_ratio_and_every_ratio_is_drawn_as_often_as_measured() -> None:
    trace = made([1000] * 20_000)
    found = shifted(trace, [0.5, 1.0, 1.0, 2.5], seed=3).output_tokens
    shares = [float((found == tokens).mean()) for tokens in (500, 1000, 2500)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.015)
    assert found.mean() == pytest.approx(1250, rel=0.02)


def test_policies_share_their_luck() -> None:
    """Where one policy's ratios are all twice another's, so is every request's output."""
    trace = made([1000] * 200)
    one, other = (shifted(trace, ratios, seed=1).output_tokens for ratios in ([1.0, 1.2, 1.4], [2.8, 2.0, 2.4]))
    assert (other == 2 * one).all()
    assert (shifted(trace, [1.0, 1.2, 1.4], seed=2).output_tokens != one).any()


def test_the_step_is_in_the_provenance() -> None:
    found = shifted(open_trace("poisson:rate=2,n=5,prompt=10,output=9"), [1.5], seed=0)
    assert found.provenance["steps"][-1] == "length_shift(5 outputs by 1 ratios of mean 1.5, seed=0)"


def test_ratios_come_from_pairs_of_lengths() -> None:
    assert length_ratios([20, 30], [10, 60], "quality.json").ratios == (2.0, 0.5)
    assert LengthShift((2.0, 0.5), "quality.json").mean == 1.25


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: LengthShift((), "q"), "no output lengths"),
        (lambda: LengthShift((1.0, 0.0), "q"), "positive"),
        (lambda: LengthShift((float("nan"),), "q"), "positive"),
        (lambda: length_ratios([1, 2], [1], "q"), "same samples"),
        (lambda: length_ratios([1, 0], [1, 1], "q"), "no tokens"),
    ],
)
def test_what_is_no_ratio_is_one_line(call, word) -> None:
    with pytest.raises(InputError, match=word):
        call()
