"""`leankv sweep`: what it writes, what it keeps, how it stops and how it fails."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leankv.app import cli
from leankv.simulator import sweep_points

TRACE = "poisson:rate=6,n=60,prompt=400,output=40"
SWEEP = ["sweep", "--trace", TRACE, "--device", "l40s", "--policy", "fp16", "--policy", "leankv"]


@pytest.fixture(autouse=True)
def one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_points, "commit", lambda: "a commit")


def test_every_point_has_its_run_its_row_and_each_policy_its_knee(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "out.json"), "--csv", str(tmp_path / "out.csv")]
    assert cli.main([*SWEEP, "--rate-scale", "8", "1", "--kv-memory-gib", "1", "2", *files]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    runs = content["runs"]
    asked = [(run["kv_memory_gib"], run["policy"], run["rate_scale"]) for run in runs]
    assert asked == [(gib, policy, scale) for gib in (1, 2) for policy in ("fp16", "leankv") for scale in (1, 8)]
    assert all(run["source"] == "simulated" and run["summary"]["completed"] == 60 for run in runs)
    assert [(knee["policy"], knee["kv_memory_gib"]) for knee in content["knees"]] == [
        ("fp16", 1), ("leankv", 1), ("fp16", 2), ("leankv", 2),
    ]  # fmt: skip

    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["goodput_rps"]) for row in rows] == [run["goodput_rps"] for run in runs]
    assert {row["error"] for row in rows} == {""}
    shown = capsys.readouterr().out
    assert "fp16, KV GiB 1: " in shown and "90 % or more of the requests in time" in shown
    assert "step times: roofline\n" in shown and "tokens kept: fp16: exact; leankv: literature\n" in shown
    ratios = runs[-1]["summary"]
    told = next(line for line in reversed(shown.splitlines()) if line.startswith("leankv "))
    assert f"{ratios['nominal_ratio']:.2f}x / {ratios['physical_ratio']:.2f}x" in told


def test_a_second_run_simulates_only_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ["--output-dir", str(tmp_path / "kept")]
    assert cli.main([*SWEEP, "--rate-scale", "1", *folder]) == 0
    assert capsys.readouterr().err == ""
    assert cli.main([*SWEEP, "--rate-scale", "1", "2", *folder, "--json", str(tmp_path / "resumed.json")]) == 0
    assert capsys.readouterr().err == f"leankv: 2 of 4 points are in {tmp_path / 'kept'} already\n"
    assert len(list((tmp_path / "kept").iterdir())) == 4

    monkeypatch.setattr(sweep_points, "simulate_points", None)
    assert cli.main([*SWEEP, "--rate-scale", "1", "2", *folder, "--json", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "resumed.json").read_bytes()


def test_a_point_that_fails_is_a_row_and_the_others_are_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "--trace", TRACE, "--model", "llama-3-70b", "--device", "a100-80gb", "--policy", "fp16"]
    assert cli.main([*words, "--tp", "1", "4", "--rate-scale", "1", "--json", str(tmp_path / "out.json")]) == 0
    one, four = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert one["summary"] is None and "does not fit" in one["error"]
    assert four["error"] is None and four["summary"]["completed"] == 60
    shown = capsys.readouterr().out
    assert "failed: llama-3-70b does not fit" in shown and "fp16, tp 4: " in shown


def test_ctrl_c_keeps_and_reports_what_is_finished(tmp_path: Path) -> None:
    quick, endless = "0.01", "1000"
    words = ["sweep", "--trace", "poisson:rate=10,n=150000,prompt=4,output=2", "--policy", "fp16", "--workers", "1"]
    command = [sys.executable, "-P", "-m", "leankv.app.cli", *words, "--rate-scale", quick, endless]
    child = subprocess.Popen(
        [*command, "--output-dir", str(tmp_path / "kept"), "--json", str(tmp_path / "out.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not list(tmp_path.glob("kept/[!.]*.json")) and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "leankv: stopped\n")
    assert "fp16" in out
    assert [run["rate_scale"] for run in json.loads((tmp_path / "out.json").read_text())["runs"]] == [0.01]
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".json"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate-scale", "0"], "rate scale 0.0 is not a positive number"),
        (["--rate-scale", "nan"], "rate scale nan is not a positive number"),
        (["--rate-scale"], "--rate-scale"),
        (["--attainment", "1.5"], "--attainment 1.5 is no share; write one above 0, at most 1"),
        (["--workers", "0"], "--workers 0: give at least 1"),
        (["--tp", "0"], "tp is 0: give at least 1"),
        (["--kv-memory-gib", "-1"], "is no size; give a number above 0"),
        (["--policy", "leankw"], "unknown policy 'leankw'; did you mean 'leankv'?"),
        (["--json", "missing/out.json"], "cannot write missing/out.json: its folder does not exist"),
        (["--csv", "."], "cannot write .: it is a folder; name a file"),
        (["--model", "llama-3-70b", "--rate-scale", "1"], "every point failed, the first: llama-3-70b does not fit"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*SWEEP, *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_under_a_file_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert cli.main([*SWEEP, "--output-dir", str(tmp_path / "file" / "kept")]) == 2
    assert f"{tmp_path / 'file'} is a file; name another place" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
