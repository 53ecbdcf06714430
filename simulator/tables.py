"""The recorder's integers as the tables of a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leankv.serving import run_tables
from leankv.serving.run_tables import FINISHED, REJECTED, UNFINISHED
from leankv.simulator.clock import TICK_BITS
from leankv.simulator.recorder import ReplicaLog, RequestRecords
from leankv.traces.trace import Trace

if TYPE_CHECKING:
    import pyarrow as pa


def request_table(trace: Trace, records: RequestRecords) -> pa.Table:
    """The table `requests` of a run, a row a request of the trace."""
    rows = records.finished.column("request")
    arrival = trace.arrival_ps.copy()
    arrival[rows] = records.finished.column("arrival_ps")
    status = np.full(len(trace), UNFINISHED)
    status[rows] = FINISHED
    status[records.rejected.column("request")] = REJECTED
    recorded = ("admitted_ps", "first_token_ps", "finish_ps", "replica", "preemptions")
    columns = {
        "status": status,
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
        "arrival_ps": arrival,
        **{name: _spread(records, rows, name, len(trace)) for name in recorded},
    }
    return run_tables.request_table(columns, records.reasons)


def _spread(records: RequestRecords, rows: np.ndarray, name: str, count: int) -> np.ndarray:
    """A column of the finished requests in the trace's order, -1 elsewhere."""
    values = np.full(count, -1, dtype=np.int64)
    values[rows] = records.finished.column(name)
    return values


def segment_table(logs: list[ReplicaLog]) -> pa.Table:
    """The table `segments` of `leankv.serving.runs`."""
    import pyarrow as pa

    tables = [_one_replica(index, log) for index, log in enumerate(logs)]
    return pa.table({name: np.concatenate([table[name] for table in tables]) for name in tables[0]})


def _one_replica(index: int, log: ReplicaLog) -> dict[str, np.ndarray]:
    tick_ps = 2.0**-TICK_BITS
    column = log.segments.column
    return {
        "replica": np.full(len(log.segments), index, dtype=np.int32),
        "start_ps": column("start_ps"),
        "steps": column("steps"),
        "first_gap_ps": column("first_gap") * tick_ps,
        "slope_ps": column("slope") * tick_ps,
        "sequences": column("sequences"),
        "prompt_tokens": column("prompt_tokens"),
        "waiting": column("waiting"),
    }
