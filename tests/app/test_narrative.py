"""The words on the page, claim by claim."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from leankv.app import narrative, rates


def test_more_goodput_wins_and_the_gain_is_told(sample: SimpleNamespace) -> None:
    said = narrative.verdict(
        {
            "fp16": sample.summary(request_goodput=5.0),
            "leankv": sample.summary(request_goodput=9.0, limited_by="compute"),
        }
    )
    assert said.startswith("**leankv wins**: 9.00 requests/s within the SLO, 80% more than fp16")
    assert "90% of all requests against 50%" in said
    assert "limited by compute" in said


def test_a_large_gain_is_told_as_a_multiple(sample: SimpleNamespace) -> None:
    said = narrative.verdict({"fp16": sample.summary(request_goodput=2.0), "fp8": sample.summary(request_goodput=8.0)})
    assert "4.0 times that of fp16" in said


def test_equal_goodput_is_decided_by_latency(sample: SimpleNamespace) -> None:
    said = narrative.verdict({"fp16": sample.summary(mean_e2el_ms=4000.0), "fp8": sample.summary(mean_e2el_ms=3000.0)})
    assert said.startswith("**fp8 is ahead by latency**")
    assert "3.00 s on average, 25% less than with fp16" in said


def test_when_fp16_wins_it_is_held_against_the_runner_up(sample: SimpleNamespace) -> None:
    summaries = {
        "fp16": sample.summary(request_goodput=9.0),
        "kivi": sample.summary(request_goodput=4.0),
        "fp8": sample.summary(request_goodput=6.0),
    }
    assert "50% more than fp8" in narrative.verdict(summaries)


def test_how_sure_the_gap_is_is_said(sample: SimpleNamespace) -> None:
    summaries = {"fp16": sample.summary(request_goodput=8.0), "fp8": sample.summary(request_goodput=9.0)}
    assert "; 5.0 to 15.0 points apart with 95% confidence)" in narrative.verdict(summaries, gap=(0.05, 0.15))
    assert "may be chance: -2.0 to +22.0 points" in narrative.verdict(summaries, gap=(-0.02, 0.22))


def test_a_stable_policy_wins_over_one_whose_queue_grows(sample: SimpleNamespace) -> None:
    summaries = {"fp16": sample.summary(request_goodput=9.9, stable=False), "fp8": sample.summary(request_goodput=8.0)}
    assert "the queue of fp16 grows without end" in narrative.verdict(summaries)


def test_nobody_meets_the_slo(sample: SimpleNamespace) -> None:
    said = narrative.verdict({name: sample.summary(request_goodput=0.0) for name in ("fp16", "fp8")})
    assert "No policy meets the SLO" in said


def test_an_unstable_run_cannot_win(sample: SimpleNamespace) -> None:
    summaries = {"fp16": sample.summary(request_goodput=9.9, stable=False), "fp8": sample.summary(request_goodput=1.0)}
    assert narrative.winner(summaries) == "fp8"
    assert "fp16 is unstable" in narrative.warnings(summaries)[0]


def test_one_policy_alone_is_described(sample: SimpleNamespace) -> None:
    assert narrative.verdict({"leankv": sample.summary()}).startswith("**leankv** serves 9.50 requests/s")


def test_rejections_are_counted_against_all(sample: SimpleNamespace) -> None:
    summary = sample.summary(completed=900, rejected=100)
    assert "95%" in narrative.verdict({"fp16": summary})
    assert "rejected 100 of 1,000" in narrative.warnings({"fp16": summary})[0]


def test_policies_that_cannot_share_prefixes_are_named(sample: SimpleNamespace) -> None:
    summaries = {
        "fp16": sample.summary(prefix_caching="on"),
        "h2o": sample.summary(prefix_caching="not possible with this policy"),
    }
    assert narrative.warnings(summaries) == ["h2o cannot share prefixes: every prompt is computed and held in full."]


def test_the_flip_is_placed_between_two_rates(sample: SimpleNamespace) -> None:
    sweep = sample.sweep(
        {
            "fp8": [(1, 1.0, 100), (2, 1.0, 110), (4, 0.3, 900)],
            "leankv": [(1, 1.0, 120), (2, 0.99, 130), (4, 0.95, 200)],
        }
    )
    assert rates.flips(sweep) == [rates.Flip(2, 4, "fp8", "leankv")]
    said = narrative.flip_sentence(sweep)
    assert "**fp8** leads at low rates then **leankv** takes over between 2.00 and 4.00 requests/s" in said
    assert "leankv 4.00 or more" in said


def test_no_flip_is_said_too(sample: SimpleNamespace) -> None:
    sweep = sample.sweep({"fp8": [(1, 1.0, 100), (2, 1.0, 110)], "fp16": [(1, 1.0, 120), (2, 0.5, 130)]})
    assert "**fp8** leads at every rate from 1.00 to 2.00 requests/s" in narrative.flip_sentence(sweep)


def test_the_knee_is_interpolated_where_attainment_crosses(sample: SimpleNamespace) -> None:
    rows = rates.rows_of(sample.sweep({"fp16": [(2, 1.0, 1), (4, 0.8, 1)]}), "fp16")
    found = rates.knee(rows)
    assert found is not None
    assert found.rate_rps == pytest.approx(3)
    assert found.reached


def test_no_knee_where_the_lowest_rate_already_fails(sample: SimpleNamespace) -> None:
    assert rates.knee(rates.rows_of(sample.sweep({"fp16": [(2, 0.5, 1), (4, 0.1, 1)]}), "fp16")) is None
    assert rates.knee([]) is None


def test_half_a_rate_does_not_count(sample: SimpleNamespace) -> None:
    sweep = sample.sweep({"fp16": [(1, 1.0, 100), (2, 1.0, 100)], "fp8": [(1, 1.0, 90)]})
    assert rates.leaders(sweep) == [(1, "fp8")]


def fared(knees: dict[str, float], scale: float) -> list[rates.Outcome]:
    """Full attainment up to each policy's knee, then falling with the square of the rate."""
    return [rates.Outcome(min(1.0, (knee / scale) ** 2), True) for knee in knees.values()]


