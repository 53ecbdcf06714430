"""Jobs: what a page may rely on, and what happens when their processes do not behave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from leankv.app import jobs
from leankv.app.jobs import Job, Jobs, Progress


def wait(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def running(board: Jobs, code: str) -> Job:
    """A job whose process is `code`, started as every job is."""
    with pytest.MonkeyPatch.context() as patch:
        start = Jobs.start
        patch.setattr(
            Jobs, "start", lambda self, command, folder: start(self, [*command[:2], "-c", code, command[-1]], folder)
        )
        return board.submit("test", {"code": code})


def queued(board: Jobs, params: Mapping[str, Any]) -> str:
    """A job's row whose process is this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jobs, "start", lambda self, command, folder: os.getpid())
        return board.submit("test", params).id


BEATING = """
import sys, time
from leankv.app import jobs
def work(params, folder, report):
    report(0.5, "half way")
    time.sleep(60)
import signal
signal.signal(signal.SIGTERM, {handler})
jobs.Jobs().run(sys.argv[1], {{"test": work}})
"""


def test_a_task_runs_and_leaves_progress_and_results(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    seen: list[float] = []

    def work(params: Mapping[str, Any], folder: Path, report: Progress) -> None:
        report(0.25, "a quarter")
        seen.append(board.get(identity).progress)
        (folder / "answer.txt").write_text(str(params["x"] * 2))

    identity = queued(board, {"x": 21})
    board.run(identity, {"test": work})
    job = board.get(identity)
    assert (job.state, job.progress, job.error) == ("done", 1.0, "")
    assert seen == [0.25]
    assert (job.folder / "answer.txt").read_text() == "42"
    assert board.latest("test", {"x": 21}) == job
    assert board.latest("test", {"x": 22}) is None


def test_a_failing_task_says_why(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    identity = queued(board, {})

    def work(params: Mapping[str, Any], folder: Path, report: Progress) -> None:
        raise ValueError("no such trace; choose another")

    board.run(identity, {"test": work})
    job = board.get(identity)
    assert (job.state, job.error) == ("failed", "no such trace; choose another")


def test_a_job_runs_once(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    identity = queued(board, {})
    calls: list[int] = []
    tasks = {"test": lambda params, folder, report: calls.append(1)}
    board.run(identity, tasks)
    board.run(identity, tasks)
    assert calls == [1]


def test_a_killed_job_is_shown_as_died(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    job = running(board, BEATING.format(handler="jobs._stop"))
    wait(lambda: board.get(job.id).progress == 0.5)
    assert board.get(job.id).state == "running"
    assert job.pid
    os.kill(job.pid, signal.SIGKILL)
    wait(lambda: board.get(job.id).state == "died", 10)
    assert "without a word" in board.get(job.id).error
    assert not board.get(job.id).active


def test_a_silent_job_is_shown_as_died(leankv_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "STALE_S", 1.5)
    board = Jobs(leankv_home)
    job = running(board, "import time; time.sleep(60)")
    assert board.get(job.id).state == "queued"
    wait(lambda: board.get(job.id).state == "died", 10)
    assert "no heartbeat" in board.get(job.id).error
    assert job.pid
    os.kill(job.pid, signal.SIGKILL)


@pytest.mark.parametrize("handler", ["jobs._stop", "signal.SIG_IGN"])
def test_cancel_stops_the_process_even_one_that_does_not_listen(
    leankv_home: Path, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    monkeypatch.setattr(jobs, "GRACE_S", 1.0)
    board = Jobs(leankv_home)
    job = running(board, BEATING.format(handler=handler))
    wait(lambda: board.get(job.id).state == "running" and board.get(job.id).progress == 0.5)
    assert board.cancel(job.id).state == "cancelled"
    pid = job.pid
    assert pid
    wait(lambda: not jobs._alive(pid))
    assert board.cancel(job.id).state == "cancelled"


def test_a_finished_job_cannot_be_cancelled(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    identity = queued(board, {})
    board.run(identity, {"test": lambda params, folder, report: None})
    assert board.cancel(identity).state == "done"


def test_another_process_sees_the_job(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    identity = queued(board, {"x": 1})
    code = f"from leankv.app.jobs import Jobs; print(Jobs().get({identity!r}).state)"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "queued"


def test_many_writers_lose_nothing(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    identities: list[str] = [queued(board, {"n": n}) for n in range(8)]

    def work(params: Mapping[str, Any], folder: Path, report: Progress) -> None:
        for step in range(5):
            report(step / 5, "")

    threads = [threading.Thread(target=board.run, args=(identity, {"test": work})) for identity in identities]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {board.get(identity).state for identity in identities} == {"done"}


def test_unknown_job(leankv_home: Path) -> None:
    with pytest.raises(KeyError):
        Jobs(leankv_home).get("nothing")


def test_history_is_newest_first_and_of_the_kinds_asked(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    first, second = queued(board, {"n": 1}), queued(board, {"n": 2})
    assert [job.id for job in board.history(["test"])] == [second, first]
    assert [job.id for job in board.history(["test"], limit=1)] == [second]
    assert board.history(["other"]) == []


def test_a_job_that_ended_goes_on_in_its_folder(leankv_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Jobs(leankv_home)
    identity = queued(board, {})
    monkeypatch.setattr(Jobs, "start", lambda self, command, folder: os.getpid())

    def work(params: Mapping[str, Any], folder: Path, report: Progress) -> None:
        if not (folder / "half").exists():
            (folder / "half").write_text("done")
            raise ValueError("stopped half way")

    board.run(identity, {"test": work})
    assert board.get(identity).state == "failed"
    again = board.resume(identity)
    assert (again.state, again.error, again.finished_s) == ("queued", "", None)
    board.run(identity, {"test": work})
    assert board.get(identity).state == "done"


def test_a_job_at_work_is_neither_started_twice_nor_removed(leankv_home: Path) -> None:
    board = Jobs(leankv_home)
    identity = queued(board, {})
    before = board.get(identity)
    assert board.resume(identity) == before
    board.remove(identity)
    assert board.get(identity) == before
    board.run(identity, {"test": lambda params, folder, report: None})
    board.remove(identity)
    assert board.history(["test"]) == [] and not before.folder.exists()
