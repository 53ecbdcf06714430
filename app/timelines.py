"""A run's timeline as one series, however many replicas wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

SUMMED = (
    "running",
    "waiting",
    "kv_pages_used",
    "kv_pages_staging",
    "kv_pages_tier0",
    "kv_pages_tier1",
    "kv_pages_capacity",
    "batch_tokens",
    "preemptions",
)


def across_replicas(timeline: pa.Table) -> pa.Table:
    """The sum over replicas at every time any of them has a sample; a replica's values hold until its next sample."""
    import pyarrow as pa

    replica = timeline["replica"].to_numpy(zero_copy_only=False)
    if len(np.unique(replica)) <= 1:
        return timeline
    time_s = timeline["time_s"].to_numpy(zero_copy_only=False)
    grid = np.unique(time_s)
    columns = {name: np.zeros(len(grid)) for name in SUMMED}
    for number in np.unique(replica):
        mine = np.flatnonzero(replica == number)
        mine = mine[np.argsort(time_s[mine], kind="stable")]
        last = np.searchsorted(time_s[mine], grid, side="right") - 1
        for name in SUMMED:
            values = timeline[name].to_numpy(zero_copy_only=False)[mine]
            # before its first sample a replica is empty, but its pool is already there
            start = values[0] if name == "kv_pages_capacity" else 0
            columns[name] += np.where(last >= 0, values[np.maximum(last, 0)], start)
    return pa.table({"time_s": grid, "replica": np.zeros(len(grid), np.int32), **columns})


def resampled(timeline: pa.Table, points: int) -> pa.Table:
    """At most `points` rows: bins of equal time, every column at its highest in the bin; empty bins are left out."""
    import pyarrow as pa

    if timeline.num_rows <= points:
        return timeline
    time_s = timeline["time_s"].to_numpy(zero_copy_only=False)
    edges = np.linspace(time_s[0], time_s[-1], points + 1)[:-1]
    first = np.unique(np.searchsorted(time_s, edges))
    columns = {"time_s": time_s[first]}
    for name in timeline.column_names:
        if name != "time_s":
            columns[name] = np.maximum.reduceat(timeline[name].to_numpy(zero_copy_only=False), first)
    return pa.table(columns)
