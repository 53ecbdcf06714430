"""Transforms keep what they promise, whatever the trace."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.traces import transforms
from leankv.traces.trace import PS_PER_S, PrefixBlocks, Trace


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    n = draw(st.integers(1, 40))
    gaps = draw(st.lists(st.integers(0, 10**15), min_size=n, max_size=n))
    prompts = draw(st.lists(st.integers(1, 5000), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 5000), min_size=n, max_size=n))
    blocks = None
    if draw(st.booleans()):
        counts = -(-np.array(prompts) // 512)
        offsets = np.concatenate(([0], np.cumsum(counts)))
        hashes = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 50, offsets[-1])
        blocks = PrefixBlocks(offsets, hashes, 512)
    return Trace("drawn", np.cumsum(np.array(gaps, np.int64)), np.array(prompts), np.array(outputs), blocks)


def rows_of(trace: Trace) -> list[tuple[int, int, int, tuple[int, ...]]]:
    blocks = trace.prefix_hashes
    shared = (
        [()] * len(trace)
        if blocks is None
        else [tuple(blocks.hashes[a:b].tolist()) for a, b in zip(blocks.offsets[:-1], blocks.offsets[1:], strict=True)]
    )
    columns = (trace.arrival_ps.tolist(), trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), shared)
    return list(zip(*columns, strict=True))


@given(traces(), st.floats(0.01, 100))
def test_rate_scale_divides_every_arrival_exactly(trace: Trace, factor: float) -> None:
    from fractions import Fraction

    scaled = transforms.rate_scale(trace, factor)
    for before, after in zip(trace.arrival_ps.tolist(), scaled.arrival_ps.tolist(), strict=True):
        # One rounding of the quotient's 53 bits, and one to a picosecond.
        assert abs(after - Fraction(before) / Fraction(factor)) <= 1 + before / factor / PS_PER_S * 1e-3
    assert (scaled.prompt_tokens == trace.prompt_tokens).all()
    assert transforms.rate_scale(trace, 1) is trace


def test_rate_scale_by_two_keeps_picoseconds_after_a_day() -> None:
    arrivals = np.array([0, 86_400 * PS_PER_S + 2], np.int64)
    trace = Trace("day", arrivals, np.array([1, 1]), np.array([1, 1]))
    assert transforms.rate_scale(trace, 2).arrival_ps.tolist() == [0, 43_200 * PS_PER_S + 1]


@given(traces(), st.integers(1, 60))
def test_limit_keeps_the_first_requests(trace: Trace, requests: int) -> None:
    assert rows_of(transforms.limit(trace, requests)) == rows_of(trace)[:requests]


@given(traces(), st.integers(1, 6000), st.integers(1, 6000))
def test_caps_cut_lengths_and_the_blocks_beyond(trace: Trace, max_prompt: int, max_output: int) -> None:
    capped = transforms.cap_lengths(trace, max_prompt, max_output)
    for before, after in zip(rows_of(trace), rows_of(capped), strict=True):
        assert after[1] == min(before[1], max_prompt) and after[2] == min(before[2], max_output)
        kept = -(-after[1] // 512) if trace.prefix_hashes else 0
        assert after[3] == before[3][:kept]


@given(traces(), st.floats(0, 1e4), st.floats(0.1, 1e4))
def test_window_keeps_what_arrives_in_it(trace: Trace, start: float, width: float) -> None:
    low, high = round(start * PS_PER_S), round((start + width) * PS_PER_S)
    inside = [row for row in rows_of(trace) if low <= row[0] < high]
    if not inside:
        with pytest.raises(InputError, match="has no request between"):
            transforms.window(trace, start, start + width)
        return
    assert rows_of(transforms.window(trace, start, start + width)) == [(row[0] - low, *row[1:]) for row in inside]


@given(traces(), st.floats(0.2, 1), st.integers(0, 5))
def test_sample_keeps_a_subsequence_that_its_seed_decides(trace: Trace, fraction: float, seed: int) -> None:
    try:
        kept = rows_of(transforms.sample(trace, fraction, seed))
    except InputError:
        return
    remaining = iter(rows_of(trace))
    assert all(row in remaining for row in kept)
    assert kept == rows_of(transforms.sample(trace, fraction, seed))


def test_sample_keeps_about_its_share() -> None:
    n = 100_000
    trace = Trace("many", np.arange(n), np.ones(n, np.int32), np.ones(n, np.int32))
    assert abs(len(transforms.sample(trace, 0.1)) - n / 10) < 4 * (n * 0.09) ** 0.5


@settings(max_examples=50)
@given(traces(), st.integers(1, 200))
def test_repeat_plays_the_trace_again_with_its_rate_and_no_new_sharing(trace: Trace, requests: int) -> None:
    repeated = transforms.repeat(trace, requests)
    assert len(repeated) == requests
    assert (np.diff(repeated.arrival_ps) >= 0).all()
    original = rows_of(trace)
    for number, row in enumerate(rows_of(repeated)):
        assert row[1:3] == original[number % len(trace)][1:3]
    if repeated.prefix_hashes is not None:
        ends = repeated.prefix_hashes.offsets[:: len(trace)]
        plays = [set(repeated.prefix_hashes.hashes[a:b].tolist()) for a, b in pairwise(ends)]
        assert sum(map(len, plays)) == len(set().union(*plays))


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (lambda trace: transforms.rate_scale(trace, 0), "rate scale 0"),
        (lambda trace: transforms.rate_scale(trace, float("nan")), "rate scale nan"),
        (lambda trace: transforms.rate_scale(trace, 1e-9), "106 days"),
        (lambda trace: transforms.window(trace, 5, 5), "window 5:5"),
        (lambda trace: transforms.sample(trace, 0), "sample fraction 0"),
        (lambda trace: transforms.sample(trace, 1e-9), "keeps none"),
        (lambda trace: transforms.limit(trace, 0), "limit 0"),
        (lambda trace: transforms.cap_lengths(trace, 0), "length cap 0"),
        (lambda trace: transforms.repeat(trace, 10**8), "106 days"),
    ],
)
def test_a_transform_out_of_range_is_the_users_error(transform, words: str) -> None:  # type: ignore[no-untyped-def]
    trace = Trace("two", np.array([0, 10**15]), np.array([1, 1]), np.array([1, 1]))
    with pytest.raises(InputError, match=words):
        transform(trace)


@pytest.mark.parametrize(
    ("arrivals", "prompts", "outputs", "words"),
    [
        ([], [], [], "empty"),
        ([0, 1], [1], [1, 1], "differ in length"),
        ([-1, 1], [1, 1], [1, 1], "row 1 arrives before time 0"),
        ([0, 5, 3], [1, 1, 1], [1, 1, 1], "row 3 arrives before"),
        ([0, 5], [1, 0], [1, 1], "row 2 has prompt_tokens = 0"),
        ([0, 5], [1, 1], [-4, 1], "row 1 has output_tokens = -4"),
    ],
)
def test_a_trace_that_breaks_a_rule_cannot_be_made(
    arrivals: list[int], prompts: list[int], outputs: list[int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Trace("bad", np.array(arrivals, np.int64), np.array(prompts), np.array(outputs))


def test_arrivals_must_be_whole_picoseconds() -> None:
    with pytest.raises(InputError, match="int64"):
        Trace("bad", np.array([0.0, 1.5]), np.array([1, 1]), np.array([1, 1]))
