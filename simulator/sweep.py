"""What a sweep over request rates says: a row a point, and for each policy the knee, the highest rate it still serves.

Goodput in a row is the offered rate times the share of requests in time. Requests over the run's duration would also
count the drain after the last arrival, which weighs most where the trace is played fastest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leankv.traces.trace import Trace

Row = dict[str, Any]
ATTAINMENT = 0.9  # share of the offered requests that must meet every SLO: DistServe (OSDI 2024), section 6


@dataclass(frozen=True)
class Knee:
    """Where a policy gives way: it holds at `held_rps`, no longer at `lost_rps` (None: it held at every rate tried).

    `rate_rps` is the interpolated rate at which the stated share of requests is still in time, `goodput_rps` what is
    served in time there.
    """

    policy: str
    rate_rps: float
    goodput_rps: float
    held_rps: float
    lost_rps: float | None

    @property
    def reached(self) -> bool:
        """Whether the sweep saw the policy give way; if not, the knee lies above `rate_rps`."""
        return self.lost_rps is not None


def offered_rps(trace: Trace) -> float:
    """Requests a second that the trace offers, over its span; where all arrive at once, one a second."""
    return (len(trace) - 1) / trace.span_s if trace.span_s > 0 else 1.0


def attainment(summary: Mapping[str, Any]) -> float:
    """Share of all requests, rejected ones too, that met every SLO."""
    requests = summary["completed"] + summary["rejected"]
    return float(summary["request_goodput"] * summary["duration_s"] / requests) if requests else 0.0


def sweep_row(policy: str, rate_scale: float, offered_rps: float, summary: Mapping[str, Any]) -> Row:
    """The figures of one point; `offered_rps` is the rate of the scaled trace."""
    share = attainment(summary)
    return {
        "policy": policy,
        "rate_scale": rate_scale,
        "offered_rps": offered_rps,
        "attainment": share,
        "goodput_rps": offered_rps * share,
        "throughput_rps": float(summary["request_throughput"]),
        "mean_e2el_ms": summary["mean_e2el_ms"],
        "p99_ttft_ms": summary["p99_ttft_ms"],
        "p99_tpot_ms": summary["p99_tpot_ms"],
        "limited_by": summary["limited_by"],
        "stable": bool(summary["stable"]),
    }


def knee(rows: Sequence[Row], share: float = ATTAINMENT) -> Knee | None:
    """The knee in one policy's rows (by rising offered rate); None if the lowest rate is past it already.

    A rate holds if at least `share` of its requests meet every SLO and the run is stable. The first that does not hold
    ends the search: what holds again beyond it is chance.
    """
    held: Row | None = None
    for row in rows:
        if row["attainment"] < share or not row["stable"]:
            return _between(held, row, share) if held else None
        held = row
    if held is None:
        return None
    rate = float(held["offered_rps"])
    return Knee(held["policy"], rate, float(held["goodput_rps"]), rate, None)


def _between(held: Row, lost: Row, share: float) -> Knee:
    low, high = float(held["offered_rps"]), float(lost["offered_rps"])
    if lost["attainment"] >= share:
        # Lost by its growing queue alone: the share in time says nothing about where between the two that begins.
        return Knee(held["policy"], low, float(held["goodput_rps"]), low, high)
    way = (held["attainment"] - share) / (held["attainment"] - lost["attainment"])
    rate = low + way * (high - low)
    return Knee(held["policy"], rate, share * rate, low, high)
