"""The oracle of `engine.py`: the same replica, one step at a time, everything counted anew at each.

It shares the scheduler and the integer costs, and nothing of the closed form: no heaps, no running sums, no bounds.
"""

from __future__ import annotations

from collections.abc import Callable

from leankv.serving.scheduler import Chunk, Scheduler, SchedulerLimits
from leankv.simulator.clock import TICK_BITS
from leankv.simulator.costs import StepCosts
from leankv.simulator.curves import ReadCurves
from leankv.simulator.ledger import PageModel, admission_pages
from leankv.simulator.prefixes import PrefixCache
from leankv.simulator.recorder import ReplicaLog
from leankv.simulator.resident import Resident


class CountingLedger:
    """A `PageAccount` that adds up every request's pages at every question."""

    late = False

    def __init__(self, memory: PageModel, capacity: int, watermark: int, prefixes: PrefixCache | None = None) -> None:
        self.memory = memory
        self.capacity = capacity
        self.watermark = watermark
        self.prefixes = prefixes
        self.decoding: dict[int, Resident] = {}
        self.contexts: dict[int, int] = {}
        self.reserved = 0

    def used(self) -> int:
        """Pages of prompts in progress, and of every decoding request with its next token."""
        return self.reserved + sum(self._held(request) for request in self.decoding.values())

    def _held(self, request: Resident) -> int:
        shared = request.shared_tokens
        return self.memory.pages(request.prompt_tokens - shared, self.contexts[request.request_id] - shared + 1)

    def short(self) -> bool:
        return self.used() > self.capacity

    def admits(self, request: Resident) -> bool:
        watermark = self.watermark if self.decoding or self.reserved else 0
        blocks = self.prefixes.missing_pages(request.request_id) if self.prefixes else 0
        return self.used() + self._need(request) + blocks + watermark <= self.capacity

    def _need(self, request: Resident) -> int:
        return admission_pages(self.memory, request)

    def admit(self, request: Resident) -> None:
        if self.prefixes:
            request.hit_tokens, taken = self.prefixes.take(request.request_id, self.capacity - self.used())
            request.computed = request.hit_tokens
            self.reserved += taken
        request.need = request.reserved = self._need(request)
        self.reserved += request.reserved

    def start_decode(self, request: Resident) -> None:
        self.reserved -= request.reserved
        request.reserved = 0
        self.contexts[request.request_id] = request.prefill_target

    def recompute(self, request: Resident) -> None:
        """Nothing is remembered, so nothing is to be mended."""

    def stepped(self) -> None:
        """A step was executed; what pages count now needs no telling."""

    def release(self, request: Resident) -> None:
        self.reserved -= request.reserved
        request.reserved = 0
        self.contexts.pop(request.request_id, None)
        if self.prefixes:
            self.reserved -= self.prefixes.give_back(request.request_id)


