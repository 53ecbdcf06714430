"""What others take of the cores: a busy process beside this one is seen, this one's own work is not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from leankv.backend import neighbours
from leankv.backend.neighbours import Neighbours


def test_shares_follow_the_machines_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(neighbours, "STAT", stat)
    mine = iter((10.0, 12.0))
    monkeypatch.setattr(neighbours, "process_time", lambda: next(mine))
    monkeypatch.setattr(neighbours.os, "sysconf", lambda name: 100)
    stat.write_text("cpu 1000 0 0 5000 0 0 0 0 0 0\ncpu0 1 1\n")
    watch = Neighbours()
    # Ten seconds of all cores: two of them mine, three of others, of which one was stolen.
    stat.write_text("cpu 1400 0 0 5400 100 0 0 100 0 0\ncpu0 1 1\n")
    assert watch.share() == pytest.approx(0.3)


def test_nothing_is_known_without_the_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "STAT", tmp_path / "none")
    assert Neighbours().share() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system has no /proc/stat")
def test_a_busy_neighbour_is_seen() -> None:
    watch = Neighbours()
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1.5)
        share = watch.share()
    finally:
        child.kill()
        child.wait()
    assert share is not None and share > 0.05
