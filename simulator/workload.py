"""A trace as the stream of requests that a cluster is given; what cannot be served is rejected with its reason."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from leankv.simulator.recorder import RequestRecords
from leankv.simulator.resident import Resident
from leankv.traces.trace import Trace


class PageArrays(Protocol):
    """Pages of many requests at once; `leankv.serving.memory.MemoryModel` is one."""

    def pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray: ...

    def prefill_pages_array(self, prompts: np.ndarray) -> np.ndarray: ...


class TraceWorkload:
    """Makes each request when it arrives, so that memory holds only those in flight.

    `shared_tokens` (int64[n]) of each prompt are in blocks of the prefix cache, not in the request's own pages.
    A request is rejected when prompt and output exceed the model's context, or when it alone needs more pages than the
    pool has.
    """

    def __init__(
        self,
        trace: Trace,
        max_context: int,
        memory: PageArrays,
        capacity: int,
        records: RequestRecords,
        shared_tokens: np.ndarray | None = None,
    ) -> None:
        prompts, outputs = trace.prompt_tokens.astype(np.int64), trace.output_tokens.astype(np.int64)
        shared = np.zeros_like(prompts) if shared_tokens is None else shared_tokens
        own = prompts - shared
        needs, first_held = memory.prefill_pages_array(own), memory.pages_array(own, own + 1)
        largest = np.maximum(memory.prefill_pages_array(prompts), memory.pages_array(prompts, prompts + outputs))
        self._refused = set(np.flatnonzero((largest > capacity) | (prompts + outputs > max_context)).tolist())
        self._largest = largest
        self.arrivals_ps: list[int] = trace.arrival_ps.tolist()
        columns = (prompts, outputs, needs, first_held, shared)
        self._rows = list(zip(*(column.tolist() for column in columns), strict=True))
        self._max_context = max_context
        self._capacity = capacity
        self._records = records

    def take(self, row: int, arrival_ps: int) -> Resident | None:
        if row in self._refused:
            self._records.reject(row, arrival_ps, self._reason(row))
            return None
        return Resident(row, arrival_ps, *self._rows[row])

    def refuses(self, row: int) -> bool:
        return row in self._refused

    def dress(self, request: Resident) -> None:
        """Give a request that another policy's workload made the lengths and pages that it has here."""
        _, request.output_tokens, request.need, request.first_held, request.shared_tokens = self._rows[
            request.request_id
        ]

    def _reason(self, row: int) -> str:
        prompt, output, *_ = self._rows[row]
        if prompt + output > self._max_context:
            return f"{prompt} + {output} tokens exceed the model's context of {self._max_context}"
        return f"needs {self._largest[row]} KV pages, the pool has {self._capacity}"
