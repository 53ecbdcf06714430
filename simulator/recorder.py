"""What a run leaves behind, in rows of integers: memory grows with requests and jumps, never with tokens."""

from __future__ import annotations

from array import array
from itertools import chain

import numpy as np
import numpy.typing as npt

from leankv.serving.scheduler import Chunk
from leankv.simulator.resident import Resident

Ints = npt.NDArray[np.int64]
PACK_FROM = 1 << 15


class Rows:
    """Rows of integers under named columns. `add` takes a tuple, the cheapest thing that the event loop can make."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self._loose: list[tuple[int, ...]] = []
        self._packed: list[Ints] = []
        self.add = self._loose.append

    def __len__(self) -> int:
        return len(self._loose) + sum(map(len, self._packed))

    def pack_if_many(self) -> None:
        """Turn the tuples into 8 bytes a number, once there are enough of them to be worth it."""
        if len(self._loose) >= PACK_FROM:
            self._pack()

    def column(self, name: str) -> Ints:
        """int64[rows]."""
        if self._loose or not self._packed:
            self._pack()
        index = self.names.index(name)
        return np.concatenate([block[:, index] for block in self._packed])

    def _pack(self) -> None:
        width = len(self.names)
        flat = np.fromiter(chain.from_iterable(self._loose), np.int64, width * len(self._loose))
        self._packed.append(flat.reshape(-1, width))
        self._loose.clear()


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
    Chunks: noted only where pages are reported as a step leaves them, as the live engine does: what was computed of a
    prompt after the step, but for shared prefixes.
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
            "shared_tokens",
            "hit_tokens",
        )
        self.chunks = Rows("request", "start_ps", "end_ps", "tokens", "last")
        self.preemption_gaps_ps = array("q")

    def pack_if_many(self) -> None:
        self.segments.pack_if_many()
        self.stays.pack_if_many()

    def chunk(self, chunk: Chunk[Resident], start_ps: int, end_ps: int) -> None:
        request = chunk.request
        tokens = max(0, chunk.context + chunk.tokens - request.shared_tokens)
        self.chunks.add((request.request_id, start_ps, end_ps, tokens, chunk.last))

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
                request.shared_tokens,
                request.hit_tokens,
            )
        )
