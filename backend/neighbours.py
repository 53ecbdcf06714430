"""What other processes took of this one's cores while something was measured: a run beside a busy neighbour measures
both. On cores of its own (`taskset`), only what happens on these counts.
"""

from __future__ import annotations

import os
from pathlib import Path
from time import process_time

STAT = Path("/proc/stat")
IDLE = (3, 4)
"""Columns of a machine's idle time in /proc/stat: idle, and waiting for a disk."""


class Neighbours:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._began = _machine_s()
        self._mine = process_time()

    def share(self) -> float | None:
        """Share of the cores' time that went to other processes and virtual machines; None where it is unknown.

        The cores are those on which this process may run.
        """
        now = _machine_s()
        if self._began is None or now is None or now[1] <= self._began[1]:
            return None
        busy, passed = now[0] - self._began[0], now[1] - self._began[1]
        return min(1.0, max(0.0, (busy - (process_time() - self._mine)) / passed))


def _machine_s() -> tuple[float, float] | None:
    """Busy seconds and seconds of this process's cores together since the machine started."""
    try:
        lines = [line.split() for line in STAT.read_text().splitlines()]
        cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        counters = [[int(word) for word in line[1:9]] for line in lines if line and line[0] in cores]
    except (OSError, ValueError):
        return None
    idle = sum(columns[column] for columns in counters for column in IDLE)
    ticks, passed = os.sysconf("SC_CLK_TCK"), sum(map(sum, counters))
    return (passed - idle) / ticks, passed / ticks
