"""Intervals over blocks of time, over seeds, and of paired differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving import bootstrap
from leankv.serving.metrics import summarise
from leankv.serving.paired import paired_difference
from leankv.serving.seeds import mean_interval, over_seeds
from leankv.serving.student_t import T_975

SLO = {"ttft": 500.0}


def requests(ttft_ms: np.ndarray, tpot_ms: float = 20.0, outputs: int = 11, gap_s: float = 0.1) -> pa.Table:
    """One request every `gap_s` seconds; all finished."""
    n = len(ttft_ms)
    arrival = (np.arange(n) * gap_s * 1e12).astype(np.int64)
    e2el = ttft_ms + tpot_ms * (outputs - 1)
    return pa.table(
        {
            "request_id": np.arange(n),
            "status": ["finished"] * n,
            "prompt_tokens": np.full(n, 100, np.int32),
            "output_tokens": np.full(n, outputs, np.int32),
            "arrival_ps": arrival,
            "admitted_ps": arrival,
            "finish_ps": arrival + (np.nan_to_num(e2el) * 1e9).astype(np.int64),
            "queue_ms": np.zeros(n),
            "ttft_ms": ttft_ms,
            "tpot_ms": np.full(n, tpot_ms if outputs > 1 else np.nan),
            "e2el_ms": e2el,
            "preemptions": np.zeros(n, np.int32),
        }
    )


NO_SEGMENTS = pa.table({name: np.zeros(0) for name in ("steps", "sequences", "first_gap_ps", "slope_ps")})


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    held = sum(
        low <= 2.0 <= high for low, high in (bootstrap.mean_interval(random.exponential(2, 400)) for _ in range(200))
    )
    assert 0.87 * 200 <= held <= 0.99 * 200


def test_bursts_widen_the_interval_which_single_requests_would_hide() -> None:
    random = np.random.default_rng(0)
    calm = random.normal(100, 10, 4000)
    bursts = calm + 50 * (np.arange(4000) % 1000 < 200)
    shuffled = random.permutation(bursts)

    def width(values: np.ndarray) -> float:
        low, high = bootstrap.mean_interval(values)
        return high - low

    assert width(bursts) > 5 * width(shuffled)


@given(st.lists(st.floats(1, 1e6), min_size=40, max_size=120), st.integers(0, 30))
def test_quantiles_of_resamples_are_those_of_the_blocks_put_together(values: list[float], missing: int) -> None:
    array = np.array(values)
    array[:missing] = np.nan
    drawn = bootstrap._times_drawn(5)
    blocks = np.array_split(array, bootstrap.BLOCKS)
    for times, found in zip(drawn, bootstrap._quantiles(array, drawn, (0.5, 0.99)), strict=True):
        together = np.concatenate([np.tile(block, count) for block, count in zip(blocks, times, strict=True)])
        together = together[~np.isnan(together)]
        if len(together):
            assert found.tolist() == np.quantile(together, (0.5, 0.99), method="inverted_cdf").tolist()
        else:
            assert np.isnan(found).all()


def test_a_summary_has_an_interval_for_each_latency_and_for_goodput_around_its_figure() -> None:
    ttft = np.random.default_rng(1).lognormal(5.5, 0.8, 2000)
    summary = summarise(requests(ttft), NO_SEGMENTS, SLO)
    assert summary["interval_kind"] == "block bootstrap over time"
    assert len(summary["intervals"]) == 10
    for name, (low, high) in summary["intervals"].items():
        assert low <= summary[name] * (1 + 1e-12) and summary[name] <= high * (1 + 1e-12), name
    low, high = summary["intervals"]["request_goodput"]
    assert high > low > 0


def test_what_no_request_has_gets_no_interval_and_few_requests_get_none() -> None:
    one_token = summarise(requests(np.linspace(1, 2, 100), outputs=1), NO_SEGMENTS, SLO)
    assert "mean_tpot_ms" not in one_token["intervals"] and "mean_ttft_ms" in one_token["intervals"]
    assert summarise(requests(np.linspace(1, 2, 39)), NO_SEGMENTS, SLO)["intervals"] == {}


def test_the_paired_interval_is_narrow_where_the_traffic_varies_and_the_difference_does_not() -> None:
    ttft = np.random.default_rng(2).lognormal(6, 1.5, 1000)
    found = paired_difference([(requests(ttft), requests(ttft - 7.0))])
    assert found is not None
    assert (found["metric"], found["requests"]) == ("e2el_ms", 1000)
    assert found["mean_difference_ms"] == pytest.approx(-7)
    assert found["interval"] == pytest.approx([-7, -7])


def test_only_requests_that_both_finished_are_paired() -> None:
    one, other = np.full(50, 100.0), np.full(50, 130.0)
    one[3], other[[3, 4]] = np.nan, np.nan
    found = paired_difference([(requests(one), requests(other))], "ttft")
    assert found is not None and found["requests"] == 48
    assert found["mean_difference_ms"] == pytest.approx(30)
    nothing = requests(np.full(50, np.nan))
    assert paired_difference([(nothing, requests(other))]) is None


def test_pairs_of_several_seeds_give_the_interval_over_seeds() -> None:
    base = requests(np.full(10, 100.0))
    found = paired_difference([(base, requests(np.full(10, 100.0 + shift))) for shift in (1.0, 2.0, 3.0)])
    assert found is not None and found["requests"] == 30
    assert found["mean_difference_ms"] == pytest.approx(2)
    assert found["interval"] == pytest.approx([2 - 4.303 / np.sqrt(3), 2 + 4.303 / np.sqrt(3)])


def test_runs_of_different_requests_are_not_paired() -> None:
    with pytest.raises(ValueError, match="output_tokens differs"):
        paired_difference([(requests(np.ones(3)), requests(np.ones(3), outputs=12))])


def seed_summary(**changes: Any) -> dict[str, Any]:
    base = {
        "policy": "fp16", "completed": 10, "mean_ttft_ms": 100.0, "mean_tpot_ms": None, "stable": True,
        "limited_by": "compute", "slo": {"ttft": 500.0}, "intervals": {"mean_ttft_ms": [1.0, 2.0]},
        "interval_kind": bootstrap.KIND, "rejections": [(1, "too long")],
    }  # fmt: skip
    return {**base, **changes}


def test_over_seeds_numbers_are_means_with_their_interval() -> None:
    found = over_seeds({0: seed_summary(), 1: seed_summary(mean_ttft_ms=110.0, stable=False), 2: seed_summary()})
    assert found["mean_ttft_ms"] == pytest.approx(310 / 3)
    assert found["completed"] == 10 and isinstance(found["completed"], int)
    assert found["mean_tpot_ms"] is None and found["stable"] is False and found["slo"] == {"ttft": 500.0}
    assert list(found["intervals"]) == ["mean_ttft_ms"]
    assert found["intervals"]["mean_ttft_ms"] == mean_interval([100.0, 110.0, 100.0])
    assert (found["interval_kind"], found["seeds"]) == ("seeds (3)", [0, 1, 2])
    assert found["rejections"][2] == (1, "seed 2: too long")


def test_texts_that_differ_are_counted() -> None:
    found = over_seeds({0: seed_summary(), 1: seed_summary(limited_by="arrivals"), 2: seed_summary()})
    assert found["limited_by"] == "compute (in 2 of 3 seeds), arrivals (in 1 of 3 seeds)"
    assert found["policy"] == "fp16"


@pytest.mark.parametrize("n", [2, 5, 20, 60])
def test_the_interval_over_seeds_covers_the_truth_as_often_as_it_says(n: int) -> None:
    samples = np.random.default_rng(n).normal(50, 4, (2000, n))
    held = np.mean([low <= 50 <= high for low, high in map(mean_interval, samples)])
    assert 0.93 <= held <= 0.97


def test_students_t_falls_to_the_normal_quantile() -> None:
    assert list(T_975) == sorted(T_975, reverse=True)
    wide, narrow = mean_interval([0.0, 1.0] * 15), mean_interval([0.0, 1.0] * 16)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
