"""`--profile` on the commands that simulate: what comes from it, and what must agree with it."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from tests.simulator.made_profile import made_profile

from leankv.app.cli import main
from leankv.serving.profile import save_profile

TRACE = ("--trace", "poisson:rate=2,n=30,prompt=60,output=12", "--max-prompt", "200", "--max-output", "24")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiles") / "mine"
    save_profile(made_profile(), pa.table({"policy": ["fp16"]}), folder)
    return folder


def runs(path: Path) -> list[dict]:
    return json.loads(path.read_text())["runs"]


def test_model_device_limits_and_policies_come_from_the_profile(profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    folder = tmp_path / "runs"
    asked = ["simulate", *TRACE, "--profile", str(profile), "--json", str(out), "--output-dir", str(folder)]
    assert main(asked) == 0
    assert [run["policy"] for run in runs(out)] == ["fp16", "int8", "kivi", "leankv"]
    assert {run["summary"]["step_time_source"] for run in runs(out)} == {"profile (cpu, 2 threads, 2026-11-21)"}
    config = json.loads((folder / "leankv" / "config.json").read_text())["config"]
    assert (config["model"]["name"], config["device"]["name"]) == ("smollm2-135m", "cpu, 2 threads")
    assert (config["max_num_seqs"], config["max_num_batched_tokens"]) == (16, 512)
    assert config["profile"]["created"] == "2026-11-21T15:00:00+00:00"


def test_what_is_named_beside_it_must_agree(profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> tuple[int, str]:
        status = main(["simulate", *TRACE, "--profile", str(profile), "--policy", "fp16", *words])
        return status, capsys.readouterr().err

    assert told("--model", "smollm2-135m", "--device", "cpu")[0] == 0
    for words, message in [
        (("--model", "qwen2.5-7b"), "the profile is of smollm2-135m, not of qwen2.5-7b"),
        (("--device", "h100"), "--device h100: the profile is of cpu, 2 threads"),
        (("--step-time", "roofline"), "need the profile"),
        (("--policy", "fp8"), "policy fp8 was not measured"),
        (("--tp", "3"), "measured on one device"),
    ]:
        status, error = told(*words)
        assert status == 2 and message in error and error.count("\n") == 1, words
    assert main(["simulate", *TRACE, "--profile", str(tmp_path)]) == 2
    assert "not a profile" in capsys.readouterr().err
    assert main(["simulate", *TRACE, "--step-time", "profile"]) == 2
    assert "--profile DIR" in capsys.readouterr().err


def test_a_sweep_takes_a_profile_too(profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    asked = ["sweep", *TRACE, "--profile", str(profile), "--policy", "fp16", "--policy", "leankv", "--workers", "1"]
    assert main([*asked, "--rate-scale", "0.5", "1", "--kv-memory-gib", "0.1", "--json", str(out)]) == 0
    assert "profile (cpu, 2 threads, 2026-11-21)" in out.read_text()
