"""Background jobs: work that outlives the page that asked for it.

A job is a row in SQLite and a process of its own. The process writes progress and a heartbeat into the row and its
results into the job's folder; the page only reads, so a reload, a second tab or a restarted server finds the job where
it is. A process that dies without a word (kill -9, out of memory, a reboot) is told from its missing heartbeat.

`python -P -m leankv.app.jobs ID` runs job ID; `Jobs.submit` starts exactly that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leankv.app.home import home
from leankv.serving.errors import InputError

BEAT_S = 1.0
STALE_S = 20.0  # many missed beats: a busy machine may delay a few
GRACE_S = 5.0  # between asking a process to stop and killing it
POLL_S = 0.05
LOG_COLUMNS = 110

Progress = Callable[[float, str], None]
Task = Callable[[Mapping[str, Any], Path, Progress], None]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    params TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL,
    progress REAL NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    pid INTEGER,
    created_s REAL NOT NULL,
    heartbeat_s REAL NOT NULL,
    finished_s REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (key, created_s);
"""


class Cancelled(KeyboardInterrupt):
    """Raised inside a task when the job is asked to stop: what a command does at Ctrl-C, it does here."""


@dataclass(frozen=True)
class Job:
    """One row. `state` is queued, running, done, failed, cancelled, or died (its process is gone without a word)."""

    id: str
    kind: str
    params: Mapping[str, Any]
    state: str
    progress: float
    message: str
    error: str
    pid: int | None
    created_s: float
    heartbeat_s: float
    finished_s: float | None
    folder: Path

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")


