"""Synthetic workloads have the rate, burstiness, shape, lengths and correlation that their specification says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.errors import InputError
from leankv.traces.arrivals import Arrivals, weibull_shape
from leankv.traces.describe import arrival_counts, describe, gap_cv, index_of_dispersion, rank_correlation
from leankv.traces.open import open_trace
from leankv.traces.sizes import normal_cdf, parse_lengths
from leankv.traces.synthetic import generate, parse_workload


@pytest.mark.parametrize(
    ("spec", "cv"),
    [
        ("poisson:rate=5,n=200000", 1.0),
        ("gamma:rate=5,n=200000,cv=3", 3.0),
        ("gamma:rate=5,n=200000,cv=0.4", 0.4),
        ("weibull:rate=5,n=200000,cv=2.5", 2.5),
        ("weibull:rate=5,n=200000,cv=0.5", 0.5),
        ("even:rate=5,n=1000", 0.0),
    ],
)
def test_gaps_have_their_rate_and_burstiness(spec: str, cv: float) -> None:
    figures = describe(open_trace(spec, seed=1))
    assert figures.rate_per_s == pytest.approx(5, rel=0.03)
    assert figures.gap_cv == pytest.approx(cv, rel=0.05, abs=1e-6)


@given(st.floats(0.06, 15))
def test_the_weibull_shape_gives_its_cv(cv: float) -> None:
    shape = weibull_shape(cv)
    first, second = math.lgamma(1 + 1 / shape), math.lgamma(1 + 2 / shape)
    assert math.sqrt(math.expm1(second - 2 * first)) == pytest.approx(cv, rel=1e-3)


def test_poisson_counts_are_as_variable_as_poisson_and_mmpp_more() -> None:
    poisson = open_trace("poisson:rate=20,n=100000")
    bursts = open_trace("mmpp:rate=20,n=100000,burst=10,burst_s=30,burst_share=0.1")
    assert index_of_dispersion(poisson, 10) == pytest.approx(1, abs=0.1)
    assert (index_of_dispersion(bursts, 10) or 0) > 20


def test_bursts_keep_the_mean_rate() -> None:
    spans = [open_trace("mmpp:rate=20,n=40000,burst=10,burst_s=10", seed=seed).span_s for seed in range(20)]
    assert 40_000 / np.mean(spans) == pytest.approx(20, rel=0.05)


def test_a_burst_runs_at_its_multiple_of_the_calm() -> None:
    trace = open_trace("mmpp:rate=100,n=1000000,burst=10,burst_s=100,burst_share=0.2", seed=4)
    counts = arrival_counts(trace, 10)[:-1] / 10
    calm = 100 / (0.8 + 0.2 * 10)
    assert np.median(counts[counts < 3 * calm]) == pytest.approx(calm, rel=0.1)
    assert np.median(counts[counts > 7 * calm]) == pytest.approx(10 * calm, rel=0.1)


def test_a_day_has_its_shape_and_keeps_its_rate() -> None:
    trace = open_trace("poisson:rate=50,n=360000,diurnal=0.8,period_s=3600")
    counts = arrival_counts(trace, 300)[:24].reshape(2, 12).sum(axis=0)
    assert describe(trace).rate_per_s == pytest.approx(50, rel=0.02)
    middles = (np.arange(12) + 0.5) / 12
    expected = 50 * 600 * (1 - 0.8 * np.cos(2 * np.pi * middles) * np.sinc(1 / 12))
    assert counts == pytest.approx(expected, rel=0.05)


def test_closed_workloads_all_arrive_at_once() -> None:
    assert not open_trace("closed:n=5,prompt=10,output=3").arrival_ps.any()


@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.5, 0.9])
def test_prompt_and_output_have_their_rank_correlation(rho: float) -> None:
    trace = open_trace(f"poisson:n=50000,prompt=lognormal:900:1.2,output=lognormal:200:0.7,corr={rho}")
    assert rank_correlation(trace.prompt_tokens, trace.output_tokens) == pytest.approx(rho, abs=0.02)


def test_lengths_follow_their_distributions() -> None:
    trace = open_trace("poisson:n=200000,prompt=lognormal:900:0.8,output=zipf:1.5:1000", seed=2)
    assert np.median(trace.prompt_tokens) == pytest.approx(900, rel=0.02)
    assert np.log(trace.prompt_tokens).std() == pytest.approx(0.8, rel=0.02)
    shares = np.arange(1, 1001) ** -1.5
    found = np.bincount(trace.output_tokens, minlength=1001)[1:] / len(trace)
    assert found[:5] == pytest.approx((shares / shares.sum())[:5], rel=0.03)
    assert trace.output_tokens.max() <= 1000
    assert set(open_trace("poisson:n=9,prompt=77,output=3").prompt_tokens.tolist()) == {77}


@given(st.floats(-6, 6))
def test_the_normal_distribution_function(x: float) -> None:
    assert normal_cdf(np.array([x]))[0] == pytest.approx(0.5 * math.erfc(-x / math.sqrt(2)), abs=1e-12)


@pytest.mark.parametrize("spec", ["poisson:n=50", "gamma:cv=2,n=50", "mmpp:n=50", "azure-conv-2023-like"])
def test_a_seed_decides_everything(spec: str) -> None:
    first, again, other = (open_trace(spec, seed=seed) for seed in (7, 7, 8))
    for column in ("arrival_ps", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(first, column), getattr(again, column))
        assert not np.array_equal(getattr(first, column), getattr(other, column))


def test_arrivals_and_lengths_have_streams_of_their_own() -> None:
    calm, bursty = open_trace("poisson:n=100"), open_trace("gamma:cv=3,n=100")
    assert np.array_equal(calm.prompt_tokens, bursty.prompt_tokens)


def test_seconds_say_how_many_requests() -> None:
    assert len(generate(parse_workload("poisson:rate=20,seconds=30"))) == 600


@pytest.mark.parametrize("process", ["gamma", "weibull", "poisson", "even", "mmpp"])
@given(n=st.integers(1, 50), cv=st.floats(0.1, 15), seed=st.integers(0, 3))
def test_arrivals_never_go_back(process: str, n: int, cv: float, seed: int) -> None:
    arrivals = Arrivals(process, rate=3, cv=cv, diurnal=0.5, period_s=60).draw(np.random.default_rng(seed), n)
    assert len(arrivals) == n and arrivals[0] >= 0 and (np.diff(arrivals) >= 0).all()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("poisson:rat=4", "did you mean 'rate'"),
        ("poisson:rate", "must be rate=VALUE"),
        ("poisson:rate=1,rate=2", "once"),
        ("poisson:rate=x", "rate=x is not a number"),
        ("poisson:rate=-1", "must be a positive number"),
        ("gamma:cv=0", "cv=0.0 must be a positive"),
        ("weibull:cv=100", "gamma takes any"),
        ("mmpp:burst_share=1", "between 0 and 1"),
        ("poisson:diurnal=2", "between 0 .flat. and 1"),
        ("poisson:n=0", "0 requests"),
        ("poisson:n=2.5", "2.5 requests"),
        ("poisson:n=5,seconds=5", "both say"),
        ("poisson:seed=-1", "is not a seed"),
        ("poisson:rate=1e-7,n=1000", "106 days"),
        ("poisson:corr=1", "corr=1.0"),
        ("poisson:prompt=lognorm:1:1", "did you mean 'lognormal'"),
        ("poisson:prompt=lognormal:1", "cannot be read; write 512"),
        ("poisson:prompt=lognormal:0:1", "median of at least 1"),
        ("poisson:prompt=0", "at least 1 token"),
        ("poisson:output=zipf:-1:10", "exponent of 0 to 20"),
        ("poisson:output=table:nowhere", "unknown table of figures"),
    ],
)
def test_a_wrong_specification_is_told(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_trace(spec)


def test_a_workload_may_be_longer_than_a_file_name() -> None:
    assert len(open_trace("poisson:n=5,rate=1." + "0" * 300)) == 5


def test_lengths_parse_to_what_they_say() -> None:
    assert parse_lengths("512", "prompt").at(np.zeros(2)).tolist() == [512, 512]
    assert gap_cv(open_trace("poisson:n=1")) == 0
