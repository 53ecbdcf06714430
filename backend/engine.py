"""The live engine: continuous batching of a Hugging Face causal model over the unified cache.

It drives the scheduler of `leankv.serving.scheduler`, the one that the simulator drives: `schedule` says what the next
step computes, one packed forward call computes it, `finish_chunk` and `finish` report. Each request decodes as if it
were alone; its neighbours change neither its tokens nor its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.backend.attention import Packed, Span, attend_through_cache
from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.page_account import LivePages
from leankv.backend.sampling import choose
from leankv.backend.step_log import Clock, FinalState, SlotCounts, StepLog, StepRow
from leankv.kernels import pages as pg
from leankv.serving.errors import InputError
from leankv.serving.policies.base import Policy
from leankv.serving.scheduler import Chunk, Scheduler, SchedulerLimits

if TYPE_CHECKING:
    from leankv.backend.weights import Loaded

OnLogits = Callable[[Sequence[LiveRequest], Tensor], None]


class Engine:
    """One model under one policy. `add` requests, then call `step` until `idle`.

    memory_bytes: of the KV pool with its tables. max_tokens: longest request, prompt and output together. key_means
    float32 [layers, kv_heads, head_dim]: for policies that centre keys. The model attends through this engine's cache
    from now on. Raises InputError where the memory is too small or the policy does not run live.

    on_logits: called in each step (in inference mode) with the requests that are due a token and the logits that choose
    it, float32 [requests, vocab], before the tokens are appended: row i speaks of the token that comes after
    `requests[i].output`. The logits are overwritten by the next step.
    """

    def __init__(
        self,
        loaded: Loaded,
        policy: Policy,
        limits: SchedulerLimits,
        *,
        memory_bytes: int,
        max_tokens: int,
        key_means: Tensor | None = None,
        on_logits: OnLogits | None = None,
    ) -> None:
        self.loaded, self.policy, self.max_tokens = loaded, policy, max_tokens
        self.model = loaded.model
        self.device, self.on_logits = self.model.device, on_logits
        shape = CacheShape(loaded.layers, loaded.heads, loaded.kv_heads, loaded.head_dim)
        try:
            self.cache = KVCache(
                shape,
                [policy],
                slots=limits.max_num_seqs,
                memory_bytes=memory_bytes,
                max_tokens=max_tokens,
                device=self.device,
                key_means=key_means,
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{policy.name} on {loaded.name}: {error}") from error
        self.pages = LivePages(self.cache)
        self.scheduler: Scheduler[LiveRequest] = Scheduler(limits, self.pages, self._preempted)
        self.clock, self.log = Clock(), StepLog()
        self.preemptions = 0
        ends = self.model.generation_config.eos_token_id
        self.eos = frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
        attend_through_cache(self.model)

    @property
    def idle(self) -> bool:
        scheduler = self.scheduler
        return not (scheduler.decoding or scheduler.waiting or scheduler.prefilling)

    def refusal(self, prompt_tokens: int, output_tokens: int) -> str | None:
        """Why a request of these lengths cannot be served, or None."""
        total = prompt_tokens + output_tokens
        if total > self.max_tokens:
            return f"{prompt_tokens} + {output_tokens} tokens exceed the context of {self.max_tokens}"
        return self.pages.refusal(prompt_tokens, output_tokens)

    def add(self, request: LiveRequest) -> None:
        """Queue a request. Raises InputError for one that can never be served."""
        reason = self.refusal(request.prompt_tokens, request.output_tokens)
        if reason is not None:
            raise InputError(f"request {request.request_id}: {reason}")
        self.scheduler.add(request)

    def step(self) -> list[LiveRequest]:
        """Schedule and compute one step; returns the requests that finished with it."""
        start = self.clock.now()
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            if chunk.request.admitted_ps < 0:
                chunk.request.admitted_ps = start
        decoding = list(self.scheduler.decoding.values())
        running = len(decoding) + len(chunks)
        tokens = self._compute(decoding, chunks)
        counts = self._count()
        end = self.clock.now()
        given = sum(request.request_id in tokens for request in decoding)
        computed = len(decoding) - given + sum(chunk.tokens for chunk in chunks)
        finished = self._report(decoding, chunks, tokens, end)
        self._record((start, end), given, computed, running, counts)
        self.pages.stepped([high + low for high, low in counts.pages])
        for request in finished:
            high, low, *held = counts.totals([request.slot])
            self.log.final.append(FinalState(request.cached, high + low, (held[0], held[1])))
            self.scheduler.finish(request)
        return finished

    def warm_up(self) -> None:
        """Serve a short request, where one fits, and forget it: first calls allocate, compile and page in."""
        prompt = max(1, min(8, self.max_tokens - 3))
        output = min(3, self.max_tokens - prompt)
        if self.refusal(prompt, output) is not None:
            return
        self.add(LiveRequest(-1, [0] * prompt, output, Sampling(ignore_eos=True)))
        while not self.idle:
            self.step()
        self.log = StepLog()

    @torch.inference_mode()
    def _compute(self, decoding: list[LiveRequest], chunks: list[Chunk[LiveRequest]]) -> dict[int, int]:
        """Run the model over the step; the new token of each request that is due one, by request id."""
        cache, slots = self.cache, [request.slot for request in decoding]
        if decoding:
            cache.prepare_step(slots)
            cache.begin_step(torch.tensor(slots, dtype=torch.int32, device=self.device))
        for chunk in chunks:
            cache.begin_chunk(chunk.request.slot, chunk.tokens)
        packed, rows, due = self._packed(decoding, chunks)
        logits = self._logits(decoding, chunks, packed, rows)
        if decoding:
            cache.end_step(slots)
        for chunk in chunks:
            cache.end_chunk(chunk.request.slot, chunk.tokens)
        if not due:
            return {}
        if self.on_logits is not None:
            self.on_logits(due, logits.float())
        return dict(zip([request.request_id for request in due], choose(logits, due), strict=True))

    def _packed(
        self, decoding: list[LiveRequest], chunks: list[Chunk[LiveRequest]]
    ) -> tuple[Packed, list[int], list[LiveRequest]]:
        """The step as attention reads it; the rows whose logits choose a token, and whose token that is."""
        spans, at = [], len(decoding)
        for request in decoding:
            request.cached += 1
        for chunk in chunks:
            spans.append(Span(chunk.request.slot, at, at + chunk.tokens))
            chunk.request.cached = chunk.context + chunk.tokens
            at += chunk.tokens
        due = [(row, request) for row, request in enumerate(decoding) if request.wants_token]
        ends = zip(spans, chunks, strict=True)
        due += [(span.stop - 1, c.request) for span, c in ends if c.last and c.request.wants_token]
        longest = max(request.cached for request in [*decoding, *(chunk.request for chunk in chunks)])
        packed = Packed(self.cache, len(decoding), tuple(spans), longest)
        return packed, [row for row, _ in due], [request for _, request in due]

    def _logits(
        self, decoding: list[LiveRequest], chunks: list[Chunk[LiveRequest]], packed: Packed, rows: list[int]
    ) -> Tensor:
        """float [len(rows), vocab] of the packed rows `rows`."""
        tokens = [request.tokens(request.cached - 1, request.cached)[0] for request in decoding]
        positions = [request.cached - 1 for request in decoding]
        for chunk in chunks:
            stop = chunk.context + chunk.tokens
            tokens += chunk.request.tokens(chunk.context, stop)
            positions += range(chunk.context, stop)
        ids, places = (torch.tensor([numbers], device=self.device) for numbers in (tokens, positions))
        kept = torch.tensor(rows, dtype=torch.long, device=self.device)
        call = {"use_cache": False, "logits_to_keep": kept, "leankv_step": packed}
        logits: Tensor = self.model(input_ids=ids, position_ids=places, **call).logits
        return logits[0]

    def _count(self) -> SlotCounts:
        """Pages and tokens by slot. They come with the step's tokens, so nothing waits twice."""
        tables = self.cache.tables
        held = pg.pages_held(tables.counts, tables.tokens_per_page)
        by_slot = torch.stack([held, tables.counts]).view(2, tables.slots, -1, 2).sum(2)
        shortage = int(tables.state[pg.DEFICIT])
        if shortage:
            raise RuntimeError(f"the pool ran {shortage} pages short in a step: the scheduler's reserve does not hold")
        pages, tokens = by_slot.tolist()
        return SlotCounts(pages, tokens)

    def _report(
        self, decoding: list[LiveRequest], chunks: list[Chunk[LiveRequest]], tokens: dict[int, int], now: int
    ) -> list[LiveRequest]:
        """Give the new tokens to their requests and prompts to the scheduler; returns who is finished."""
        for chunk in chunks:
            self.scheduler.finish_chunk(chunk)
        finished = []
        for request in [*decoding, *(chunk.request for chunk in chunks)]:
            token = tokens.get(request.request_id)
            if token is None:
                continue
            if request.first_token_ps < 0:
                request.first_token_ps = now
            if request.take(token, self.eos):
                request.finish_ps = now
                finished.append(request)
        return finished

    def _record(self, span: tuple[int, int], given: int, computed: int, running: int, counts: SlotCounts) -> None:
        tier0, tier1, *_ = counts.totals([request.slot for request in self.scheduler.decoding.values()])
        row = StepRow(
            *span,
            sequences=given,
            prompt_tokens=computed,
            running=running,
            waiting=len(self.scheduler.waiting),
            preemptions=self.preemptions,
            staging=sum(high + low for high, low in counts.pages) - tier0 - tier1,
            tier0=tier0,
            tier1=tier1,
        )
        self.log.rows.append(row)

    def _preempted(self, request: LiveRequest) -> None:
        self.preemptions += 1
