"""What a sweep over request rates says: where each policy's knee is, and where the order of the policies changes.

A sweep is a table with one row per policy and rate, as `leankv.simulator.sweep.sweep_row` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from leankv.simulator.sweep import ATTAINMENT, Knee
from leankv.simulator.sweep import knee as knee_of

if TYPE_CHECKING:
    import pyarrow as pa

TIE = 0.02  # goodputs closer than this share of the best are told apart by latency instead

LOST = 0.5  # the search upwards ends where no policy serves this share in time
SCALES = (2.0**-10, 32.0)  # of the trace's own rate: the search stays between them
STEP = 2**0.5
STRIDE = 4.0  # downwards, as long as no policy holds


@dataclass(frozen=True)
class Flip:
    """Between two neighbouring rates of the sweep the leader changes."""

    below_rps: float
    above_rps: float
    before: str
    after: str


def rows_of(sweep: pa.Table, policy: str) -> list[dict[str, Any]]:
    """The policy's rows, by rising rate."""
    rows = [row for row in sweep.to_pylist() if row["policy"] == policy]
    return sorted(rows, key=lambda row: row["offered_rps"])


def policies_of(sweep: pa.Table) -> list[str]:
    """The policies in order of first appearance."""
    return list(dict.fromkeys(sweep["policy"].to_pylist()))


def knee(rows: Sequence[dict[str, Any]]) -> Knee | None:
    """Where `ATTAINMENT` ends in one policy's rows (by rising rate); None if the lowest rate is past it already."""
    return knee_of(rows, ATTAINMENT)


def leader(rows: Sequence[dict[str, Any]]) -> str:
    """The best policy at one rate: most goodput; within a tie the lowest mean end-to-end latency."""
    best = max(row["goodput_rps"] for row in rows)
    tied = [row for row in rows if row["goodput_rps"] >= best * (1 - TIE)]
    return str(min(tied, key=_latency)["policy"])


def _latency(row: dict[str, Any]) -> float:
    value = row["mean_e2el_ms"]
    return float("inf") if value is None or value != value else float(value)


def leaders(sweep: pa.Table) -> list[tuple[float, str]]:
    """(offered rate, leader) by rising rate, over the rates at which every policy was simulated."""
    policies = policies_of(sweep)
    by_scale: dict[float, list[dict[str, Any]]] = {}
    for row in sweep.to_pylist():
        by_scale.setdefault(row["rate_scale"], []).append(row)
    complete = [rows for _, rows in sorted(by_scale.items()) if len(rows) == len(policies)]
    return [(rows[0]["offered_rps"], leader(rows)) for rows in complete]


def flips(sweep: pa.Table) -> list[Flip]:
    """Every change of leader, by rising rate."""
    order = leaders(sweep)
    return [Flip(low, high, before, after) for (low, before), (high, after) in pairwise(order) if before != after]


@dataclass(frozen=True)
class Outcome:
    """How one policy fared at one rate: share in time, and whether its queue stopped growing."""

    share: float
    stable: bool

    @property
    def holds(self) -> bool:
        return self.stable and self.share >= ATTAINMENT


def next_scale(tried: Mapping[float, Sequence[Outcome]]) -> float | None:
    """The rate scale to simulate next, given each policy's outcome at those tried; None when the picture is complete.

    Upwards from the trace's own rate until every policy is lost, downwards until every policy holds, then once more
    between the two rates around each knee.
    """
    if not tried:
        return 1.0
    top, bottom = max(tried), min(tried)
    if any(outcome.holds or outcome.share >= LOST for outcome in tried[top]) and top * STEP <= SCALES[1]:
        return top * STEP
    if not all(outcome.holds for outcome in tried[bottom]):
        below = bottom / (STEP if any(outcome.holds for outcome in tried[bottom]) else STRIDE)
        if below >= SCALES[0]:
            return below
    for low, high in pairwise(sorted(tried)):
        crossed = any(a.holds and not b.holds for a, b in zip(tried[low], tried[high], strict=True))
        if crossed and high / low > 1.01 * STEP**0.5:
            return (low * high) ** 0.5
    return None
