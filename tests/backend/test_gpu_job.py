"""`leankv gpu-job`: parts in processes of their own, their time, their report; the same job, tiny, on a CPU."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from leankv.app import cli
from leankv.app.commands import gpu_job
from leankv.app.commands._job_parts import FAILED, LATE, PASSED, SKIPPED, Part, deadlines, run_part
from leankv.app.commands.gpu_job import Job, parts_of
from leankv.serving.models import model_named

from .tiny_folder import save_tiny_model

ENDLESS = ("sweep", "--trace", "poisson:rate=10,n=400000,prompt=4,output=2", "--rate-scale", "1", "--policy", "fp16")


def test_without_a_gpu_it_says_so_and_begins_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert cli.main(["gpu-job", "--output-dir", str(tmp_path / "job")]) == 2
    shown = capsys.readouterr()
    assert "no GPU" in shown.err and shown.err.count("\n") == 1
    assert not (tmp_path / "job").exists()


def test_a_part_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        Part("bad", ("traces", "describe", "no-such-trace"), 1),
        Part("good", ("traces", "list"), 1),
        Part("needy", ("traces", "list"), 1, tmp_path / "never-made"),
    ]
    monkeypatch.setattr(gpu_job, "parts_of", lambda job, folder: parts)
    assert cli.main(["gpu-job", "--backend", "cpu", "--output-dir", str(tmp_path / "job")]) == 1
    report = json.loads((tmp_path / "job" / "report.json").read_text())
    assert [(part["name"], part["status"]) for part in report["parts"]] == [
        ("bad", FAILED), ("good", PASSED), ("needy", SKIPPED),
    ]  # fmt: skip
    assert "no-such-trace" in report["parts"][0]["said"] and "never-made" in report["parts"][2]["said"]
    assert report["machine"]["torch"] and report["machine"]["gpu"]
    assert (tmp_path / "job" / "logs" / "bad.txt").read_text().startswith("leankv: ")
    assert (tmp_path / "job" / "report.txt").read_text() == capsys.readouterr().out


def test_a_part_ends_when_its_time_is_up(tmp_path: Path) -> None:
    began = time.monotonic()
    result = run_part(Part("endless", ENDLESS, 1), began + 3, tmp_path / "endless.txt")
    assert result.status == LATE and not result.passed
    assert 3 <= result.seconds < 25 and time.monotonic() - began < 30


def test_what_a_part_leaves_goes_to_the_next_and_none_takes_a_later_ones() -> None:
    parts = [Part("a", (), 1), Part("b", (), 3), Part("c", (), 1)]
    assert deadlines(parts, 100.0, 50.0) == {"a": 110.0, "b": 140.0, "c": 150.0}


def test_parts_are_commands_in_their_order(tmp_path: Path) -> None:
    parts = {part.name: part for part in parts_of(Job(), tmp_path)}
    assert list(parts) == ["correctness", "kernels", "calibrate", "validate", "shape"]
    assert all("cuda" in part.words for part in parts.values())
    assert "random:llama-3-8b" in parts["shape"].words and model_named("llama-3-8b").layers == 32
    assert parts["validate"].needs == parts["shape"].needs == tmp_path / "profile" / "profile.json"
    assert [part.name for part in parts_of(Job(part=("shape",)), tmp_path)] == ["shape"]


@pytest.mark.parametrize("quick", [False, True])
def test_a_calibration_that_is_cut_off_has_what_the_validation_needs(quick: bool, tmp_path: Path) -> None:
    parts = {part.name: part.words for part in parts_of(Job(quick=quick), tmp_path)}
    for name in ("calibrate", "shape"):
        assert parts[name][parts[name].index("--rounds") + 1] == "1"
    measured, needed = (policies(parts[name]) for name in ("calibrate", "validate"))
    assert measured[: len(needed)] == needed and len(set(measured)) == len(measured)


def policies(words: tuple[str, ...]) -> list[str]:
    return [value for flag, value in pairwise(words) if flag == "--policy"]


@pytest.mark.timeout(600)
def test_the_tiny_job_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(tmp_path / "tiny")
    tiny = str(tmp_path / "tiny")
    parts = [word for name in ("calibrate", "validate", "shape") for word in ("--part", name)]
    words = ["--backend", "cpu", "--quick", "--model", tiny, "--shape", tiny, *parts]
    status = cli.main(["gpu-job", *words, "--output-dir", str(tmp_path / "job")])
    shown = capsys.readouterr().out
    assert status == 0, shown
    report = json.loads((tmp_path / "job" / "report.json").read_text())
    assert [part["status"] for part in report["parts"]] == [PASSED] * 3
    assert set(report["figures"]) == {"profile", "shape", "validation"}
    shape = json.loads((tmp_path / "job" / "shape" / "profile.json").read_text())
    assert "replayed" in shape["policies"]["leankv"]["retention"]["source"]
