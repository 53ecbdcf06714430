"""What is written reads back the same, in every format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.traces.open import open_trace
from leankv.traces.trace import PrefixBlocks, Trace
from leankv.traces.write import SUFFIXES, write_trace

LATEST_PS = 2**63 - 1


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    n = draw(st.integers(1, 20))
    arrivals = np.sort(np.array(draw(st.lists(st.integers(0, LATEST_PS), min_size=n, max_size=n)), np.int64))
    lengths = st.lists(st.integers(1, 2**31 - 1), min_size=n, max_size=n)
    counts = draw(st.none() | st.lists(st.integers(0, 4), min_size=n, max_size=n))
    blocks = None
    if counts is not None:
        hashes = draw(st.lists(st.integers(0, LATEST_PS), min_size=sum(counts), max_size=sum(counts)))
        offsets = np.concatenate(([0], np.cumsum(np.array(counts, np.int64))))
        blocks = PrefixBlocks(offsets, np.array(hashes, np.int64), draw(st.sampled_from([16, 512])))
    return Trace("drawn", arrivals, np.array(draw(lengths)), np.array(draw(lengths)), blocks)


def assert_same(first: Trace, second: Trace) -> None:
    for column in ("arrival_ps", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(first, column), getattr(second, column)), column
    assert (first.prefix_hashes is None) == (second.prefix_hashes is None)
    if first.prefix_hashes is not None and second.prefix_hashes is not None:
        assert first.prefix_hashes.block_tokens == second.prefix_hashes.block_tokens
        assert np.array_equal(first.prefix_hashes.offsets, second.prefix_hashes.offsets)
        assert np.array_equal(first.prefix_hashes.hashes, second.prefix_hashes.hashes)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(trace=traces())
def test_a_written_trace_reads_back_the_same(tmp_path: Path, suffix: str, trace: Trace) -> None:
    path = tmp_path / f"trace{suffix}"
    write_trace(trace, path)
    assert_same(trace, open_trace(str(path)))


def test_parquet_keeps_name_provenance_and_warnings(tmp_path: Path) -> None:
    trace = open_trace("poisson:n=10").with_step("a step", "a warning")
    write_trace(trace, tmp_path / "kept.parquet")
    back = open_trace(str(tmp_path / "kept.parquet"))
    assert (back.name, back.provenance, back.warnings) == (trace.name, trace.provenance, trace.warnings)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_trace_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    trace = open_trace("poisson:n=10")
    for name in ("one", "two"):
        write_trace(trace, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_an_unknown_ending_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end the name in \.parquet"):
        write_trace(open_trace("poisson:n=10"), tmp_path / "trace.xlsx")
    assert not list(tmp_path.iterdir())
