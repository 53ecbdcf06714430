"""Progress of a command, for the one who started it as a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leankv.app.commands._progress import PROGRESS_FILE, progress_bar


def test_a_followed_command_writes_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "progress.json"
    monkeypatch.setenv(PROGRESS_FILE, str(path))
    with progress_bar("fp16: 40 requests") as report:
        assert json.loads(path.read_text()) == {"label": "fp16: 40 requests", "share": 0.0}
        report(0.5)  # too soon after the last to be worth a write
        assert json.loads(path.read_text())["share"] == 0.0
        report(1.0)
    assert json.loads(path.read_text())["share"] == 1.0
    assert [each.name for each in tmp_path.iterdir()] == ["progress.json"]


def test_without_a_follower_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRESS_FILE, raising=False)
    monkeypatch.chdir(tmp_path)
    with progress_bar("fp16") as report:
        report(1.0)
    assert not list(tmp_path.iterdir())
