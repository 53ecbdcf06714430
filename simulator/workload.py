"""A trace as the stream of requests that a cluster is given; what cannot be served is rejected with its reason."""

from __future__ import annotations

from leankv.simulator.ledger import PageModel
from leankv.simulator.recorder import RequestRecords
from leankv.simulator.resident import Resident
from leankv.traces.trace import Trace


class TraceWorkload:
    """Makes each request when it arrives, so that memory holds only those in flight.

    A request is rejected when prompt and output exceed the model's context, or when it alone, above nothing, would need
    more pages than the pool has.
    """

    def __init__(
        self, trace: Trace, max_context: int, memory: PageModel, capacity: int, records: RequestRecords
    ) -> None:
        self.arrivals_ps: list[int] = trace.arrival_ps.tolist()
        self._prompts: list[int] = trace.prompt_tokens.tolist()
        self._outputs: list[int] = trace.output_tokens.tolist()
        self._max_context = max_context
        self._memory = memory
        self._capacity = capacity
        self._records = records

    def take(self, row: int, arrival_ps: int) -> Resident | None:
        request = Resident(row, arrival_ps, self._prompts[row], self._outputs[row])
        reason = self._refusal(request)
        if reason is None:
            return request
        self._records.rejected(request, -1, reason)
        return None

    def _refusal(self, request: Resident) -> str | None:
        prompt, total = request.prompt_tokens, request.prompt_tokens + request.output_tokens
        if total > self._max_context:
            return f"{total} tokens exceed the model's context of {self._max_context}"
        pages = max(self._memory.prefill_pages(prompt, prompt), self._memory.pages(prompt, total))
        if pages > self._capacity:
            return f"needs {pages} KV pages, the pool has {self._capacity}"
        return None
