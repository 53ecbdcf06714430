"""The `leankv` command: what it lists, how it fails, how little it imports."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from leankv.app import cli
from leankv.serving.errors import InputError

HEAVY = {
    "torch", "triton", "transformers", "streamlit", "plotly", "duckdb", "pyarrow", "pandas", "scipy", "simpy",
    "pydantic", "ray", "optuna",
}  # fmt: skip
NEEDED = {"lengths": ["a-folder"], "negatives": ["a-folder"], "quality": ["a-folder"]}
EVERY_COMMAND = [*([name] for name in cli.commands() if name != "bench"), *(["bench", w] for w in cli.benchmarks())]


@pytest.fixture
def two_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands: `simulate`, `gpu-job` and `bench sim`; one file there is no command."""
    (tmp_path / "simulate.py").write_text('"""Simulate a trace.\n\nMore.\n"""\nimport no_such_library\n')
    (tmp_path / "gpu_job.py").write_text('"""Pack a job for another machine."""\n')
    (tmp_path / "bench_sim.py").write_text('"""Speed of the simulator."""\n')
    (tmp_path / "_shared.py").write_text('"""Options that commands share."""\n')
    monkeypatch.setattr(cli, "COMMANDS", tmp_path)
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-m", "leankv.app.cli", *arguments], capture_output=True, text=True)


def test_commands_are_the_modules_present_read_without_importing(two_commands: Path) -> None:
    assert cli.commands() == {
        "bench": "Benchmarks that print ratios measured in the same run: sim.",
        "gpu-job": "Pack a job for another machine.",
        "simulate": "Simulate a trace.",
    }
    assert cli.benchmarks() == {"sim": "Speed of the simulator."}


def test_help_lists_every_command_with_its_line(two_commands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "  gpu-job   Pack a job for another machine.\n" in shown
    assert "leankv simulate --trace azure-conv-2023-like" in shown
    assert cli.main(["bench", "--help"]) == 0
    assert "  sim  Speed of the simulator.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulat"], "leankv: unknown command 'simulat'; did you mean 'simulate'?\n"),
        (["zzz"], "leankv: unknown command 'zzz'; choose one of: bench, gpu-job, simulate\n"),
        (["bench", "simm"], "leankv: unknown benchmark 'simm'; did you mean 'sim'?\n"),
    ],
)
def test_an_unknown_name_is_one_line_and_exit_2(
    two_commands: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr() == ("", said)


def test_a_command_gets_the_rest_of_the_line_and_gives_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(cli, "commands", lambda: {"simulate": "", "bench": ""})
    monkeypatch.setattr(cli, "benchmarks", lambda: {"sim": ""})
    monkeypatch.setattr(cli, "_run", lambda name, rest: seen.append((name, rest)) or 7)
    assert cli.main(["simulate", "--limit", "5"]) == 7
    assert cli.main(["bench", "sim", "--help"]) == 7
    assert seen == [("simulate", ["--limit", "5"]), ("bench_sim", ["--help"])]


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (InputError("trace.csv row 3:\n  negative length; mend it"), 2, "trace.csv row 3: negative length; mend it"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_a_command_raises_becomes_one_line_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: BaseException, status: int, said: str
) -> None:
    def fail(arguments: list[str]) -> int:
        raise raised

    monkeypatch.setattr(cli, "dispatch", fail)
    assert cli.main([]) == status
    assert capsys.readouterr() == ("", f"leankv: {said}\n")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.run([sys.executable, "-P", "-m", "leankv.app.cli", "--help"], stdout=writer, stderr=PIPE)
    os.close(writer)
    assert (child.returncode, child.stderr) == (141, b"")


def test_the_bare_command_teaches_and_version_is_told() -> None:
    bare, version = run(), run("--version")
    assert bare.returncode == 2 and "usage: leankv COMMAND" in bare.stdout
    assert version.returncode == 0 and version.stdout.startswith("leankv ")


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_help_of_every_command_imports_nothing_heavy(command: list[str]) -> None:
    child = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "leankv.app.cli", *command, "--help"],
        capture_output=True,
        text=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in child.stderr.splitlines()}
    assert child.returncode == 0, child.stderr[-2000:]
    assert "usage" in child.stdout.lower()
    assert imported & HEAVY == set()


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_an_unknown_flag_is_one_line_and_exit_2(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, *NEEDED.get(command[0], ()), "--no-such-flag"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("leankv: ")
    assert "--no-such-flag" in shown.err and "--help" in shown.err


def test_each_command_has_one_line_that_fits() -> None:
    for name, line in (cli.commands() | cli.benchmarks()).items():
        assert 10 <= len(line) <= 110, f"{name}: {line!r}"


def processor_seconds(arguments: list[str]) -> float:
    """User and system time of one child: unlike wall time it does not count waiting for other processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.timing
@pytest.mark.parametrize(("arguments", "limit"), [(["--help"], 0.15), (["simulate", "--help"], 0.5)])
def test_help_answers_at_once(arguments: list[str], limit: float) -> None:
    assert min(processor_seconds(arguments) for _ in range(5)) < limit
