"""The table `requests` of a run folder, from integers: simulated and live runs derive their latencies alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Ints = npt.NDArray[np.int64]
PS_PER_MS = 10**9
FINISHED, REJECTED, UNFINISHED = 0, 1, 2
STATUS_NAMES = ("finished", "rejected", "unfinished")


def request_table(columns: Mapping[str, np.ndarray], reasons: Mapping[int, str]) -> pa.Table:
    """The table `requests` of `leankv.serving.runs`, a row a request; latencies in ms, NaN where there is none.

    columns: `status` (FINISHED, REJECTED or UNFINISHED), prompt_tokens, output_tokens, arrival_ps, admitted_ps,
    first_token_ps, finish_ps (-1 where the request did not get that far), replica, preemptions; all of one length.
    reasons: why a request was rejected, by row.
    """
    import pyarrow as pa

    arrival, first, finish = (columns[name] for name in ("arrival_ps", "first_token_ps", "finish_ps"))
    count = len(arrival)
    gaps = columns["output_tokens"].astype(np.float64) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where((finish >= 0) & (gaps > 0), (finish - first) / gaps / PS_PER_MS, np.nan)
    statuses = pa.DictionaryArray.from_arrays(columns["status"].astype(np.int8), list(STATUS_NAMES))
    return pa.table(
        {
            "request_id": np.arange(count),
            "replica": columns["replica"].astype(np.int32),
            "status": statuses.cast(pa.string()),
            "prompt_tokens": columns["prompt_tokens"].astype(np.int32),
            "output_tokens": columns["output_tokens"].astype(np.int32),
            "arrival_ps": arrival,
            "admitted_ps": columns["admitted_ps"],
            "first_token_ps": first,
            "finish_ps": finish,
            "queue_ms": _elapsed_ms(columns["admitted_ps"], arrival),
            "ttft_ms": _elapsed_ms(first, arrival),
            "tpot_ms": tpot,
            "e2el_ms": _elapsed_ms(finish, arrival),
            "preemptions": np.maximum(columns["preemptions"], 0).astype(np.int32),
            "reason": pa.array([reasons.get(row) for row in range(count)], pa.string())
            if reasons
            else pa.nulls(count, pa.string()),
        }
    )


def rejections(requests: pa.Table) -> list[tuple[int, str]]:
    """The first hundred rejected requests with their reasons; all of them are in the table."""
    rejected = requests.filter(requests["status"].to_numpy() == "rejected").slice(0, 100)
    return list(zip(rejected["request_id"].to_pylist(), rejected["reason"].to_pylist(), strict=True))


def _elapsed_ms(later: Ints, earlier: Ints) -> npt.NDArray[np.float64]:
    return np.where(later >= 0, (later - earlier) / PS_PER_MS, np.nan)
