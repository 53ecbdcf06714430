"""`leankv simulate`: what it writes, the seeds it draws, and what it refuses in one line, with nothing written."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from leankv.app import cli
from leankv.serving.runs import load_run

HEADER = "arrival_s,prompt_tokens,output_tokens\n"
ROWS = "".join(f"{index * 0.2:.1f},{300 + index},{20 + index % 7}\n" for index in range(50))
QUICK = ["--device", "l40s", "--policy", "fp16", "--policy", "leankv"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a good trace `good.csv`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text(HEADER + ROWS)
    return tmp_path


def simulate(*words: str) -> int:
    return cli.main(["simulate", *words])


def runs_in(path: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"]
    return runs


def test_one_object_with_a_summary_a_policy_and_a_run_folder_each(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate("--trace", "good.csv", *QUICK, "--json", "out.json", "--output-dir", "runs") == 0
    runs = runs_in(place / "out.json")
    assert [(run["policy"], run["source"], run["summary"]["completed"]) for run in runs] == [
        ("fp16", "simulated", 50), ("leankv", "simulated", 50),
    ]  # fmt: skip
    for run in runs:
        saved = load_run(place / "runs" / run["policy"])
        assert json.loads(json.dumps(dict(saved.summary))) == run["summary"]
        assert saved.requests.num_rows == 50
    assert "paired" not in runs[0]["summary"]
    paired = runs[1]["summary"]["paired"]
    means = [run["summary"]["mean_e2el_ms"] for run in runs]
    assert (paired["against"], paired["requests"]) == ("fp16", 50)
    assert paired["mean_difference_ms"] == pytest.approx(means[1] - means[0])
    shown = capsys.readouterr()
    assert "intervals: block bootstrap over time" in shown.out and shown.err == ""


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(place: Path) -> None:
    words = ["--trace", "gamma:rate=6,cv=2,n=80", *QUICK, "--replicas", "2", "--router", "random"]
    written = []
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        assert simulate(*words, "--seed", str(seed), "--json", f"{name}.json") == 0
        written.append((place / f"{name}.json").read_bytes())
    assert written[0] == written[1] != written[2]


def test_seeds_give_means_intervals_and_the_same_traces_to_each_policy(place: Path) -> None:
    words = ["--trace", "gamma:rate=6,cv=2,n=80", *QUICK]
    assert simulate(*words, "--seed", "4", "--seeds", "3", "--json", "all.json", "--output-dir", "runs") == 0
    singles = []
    for seed in (4, 5, 6):
        assert simulate(*words, "--seed", str(seed), "--json", "one.json") == 0
        singles.append(runs_in(place / "one.json"))
    for index, run in enumerate(runs_in(place / "all.json")):
        summary = run["summary"]
        each = [single[index]["summary"] for single in singles]
        assert summary["mean_ttft_ms"] == pytest.approx(sum(one["mean_ttft_ms"] for one in each) / 3)
        low, high = summary["intervals"]["mean_ttft_ms"]
        assert low < summary["mean_ttft_ms"] < high
        assert (summary["interval_kind"], summary["seeds"]) == ("seeds (3)", [4, 5, 6])
        for seed, one in zip((4, 5, 6), each, strict=True):
            assert (
                load_run(place / "runs" / run["policy"] / f"seed-{seed}").summary["p99_e2el_ms"] == one["p99_e2el_ms"]
            )
    paired = runs_in(place / "all.json")[1]["summary"]["paired"]
    differences = [single[1]["summary"]["paired"]["mean_difference_ms"] for single in singles]
    assert paired["mean_difference_ms"] == pytest.approx(sum(differences) / 3) and paired["requests"] == 240


def test_without_fp16_the_first_policy_is_the_baseline(place: Path) -> None:
    words = ["--device", "l40s", "--policy", "kivi:bits=2", "--policy", "leankv", "--output-dir", "runs"]
    assert simulate("good.csv", *words, "--json", "out.json") == 0
    assert runs_in(place / "out.json")[1]["summary"]["paired"]["against"] == "kivi:bits=2"
    assert sorted(path.name for path in (place / "runs").iterdir()) == ["kivi-bits2", "leankv"]


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        ("3,100,10\n1,200,10\n2,300,10\n", "sorted"),
        ("1,100,10\n1,200,10\n2,300,10\n", "share the timestamp of an earlier one"),
    ],
)
def test_unsorted_and_shared_timestamps_are_mended_with_a_warning(
    place: Path, capsys: pytest.CaptureFixture[str], rows: str, warning: str
) -> None:
    (place / "odd.csv").write_text(HEADER + rows)
    assert simulate("--trace", "odd.csv", *QUICK, "--json", "out.json") == 0
    assert [run["summary"]["completed"] for run in runs_in(place / "out.json")] == [3, 3]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("leankv: warning: ") and warning in said


def test_a_request_beyond_the_context_is_rejected_counted_and_listed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "long.csv").write_text(HEADER + ROWS + "99,5000,10\n")
    assert simulate("--trace", "long.csv", "--model", "llama-2-7b", *QUICK, "--json", "out.json") == 0
    for run in runs_in(place / "out.json"):
        assert (run["summary"]["completed"], run["summary"]["rejected"]) == (50, 1)
        assert run["summary"]["rejections"] == [[50, "5000 + 10 tokens exceed the model's context of 4096"]]
    assert "fp16: request 50 rejected: 5000 + 10 tokens exceed the model's context" in capsys.readouterr().out


SETTINGS: dict[str, tuple[list[str], str]] = {
    "unknown policy": (["--policy", "leankw"], "unknown policy 'leankw'; did you mean 'leankv'?"),
    "unknown knob": (["--policy", "kivi:bitz=2"], "policy 'kivi' has no knob 'bitz'; did you mean 'bits'?"),
    "knob of the wrong type": (["--policy", "kivi:bits=two"], "write bits=VALUE with a value of type int"),
    "policy twice": (["--policy", "fp16"], "--policy fp16 is given twice; give it once"),
    "unknown model": (["--model", "llama-3-8c"], "'llama-3-8c'; did you mean 'llama-3-8b'?"),
    "unknown device": (["--device", "h1000"], "'h1000'; did you mean 'h100'?"),
    "unknown router": (["--router", "round-robbin"], "did you mean 'round-robin'?"),
    "model too large": (["--model", "llama-3-70b"], "llama-3-70b does not fit: 131"),
    "pool too large": (
        ["--kv-memory-gib", "500"],
        "does not fit: 15.0 GiB of weights per GPU with tp=1, 500.0 GiB of KV",
    ),
    "pool too small for any request": (["--kv-memory-gib", "0.0001"], "every request was rejected, the first: needs "),
    "pool of no size": (["--kv-memory-gib", "-1"], "--kv-memory-gib -1 is no size; give a number above 0"),
    "no pool": (["--kv-memory-gib", "0"], "--kv-memory-gib 0 is no size"),
    "slo without bound": (["--slo", "ttft"], "--slo ttft cannot be read; write METRIC:MS"),
    "slo of nothing": (["--slo", "ttfb:5"], "--slo ttfb:5 cannot be read"),
    "slo not positive": (["--slo", "tpot:-1"], "--slo tpot:-1 cannot be read"),
    "slo not a number": (["--slo", "tpot:nan"], "--slo tpot:nan cannot be read"),
    "slo twice": (["--slo", "tpot:5", "tpot:6"], "--slo tpot is given twice"),
    "no GPUs": (["--tp", "0"], "tp is 0: give at least 1"),
    "no replicas": (["--replicas", "0"], "replicas is 0: give at least 1"),
    "no batch": (["--max-num-seqs", "0"], "max_num_seqs is 0: give at least 1"),
    "overhead below zero": (["--step-overhead-ms", "-1"], "step_overhead_ms is -1.0: give milliseconds, 0 or more"),
    "no loop": (["--max-concurrency", "0"], "max_concurrency is 0: give at least 1"),
    "rate of nothing": (["--rate-scale", "0"], "rate scale 0.0 is not a positive number"),
    "no seeds": (["--seeds", "0"], "--seeds 0 from --seed 0: give at least 1"),
    "seeds of a replayed trace": (["--seeds", "3"], "--seeds 3: good is the same for every seed; leave --seeds out"),
    "not a number": (["--tp", "two"], "Error parsing --tp: invalid literal for int() with base 10: 'two'; see leankv"),
    "unknown flag": (["--polizy", "fp16"], "Unrecognized options: --polizy, fp16; did you mean --policy?"),
    "unknown choice": (["--step-time", "guess"], "invalid choice 'guess' for argument '--step-time'"),
    "json into no folder": (
        ["--json", "no/out.json"],
        "cannot write no/out.json: its folder does not exist; create it",
    ),
    "json over a folder": (["--json", "."], "cannot write .: it is a folder; name a file"),
    "folder that holds files": (["--output-dir", "."], "output folder . already holds files; name a new one"),
    "folder that is a file": (["--output-dir", "good.csv"], "cannot write folder good.csv: a file of that name exists"),
    "folder below a file": (["--output-dir", "good.csv/x"], "good.csv is a file; name another place"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_is_one_line_and_exit_2(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words, said = SETTINGS[name]
    outputs = [
        word
        for flag, file in (("--json", "out.json"), ("--output-dir", "runs"))
        if flag not in words
        for word in (flag, file)
    ]
    refused(place, capsys, ["--trace", "good.csv", *QUICK, *words, *outputs], said)


def refused(place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    before = sorted(place.rglob("*"))
    status = simulate(*words)
    shown = capsys.readouterr()
    assert (status, shown.out) == (2, "")
    assert said in shown.err and shown.err.count("\n") == 1 and shown.err.startswith("leankv: "), shown.err
    assert sorted(place.rglob("*")) == before


TRACES: dict[str, tuple[str | bytes | None, str]] = {
    "missing": (None, "no trace 'bad.csv': no such file"),
    "nothing at all": ("", "bad.csv: is empty"),
    "rows missing": (HEADER, "bad.csv: holds no requests; give a trace with at least one row"),
    "another format": ("<html><body>404</body></html>\n", "bad.csv"),
    "bytes": (bytes(range(256)) * 8, "bad.csv"),
    "arrival NaN": (HEADER + "0,10,10\nnan,10,10\n", "bad.csv: row 2 (line 3) has "),
    "length NaN": (HEADER + "0,10,10\n1,NaN,10\n", "bad.csv: row 2 (line 3) has "),
    "length negative": (HEADER + "0,10,10\n1,-5,10\n", "bad.csv: row 2 (line 3) has "),
    "length zero": (HEADER + "0,10,10\n1,5,0\n", "bad.csv: row 2 (line 3) has "),
    "length missing": (HEADER + "0,10,10\n1,,3\n", "bad.csv: row 2 (line 3) has "),
    "columns unknown": ("when,in,out\n1,2,3\n", "name the columns with --columns arrival=...,prompt=...,output=..."),
    "all too long": (HEADER + "0,200000,10\n", "every request was rejected, the first: 200000 + 10 tokens exceed"),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_that_cannot_be_served_is_one_line_and_exit_2(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content, said = TRACES[name]
    if content is not None:
        (place / "bad.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["--trace", "bad.csv", *QUICK, "--json", "out.json", "--output-dir", "runs"]
    refused(place, capsys, words, said)


def test_a_gzip_cut_short_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = gzip.compress((HEADER + ROWS * 40).encode())
    (place / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    refused(place, capsys, ["--trace", "cut.csv.gz", *QUICK, "--json", "out.json"], "cut.csv.gz")


@pytest.mark.parametrize("words", [["--json", "locked/out.json"], ["--output-dir", "locked/deeper/runs"]])
def test_a_folder_without_the_right_to_write_is_refused_before_any_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    locked = place / "locked"
    locked.mkdir()
    # The superuser may write everywhere, so the right is taken away where it is asked for.
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != locked)
    refused(place, capsys, ["--trace", "good.csv", *QUICK, *words], f"no right to write in {locked}")


def test_ctrl_c_keeps_the_policies_that_are_finished(place: Path) -> None:
    words = ["--trace", "poisson:rate=4,n=100,prompt=50,output=20", "--policy", "fp16", "--policy", "leankv"]
    command = [sys.executable, "-P", "-c", _SLOW_SECOND_POLICY, "simulate", *words, "--json", "out.json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (place / "second").exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (130, "leankv: stopped\n")
    assert [run["policy"] for run in runs_in(place / "out.json")] == ["fp16"]
    assert "fp16" in out and not list(place.glob(".*"))


_SLOW_SECOND_POLICY = """
import sys, time
from pathlib import Path
from leankv.app import cli
from leankv.app.commands import simulate as command
run = command._simulated
def slow(config, trace):
    if config.policy.name == "leankv":
        Path("second").touch()
        time.sleep(60)
    return run(config, trace)
command._simulated = slow
sys.exit(cli.main(sys.argv[1:]))
"""
