"""A progress bar on standard error for work over two seconds; none where standard error is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHOW_AFTER_S = 2.0


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

    def report(share: float) -> None:
        if not bar.live.is_started and time.monotonic() - began > SHOW_AFTER_S:
            bar.start()
        bar.update(task, completed=share)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