class StepwiseEngine:
    """Same interface and same results as `JumpEngine`, one decode step at a time."""

    def __init__(
        self,
        limits: SchedulerLimits,
        ledger: CountingLedger,
        costs: StepCosts,
        curves: ReadCurves,
        on_finish: Callable[[Resident, int], None],
    ) -> None:
        self.scheduler: Scheduler[Resident] = Scheduler(limits, ledger, self._preempt)
        self.ledger = ledger
        ledger.decoding = self.decoding = self.scheduler.decoding
        self.costs = costs
        self.curves = curves
        self.on_finish = on_finish
        self.log = ReplicaLog()
        self.clock = 0
        self.steps = 0
        self.interrupted: set[int] = set()

    @property
    def idle(self) -> bool:
        scheduler = self.scheduler
        return not (scheduler.decoding or scheduler.waiting or scheduler.prefilling)

    def kv_use(self) -> float:
        return self.ledger.used() / self.ledger.capacity

    def add(self, request: Resident) -> None:
        self.scheduler.add(request)

    def run_until(self, limit: int, stop_at_finish: bool = False) -> None:
        while self.clock < limit and not self.idle:
            chunks = self.scheduler.schedule()
            if self._step(chunks) and stop_at_finish:
                return

    def _step(self, chunks: list[Chunk[Resident]]) -> int:
        now = self.clock >> TICK_BITS
        for chunk in chunks:
            self._admitted(chunk.request, now)
        batch = sorted(self.decoding.values(), key=lambda request: request.request_id)
        ticks = self._cost(batch, chunks)
        replaying = sum(self._replays(request) for request in batch)
        self._record(now, ticks, len(batch) - replaying, replaying + sum(chunk.tokens for chunk in chunks))
        self.clock += ticks
        self.steps += 1
        for chunk in chunks if self.ledger.late else ():
            self.log.chunk(chunk, now, self.clock >> TICK_BITS)
        finished = sum(self._decoded(request) for request in batch)
        finished += sum(self._computed(chunk) for chunk in chunks)
        self.ledger.stepped()
        return finished

    def _cost(self, batch: list[Resident], chunks: list[Chunk[Resident]]) -> int:
        tokens = len(batch) + sum(chunk.tokens for chunk in chunks)
        rows = sum(not self._replays(request) for request in batch)
        rows += sum(chunk.last and self._whole(chunk.request, chunk.request.prefill_target) for chunk in chunks)
        read = 0
        for request in batch:
            context = self.ledger.contexts[request.request_id] + 1
            read += self.curves.segment_at(request.prompt_tokens, context).at(context)
        ticks = self.costs.tokens_and_logits(tokens, rows) + self.costs.decode_beside_prompts(len(batch), read)
        return ticks + sum(self.costs.prefill(chunk.tokens, chunk.context, chunk.last) for chunk in chunks)

    def _record(self, now: int, ticks: int, sequences: int, prompt_tokens: int) -> None:
        waiting = len(self.scheduler.waiting)
        self.log.segments.add((now, self.steps, 1, ticks, 0, sequences, prompt_tokens, waiting))

    def _admitted(self, request: Resident, now: int) -> None:
        if request.stay_ps < 0:
            request.stay_ps = now
        if request.admitted_ps < 0:
            request.admitted_ps = now

    def _whole(self, request: Resident, cached: int) -> bool:
        """Whether all tokens that a request has are cached, so that the last of them gives a new one."""
        return cached == request.prompt_tokens + request.generated

    def _replays(self, request: Resident) -> bool:
        """Whether a decoding request has had no token since it lost its cache: it is fed earlier ones."""
        return request.request_id in self.interrupted

    def _decoded(self, request: Resident) -> bool:
        self.ledger.contexts[request.request_id] += 1
        if not self._whole(request, self.ledger.contexts[request.request_id]):
            return False
        return self._token(request)

    def _computed(self, chunk: Chunk[Resident]) -> bool:
        self.scheduler.finish_chunk(chunk)
        if not chunk.last:
            return False
        request = chunk.request
        request.decode_ps = self.clock >> TICK_BITS
        request.decode_step = self.steps
        return self._whole(request, request.prefill_target) and self._token(request)

    def _token(self, request: Resident) -> bool:
        now = self.clock >> TICK_BITS
        request.generated += 1
        if request.first_token_ps < 0:
            request.first_token_ps = now
        if request.request_id in self.interrupted:
            self.interrupted.remove(request.request_id)
            self.log.preemption_gaps_ps.append(now - request.last_token_ps)
        request.last_token_ps = now
        if request.generated < request.output_tokens:
            return False
        self.log.stay(request, now, self.steps, False)
        self.scheduler.finish(request)
        self.on_finish(request, now)
        return True

    def _preempt(self, request: Resident) -> None:
        if request.generated:
            self.interrupted.add(request.request_id)
        self.log.stay(request, self.clock >> TICK_BITS, self.steps, True)
        request.stay_ps = request.decode_ps = request.decode_step = -1
