"""Integer time. Jumping over k steps and stepping k times must land on the same instant, so nothing is rounded twice.

Costs are integers of 2**-16 picoseconds ("ticks"): fine enough that a cost per byte read (about 0.2 to 2 ps) keeps four
to five digits. Recorded times are whole picoseconds, always rounded down.
"""

from __future__ import annotations

TICK_BITS = 16
PS_PER_S = 10**12
PS_PER_MS = 10**9
TICKS_PER_S = PS_PER_S << TICK_BITS


def ticks(seconds: float) -> int:
    return round(seconds * TICKS_PER_S)
