"""Output lengths scaled by measured ratios: by the right amount, the same request alike under every policy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.simulator.length_shift import LengthShift, shifted
from leankv.traces.open import open_trace
from leankv.traces.trace import Trace

tokens = st.integers(1, 800)
shifts = st.lists(st.tuples(tokens, tokens), min_size=1, max_size=30).map(
    lambda pairs: LengthShift(*zip(*pairs, strict=True), "q")
)


def made(outputs: list[int], prompt: int = 50) -> Trace:
    count = len(outputs)
    return Trace(
        "made", np.arange(count, dtype=np.int64), np.full(count, prompt, np.int32), np.array(outputs, np.int32)
    )


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), shifts, st.integers(0, 99))
def test_each_output_is_scaled_by_one_of_the_ratios_and_nothing_else_changes(outputs, shift, seed) -> None:
    trace = made(outputs)
    found = shifted(trace, shift, seed)
    ratios = np.array(shift.policy) / np.array(shift.uncompressed)
    for before, after in zip(outputs, found.output_tokens.tolist(), strict=True):
        assert after in {max(1, round(before * ratio)) for ratio in ratios}
    assert found.prompt_tokens.tolist() == trace.prompt_tokens.tolist()
    assert found.arrival_ps.tolist() == trace.arrival_ps.tolist()
    assert found.output_tokens.tolist() == shifted(trace, shift, seed).output_tokens.tolist()


@given(shifts, st.integers(0, 99), st.integers(60, 400))
def test_no_output_grows_beyond_the_context(shift, seed, context) -> None:
    trace = made([10, 300, 500])
    found = shifted(trace, shift, seed, max_context=context)
    allowed = np.maximum(trace.output_tokens, context - 50)
    assert (found.output_tokens >= 1).all() and (found.output_tokens <= allowed).all()


def test_many_outputs_grow_by_the_ratio_of_totals_and_long_answers_are_drawn_more_often() -> None:
    trace = made([1000] * 20_000)
    shift = LengthShift((10, 30, 150), (20, 20, 60), "q")
    found = shifted(trace, shift, seed=3).output_tokens
    shares = [float((found == tokens).mean()) for tokens in (500, 1500, 2500)]
    assert shares == pytest.approx([0.2, 0.2, 0.6], abs=0.015)
    assert found.mean() == pytest.approx(1000 * shift.total_ratio, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_lengths_that_are_only_exchanged_do_not_grow(seed: int) -> None:
    """Both lengths of a prompt drawn alike: the mean of ratios is 1.28, and yet as many tokens are served."""
    plain, policy = np.random.default_rng(seed).lognormal(5.0, 0.5, (2, 4000)).round().astype(int)
    shift = LengthShift((*policy.tolist(), *plain.tolist()), (*plain.tolist(), *policy.tolist()), "q")
    assert shift.total_ratio == 1.0
    assert np.mean(np.array(shift.policy) / np.array(shift.uncompressed)) > 1.25
    trace = made(np.random.default_rng(seed).integers(1, 800, 20_000).tolist())
    found = shifted(trace, shift, seed)
    assert found.output_tokens.mean() == pytest.approx(trace.output_tokens.mean(), rel=0.03)
    assert (found.output_tokens == shifted(trace, shift, seed).output_tokens).all()


def test_policies_share_their_luck() -> None:
    """Where one policy's answers are all twice as long as another's, so is every request's output."""
    trace = made([1000] * 200)
    plain = (10, 15, 20)
    one, other = (shifted(trace, LengthShift(policy, plain, "q"), 1) for policy in ((10, 18, 28), (20, 36, 56)))
    assert (other.output_tokens == 2 * one.output_tokens).all()
    again = shifted(trace, LengthShift((10, 18, 28), plain, "q"), seed=2)
    assert (again.output_tokens != one.output_tokens).any()


def test_the_step_is_in_the_provenance() -> None:
    found = shifted(open_trace("poisson:rate=2,n=5,prompt=10,output=9"), LengthShift((3,), (2,), "q"), seed=0)
    assert found.provenance["steps"][-1] == "length_shift(5 outputs by 1 pairs of total ratio 1.5, seed=0)"


@pytest.mark.parametrize(
    ("policy", "uncompressed", "word"),
    [((), (), "no output lengths"), ((1, 2), (1,), "same samples"), ((1, 0), (1, 1), "no tokens")],
)
def test_what_is_no_pair_is_one_line(policy, uncompressed, word) -> None:
    with pytest.raises(InputError, match=word):
        LengthShift(policy, uncompressed, "q")
