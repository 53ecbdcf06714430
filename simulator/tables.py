"""The recorder's integers as the tables of a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leankv.simulator.clock import PS_PER_MS, TICK_BITS
from leankv.simulator.recorder import FINISHED, REJECTED, STATUS_NAMES, UNFINISHED, ReplicaLog, RequestRecords
from leankv.traces.trace import Trace

if TYPE_CHECKING:
    import pyarrow as pa


def request_table(trace: Trace, records: RequestRecords) -> pa.Table:
    """The table `requests` of `leankv.serving.runs`, a row a request of the trace; latencies in ms, NaN where none."""
    import pyarrow as pa

    rows = records.finished.column("request")
    times = {name: _spread(records, rows, name, len(trace)) for name in ("admitted_ps", "first_token_ps", "finish_ps")}
    arrival = trace.arrival_ps.copy()
    arrival[rows] = records.finished.column("arrival_ps")
    status = np.full(len(trace), UNFINISHED, dtype=np.int8)
    status[rows] = FINISHED
    status[records.rejected.column("request")] = REJECTED
    first, finish = times["first_token_ps"], times["finish_ps"]
    gaps = trace.output_tokens.astype(np.float64) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where((finish >= 0) & (gaps > 0), (finish - first) / gaps / PS_PER_MS, np.nan)
    columns = {
        "request_id": np.arange(len(trace)),
        "replica": _spread(records, rows, "replica", len(trace)).astype(np.int32),
        "status": pa.DictionaryArray.from_arrays(status, list(STATUS_NAMES)).cast(pa.string()),
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
        "arrival_ps": arrival,
        **times,
        "queue_ms": _elapsed_ms(times["admitted_ps"], arrival),
        "ttft_ms": _elapsed_ms(first, arrival),
        "tpot_ms": tpot,
        "e2el_ms": _elapsed_ms(finish, arrival),
        "preemptions": np.maximum(_spread(records, rows, "preemptions", len(trace)), 0).astype(np.int32),
        "reason": _reasons(records, len(trace)),
    }
    return pa.table(columns)


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


def _elapsed_ms(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    return np.where(later >= 0, (later - earlier) / PS_PER_MS, np.nan)


def _reasons(records: RequestRecords, count: int) -> pa.Array:
    import pyarrow as pa

    if not records.reasons:
        return pa.nulls(count, pa.string())
    return pa.array([records.reasons.get(row) for row in range(count)], pa.string())
