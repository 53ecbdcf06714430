"""The simulator against measured serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leankv.app.commands import bench_silicon
from leankv.serving.devices import device_named
from leankv.serving.errors import InputError
from leankv.serving.models import model_named
from leankv.simulator import silicon_bench
from leankv.simulator.silicon_bench import Latencies, ServingPoint, errors, errors_by_group, measured_points, simulated


@pytest.fixture(scope="module")
def points() -> tuple[ServingPoint, ...]:
    pytest.importorskip("aiconfigurator_core", reason="the extra `silicon` is not installed")
    return measured_points()


def test_the_rows_are_the_ninety_of_a_full_grid(points: tuple[ServingPoint, ...]) -> None:
    assert len(points) == 90
    assert {(p.isl, p.osl, p.concurrency, p.tp) for p in points} == {
        (isl, osl, concurrency, tp)
        for isl in (1024, 4096)
        for osl in (128, 512, 1024)
        for concurrency in (8, 16, 32, 64, 128)
        for tp in (2, 4, 8)
    }


def test_a_quarter_of_the_rows_is_predicted_within_the_targets(points: tuple[ServingPoint, ...]) -> None:
    chosen = [p for p in points if p.concurrency in (8, 32, 128) and p.osl != 512 and p.tp != 4]
    found = errors(chosen, [simulated(point) for point in chosen])
    assert found.rows == 24
    assert found.tpot <= 0.06
    assert found.ttft <= 0.20


def test_predictions_do_not_look_at_the_measured_latencies(points: tuple[ServingPoint, ...]) -> None:
    first = points[0]
    other = ServingPoint(first.isl, first.osl, first.concurrency, first.tp, ttft_ms=1.0, tpot_ms=1.0)
    assert simulated(first) == simulated(other)


def test_errors_are_medians_over_groups() -> None:
    measured = [ServingPoint(1024, 128, c, 2, 100.0, 10.0) for c in (8, 16, 32)]
    guesses = [Latencies(110.0, 9.0), Latencies(100.0, 10.0), Latencies(150.0, 12.0)]
    assert errors(measured, guesses).ttft == pytest.approx(0.1)
    by_concurrency = errors_by_group(measured, guesses)["concurrency"]
    assert [round(by_concurrency[c].tpot, 3) for c in (8, 16, 32)] == [0.1, 0.0, 0.2]
    assert errors_by_group(measured, guesses)["TP"][2].rows == 3


def test_the_pool_is_what_weights_and_reserves_leave() -> None:
    model, device = model_named("qwen3-32b"), device_named("h100")
    two, eight = (silicon_bench.kv_memory_bytes(model, device, tp) for tp in (2, 8))
    assert 0 < two < eight < device.memory_bytes


def test_the_command_prints_groups_and_writes_json(
    points: tuple[ServingPoint, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "silicon.json"
    assert bench_silicon.main(["--limit", "3", "--rows", "--step-time", "roofline", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "concurrency 8" in printed and "peer" in printed
    report = json.loads(target.read_text())
    assert len(report["rows"]) == 3 and report["conditions"]["fitted"] == "nothing"
    assert report["aiconfigurator"]["median_absolute_error"]["rows"] == 3


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="--limit is 0"):
        bench_silicon.main(["--limit", "0"])
