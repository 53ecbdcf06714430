"""The recorder's integers as the tables of a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from leankv.simulator.clock import PS_PER_MS, TICK_BITS
from leankv.simulator.recorder import STATUS_NAMES, ReplicaLog, RequestRecords, column
from leankv.traces.trace import Trace

if TYPE_CHECKING:
    import pyarrow as pa


def request_table(trace: Trace, records: RequestRecords) -> pa.Table:
    """The table `requests` of `leankv.serving.runs`; latencies in ms, null-free, NaN where there is none."""
    import pyarrow as pa

    arrival, finish = column(records.arrival_ps), column(records.finish_ps)
    admitted, first = column(records.admitted_ps), column(records.first_token_ps)
    arrival = np.where(arrival < 0, trace.arrival_ps, arrival)
    gaps = trace.output_tokens.astype(np.float64) - 1
    done = finish >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(done & (gaps > 0), (finish - first) / gaps / PS_PER_MS, np.nan)
    columns = {
        "request_id": np.arange(len(trace)),
        "replica": column(records.replica).astype(np.int32),
        "status": pa.DictionaryArray.from_arrays(column(records.status), list(STATUS_NAMES)).cast(pa.string()),
        "prompt_tokens": trace.prompt_tokens,
        "output_tokens": trace.output_tokens,
        "arrival_ps": arrival,
        "admitted_ps": admitted,
        "first_token_ps": first,
        "finish_ps": finish,
        "queue_ms": _elapsed_ms(admitted, arrival),
        "ttft_ms": _elapsed_ms(first, arrival),
        "tpot_ms": tpot,
        "e2el_ms": _elapsed_ms(finish, arrival),
        "preemptions": column(records.preemptions).astype(np.int32),
        "reason": _reasons(records, len(trace)),
    }
    return pa.table(columns)


def segment_table(logs: list[ReplicaLog]) -> pa.Table:
    """The table `segments` of `leankv.serving.runs`."""
    import pyarrow as pa

    tick_ps = 2.0**-TICK_BITS
    columns = {
        "replica": [np.full(len(log.start_ps), index, dtype=np.int32) for index, log in enumerate(logs)],
        "start_ps": [column(log.start_ps) for log in logs],
        "steps": [column(log.steps) for log in logs],
        "first_gap_ps": [column(log.first_gap) * tick_ps for log in logs],
        "slope_ps": [column(log.slope) * tick_ps for log in logs],
        "sequences": [column(log.sequences) for log in logs],
        "prompt_tokens": [column(log.prompt_tokens) for log in logs],
        "waiting": [column(log.waiting) for log in logs],
    }
    return pa.table({name: np.concatenate(parts) for name, parts in columns.items()})


def _elapsed_ms(later: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    return np.where(later >= 0, (later - earlier) / PS_PER_MS, np.nan)


def _reasons(records: RequestRecords, count: int) -> pa.Array:
    import pyarrow as pa

    if not records.reasons:
        return pa.nulls(count, pa.string())
    return pa.array([records.reasons.get(row) for row in range(count)], pa.string())
