"""The parts of a GPU job: each a `leankv` command in a process of its own, with its share of the time.

A process of its own, since a kernel that faults takes its CUDA context with it, and since only a process can be ended
for certain when its time is up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PASSED, FAILED, LATE, SKIPPED = "passed", "failed", "out of time", "skipped"
GRACE_S = 20.0
"""From Ctrl-C, on which commands write what they have, to the end of a part."""
POLL_S = 0.1


@dataclass(frozen=True)
class Part:
    """words: the command line after `leankv`. share: of the job's time.

    needs: a file of an earlier part, without which this one is skipped, whatever became of that part.
    """

    name: str
    words: tuple[str, ...]
    share: float
    needs: Path | None = None


@dataclass(frozen=True)
class Result:
    """What became of a part. said: the last line that it printed, or why it was skipped."""

    name: str
    status: str
    seconds: float
    budget_s: float
    said: str
    command: str

    @property
    def passed(self) -> bool:
        return self.status == PASSED


def run_part(part: Part, deadline: float, log: Path) -> Result:
    """Run a part until it ends, or `deadline` (of time.monotonic); what it prints goes to `log`.

    Ctrl-C is handed on to the part, and raised again when it has ended.
    """
    command, began = "leankv " + " ".join(part.words), time.monotonic()
    if part.needs is not None and not part.needs.exists():
        return Result(part.name, SKIPPED, 0.0, 0.0, f"no earlier part left {part.needs}", command)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "leankv.app.cli", *part.words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        late = _ended_late(process, deadline)
    status = LATE if late else PASSED if process.returncode == 0 else FAILED
    return Result(part.name, status, time.monotonic() - began, deadline - began, _last_line(log), command)


def _ended_late(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for the process; whether it had to be ended."""
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                _end(process)
                return True
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        _end(process)
        raise
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask first, so that what is finished is written; then end the process and all that it started."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def deadlines(parts: Sequence[Part], began: float, seconds: float) -> dict[str, float]:
    """When each part must end: what one leaves of its share goes to the next, and none can take a later one's."""
    total = sum(part.share for part in parts)
    passed, found = 0.0, {}
    for part in parts:
        passed += part.share
        found[part.name] = began + seconds * passed / total
    return found