def key_of(kind: str, params: Mapping[str, Any]) -> str:
    """What two jobs share that would compute the same."""
    text = json.dumps([kind, params], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Jobs:
    """The jobs under one state folder (`home()` unless told)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home()
        with self._connected() as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.executescript(_SCHEMA)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.root / "jobs.sqlite", timeout=10)
        database.row_factory = sqlite3.Row
        try:
            with database:
                yield database
        finally:
            database.close()

    def submit(self, kind: str, params: Mapping[str, Any]) -> Job:
        """Write the row, start the process, and return at once."""
        identity, now = uuid.uuid4().hex[:12], time.time()
        row = (identity, kind, json.dumps(params, sort_keys=True), key_of(kind, params), "queued", now, now)
        with self._connected() as database:
            database.execute(
                "INSERT INTO jobs (id, kind, params, key, state, created_s, heartbeat_s) VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        self.folder(identity).mkdir(parents=True)
        return self._started(identity)

    def resume(self, identity: str) -> Job:
        """Start a job that has ended once more, in its folder, where what it finished lies; one at work stays."""
        if not self.get(identity).active:
            fresh = {"state": "queued", "progress": 0.0, "message": "", "error": "", "pid": None, "finished_s": None}
            self._write(identity, "1", **fresh, created_s=time.time(), heartbeat_s=time.time())
            self._started(identity)
        return self.get(identity)

    def _started(self, identity: str) -> Job:
        pid = self.start([sys.executable, "-P", "-m", "leankv.app.jobs", identity], self.folder(identity))
        self._write(identity, "state IN ('queued', 'running')", pid=pid)
        return self.get(identity)

    def start(self, command: list[str], folder: Path) -> int:
        """Start a job's process, its output in the folder's `log.txt`; returns its pid."""
        with open(folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, "LEANKV_HOME": str(self.root), "PYTHONUNBUFFERED": "1", "COLUMNS": str(LOG_COLUMNS)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return process.pid

    def folder(self, identity: str) -> Path:
        """Where the job's results and its log lie."""
        return self.root / "jobs" / identity

    def get(self, identity: str) -> Job:
        """The job as it is now. Raises KeyError if there is none."""
        with self._connected() as database:
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (identity,)).fetchone()
        if row is None:
            raise KeyError(identity)
        return self._job(row)

    def latest(self, kind: str, params: Mapping[str, Any]) -> Job | None:
        """The newest job that computes exactly this, in whatever state."""
        with self._connected() as database:
            row = database.execute(
                "SELECT * FROM jobs WHERE key = ? ORDER BY created_s DESC LIMIT 1", (key_of(kind, params),)
            ).fetchone()
        return self._job(row) if row else None

    def history(self, kinds: Collection[str], limit: int = 200) -> list[Job]:
        """The newest jobs of these kinds, newest first."""
        marks = ", ".join("?" for _ in kinds)
        with self._connected() as database:
            rows = database.execute(
                f"SELECT * FROM jobs WHERE kind IN ({marks}) ORDER BY created_s DESC, rowid DESC LIMIT ?",
                (*kinds, limit),
            ).fetchall()
        return [self._job(row) for row in rows]

    def remove(self, identity: str) -> None:
        """Forget a job that has ended, with its folder; one at work stays."""
        if self.get(identity).active:
            return
        shutil.rmtree(self.folder(identity), ignore_errors=True)
        with self._connected() as database:
            database.execute("DELETE FROM jobs WHERE id = ?", (identity,))

    def cancel(self, identity: str) -> Job:
        """Stop the job: ask its process, wait a moment, then kill it. A finished job stays as it is."""
        job = self.get(identity)
        if not job.active:
            return job
        if job.pid and _alive(job.pid):
            _signal(job.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while _alive(job.pid) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            if _alive(job.pid):
                _signal(job.pid, signal.SIGKILL)
        self._finish(identity, "cancelled")
        return self.get(identity)

    def run(self, identity: str, tasks: Mapping[str, Task]) -> None:
        """Run the job in this process, to its end; called by the job's own process."""
        job = self.get(identity)
        if not self._write(identity, "state = 'queued'", state="running", pid=os.getpid(), heartbeat_s=time.time()):
            return
        ended = threading.Event()
        beat = threading.Thread(target=self._beat, args=(identity, ended), daemon=True)
        beat.start()
        try:
            tasks[job.kind](job.params, job.folder, self._reporter(identity))
            self._finish(identity, "done", progress=1.0)
        except Cancelled:
            self._finish(identity, "cancelled")
        except InputError as error:
            print(error, file=sys.stderr)
            self._finish(identity, "failed", error=str(error))
        except Exception as error:
            traceback.print_exc()
            self._finish(identity, "failed", error=str(error) or type(error).__name__)
        finally:
            ended.set()
            beat.join()

    def _reporter(self, identity: str) -> Progress:
        last = 0.0

        def report(fraction: float, message: str) -> None:
            nonlocal last
            if time.monotonic() - last > 0.2 or fraction >= 1:
                last = time.monotonic()
                self._write(identity, "state = 'running'", progress=fraction, message=message)

        return report

    def _beat(self, identity: str, ended: threading.Event) -> None:
        while not ended.wait(BEAT_S):
            self._write(identity, "state = 'running'", heartbeat_s=time.time())

    def _finish(self, identity: str, state: str, **values: object) -> None:
        self._write(identity, "state IN ('queued', 'running')", state=state, finished_s=time.time(), **values)

    def _write(self, identity: str, condition: str, **values: object) -> bool:
        """Set columns of the row if the condition holds; whether it did."""
        columns = ", ".join(f"{name} = ?" for name in values)
        with self._connected() as database:
            cursor = database.execute(
                f"UPDATE jobs SET {columns} WHERE id = ? AND {condition}", (*values.values(), identity)
            )
        return cursor.rowcount == 1

    def _job(self, row: sqlite3.Row) -> Job:
        state, error = row["state"], row["error"]
        if state in ("queued", "running") and (reason := _why_dead(row["pid"], row["heartbeat_s"])):
            state, error = "died", reason
        values = {name: row[name] for name in ("id", "kind", "progress", "message", "pid")}
        times = {name: row[name] for name in ("created_s", "heartbeat_s", "finished_s")}
        return Job(
            **values, **times, state=state, error=error, params=json.loads(row["params"]), folder=self.folder(row["id"])
        )


def _why_dead(pid: int | None, heartbeat_s: float) -> str:
    """Why an unfinished job cannot still be at work; empty if it may be."""
    silent_s = time.time() - heartbeat_s
    if pid and silent_s > 2 * BEAT_S and not _alive(pid):
        return "its process ended without a word (killed, or out of memory)"
    if silent_s > STALE_S:
        return f"no heartbeat for {silent_s:.0f} s"
    return ""


def _alive(pid: int) -> bool:
    # a child of this very process stays a zombie until somebody waits for it
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _signal(pid: int, number: signal.Signals) -> None:
    """Signal the job's process group (its process leads a session of its own)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _stop(number: int, frame: object) -> None:
    raise Cancelled


def main() -> None:
    """Run the job named on the command line."""
    from leankv.app.tasks import tasks

    signal.signal(signal.SIGTERM, _stop)
    Jobs().run(sys.argv[1], tasks())


if __name__ == "__main__":
    main()
