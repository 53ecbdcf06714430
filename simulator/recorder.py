"""What a run leaves behind, in flat integer arrays: memory grows with requests and jumps, never with tokens."""

from __future__ import annotations

from array import array

import numpy as np

from leankv.simulator.resident import Resident

FINISHED, REJECTED, UNFINISHED = 0, 1, 2
STATUS_NAMES = ("finished", "rejected", "unfinished")


class RequestRecords:
    """One row a request of the trace. Times in ps, -1 where the request did not get that far."""

    def __init__(self, requests: int) -> None:
        never = array("q", [-1]) * requests
        none = array("q", [0]) * requests
        self.arrival_ps = never[:]
        self.admitted_ps = never[:]
        self.first_token_ps = never[:]
        self.finish_ps = never[:]
        self.preemptions = none[:]
        self.replica = none[:]
        self.status = array("b", [UNFINISHED]) * requests
        self.reasons: dict[int, str] = {}

    def finished(self, request: Resident, replica: int, finish_ps: int) -> None:
        row = request.request_id
        self.arrival_ps[row] = request.arrival_ps
        self.admitted_ps[row] = request.admitted_ps
        self.first_token_ps[row] = request.first_token_ps
        self.finish_ps[row] = finish_ps
        self.preemptions[row] = request.preemptions
        self.replica[row] = replica
        self.status[row] = FINISHED

    def rejected(self, request: Resident, replica: int, reason: str) -> None:
        row = request.request_id
        self.arrival_ps[row] = request.arrival_ps
        self.replica[row] = replica
        self.status[row] = REJECTED
        self.reasons[row] = reason


class ReplicaLog:
    """Runs of equal steps (`segments`), stays of requests in memory, and gaps between tokens across a preemption.

    Segments: step costs are `first_gap + i * slope` ticks for i below `steps`. A step gives one token to each of
    `sequences` requests, so its cost is their inter-token latency.
    Stays: from admission to release; decoding from `decode_ps` on, where the replica had made `decode_step` steps and
    the request had `decode_context` tokens cached.
    """

    def __init__(self) -> None:
        self.start_ps = array("q")
        self.steps_before = array("q")
        self.steps = array("q")
        self.first_gap = array("q")
        self.slope = array("q")
        self.sequences = array("q")
        self.prompt_tokens = array("q")
        self.waiting = array("q")
        self.stay_request = array("q")
        self.stay_admitted_ps = array("q")
        self.stay_decode_ps = array("q")
        self.stay_decode_step = array("q")
        self.stay_decode_context = array("q")
        self.stay_end_ps = array("q")
        self.stay_end_step = array("q")
        self.stay_preempted = array("b")
        self.stay_staged_pages = array("q")
        self.preemption_gaps_ps = array("q")

    def stay(self, request: Resident, end_ps: int, end_step: int, preempted: bool) -> None:
        self.stay_request.append(request.request_id)
        self.stay_admitted_ps.append(request.stay_ps)
        self.stay_decode_ps.append(request.decode_ps)
        self.stay_decode_step.append(request.decode_step)
        self.stay_decode_context.append(request.prefill_target)
        self.stay_end_ps.append(end_ps)
        self.stay_end_step.append(end_step)
        self.stay_preempted.append(preempted)
        self.stay_staged_pages.append(request.stay_pages)


def column(values: array) -> np.ndarray:
    """A view of the recorded integers; nothing may be appended while it lives."""
    return np.frombuffer(values, dtype=np.int8 if values.typecode == "b" else np.int64)