@pytest.mark.parametrize(
    "knees", [{"fp16": 0.7, "leankv": 1.3}, {"fp16": 5.0}, {"a": 0.3, "b": 9.0, "c": 2.0}, {"cpu": 0.01}]
)
def test_the_sweep_brackets_every_knee_and_ends(knees: dict[str, float]) -> None:
    tried: dict[float, list[rates.Outcome]] = {}
    while (scale := rates.next_scale(tried)) is not None:
        tried[scale] = fared(knees, scale)
        assert len(tried) < 40
    for index, policy in enumerate(knees):
        holds = max(scale for scale, outcomes in tried.items() if outcomes[index].holds)
        fails = min(scale for scale, outcomes in tried.items() if not outcomes[index].holds)
        assert fails / holds < 1.2, policy


@pytest.mark.parametrize("outcome", [rates.Outcome(0.0, True), rates.Outcome(1.0, True), rates.Outcome(1.0, False)])
def test_the_sweep_ends_where_nothing_changes(outcome: rates.Outcome) -> None:
    tried: dict[float, list[rates.Outcome]] = {}
    while (scale := rates.next_scale(tried)) is not None:
        assert rates.SCALES[0] * 0.99 <= scale <= rates.SCALES[1] * 1.01
        tried[scale] = [outcome]
    assert len(tried) < 20


@pytest.mark.parametrize(
    ("cv", "said"), [(3.0, "in bursts (gaps vary 3.0 times"), (1.0, "as irregular as"), (0.2, "evenly")]
)
def test_traffic_is_told_by_its_pace_and_weight(cv: float, said: str) -> None:
    from leankv.traces.describe import LengthFigures, TraceFigures

    prompt, output = LengthFigures(900, 800, 2000, 4000, 9000), LengthFigures(100, 80, 200, 500, 900)
    found = TraceFigures("mine", 1000, 100.0, 10.0, cv, {}, prompt, output, 0.0, None)
    told = narrative.traffic(found)
    assert said in told
    assert "**10.0 requests/s arrive" in told and "10,000 tokens/s" in told and "prompts are 90% of all tokens" in told


def test_badges_tell_projected_from_measured() -> None:
    roofline = {"step_time_source": "roofline", "retention_source": "literature"}
    profile = {"step_time_source": "profile (cpu, 2026-11-21)", "retention_source": "measured on smollm2-135m"}
    assert "orange-badge[:material/speed: step times: roofline]" in narrative.badges({"leankv": roofline}, False)
    assert "gray-badge[:material/grading: answers: not measured]" in narrative.badges({"leankv": roofline}, False)
    said = narrative.badges({"leankv": profile}, True)
    assert "orange" not in said and "green-badge[:material/grading: answers: measured]" in said
    assert "step times: live" in narrative.badges({"leankv": {}})
