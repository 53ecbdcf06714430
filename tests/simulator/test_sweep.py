"""A sweep's rows and knees, and its points over processes: each simulated once, kept, and apart from the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv.serving.devices import device_named
from leankv.serving.errors import InputError
from leankv.serving.models import model_named
from leankv.serving.policies.registry import policy_named
from leankv.simulator import sweep_points
from leankv.simulator.config import SimulationConfig
from leankv.simulator.run import simulate
from leankv.simulator.sweep import attainment, knee, offered_rps, sweep_row
from leankv.simulator.sweep_points import PointStore, SweepPoint, content_hash, simulate_points
from leankv.traces.open import open_trace
from leankv.traces.trace import Trace
from leankv.traces.transforms import rate_scale


def row(rate: float, share: float, stable: bool = True) -> dict[str, Any]:
    return {"policy": "p", "offered_rps": rate, "attainment": share, "goodput_rps": rate * share, "stable": stable}


def config(model: str = "llama-3.1-8b", policy: str = "fp16", **changes: Any) -> SimulationConfig:
    return SimulationConfig(
        model_named(model), device_named("l40s"), policy_named(policy), slo={"ttft": 1000.0, "tpot": 50.0}, **changes
    )


def test_the_knee_lies_between_the_last_rate_that_holds_and_the_first_that_does_not() -> None:
    found = knee([row(1, 1.0), row(2, 1.0), row(4, 0.5)], share=0.75)
    assert found is not None
    assert (found.held_rps, found.lost_rps, found.reached) == (2, 4, True)
    assert found.rate_rps == pytest.approx(3) and found.goodput_rps == pytest.approx(0.75 * 3)


def test_an_unstable_rate_does_not_hold_and_nothing_beyond_it_counts() -> None:
    found = knee([row(1, 1.0), row(2, 1.0, stable=False), row(4, 1.0)])
    assert found is not None and (found.rate_rps, found.lost_rps) == (1, 2)


def test_a_policy_that_never_gives_way_has_no_upper_end_and_one_past_its_knee_no_knee() -> None:
    found = knee([row(1, 1.0), row(2, 1.0)])
    assert found is not None and not found.reached and found.rate_rps == 2
    assert knee([row(1, 0.89), row(2, 1.0)]) is None
    assert knee([]) is None


rates = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=8)


@given(rates, st.floats(0.01, 1))
def test_the_knee_is_bracketed_and_rises_as_less_is_asked(shares: list[tuple[float, bool]], asked: float) -> None:
    rows = [row(1.0 + index, *share) for index, share in enumerate(shares)]
    strict, lax = knee(rows, asked), knee(rows, asked / 2)
    if strict is not None:
        assert lax is not None and lax.held_rps >= strict.held_rps
        assert strict.held_rps <= strict.rate_rps <= (strict.lost_rps or strict.held_rps)
        assert all(r["attainment"] >= asked and r["stable"] for r in rows if r["offered_rps"] <= strict.held_rps)


def test_a_row_counts_what_is_in_time_against_what_was_offered() -> None:
    trace = open_trace("poisson:rate=20,n=200,prompt=300,output=20")
    run = simulate(config(), trace)
    figures = sweep_row("fp16", 1.0, offered_rps(trace), run.summary)
    met = (run.requests["ttft_ms"].to_numpy() <= 1000) & (run.requests["tpot_ms"].to_numpy() <= 50)
    assert 0 < figures["attainment"] == pytest.approx(met.mean())
    assert figures["goodput_rps"] == pytest.approx(met.mean() * offered_rps(trace))
    assert offered_rps(rate_scale(trace, 2)) == pytest.approx(2 * offered_rps(trace))
    assert attainment({"completed": 0, "rejected": 0}) == 0


def test_processes_give_the_summaries_of_one_and_a_point_that_fails_does_not_end_the_others() -> None:
    trace = open_trace("poisson:rate=5,n=50,prompt=300,output=20")
    points = [SweepPoint(config(policy="leankv"), 2.0), SweepPoint(config("llama-3-70b"), 1.0)]
    shares: list[float] = []
    outcomes = {outcome.point: outcome for outcome in simulate_points(points, trace, 2, shares.append)}

    alone = simulate(points[0].config, rate_scale(trace, 2.0)).summary
    assert outcomes[points[0]].summary == alone
    assert outcomes[points[1]].summary is None
    assert "llama-3-70b does not fit" in (outcomes[points[1]].error or "") and not outcomes[points[1]].defect
    assert shares[-1] == 1.0 and shares == sorted(shares)


def test_a_defect_is_told_as_one_and_a_killed_worker_is_the_machines_want() -> None:
    point, no_trace = SweepPoint(config(), 1.0), cast(Trace, None)
    (outcome,) = simulate_points([point], no_trace, 1, lambda share: None)
    assert outcome.defect and outcome.summary is None and (outcome.error or "").startswith("AttributeError: ")

    with pytest.raises(InputError, match="run again with fewer --workers"):
        list(simulate_points([point], cast(Trace, EndsItsReader()), 1, lambda share: None))


class EndsItsReader:
    """Whatever process unpickles it is gone."""

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return os._exit, (1,)


def test_a_kept_point_is_read_back_only_for_the_same_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_points, "commit", lambda: "one")
    trace, other = (open_trace("poisson:rate=5,n=20", seed=seed) for seed in (0, 1))
    store, point = PointStore(tmp_path, trace), SweepPoint(config(), 2.0)
    assert store.read(point) is None
    store.write(point, {"completed": 20})
    assert store.read(SweepPoint(config(), 2.0)) == {"completed": 20}

    assert store.read(SweepPoint(config(), 1.0)) is None
    assert store.read(SweepPoint(config(policy="leankv"), 2.0)) is None
    assert store.read(SweepPoint(config(tp=2), 2.0)) is None
    assert PointStore(tmp_path, other).read(point) is None
    monkeypatch.setattr(sweep_points, "commit", lambda: "two")
    assert PointStore(tmp_path, trace).read(point) is None


def test_a_damaged_point_is_simulated_again(tmp_path: Path) -> None:
    store = PointStore(tmp_path, open_trace("poisson:rate=5,n=20"))
    point = SweepPoint(config(), 1.0)
    store.write(point, {"completed": 20})
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:100])
    assert store.read(point) is None


def test_the_content_hash_sees_requests_not_names() -> None:
    trace = open_trace("poisson:rate=5,n=20")
    assert content_hash(replace(trace, name="other")) == content_hash(trace)
    assert content_hash(replace(trace, output_tokens=trace.output_tokens + 1)) != content_hash(trace)
