"""What a run leaves behind, in flat integer arrays: memory grows with requests and jumps, never with tokens.

A row is written by one `extend` of an interleaved array, which costs a fraction of one `append` a column.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from leankv.simulator.resident import Resident

Ints = npt.NDArray[np.int64]
FINISHED, REJECTED, UNFINISHED = 0, 1, 2
STATUS_NAMES = ("finished", "rejected", "unfinished")


class Rows:
    """Rows of integers under named columns."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.values = array("q")
        self.add = self.values.extend

    def __len__(self) -> int:
        return len(self.values) // len(self.names)

    def column(self, name: str) -> Ints:
        """A copy, int64[rows]."""
        rows = np.frombuffer(self.values, dtype=np.int64).reshape(-1, len(self.names))
        return rows[:, self.names.index(name)].copy()


class RequestRecords:
    """What became of each request of the trace."""

    def __init__(self) -> None:
        self.finished = Rows(
            "request", "replica", "arrival_ps", "admitted_ps", "first_token_ps", "finish_ps", "preemptions"
        )
        self.rejected = Rows("request", "arrival_ps")
        self.reasons: dict[int, str] = {}

    def finish(self, request: Resident, replica: int, finish_ps: int) -> None:
        self.finished.add(
            (
                request.request_id,
                replica,
                request.arrival_ps,
                request.admitted_ps,
                request.first_token_ps,
                finish_ps,
                request.preemptions,
            )
        )

    def reject(self, request_id: int, arrival_ps: int, reason: str) -> None:
        self.rejected.add((request_id, arrival_ps))
        self.reasons[request_id] = reason


class ReplicaLog:
    """Runs of equal steps (`segments`), stays of requests in memory, and gaps between tokens across a preemption.

    Segments: step costs are `first_gap + i * slope` ticks for i below `steps`. A step gives one token to each of
    `sequences` requests, so its cost is their inter-token latency. `steps_before` counts the replica's earlier steps.
    Stays: from admission to release, with the pages reserved until `decode_ps`; then decoding, where the replica had
    made `decode_step` steps and the request had `decode_context` tokens cached. -1 where a prompt was never finished.
    """

    def __init__(self) -> None:
        self.segments = Rows(
            "start_ps", "steps_before", "steps", "first_gap", "slope", "sequences", "prompt_tokens", "waiting"
        )
        self.stays = Rows(
            "request",
            "admitted_ps",
            "pages",
            "decode_ps",
            "decode_step",
            "decode_context",
            "end_ps",
            "end_step",
            "preempted",
        )
        self.preemption_gaps_ps = array("q")

    def stay(self, request: Resident, end_ps: int, end_step: int, preempted: bool) -> None:
        self.stays.add(
            (
                request.request_id,
                request.stay_ps,
                request.need,
                request.decode_ps,
                request.decode_step,
                request.prefill_target,
                end_ps,
                end_step,
                preempted,
            )
        )
