"""The pages as a visitor meets them, without a browser: what they show, and what they do with bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from leankv.app import jobs, sweeppanel
from leankv.app.jobs import Jobs
from leankv.app.scenario import Scenario

SMALL = 150
NO_PROCESS = 2**22 + 1  # above the largest pid that Linux gives


@pytest.fixture(autouse=True)
def calm(leankv_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sweep starts by itself, and state stays in the test's folder."""
    monkeypatch.setattr(sweeppanel, "AT_ONCE", 0)


def opened(page: str, **query: object) -> AppTest:
    """The page as a link with these parameters opens it, on a short trace."""
    script = f"from leankv.app.screens import {page}; {page}.page()"
    app = AppTest.from_string(script, default_timeout=60)
    for name, value in {"limit": SMALL, **query}.items():
        app.query_params[name] = [str(item) for item in value] if isinstance(value, list) else str(value)
    app.run()
    assert not app.exception, app.exception
    return app


def charts(app: AppTest) -> list[object]:
    return list(app.get("plotly_chart"))


def test_the_entry_opens_on_a_comparison_without_a_click(repository: Path) -> None:
    app = AppTest.from_file(str(repository / "app" / "main.py"), default_timeout=60)
    app.run()
    assert not app.exception
    assert not app.error
    assert app.title[0].value == "Which KV-cache policy?"
    assert len(app.metric) == 6
    assert app.metric[0].value in Scenario().policies
    assert app.multiselect(key="policy").value == list(Scenario().policies)


def test_compare_draws_every_chart_and_states_its_sources() -> None:
    app = opened("compare")
    assert len(charts(app)) == 3 + len(Scenario().policies)
    assert any("within the SLO" in block.value for block in app.markdown)
    assert any("roofline" in caption.value for caption in app.caption)
    assert any("literature" in caption.value or "measured" in caption.value for caption in app.caption)
    board = app.dataframe[0].value
    assert set(board["Policy"]) == set(Scenario().policies)
    assert {"Compression, nominal", "Compression, physical", "$ per M output tokens", "Stable"} <= set(board.columns)


def test_a_link_restores_the_choices() -> None:
    app = opened("compare", policy=["fp16", "int8"], gpu="h100", model="qwen3-8b", ttft=300, rate=2)
    assert app.multiselect(key="policy").value == ["fp16", "int8"]
    assert app.selectbox(key="gpu").value == "h100"
    assert app.selectbox(key="model").value == "qwen3-8b"
    assert app.number_input(key="ttft").value == 300
    assert set(app.dataframe[0].value["Policy"]) == {"fp16", "int8"}


def test_knobs_can_be_typed() -> None:
    app = opened("compare", policy=["kivi:bits=4", "kivi:bits=2"])
    assert set(app.dataframe[0].value["Policy"]) == {"kivi:bits=4", "kivi:bits=2"}


def test_an_unknown_policy_is_one_line_and_the_others_stay() -> None:
    app = opened("compare", policy=["fp16", "kivy"])
    assert [error.value for error in app.error] == ["kivy: unknown policy 'kivy'; did you mean 'kivi'?"]
    assert list(app.dataframe[0].value["Policy"]) == ["fp16"]


def test_a_model_that_does_not_fit_is_said_once() -> None:
    app = opened("compare", model="llama-3-70b")
    assert len(app.error) == 1
    assert "does not fit" in app.error[0].value
    assert "\n" not in app.error[0].value


@pytest.mark.parametrize("page", ["compare", "run", "traces"])
def test_a_missing_trace_is_one_line_and_can_be_mended(page: str) -> None:
    app = opened(page, trace="nowhere.csv")
    assert len(app.error) == 1
    assert "nowhere.csv" in app.error[0].value
    app.selectbox(key="trace").set_value("azure-conv-2023-like").run()
    assert not app.error
    assert app.metric


def test_no_policy_asks_for_one() -> None:
    app = opened("compare")
    app.multiselect(key="policy").set_value([]).run()
    assert "Choose at least one policy" in app.info[0].value


def test_a_tighter_service_level_lowers_goodput() -> None:
    app = opened("compare")
    before = float(app.metric[1].value.removesuffix("/s"))
    app.number_input(key="tpot").set_value(25.0).run()
    assert float(app.metric[1].value.removesuffix("/s")) < before


def test_an_overloaded_run_is_flagged() -> None:
    app = opened("compare", rate=50, gpu="rtx-4090", limit=400, policy=["fp16"])
    assert any("unstable" in warning.value for warning in app.warning)


def test_a_file_typed_as_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("arrival,prompt,output\n" + "".join(f"{n},100,20\n" for n in range(30)))
    app = opened("traces", trace=str(path))
    assert not app.error
    assert app.metric[0].value == "30"


def test_run_shows_one_policy_in_depth() -> None:
    app = opened("run", show="fp8")
    assert app.metric[2].value == str(SMALL)
    assert len(charts(app)) == 6
    assert any("**fp8**" in caption.value for caption in app.caption)
    assert [tab.label for tab in app.tabs] == ["Over time", "Requests", "Latency", "KV memory", "Summary"]


def test_run_reads_a_folder(tmp_path: Path) -> None:
    from leankv.serving.runs import save_run
    from leankv.simulator.run import simulate
    from leankv.traces.open import open_trace

    folder = tmp_path / "saved"
    save_run(simulate(Scenario().config("leankv"), open_trace(limit=60)), folder)
    app = opened("run", **{"from": "A run folder", "folder": str(folder)})
    assert not app.error
    assert app.metric[2].value == "60"


def test_a_kept_run_is_offered_again(leankv_home: Path) -> None:
    app = opened("run", show="fp8")
    next(button for button in app.button if button.label == "Keep this run").click().run()
    (folder,) = (leankv_home / "runs").iterdir()
    assert str(folder) in app.success[0].value
    again = opened("run", **{"from": "A run folder"})
    assert again.selectbox(key="folder").options == [str(folder)]
    again.selectbox(key="folder").set_value(str(folder)).run()
    assert again.metric[2].value == str(SMALL)


def test_run_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    app = opened("run", **{"from": "A run folder", "folder": str(tmp_path)})
    assert len(app.error) == 1
    assert str(tmp_path) in app.error[0].value


def test_traces_shows_the_whole_trace() -> None:
    app = opened("traces")
    assert app.metric[0].value == "19,366"
    assert len(charts(app)) == 5
    assert "rate_per_s" in list(app.dataframe[-1].value["figure"])


def test_a_sweep_can_be_started_and_its_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened("compare", policy=["fp16"])
    monkeypatch.setattr(Jobs, "start", lambda board, command, folder: NO_PROCESS)
    next(button for button in app.button if button.label == "Sweep the rate").click().run()
    assert not app.exception
    (button,) = [button for button in app.button if button.label == "Cancel"]
    button.click().run()
    assert any("cancelled" in warning.value for warning in app.warning)
    assert any(button.label == "Sweep again" for button in app.button)


def test_a_sweep_that_died_is_told(leankv_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened("compare", policy=["fp16"])
    monkeypatch.setattr(Jobs, "start", lambda board, command, folder: NO_PROCESS)
    monkeypatch.setattr(jobs, "BEAT_S", -1.0)
    next(button for button in app.button if button.label == "Sweep the rate").click().run()
    assert any("died: its process ended without a word" in warning.value for warning in app.warning)
