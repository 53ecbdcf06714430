"""The Jobs page: starting, following, cancelling, and what is told of jobs that have ended."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from leankv.app import jobkinds, jobwords
from leankv.app.jobkinds import Kind, kinds
from leankv.app.jobs import Job, Jobs


def opened(**query: str) -> AppTest:
    app = AppTest.from_string("from leankv.app.screens import jobs; jobs.page()", default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


def pressed(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception, app.exception
    return app


def labels(app: AppTest) -> list[str]:
    return [button.label for button in app.button]


@pytest.fixture(autouse=True)
def board(leankv_home: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """No process is started: a job stays queued until the test moves it."""
    monkeypatch.setattr(Jobs, "start", lambda self, command, folder: os.getpid())
    return Jobs(leankv_home)


def ended(board: Jobs, error: str = "") -> Job:
    def work(params: object, folder: Path, report: object) -> None:
        (folder / "results").mkdir()
        (folder / "results" / "summary.json").write_text("{}")
        if error:
            raise ValueError(error)

    identity = board.submit("run", {"limit": 4}).id
    board.run(identity, {"run": work})
    return board.get(identity)


def test_an_empty_page_teaches() -> None:
    app = opened()
    assert "Nothing has run here yet" in app.markdown[0].value
    assert app.code[0].value.startswith("leankv run --model smollm2-135m --policy fp16 --policy leankv")


def test_a_job_is_started_followed_and_cancelled(board: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened()
    app.number_input(key="job-run-limit").set_value(5).run()
    pressed(app, "Start: live run")
    (job,) = board.history(["run"])
    assert job.params["limit"] == 5 and job.params["policy"] == ["fp16", "leankv"]
    assert "1 job is running" in app.markdown[0].value
    (job.folder / "log.txt").write_text("loading the model\n")
    again = opened()  # a reload finds it
    assert any("loading the model" in code.value for code in again.code)
    monkeypatch.setattr("leankv.app.jobs._alive", lambda pid: False)
    pressed(again, "Cancel")
    assert board.get(job.id).state == "cancelled"
    assert "was cancelled just now" in again.markdown[0].value
    assert "Go on" in labels(again)


def test_a_failed_job_says_why_and_can_go_on_or_be_removed(board: Jobs) -> None:
    job = ended(board, "no such model")
    app = opened()
    assert app.error[0].value == "no such model"
    pressed(app, "Go on")
    assert board.get(job.id).state == "queued"
    board.run(job.id, {"run": lambda *_: None})
    pressed(opened(), "Remove")
    assert board.history(["run"]) == []


def test_results_are_listed(board: Jobs) -> None:
    ended(board)
    app = opened()
    assert not app.error
    assert "Go on" not in labels(app)
    assert not any("left no results" in caption.value for caption in app.caption)


def test_without_the_live_extra_nothing_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobkinds, "find_spec", lambda name: None)
    app = opened()
    assert app.info[0].value.count("\n") == 0
    assert "pip install 'leankv[live]'" in app.info[0].value
    assert not any(label.startswith("Start") for label in labels(app))


def test_a_job_that_died_is_told_from_its_silence(board: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    board.submit("run", {"limit": 4})
    monkeypatch.setattr("leankv.app.jobs.STALE_S", -1.0)
    assert "died" in opened().markdown[0].value


@pytest.mark.parametrize(("seconds", "said"), [(7, "7 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_spells(seconds: float, said: str) -> None:
    assert jobwords.spell(seconds) == said


@pytest.mark.parametrize(("seconds", "said"), [(3, "just now"), (90, "1 minute ago"), (200_000, "2 days ago")])
def test_how_long_ago(seconds: float, said: str) -> None:
    assert jobwords.ago(seconds) == said


def test_the_table_of_jobs_is_plain(board: Jobs) -> None:
    job = ended(board, "out of luck")
    (row,) = jobwords.table([job], kinds(), time.time()).to_pylist()
    expected = ("Live run", "failed", "model smollm2-135m · requests 4", "out of luck")
    assert (row["What"], row["How"], row["Settings"], row["Why"]) == expected
    assert json.dumps(row)


def test_a_log_shows_its_end_without_redrawn_bars() -> None:
    assert jobwords.tail("a\nb\rc\nd\n", 2) == "c\nd"


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.name)
def test_every_kind_can_be_asked_for_and_shows_its_command(kind: Kind) -> None:
    app = opened(kind=kind.title)
    assert app.code[0].value == kind.line({}, Path("results")) or kind.name == "validate"
    assert f"Start: {kind.title.lower()}" in labels(app)
