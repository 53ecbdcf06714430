"""Progress of work over two seconds: a bar on a terminal, a file for whoever started the command as a job."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SHOW_AFTER_S = 2.0
WRITE_EVERY_S = 0.2
PROGRESS_FILE = "LEANKV_PROGRESS"  # names the file that a job's follower reads: {"label": ..., "share": 0 to 1}


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float], None]]:
    """Yield `report(share)`, for shares from 0 to 1; the bar appears only once the work has lasted two seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(label, total=1.0)
    began = time.monotonic()
    write = _writer(label)

    def report(share: float) -> None:
        write(share)
        if not bar.live.is_started and time.monotonic() - began > SHOW_AFTER_S:
            bar.start()
        bar.update(task, completed=share)

    write(0.0)
    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()


def _writer(label: str) -> Callable[[float], None]:
    """Writes a share into the file that the environment names, at most every `WRITE_EVERY_S`; nothing without one."""
    named = os.environ.get(PROGRESS_FILE)
    last = 0.0

    def write(share: float) -> None:
        nonlocal last
        if named is None or (time.monotonic() - last < WRITE_EVERY_S and share < 1):
            return
        last = time.monotonic()
        beside = Path(f"{named}.new")
        beside.write_text(json.dumps({"label": label, "share": share}), encoding="utf-8")
        beside.replace(named)

    return write
