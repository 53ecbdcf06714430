"""Summaries against the definitions, computed here the long way."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.metrics import is_stable, meets_slo, summarise, token_gaps, weighted_percentiles

MS = 10**9


def request_rows(ttft_ms: list[float], e2el_ms: list[float], tokens: list[int], status: str = "finished") -> pa.Table:
    n = len(ttft_ms)
    arrival = np.arange(n) * 10 * MS
    ttft, e2el, outputs = np.array(ttft_ms), np.array(e2el_ms), np.array(tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(outputs > 1, (e2el - ttft) / (outputs - 1), np.nan)
    return pa.table(
        {
            "status": [status] * n,
            "prompt_tokens": np.full(n, 7),
            "output_tokens": outputs,
            "arrival_ps": arrival,
            "admitted_ps": arrival,
            "finish_ps": arrival + (e2el * MS).astype(np.int64),
            "ttft_ms": ttft,
            "tpot_ms": tpot,
            "e2el_ms": e2el,
            "queue_ms": np.zeros(n),
            "preemptions": np.ones(n, dtype=np.int32),
        }
    )


def segment_rows(rows: list[tuple[int, float, float, int]]) -> pa.Table:
    steps, first, slope, sequences = (list(column) for column in zip(*rows, strict=True))
    return pa.table({"steps": steps, "first_gap_ps": first, "slope_ps": slope, "sequences": sequences})


def test_definitions() -> None:
    requests = request_rows([10, 20, 30], [110, 20, 80], [11, 1, 6])
    summary = summarise(requests, segment_rows([(4, 10.0 * MS, 0.0, 2)]), {"ttft": 25, "tpot": 10})
    assert summary["completed"] == 3 and summary["preemptions"] == 3
    assert summary["duration_s"] == pytest.approx(0.110)
    assert summary["mean_ttft_ms"] == pytest.approx(20) and summary["median_ttft_ms"] == pytest.approx(20)
    assert summary["mean_tpot_ms"] == pytest.approx((10 + 10) / 2), "a single token has no TPOT"
    assert summary["output_throughput"] == pytest.approx(18 / 0.110)
    assert summary["request_throughput"] == pytest.approx(3 / 0.110)
    assert summary["total_token_throughput"] == pytest.approx((18 + 21) / 0.110)
    assert summary["request_goodput"] == pytest.approx(2 / 0.110), "the third misses its TTFT"
    assert summary["mean_itl_ms"] == pytest.approx(10)


def test_a_gap_across_a_preemption_is_an_inter_token_latency() -> None:
    requests = request_rows([10], [110], [11])
    summary = summarise(requests, segment_rows([(9, 10.0 * MS, 0.0, 1)]), {}, preemption_gaps_ps=[500 * MS])
    assert summary["mean_itl_ms"] == pytest.approx((9 * 10 + 500) / 10)
    assert summary["median_itl_ms"] == pytest.approx(10) and summary["p99_itl_ms"] == pytest.approx(500)


def test_every_slo_must_hold() -> None:
    requests = request_rows([10, 10, 10], [20, 2000, 30], [2, 2, 1])
    assert meets_slo(requests, {"ttft": 10, "tpot": 10}).tolist() == [True, False, True]
    assert meets_slo(requests, {"e2el": 25}).tolist() == [True, False, False]


def test_nothing_finished() -> None:
    summary = summarise(request_rows([1], [1], [1], "rejected"), segment_rows([(1, 1.0, 0.0, 0)]), {})
    assert summary["completed"] == 0 and summary["rejected"] == 1


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10**6), st.integers(0, 1000), st.integers(0, 5)), min_size=1)
)
def test_gaps_of_short_segments_are_exact(rows: list[tuple[int, int, int, int]]) -> None:
    gaps, weights = token_gaps(segment_rows(rows))
    every = [(first + i * slope, n) for steps, first, slope, n in rows for i in range(steps) if n]
    assert weights.sum() == pytest.approx(sum(n for _, n in every))
    if every:
        values = np.array([value for value, _ in every], dtype=float) / MS
        counts = np.array([n for _, n in every])
        assert np.average(gaps, weights=weights) == pytest.approx(np.average(values, weights=counts))


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5)), min_size=1), st.integers(1, 100))
def test_weighted_percentile_covers_its_share(pairs: list[tuple[float, int]], percent: int) -> None:
    values, weights = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    (found,) = weighted_percentiles(values, weights, (percent,))
    total = weights.sum()
    assert weights[values <= found].sum() >= percent / 100 * total - 1e-9
    assert weights[values < found].sum() <= percent / 100 * total + 1e-9


@pytest.mark.parametrize(("service_s", "stable"), [(0.5, True), (0.8, True), (1.3, False)])
def test_a_growing_queue_is_unstable(service_s: float, stable: bool) -> None:
    arrivals = np.cumsum(np.random.default_rng(3).exponential(1.0, 4000))
    admissions, free = [], 0.0
    for arrival in arrivals:
        admissions.append(max(free, arrival))
        free = admissions[-1] + service_s
    assert is_stable(arrivals * 1e12, np.array(admissions) * 1e12) is stable


def test_requests_that_arrive_and_start_at_one_instant_never_waited() -> None:
    """A closed loop sends several requests at once; none of them counts as waiting, before or after its start."""
    sent = np.repeat(np.arange(12), 50) * 1e12
    assert is_stable(sent, sent)
    assert not is_stable(sent, np.where(sent > 6e12, sent + 9e12, sent))


def test_a_short_trace_of_long_requests_is_not_a_growing_queue() -> None:
    arrivals = np.arange(60) * 1e11
    assert is_stable(arrivals, arrivals + 1e9)


def test_intervals_hold_the_mean_and_narrow_with_more_requests() -> None:
    draw = np.random.default_rng(1)
    widths = []
    for n in (400, 6400):
        ttft = draw.gamma(2, 50, n)
        summary = summarise(request_rows(ttft, ttft + 100, [2] * n), segment_rows([(1, 1.0, 0.0, 1)]), {})
        low, high = summary["intervals"]["mean_ttft_ms"]
        assert low <= summary["mean_ttft_ms"] <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
