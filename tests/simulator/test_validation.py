"""Validation: errors, spreads, targets, order of policies and regimes, on runs whose errors are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leankv.serving.devices import device_named
from leankv.serving.errors import InputError
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import Profile, profile_device
from leankv.serving.runs import Run
from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import simulate
from leankv.simulator.validation import Case, load_validation, save_validation, validated
from leankv.simulator.validation_loads import knee_scale, loads_of, pool_bytes
from leankv.simulator.validation_order import compression_helps, rankings
from leankv.simulator.validation_parity import (
    METRICS,
    ParityRow,
    median_absolute_error,
    paced_rows,
    parity_rows,
    relative_error,
)
from leankv.simulator.validation_residuals import residuals
from leankv.traces.open import open_trace
from leankv.traces.trace import Trace

from .made_profile import made_profile

TRACE = "poisson:rate=2,n=40,prompt=600,output=60"
CONDITIONS = {"device": {"name": "a machine", "backend": "cpu"}, "model": "tiny"}


def summary(**changes: Any) -> dict[str, Any]:
    """100 everywhere, except where `changes` say otherwise."""
    return {**{metric.key: 100.0 for metric in METRICS}, "mean_running": 100.0, **changes}


def config(policy: str = "fp16") -> SimulationConfig:
    return SimulationConfig(
        model_named("llama-3-8b"), device_named("l40s"), policy_named(policy), max_num_seqs=16, kv_memory_bytes=1 << 31
    )


def trace() -> Trace:
    return open_trace(TRACE)


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(config(), trace())


def test_a_row_is_the_median_of_the_repeats_with_their_spread_and_error() -> None:
    live = [summary(mean_ttft_ms=value) for value in (80.0, 100.0, 200.0)]
    rows = {row.metric: row for row in parity_rows("leankv", "low", summary(mean_ttft_ms=110.0), live)}
    row = rows["mean_ttft_ms"]
    assert (row.simulated, row.live, row.live_low, row.live_high, row.repeats) == (110.0, 100.0, 80.0, 200.0, 3)
    assert row.relative_error == pytest.approx(0.1) and row.holds is None
    assert set(rows) == {metric.key for metric in METRICS} and len(rows) == 22
    # Seventeen of eighteen timed figures are exact; a median over them must not see the one that is not.
    assert median_absolute_error(rows.values()) == 0.0


@pytest.mark.parametrize(
    ("simulated", "live", "error"),
    [(5.0, 4.0, 0.25), (3.0, 4.0, -0.25), (0.0, 0.0, 0.0), (1.0, 0.0, None), (None, 4.0, None), (4.0, None, None)],
)
def test_an_error_is_relative_to_live_and_none_where_it_says_nothing(
    simulated: float | None, live: float | None, error: float | None
) -> None:
    assert relative_error(simulated, live) == error


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_figures_that_are_none_are_left_out_of_the_median(nothing: float | None) -> None:
    absent = summary(mean_tpot_ms=nothing)
    rows = {row.metric: row for row in parity_rows("fp16", "low", absent, [summary(), absent, summary()])}
    row = rows["mean_tpot_ms"]
    assert (row.simulated, row.live, row.relative_error) == (None, 100.0, None)
    assert {r.metric: r for r in parity_rows("fp16", "low", summary(), [absent])}["mean_tpot_ms"].live is None


@pytest.mark.parametrize(
    ("simulated", "live", "holds"),
    [(0, 0, True), (2, 0, True), (3, 0, False), (40, 44, True), (39, 44, False), (5, 4, True), (7, 4, False)],
)
def test_preemptions_hold_within_a_tenth_or_two(simulated: int, live: int, holds: bool) -> None:
    rows = parity_rows("fp16", "low", summary(preemptions=simulated), [summary(preemptions=live)])
    assert rows[-1].metric == "preemptions" and rows[-1].holds is holds


def test_pages_hold_within_three_percent() -> None:
    def holds(pages: float) -> bool | None:
        return {r.metric: r.holds for r in parity_rows("fp16", "low", summary(peak_kv_pages=pages), [summary()])}[
            "peak_kv_pages"
        ]

    assert holds(103.0) and holds(97.0) and not holds(103.1) and not holds(96.9)
    assert not parity_rows("fp16", "low", {}, [summary()])[-2].holds


def test_pages_per_request_tell_memory_apart_from_latency() -> None:
    def row(simulated: dict[str, Any]) -> ParityRow:
        rows = parity_rows("fp16", "low", simulated, [summary(mean_kv_pages=300.0, mean_running=3.0)])
        return next(row for row in rows if row.metric == "kv_pages_per_request")

    slower = row(summary(mean_kv_pages=400.0, mean_running=4.0))
    assert (slower.simulated, slower.live, slower.relative_error, slower.holds) == (100.0, 100.0, 0.0, True)
    assert row(summary(mean_kv_pages=312.0, mean_running=3.0)).holds is False
    assert row(summary(mean_kv_pages=0.0, mean_running=0.0)).simulated is None


def test_at_its_own_pace_each_run_is_held_against_a_simulation_of_its_own() -> None:
    """Live runs of 100, 140 and 200 ms, for which 100, 154 and 200 were simulated: the median pair is exact."""
    pairs = [
        (summary(mean_ttft_ms=s), summary(mean_ttft_ms=lived)) for s, lived in ((100, 100), (154, 140), (200, 200))
    ]
    row = paced_rows("fp16", "low", pairs)[0]
    assert (row.metric, row.simulated, row.live, row.relative_error, row.repeats) == ("mean_ttft_ms", 154, 140, 0.0, 3)
    assert (row.live_low, row.live_high) == (100, 200)
    assert paced_rows("fp16", "low", []) == []


def test_no_target_rests_on_the_pace(run: Run) -> None:
    """Live runs as the simulator says of a machine half as fast: uncorrected all is off, at their pace nothing is."""
    profile = made_profile("fp16")
    slow = simulate(profiled(profile.at_pace(2.0)), trace())
    plain = simulate(profiled(profile), trace())
    made = validated(CONDITIONS, {"low": {}}, [Case("fp16", "low", plain, {0: slow}, {0: slow})], [])
    assert made.summary["median_absolute_error"] > 0.1 and not made.summary["targets"][0]["holds"]
    assert made.summary["paced_median_absolute_error"] == 0.0 and made.summary["paced_worst_kv_pages_error"] == 0.0


def profiled(profile: Profile) -> SimulationConfig:
    return replace(config(), model=profile.model, device=profile_device(profile), step_time="profile", profile=profile)


def by_e2e(**values: list[float]) -> dict[str, dict[int, dict[str, Any]]]:
    """Policy -> repeat -> summary, with these mean E2E latencies."""
    return {
        name: {repeat: summary(mean_e2el_ms=value) for repeat, value in enumerate(each)}
        for name, each in values.items()
    }


def outcome(simulated: dict[str, float], live: dict[str, list[float]]) -> tuple[bool, set[str]]:
    predicted = {name: summary(mean_e2el_ms=value) for name, value in simulated.items()}
    throughput, e2e = rankings("knee", predicted, by_e2e(**live))
    assert (throughput.by, throughput.holds, {pair.outcome for pair in throughput.pairs}) == (
        "output_throughput", True, {"tie"},
    )  # fmt: skip
    return e2e.holds, {pair.outcome for pair in e2e.pairs}


def test_a_ranking_holds_where_every_decided_pair_is_right() -> None:
    live = {"fp16": [100.0, 104.0], "int8": [80.0, 83.0], "leankv": [50.0, 51.0]}
    assert outcome({"fp16": 120.0, "int8": 70.0, "leankv": 60.0}, live) == (True, {"right"})
    assert outcome({"fp16": 75.0, "int8": 80.0, "leankv": 60.0}, live) == (False, {"right", "wrong"})


def test_a_difference_that_changes_its_sign_over_the_repeats_is_a_tie() -> None:
    live = {"fp16": [100.0, 110.0, 100.0], "int8": [95.0, 112.0, 96.0]}
    assert outcome({"fp16": 100.0, "int8": 101.0}, live) == (True, {"tie"})
    assert outcome({"fp16": 100.0, "int8": 70.0}, live) == (False, {"overstated"})


def test_a_steady_difference_is_none_below_the_tie() -> None:
    live = {"fp16": [100.0, 100.0], "int8": [98.5, 98.6]}
    assert outcome({"fp16": 100.0, "int8": 101.0}, live) == (True, {"tie"})
    assert outcome({"fp16": 100.0, "int8": 101.0}, {**live, "int8": [97.5, 97.6]}) == (False, {"wrong"})


def test_drift_of_the_machine_falls_on_all_alike() -> None:
    # The ranges overlap, yet in every repeat int8 was a tenth faster.
    live = {"fp16": [100.0, 130.0, 160.0], "int8": [90.0, 117.0, 144.0]}
    assert outcome({"fp16": 100.0, "int8": 95.0}, live) == (True, {"right"})


def test_repeats_without_partners_are_held_against_all_of_the_other() -> None:
    live = by_e2e(fp16=[100.0, 110.0], int8=[50.0])
    live["int8"] = {5: summary(mean_e2el_ms=88.0), 6: summary(mean_e2el_ms=99.0)}
    (pair,) = rankings("knee", {"fp16": summary(), "int8": summary(mean_e2el_ms=90.0)}, live)[1].pairs
    assert (pair.live_low, pair.live_high) == (pytest.approx(100 / 99 - 1), pytest.approx(110 / 88 - 1))
    assert pair.better == "int8" and pair.outcome == "right"


def test_the_sign_against_fp16_by_either_metric() -> None:
    live = by_e2e(fp16=[100.0], leankv=[150.0], int8=[70.0])
    for repeats in live.values():
        repeats[0]["output_throughput"] = 10.0
    live["leankv"][0]["output_throughput"] = 15.0
    predicted = {"fp16": summary(), "leankv": summary(output_throughput=150.0, mean_e2el_ms=90.0)}
    found = compression_helps("overload", predicted, live)
    assert [(each.policy, each.by, each.verdict, each.outcome) for each in found] == [
        ("leankv", "output_throughput", "helps", "right"),
        ("leankv", "mean_e2el_ms", "hurts", "wrong"),
    ]
    assert found[0].simulated == found[0].live == pytest.approx(0.5)
    del live["fp16"]
    assert compression_helps("overload", predicted, live) == []


def test_policies_without_a_figure_have_no_place_in_the_order() -> None:
    predicted = {"fp16": summary(), "int8": {"preemptions": 0}}
    for ranking in rankings("low", predicted, by_e2e(fp16=[100.0], int8=[90.0])):
        assert ranking.simulated == ("fp16",) and ranking.pairs == () and ranking.holds
    assert rankings("low", predicted, {"fp16": {}, "int8": {}}) == []


def case(run: Run, policy: str, live: list[float]) -> Case:
    """Live runs whose latencies are these multiples of the simulated ones."""
    return Case(policy, "knee", run, {i: slower(run, factor) for i, factor in enumerate(live)})


def slower(run: Run, factor: float) -> Run:
    def scaled(table: Any, *names: str) -> Any:
        for name in names:
            values = table[name].to_numpy() * factor
            table = table.set_column(table.schema.get_field_index(name), name, [values])
        return table

    figures = {
        name: value * factor if name.endswith("_ms") and isinstance(value, float) else value
        for name, value in run.summary.items()
    }
    requests = scaled(run.requests, "ttft_ms", "tpot_ms", "e2el_ms", "queue_ms")
    return replace(run, summary=figures, requests=requests, segments=scaled(run.segments, "first_gap_ps", "slope_ps"))


def test_every_regime_shows_the_error_of_its_steps_and_requests(run: Run) -> None:
    found = residuals("fp16", "knee", run, [slower(run, 1.25), slower(run, 1.25)])
    assert found and all(each.relative_error == pytest.approx(-0.2) for each in found)
    steps = [each for each in found if each.kind == "step"]
    assert sum(each.count for each in steps) == 2 * sum(run.segments["steps"].to_pylist())
    assert any(each.regime == "decode, sequences 1" for each in steps)
    assert any(each.regime.startswith("prompt tokens 512") for each in steps)
    requests = {each.regime: each.count for each in found if each.metric == "mean_e2el_ms"}
    assert requests["prompt 512-1023"] == 80 == requests["did not wait"] + requests.get("waited", 0)


def test_a_validation_reads_back_as_it_was_written(run: Run, tmp_path: Path) -> None:
    cases = [case(run, "fp16", [1.0, 1.25]), case(run, "leankv", [1.08, 1.08])]
    loads = {"knee": {"rate_scale": 2.0, "offered_rps": 4.0}}
    machine = [{"policy": "fp16", "load": "knee", "repeat": 0, "before": 1.0, "after": None, "others": None}]
    made = validated(CONDITIONS, loads, cases, machine)
    save_validation(made, tmp_path / "validation.json")
    read = load_validation(tmp_path / "validation.json")
    assert read.parity == made.parity and read.summary == made.summary and read.machine == machine
    content = json.loads((tmp_path / "validation.json").read_text())
    assert {"schema_version", "config_hash", "commit", "conditions", "residuals"} <= set(content)
    assert content["compression_helps"][0]["live_says"] == "tie"
    assert made.summary["by_policy"] == {"fp16": pytest.approx(1 - 1 / 1.125), "leankv": pytest.approx(1 - 1 / 1.08)}
    targets = {each["name"]: each["holds"] for each in made.summary["targets"]}
    assert len(targets) == 6 and all(targets.values())
    on_gpu = validated({"device": {"backend": "cuda"}}, loads, cases, machine)
    assert on_gpu.summary["targets"][0]["target"] == 0.05 and not on_gpu.summary["targets"][0]["holds"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no validation.json"),
        ("[]", "is no validation.json"),
        ('{"schema_version": 1}', "is no validation.json"),
        ('{"schema_version": 99}', "update leankv"),
    ],
)
def test_an_unreadable_validation_is_one_line(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "validation.json").write_text(content)
    with pytest.raises(InputError, match=said):
        load_validation(tmp_path / "validation.json")
    with pytest.raises(InputError, match="cannot read"):
        load_validation(tmp_path / "missing.json")


def test_the_loads_lie_around_the_rate_at_which_service_gives_way() -> None:
    knee = knee_scale(config(), trace())
    low, middle, overload = loads_of(("low", "knee", "overload"), knee, trace())
    assert middle.rate_scale == pytest.approx(knee, rel=0.005)
    assert low.rate_scale == pytest.approx(knee * 2 / 3, rel=0.01)
    assert overload.offered_rps == pytest.approx(1.5 * middle.offered_rps, rel=0.01)
    ttft = [
        simulate(config(), replace(trace(), arrival_ps=(trace().arrival_ps / load.rate_scale).astype("int64"))).summary[
            "p90_ttft_ms"
        ]
        for load in (low, middle, overload)
    ]
    assert ttft[0] < ttft[1] < ttft[2]


def test_the_pool_holds_half_of_the_seats_under_fp16_and_the_longest_request() -> None:
    pool = pool_bytes(config().model, trace(), 16)
    assert pool == pytest.approx(8 * 660 * config().model.layers * 8 * 128 * 4, rel=0.1)
    pressed = simulate(replace(config(), kv_memory_bytes=pool), replace(trace(), arrival_ps=trace().arrival_ps // 1000))
    assert 7 <= pressed.summary["max_running"] <= 9
    lonely = pool_bytes(config().model, trace(), 1)
    assert simulate(replace(config(), kv_memory_bytes=lonely), trace()).summary["completed"] == 40


def some_too_long(count: int) -> Trace:
    """`trace()` with the first `count` requests longer than any pool of 2 GiB."""
    prompts = trace().prompt_tokens.copy()
    prompts[:count] = 100_000
    return replace(trace(), prompt_tokens=prompts)


def test_rejected_requests_are_no_reason_to_look_for_ever_slower_rates() -> None:
    assert knee_scale(config(), some_too_long(3)) > 0.1
    with pytest.raises(InputError, match=r"10 of 40 requests are rejected.*--max-prompt.*--kv-memory-gib.*--knee"):
        knee_scale(config(), some_too_long(10))


def test_a_trace_that_is_late_at_every_rate_has_no_knee(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leankv.simulator.validation_loads.idle_bounds", lambda config, trace: {"ttft": 1e-6})
    with pytest.raises(InputError, match=r"fewer than 90% of the requests.*--knee"):
        knee_scale(config(), trace())


def test_a_pool_for_requests_that_all_exceed_the_context_is_refused() -> None:
    with pytest.raises(InputError, match=r"no request fits.*--max-prompt"):
        pool_bytes(config().model, some_too_long(40), 16)
