"""Live work as jobs: the command lines that fields make, and what a job makes of its command."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

import pytest

from leankv.app import cli, jobkinds, tasks
from leankv.app.commands._progress import PROGRESS_FILE
from leankv.app.jobkinds import Field, Kind
from leankv.app.jobs import Cancelled, Jobs
from leankv.serving.errors import InputError

KIND = Kind("run", "Live run", ":material/play:", "Runs.", (jobkinds.MODEL, jobkinds.policies("fp16"), jobkinds.KV))


def test_a_field_becomes_words_and_an_empty_one_none() -> None:
    assert jobkinds.policies("fp16").words(["fp16", "kivi:bits=2"]) == ["--policy", "fp16", "--policy", "kivi:bits=2"]
    assert jobkinds.KV.words(0.05) == ["--kv-memory-gib", "0.05"]
    assert jobkinds.KV.words(None) == []
    assert Field("--profile", "Profile", "profile", otherwise=("--calibrate",)).words(None) == ["--calibrate"]
    assert Field("--quick", "Quick", "switch", True).words(True) == ["--quick"]
    assert Field("--quick", "Quick", "switch", True).words(False) == []
    assert Field("--load", "Loads", "several").words(["low", "knee"]) == ["--load", "low", "--load", "knee"]


def test_a_command_line_can_be_pasted_into_a_terminal(tmp_path: Path) -> None:
    line = KIND.line({"model": "my models/a.gguf"}, tmp_path)
    assert line == f"leankv run --model 'my models/a.gguf' --policy fp16 --output-dir {tmp_path}"


def test_the_summary_tells_what_differs_from_how_it_comes() -> None:
    assert KIND.summary({"model": "smollm2-135m", "policy": ["fp16"]}) == "model smollm2-135m"
    assert "policies fp16, leankv" in KIND.summary({"policy": ["fp16", "leankv"]})


@pytest.mark.parametrize("kind", jobkinds.kinds().values(), ids=lambda kind: kind.name)
def test_a_kinds_command_knows_every_flag(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_module(f"leankv.app.commands.{kind.command.replace('-', '_')}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    said = capsys.readouterr().out
    otherwise = [word for field in kind.fields for word in field.otherwise]
    for flag in ("--output-dir", *(field.flag for field in kind.fields), *otherwise):
        assert f"{flag} " in said or f"{flag}," in said, flag


def least(kind: str, name: str) -> float:
    return next(field.least for field in jobkinds.kinds()[kind].fields if field.name == name)


def test_a_bound_that_a_command_finds_for_itself_is_left_to_it(tmp_path: Path) -> None:
    for name, flags in {"calibrate": ("--max-context", "--rounds"), "validate": ("--repeats",)}.items():
        kind = jobkinds.kinds()[name]
        assert not set(flags) & set(kind.argv({}, tmp_path))
    assert "--repeats 2" in jobkinds.kinds()["validate"].line({"repeats": 2}, tmp_path)


@pytest.mark.parametrize(("name", "flag"), [("windows", "--windows"), ("held_out", "--held-out"), ("max_loss", "")])
def test_the_least_of_a_tuning_is_what_the_command_takes(name: str, flag: str) -> None:
    from leankv.app.commands import tune

    floor = least("tune", name)
    tune._check(tune.Tune(**{name: (floor,) if name == "max_loss" else floor}))
    if flag:
        with pytest.raises(InputError, match=flag):
            tune._check(tune.Tune(**{name: floor - 1}))


def test_the_least_of_a_context_and_of_a_pool_is_what_the_backend_takes() -> None:
    pytest.importorskip("torch")
    from leankv.backend.calibration.setup import SHORTEST
    from leankv.backend.live_setup import pool_bytes

    assert least("calibrate", "max_context") == SHORTEST
    assert all(pool_bytes("cpu", least(kind, "kv_memory_gib")) > 0 for kind in ("run", "validate"))


def job(board: Jobs, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Jobs, "start", lambda self, command, folder: os.getpid())
    return board.submit("run", {"model": "m"}).id


def test_a_job_runs_the_command_and_tells_its_progress(leankv_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, seen = Jobs(leankv_home), []
    identity = job(board, monkeypatch)
    told: list[tuple[float, str]] = []
    monkeypatch.setattr(tasks, "FOLLOW_EVERY_S", 0.01)
    monkeypatch.delenv(PROGRESS_FILE, raising=False)

    def command(argv: list[str]) -> int:
        seen.append(argv)
        Path(os.environ[PROGRESS_FILE]).write_text(json.dumps({"label": "fp16", "share": 0.25}))
        while not told:
            pass
        return 0

    monkeypatch.setattr(cli, "dispatch", command)
    folder = board.get(identity).folder
    tasks.run_command(KIND, {"model": "m"}, folder, lambda share, message: told.append((share, message)))
    assert seen == [["run", "--model", "m", "--policy", "fp16", "--output-dir", str(folder / "results")]]
    assert told[0] == (0.25, "fp16")
    monkeypatch.delenv(PROGRESS_FILE)


@pytest.mark.parametrize(("status", "raised"), [(cli.INTERRUPTED, Cancelled), (2, InputError)])
def test_a_command_that_does_not_succeed_is_no_finished_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, raised: type[BaseException]
) -> None:
    monkeypatch.setenv(PROGRESS_FILE, "")
    monkeypatch.setattr(cli, "dispatch", lambda argv: status)
    with pytest.raises(raised):
        tasks.run_command(KIND, {}, tmp_path, lambda share, message: None)


def test_bad_input_is_the_jobs_error_and_no_traceback(
    leankv_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Jobs(leankv_home)
    identity = job(board, monkeypatch)

    def work(*_: object) -> None:
        raise InputError("no such model; name another")

    board.run(identity, {"run": work})
    assert (board.get(identity).state, board.get(identity).error) == ("failed", "no such model; name another")
    assert capsys.readouterr().err == "no such model; name another\n"
