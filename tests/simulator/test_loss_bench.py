"""Published losses: what is predicted, what is missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leankv.app.commands import bench_losses
from leankv.simulator.loss_bench import Outcome, outcomes
from leankv.simulator.loss_reports import all_reports
from leankv.simulator.step_time.dequantization import FAMILIES

# Losses that no cost of reading the cache explains; the reasons are printed beside them.
KNOWN_MISSES = {
    "int8: TPOT",
    "int4: TPOT",
    "int2: TPOT",
    "KIVI: prefill speed",
    "StreamingLLM: prefill speed",
}


@pytest.fixture(scope="module")
def found() -> list[Outcome]:
    return outcomes()


def by_label(found: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.claim.label: outcome for outcome in found}


def test_all_but_the_known_misses_go_the_reported_way(found: list[Outcome]) -> None:
    assert {outcome.claim.label for outcome in found if not outcome.agrees} == KNOWN_MISSES
    assert len(found) == 13


def test_every_turboquant_slowdown_is_within_a_factor_of_the_reported(found: list[Outcome]) -> None:
    labels = by_label(found)
    for label in (
        "after tuning: throughput",
        "after tuning: TPOT",
        "TPOT",
        "decode speed at 3k",
        "decode speed at 55k",
    ):
        outcome = labels[label]
        assert 1 / 1.5 < outcome.predicted / outcome.claim.reported < 1.5, label


def test_the_penalty_grows_with_the_context(found: list[Outcome]) -> None:
    labels = by_label(found)
    assert labels["decode speed at 55k"].predicted < labels["decode speed at 3k"].predicted < 1


def test_every_claim_names_kernels_that_have_a_cost_and_says_what_it_leaves_out() -> None:
    for report in all_reports():
        assert report.source
        for claim in report.claims:
            assert claim.kernels in ("", *FAMILIES) and claim.why and claim.reported > 0


def test_the_command_prints_misses_and_writes_json(
    found: list[Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_losses, "_run", lambda: found)
    target = tmp_path / "losses.json"
    assert bench_losses.main(["--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "8 of 13 claims predicted in the reported direction, 5 missed" in printed
    assert "GEAR" in printed
    assert [claim["same_direction"] for claim in json.loads(target.read_text())["claims"]].count(False) == 5
