"""The kernels' benchmark: what it measures is right before it is timed, and the report says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is part of the extra `live`")

from leankv.app.cli import main  # noqa: E402
from leankv.bench import kernel_attention, kernel_checks, kernels  # noqa: E402
from leankv.bench.kernel_attention import WrongResult, attention_time  # noqa: E402
from leankv.bench.kernel_cache import append_time, page_times, prefill_time  # noqa: E402
from leankv.bench.kernel_checks import checks  # noqa: E402
from leankv.bench.kernels import TARGETS_US, Plan, measured  # noqa: E402
from leankv.bench.paged import Shape, filled_paged, mixes  # noqa: E402
from leankv.bench.timing import _event_timer, seconds  # noqa: E402
from leankv.kernels import pages as pg  # noqa: E402

CPU, SMALL = torch.device("cpu"), Shape(4, 2, 64)


@pytest.fixture(autouse=True)
def few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leankv.bench.timing.LEAST", 1)
    monkeypatch.setattr("leankv.bench.timing.MOST", 2)
    for module in ("kernel_attention", "kernel_cache"):
        monkeypatch.setattr(f"leankv.bench.{module}.layers_beyond_cache", lambda *_: 2)


@pytest.mark.parametrize("name", ["K8V4", "usual mix", "FP16", "FP8"])
def test_made_up_caches_are_whole_and_hold_what_they_say(name: str) -> None:
    mix = mixes(64)[name]
    paged = filled_paged(SMALL, mix, 3, 200, 2, CPU)
    pg.check_integrity(paged.tables)
    expected = torch.tensor(mix.held(200), dtype=torch.int32)
    assert bool((paged.tables.counts == expected).all())
    assert attention_time(SMALL, mix, 3, 200, CPU, scored=False)["error"] <= 1e-5


def test_usual_mix_is_a_third_high_a_third_low_a_third_pruned() -> None:
    mix = mixes(128)["usual mix"]
    assert mix.held(8192) == (2730, 2730) and [layout.format.name for layout in mix.layouts] == ["K8V4", "K4V2"]
    assert mix.bytes_read(3 * 64) == 64 * (128 + 64 + 8) + 64 * (64 + 32 + 8)


def test_a_wrong_or_unwritten_output_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets(*_: object) -> None: ...

    def disturbs(query: object, cache: object, slots: object, scale: float, output: torch.Tensor, *_: object) -> None:
        output.fill_(0.5)

    for broken, said in ((forgets, "not finite"), (disturbs, "off by")):
        monkeypatch.setattr(kernel_attention, "decode_attention", broken)
        with pytest.raises(WrongResult, match=said):
            attention_time(SMALL, mixes(64)["K8V4"], 1, 100, CPU, scored=False)


def test_the_other_operations_give_times_and_bytes() -> None:
    assert append_time(SMALL, 2, 100, CPU)["bytes"] == 2 * 2 * 66 * 16
    prefill = prefill_time(SMALL, 100, CPU)
    assert prefill["bytes"] > 3 * 100 * 2 * 64 * 4 and prefill["sdpa_seconds"] > 0
    assert set(page_times(SMALL, 2, 100, 2, CPU)) == {"pages taken", "pages freed", "pages, decode step"}


def test_reset_is_untimed_and_undoes_each_run() -> None:
    state = [0]

    def run() -> None:
        assert state == [0], "the run before was not undone"
        state[0] = 1

    def undo() -> None:
        state[0] = 0

    assert seconds(run, CPU, undo) < 0.01


def test_report_finds_each_row_its_limits_and_the_share_of_page_management() -> None:
    figures = measured(Plan(SMALL, ((1, 96),), (96,), 32, 0.001), CPU, lambda _: None)
    names = {row["operation"] for row in figures["rows"]}
    assert names >= {"decode attention", "decode attention + scores", "decode append", "prefill compression"}
    for row in figures["rows"]:
        assert row["share_of_copy"] == pytest.approx(
            row["bytes"] / row["seconds"] / figures["conditions"]["copy_bytes_s"]
        )
    assert 0 < figures["page_management"]["share"] < 1
    assert TARGETS_US["K8V4", 64, 8192] == 250 and TARGETS_US["usual mix", 64, 8192] == 130


def test_checks_hold_a_policy_to_the_other_path() -> None:
    ((share, result),) = checks(CPU, "reference", ("leankv:alpha_high=1,alpha_low=0.3",), steps=1)
    assert share == 1 and result["error"] < 1e-5


def test_checks_say_in_words_what_failed_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = kernel_checks._outputs

    def disturbed(name: str, device: object, path: object, steps: int, *others: object) -> torch.Tensor:
        if name == "int8":
            raise RuntimeError("an illegal\n memory access")
        return real(name, CPU, path, steps) * (float("nan") if name == "fp8" and path == "reference" else 1.0)

    monkeypatch.setattr(kernel_checks, "_outputs", disturbed)
    found = {each["policy"]: each for _, each in checks(CPU, "reference", ("int8", "fp8", "fp16"), steps=1)}
    assert found["int8"]["failed"] == "RuntimeError: an illegal memory access"
    assert "off by nan" in found["fp8"]["failed"] and "failed" not in found["fp16"]


def test_a_part_that_fails_is_named_and_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dict[str, float]:
        raise MemoryError("no room")

    monkeypatch.setattr(kernels, "append_time", broken)
    kept: list[int] = []
    plan = Plan(SMALL, ((1, 96),), (96,), 2, 0.001)
    figures = measured(plan, CPU, lambda _: None, lambda report: kept.append(len(report["rows"])))
    assert figures["failures"] == [{"part": "append, 1 x 96", "failed": "MemoryError: no room"}]
    assert kept == sorted(kept) and 0 < kept[0] < kept[-1] == len(figures["rows"])
    assert {row["operation"] for row in figures["rows"]} >= {"prefill compression", "pages, decode step"}


def test_command_fails_where_a_part_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "prefill_time", lambda *_: 1 / 0)
    asked = ["bench", "kernels", "--batch", "1", "--context", "64", "--backend", "cpu", "--output-dir", str(tmp_path)]
    assert main(asked) == 1
    printed = capsys.readouterr().out
    (text,), (file,) = tmp_path.glob("*.txt"), tmp_path.glob("*.json")
    assert "FAILED prefill, 64: ZeroDivisionError" in printed and text.read_text() in printed
    assert json.loads(file.read_text())["failures"][0]["part"] == "prefill, 64"


def test_command_says_that_cpu_figures_are_cpu_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["bench", "kernels", "--batch", "1", "--context", "64", "--backend", "cpu", "--output-dir", str(tmp_path)]
    assert main(asked) == 0
    assert "These are CPU figures" in capsys.readouterr().out
    (file,) = tmp_path.glob("kernels-cpu-*.json")
    assert json.loads(file.read_text())["conditions"]["path"] == "torch"


@pytest.mark.parametrize("arguments", [["--batch", "0"], ["--backend", "tpu"], ["--contxt", "64"]])
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_gpu_is_busy_while_the_host_launches_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.name = "start" if not called else "end"
            called.append("made")

        def record(self) -> None:
            called.append(self.name)

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: called.append("idle"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: called.append("busy"))
    assert _event_timer(lambda: called.append("run"), torch.device("cuda"))() == 2e-3
    assert called[2:] == ["idle", "busy", "start", "run", "end"]
