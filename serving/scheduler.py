"""Continuous batching as vLLM v1 does it, for the simulator and the live engine alike.

Each step decodes one token for every request whose prompt is complete, then spends what is left of the token budget on
prompts: first the one that is half done, then the waiting ones in order of arrival (chunked prefill, FCFS). A prompt is
admitted when its pages fit above a watermark. When the next tokens do not fit, the request admitted last gives up its
pages and is recomputed later; such a step admits nobody.

Departures: an admitted prompt holds the pages of its whole length at once, where vLLM only makes sure that they are
free (`scheduler_reserve_full_isl`, its default) and takes them chunk by chunk; and a watermark, optional in vLLM, is
always there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from leankv.serving.errors import InputError
from leankv.serving.requests import Request

RequestT = TypeVar("RequestT", bound=Request)
HeldT = TypeVar("HeldT", bound=Request, contravariant=True)
WATERMARK = 0.01
"""Share of the pool that an admission leaves free, as in vLLM."""


@dataclass(frozen=True)
class SchedulerLimits:
    """What one step may hold; names and defaults are those of `vllm serve` on an A100 and on GPUs below 70 GiB.

    On larger ones it takes 1,024 sequences and 8,192 tokens (`EngineArgs.get_batch_defaults`).
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    chunked_prefill: bool = True

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise InputError(f"max_num_seqs is {self.max_num_seqs}: give at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InputError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "every running request needs a token of each step, so raise the first or lower the second"
            )


class PageAccount(Protocol[HeldT]):
    """The memory as the scheduler sees it: counts of pages, never their contents."""

    def short(self) -> bool:
        """Whether the next token of every decoding request does not fit."""

    def admits(self, request: HeldT) -> bool:
        """Whether the prompt's pages fit above the watermark, beside the next token of every decoding request."""

    def admit(self, request: HeldT) -> None:
        """Reserve the prompt's pages; may set `request.computed` to a cached prefix."""

    def start_decode(self, request: HeldT) -> None:
        """The prompt is complete: hold what the policy keeps of it."""

    def release(self, request: HeldT) -> None:
        """Give back all pages of a request that finished or was preempted."""

    def recompute(self, request: HeldT) -> None:
        """A preempted request goes back to the queue, with the tokens that it has generated as part of its prompt."""


@dataclass(slots=True)
class Chunk(Generic[RequestT]):
    """`tokens` of a prompt computed in one step after `context` earlier ones; `last` if they complete it."""

    request: RequestT
    context: int
    tokens: int
    last: bool


class Scheduler(Generic[RequestT]):
    """Decides what the next step computes. The caller executes it, then reports with `finish_chunk` and `finish`.

    `decoding` keeps the order of admission, so its last entry is the one to preempt. At most one prompt is half done
    (`prefilling`), since a prompt is cut only where the token budget ends.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        memory: PageAccount[RequestT],
        on_preempt: Callable[[RequestT], None],
    ) -> None:
        self.limits = limits
        self.memory = memory
        self.on_preempt = on_preempt
        self.waiting: deque[RequestT] = deque()
        self.prefilling: RequestT | None = None
        self.decoding: dict[int, RequestT] = {}

    @property
    def running(self) -> int:
        return len(self.decoding) + (self.prefilling is not None)

    def add(self, request: RequestT) -> None:
        self.waiting.append(request)

    def schedule(self) -> list[Chunk[RequestT]]:
        """The prompt chunks of the next step; every request in `decoding` takes part in it with one token."""
        if self.memory.short():
            self._make_room()
            return []
        if self.prefilling is None and not self.waiting:
            return []
        chunks = self._continue_prefill() if self.prefilling is not None else []
        if self.prefilling is None and self.waiting:
            self._admit(chunks)
        return chunks

    def finish_chunk(self, chunk: Chunk[RequestT]) -> None:
        """A chunk was computed. After its last chunk the request decodes, unless it is already finished."""
        request = chunk.request
        request.computed = chunk.context + chunk.tokens
        if chunk.last:
            self.decoding[request.request_id] = request
            self.memory.start_decode(request)

    def finish(self, request: RequestT) -> None:
        """A decoding request has its last token."""
        del self.decoding[request.request_id]
        self.memory.release(request)

    def _continue_prefill(self) -> list[Chunk[RequestT]]:
        request = self.prefilling
        assert request is not None
        self.prefilling = None
        return [self._cut(request, self.limits.max_num_batched_tokens - len(self.decoding))]

    def _admit(self, chunks: list[Chunk[RequestT]]) -> None:
        limits, waiting, memory = self.limits, self.waiting, self.memory
        budget = limits.max_num_batched_tokens - len(self.decoding)
        seats = limits.max_num_seqs - len(self.decoding) - len(chunks)
        for chunk in chunks:
            budget -= chunk.tokens
        while waiting and budget > 0 and seats > 0:
            request = waiting[0]
            if not memory.admits(request) or (self._must_be_whole(chunks) and request.prefill_target > budget):
                return
            waiting.popleft()
            memory.admit(request)
            chunk = self._cut(request, budget)
            chunks.append(chunk)
            budget -= chunk.tokens
            seats -= 1

    def _must_be_whole(self, chunks: list[Chunk[RequestT]]) -> bool:
        """Unchunked, a prompt joins others only where all of it fits the budget; alone it may exceed it."""
        return bool(chunks) and not self.limits.chunked_prefill

    def _cut(self, request: RequestT, budget: int) -> Chunk[RequestT]:
        context = request.computed
        remaining = request.prefill_target - context
        if remaining > budget and self.limits.chunked_prefill:
            self.prefilling = request
            return Chunk(request, context, budget, False)
        return Chunk(request, context, remaining, True)

    def _make_room(self) -> None:
        while self.memory.short():
            self._preempt_last()

    def _preempt_last(self) -> None:
        request = self.prefilling
        if request is None:
            _, request = self.decoding.popitem()
        self.prefilling = None
        self.on_preempt(request)
        self.memory.release(request)
        request.restart()
        self.memory.recompute(request)
        self.waiting.appendleft(request)
