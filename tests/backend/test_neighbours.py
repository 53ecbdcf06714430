"""What others take of the cores: a busy process beside this one is seen, this one's own work is not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from leankv.backend import neighbours
from leankv.backend.neighbours import Neighbours

COUNTERS = """cpu  9 9 9 9 9 9 9 9 0 0
cpu0 9000 0 0 9000 0 0 0 0 0 0
cpu1 {}
cpu2 {}
intr 5
"""


def test_shares_follow_the_machines_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(neighbours, "STAT", stat)
    mine = iter((10.0, 12.0))
    monkeypatch.setattr(neighbours, "process_time", lambda: next(mine))
    monkeypatch.setattr(neighbours.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(neighbours.os, "sched_getaffinity", lambda process: {1, 2})
    stat.write_text(COUNTERS.format("400 0 0 2500 0 0 0 0 0 0", "600 0 0 2500 0 0 0 0 0 0"))
    watch = Neighbours()
    # Five seconds of two cores: two of them mine, three of others, of which one was stolen; the third core is not mine.
    stat.write_text(COUNTERS.format("700 0 0 2600 0 0 0 100 0 0", "700 0 0 2800 100 0 0 0 0 0"))
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
