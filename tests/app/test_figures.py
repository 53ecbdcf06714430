"""Figures are pure functions of tables: what they draw, what they say, what they never do."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.app.figures import gantt, goodput, latency, memory, style, timeline, traffic

WHITE, NIGHT = "#FFFFFF", "#12151C"
GIB = 1 << 30


def channels(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(channels(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("hue", style.HUES)
def test_every_hue_stands_out_on_both_pages(hue: str) -> None:
    light, dark = style.HUES[hue]
    assert contrast(light, WHITE) >= 3
    assert contrast(dark, NIGHT) >= 3


def test_no_two_policies_share_hue_and_dash() -> None:
    drawn = [(look.colour, look.dash) for look in style.looks(list(style._FAMILIES)).values()]
    assert len(set(drawn)) == len(drawn)


def test_default_policies_are_told_apart_without_red_or_without_green() -> None:
    # Machado, Oliveira, Fernandes 2009: severity 1 in linear RGB
    deuteranopia = np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]])
    protanopia = np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]])
    for dark, sight in itertools.product((False, True), (deuteranopia, protanopia)):
        seen = [
            np.clip(sight @ channels(look.colour), 0, 1) ** (1 / 2.2)
            for look in style.looks(["fp16", "fp8", "kivi", "leankv"], dark).values()
        ]
        assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 0.12


def test_a_policy_looks_the_same_whoever_stands_beside_it() -> None:
    alone = style.looks(["leankv"])["leankv"]
    assert style.looks(["fp16", "kivi", "leankv"])["leankv"] == alone


def test_variants_share_the_colour_and_differ_in_dash_and_marker() -> None:
    two, four = style.looks(["kivi:bits=2", "kivi:bits=4"]).values()
    assert two.colour == four.colour
    assert two.dash != four.dash
    assert two.marker != four.marker


@pytest.mark.parametrize(
    ("value", "said"), [(1234.5, "1,234"), (12.34, "12.3"), (0, "0"), (float("nan"), "n/a"), (0.01234, "0.012")]
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert style.number(value) == said


@pytest.mark.parametrize(("ms", "said"), [(12.3, "12.3 ms"), (1500, "1.50 s"), (600_000, "10.0 min")])
def test_durations_take_the_unit_that_reads_best(ms: float, said: str) -> None:
    assert style.duration(ms) == said


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=3000), st.integers(0, 20))
def test_cumulative_is_short_rising_and_right_at_its_points(answered: list[float], lost: int) -> None:
    values = np.array([*answered, *[float("nan")] * lost])
    x, share = latency.cumulative(values)
    assert len(x) <= 500
    assert np.all(np.diff(x) >= 0)
    assert np.all(np.diff(share) > 0)
    assert x[-1] == max(answered)
    assert share[-1] == pytest.approx(len(answered) / len(values))
    for value, fraction in zip(x[::50], share[::50], strict=True):
        below, upto = np.mean(values < value), np.mean(values <= value)
        assert below < fraction <= upto + 1e-12


def test_latency_curve_stays_below_all_where_requests_are_lost(sample: SimpleNamespace) -> None:
    chart = latency.latency_cdf({"fp16": sample.requests(200)}, "ttft_ms", slo_ms=300)
    assert max(chart.figure.data[0].y) == pytest.approx(99)
    row = chart.table.to_pylist()[0]
    assert (row["requests"], row["without an answer"]) == (200, 2)
    assert "within the SLO" in chart.alt
    assert chart.figure.layout.annotations[0].text == "SLO 300 ms"


def test_a_finished_request_of_one_token_is_not_lost_for_tpot(sample: SimpleNamespace) -> None:
    row = latency.latency_cdf({"fp16": sample.requests(200)}, "tpot_ms").table.to_pylist()[0]
    assert (row["requests"], row["without an answer"]) == (199, 2)


def test_a_long_tail_takes_a_log_axis(sample: SimpleNamespace) -> None:
    table = sample.requests(200)
    values = table["ttft_ms"].to_numpy().copy()
    values[-10:] = 1e6
    long = table.set_column(table.column_names.index("ttft_ms"), "ttft_ms", [values])
    assert latency.latency_cdf({"fp16": table}, "ttft_ms").figure.layout.xaxis.type is None
    assert latency.latency_cdf({"fp16": long}, "ttft_ms").figure.layout.xaxis.type == "log"


def test_goodput_rings_the_knee_and_hollows_unstable_points(sample: SimpleNamespace) -> None:
    falling, holding = [(1, 1, 10), (2, 0.9, 20), (4, 0.4, 90)], [(1, 1, 12), (2, 1, 15), (4, 0.99, 30)]
    sweep = sample.sweep({"fp16": falling, "leankv": holding})
    chart = goodput.goodput_by_rate(sweep, here_rps=2)
    names = [trace.name for trace in chart.figure.data]
    assert names == ["all in time", "fp16: knee 2.00", "fp16 knee", "leankv: knee above 4.00"]
    ring = chart.figure.data[2]
    assert ring.x[0] == pytest.approx(2)
    assert list(chart.figure.data[1].marker.symbol) == ["circle", "circle", "circle-open"]
    assert "fp16 gives way at 2.00" in chart.alt
    assert "leankv still holds at 4.00" in chart.alt


def test_memory_stacks_to_the_pages_used(sample: SimpleNamespace) -> None:
    usage = memory.Usage(sample.timeline(pages=1000), page_bytes=GIB // 100, tiers=("high", "low"))
    chart = memory.kv_memory("leankv", usage, top_gib=20)
    stacked = [trace for trace in chart.figure.data if trace.stackgroup]
    assert [trace.name for trace in stacked] == ["high", "low", memory.PREFILLING]
    assert sum(max(trace.y) for trace in stacked) == pytest.approx(8.0, rel=5e-3)
    assert max(chart.figure.data[-1].y) == pytest.approx(10)
    assert chart.figure.layout.yaxis.range[1] > 20
    assert "at most 8.00 of 10.0" in chart.alt
    assert [row["part"] for row in chart.table.to_pylist()] == ["all", "high", "low", memory.PREFILLING]
    for trace in chart.figure.data:
        assert len(trace.x) <= memory.POINTS


def test_thinning_keeps_the_peak() -> None:
    values = np.zeros(10_000)
    values[7777] = 5
    shown = memory.peaks(values)
    assert len(shown) <= memory.POINTS
    assert 7777 in shown
    assert np.all(np.diff(shown) > 0)


def test_stacked_tiers_never_pass_the_pages_used(sample: SimpleNamespace) -> None:
    table = sample.timeline(5000)
    # tiers that peak at different times, under a constant sum
    wave = (400 * (1 + np.sin(np.arange(5000)))).astype(np.int64)
    for name, values in {"kv_pages_tier0": wave, "kv_pages_tier1": 800 - wave, "kv_pages_staging": wave * 0}.items():
        table = table.set_column(table.column_names.index(name), name, [values])
    table = table.set_column(table.column_names.index("kv_pages_used"), "kv_pages_used", [np.full(5000, 800)])
    figure = memory.kv_memory("leankv", memory.Usage(table, GIB, ("high", "low"))).figure
    assert max(figure.data[0].y + figure.data[1].y) == 800


def test_run_timeline_is_short_and_says_its_peaks(sample: SimpleNamespace) -> None:
    chart = timeline.run_timeline(sample.timeline(5000))
    assert all(len(trace.x) <= timeline.POINTS for trace in chart.figure.data)
    assert "64.0 requests running" in chart.alt
    assert "80 % of capacity" in chart.alt


def test_gantt_shows_the_window_and_thins_evenly(sample: SimpleNamespace) -> None:
    table = sample.requests(1000)
    chosen = gantt.shown(table, 10, 50, rows=50)
    assert chosen.num_rows == 50
    assert set(chosen["status"].to_pylist()) <= {"finished", "unfinished"}
    assert all(arrival < 50e12 for arrival in chosen["arrival_ps"].to_pylist())
    chart = gantt.request_gantt(table, 10, 50, rows=50)
    assert [trace.name for trace in chart.figure.data][:3] == ["waiting", "prefill", "decode"]
    widths = np.concatenate([np.asarray(trace.x, float) for trace in chart.figure.data[:3]])
    assert np.nanmin(widths) >= 0


def test_gantt_of_an_empty_window_is_empty(sample: SimpleNamespace) -> None:
    assert gantt.request_gantt(sample.requests(10), 9000, 9001).table.num_rows <= 1  # the unfinished one never ends


@given(st.lists(st.floats(0.001, 10_000), min_size=2, max_size=400))
def test_arrival_bins_hold_every_request(gaps: list[float]) -> None:
    arrival = np.cumsum(gaps)
    width = traffic.bin_width(float(arrival[-1]))
    start, counts = traffic.per_bin(arrival, width)
    assert counts.sum() == len(arrival)
    assert len(start) <= traffic.BINS + 1


def test_dispersion_is_one_for_poisson_and_grows_for_bursts() -> None:
    random = np.random.default_rng(1)
    poisson = np.cumsum(random.exponential(0.1, 50_000))
    bursty = np.cumsum(random.gamma(0.1, 1.0, 50_000))
    assert traffic.dispersion(poisson)[1] == pytest.approx(1, abs=0.25)
    assert traffic.dispersion(bursty)[1][-1] > 5


def test_rank_correlation_knows_order_and_ties() -> None:
    a = np.array([1, 2, 2, 3, 4])
    assert traffic.rank_correlation(a, a**3) == pytest.approx(1)
    assert traffic.rank_correlation(a, -a) == pytest.approx(-1)
    assert np.isnan(traffic.rank_correlation(a, np.ones(5)))


def test_length_figures_count_every_request(sample: SimpleNamespace) -> None:
    table = sample.requests(3000)
    prompt, output = table["prompt_tokens"].to_numpy(), table["output_tokens"].to_numpy()
    histogram = traffic.histogram(prompt, output).table
    assert sum(histogram["prompts"].to_pylist()) == sum(histogram["outputs"].to_pylist()) == 3000
    assert len(traffic.scatter(prompt, output).figure.data[0].x) == traffic.POINTS
    assert "median" in traffic.lengths(prompt, output).alt


@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_has_words_and_numbers(sample: SimpleNamespace, dark: bool) -> None:
    table = sample.requests(100)
    prompt, output = table["prompt_tokens"].to_numpy(), table["output_tokens"].to_numpy()
    arrival = table["arrival_ps"].to_numpy() / 1e12
    charts = [
        latency.latency_cdf({"fp16": table}, "e2el_ms", None, dark),
        goodput.goodput_by_rate(sample.sweep({"fp16": [(1, 1, 1), (2, 1, 1)]}), None, dark),
        memory.kv_memory("fp16", memory.Usage(sample.timeline(), 1 << 20), dark=dark),
        timeline.run_timeline(sample.timeline(), dark),
        gantt.request_gantt(table, 0, 100, dark),
        traffic.arrivals(arrival, dark),
        traffic.burstiness(arrival, dark),
        traffic.lengths(prompt, output, dark),
        traffic.histogram(prompt, output, dark),
        traffic.scatter(prompt, output, dark),
    ]
    for chart in charts:
        assert len(chart.alt) > 30
        assert chart.table.num_rows > 0
        assert chart.figure.to_json()


def test_goodput_over_many_magnitudes_takes_a_log_axis(sample: SimpleNamespace) -> None:
    near, far = [(1, 1, 10), (2, 1, 10)], [(0.01, 1, 10), (2, 0.1, 10)]
    assert goodput.goodput_by_rate(sample.sweep({"fp16": near}), 1.5).figure.layout.xaxis.type is None
    chart = goodput.goodput_by_rate(sample.sweep({"fp16": far}), 0.1)
    assert chart.figure.layout.xaxis.type == "log"
    assert chart.figure.layout.annotations[0].x == pytest.approx(-1)
    assert min(chart.figure.data[0].x) == pytest.approx(0.01)
