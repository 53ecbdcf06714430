"""What other processes took of the cores while something was measured: a run beside a busy neighbour measures both."""

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
        """Share of all cores' time that went to other processes and virtual machines; None where it is unknown."""
        now = _machine_s()
        if self._began is None or now is None or now[1] <= self._began[1]:
            return None
        busy, passed = now[0] - self._began[0], now[1] - self._began[1]
        return min(1.0, max(0.0, (busy - (process_time() - self._mine)) / passed))


def _machine_s() -> tuple[float, float] | None:
    """Busy seconds and seconds of all cores together since the machine started."""
    try:
        columns = [int(word) for word in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    idle = sum(columns[column] for column in IDLE)
    ticks = os.sysconf("SC_CLK_TCK")
    return (sum(columns) - idle) / ticks, sum(columns) / ticks
