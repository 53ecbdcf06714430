"""The live engine: continuous batching of a Hugging Face causal model over the unified cache.

It drives the scheduler of `leankv.serving.scheduler`, the one that the simulator drives: `schedule` says what the next
step computes, one packed forward call computes it, `finish_chunk` and `finish` report. Each request decodes as if it
were alone; its neighbours change neither its tokens nor its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.backend.attention import attend_through_cache, past_window
from leankv.backend.cache import KVCache
from leankv.backend.cache_plan import CacheShape, KeyMeans
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.page_account import LivePages
from leankv.backend.room import GIB, memory_told
from leankv.backend.sampling import choose
from leankv.backend.step_log import Clock, Held, SlotCounts, StepLog, StepRow
from leankv.backend.step_model import Computed, StepModel
from leankv.backend.step_read import CacheFault, read
from leankv.serving.errors import InputError
from leankv.serving.policies.base import Policy
from leankv.serving.scheduler import Chunk, Scheduler, SchedulerLimits

if TYPE_CHECKING:
    from leankv.backend.weights import Loaded

OnLogits = Callable[[Sequence[LiveRequest], Tensor], None]
FIRST_CHUNK = 33
"""Tokens of the first of two chunks that a warm-up serves."""


def rehearsed_prompts(most: int) -> list[int]:
    """Lengths up to `most` after which no other needs a kernel of its own: Triton compiles one for 1, one for multiples
    of 16 and one for the rest, and some kernels one for each power of two of 64 tokens.
    """
    lengths = [1, 16, 33, *(128 << doubled for doubled in range(most.bit_length())), most]
    return sorted({length for length in lengths if 0 < length <= most})


class Engine:
    """One model under one policy. `add` requests, then call `step` until `idle`.

    memory_bytes: of the KV pool with its tables. max_tokens: longest request, prompt and output together. key_means:
    for policies that centre keys. The model attends through this engine's cache from now on. Raises InputError where
    the memory is too small or the policy does not run live.

    on_logits: called in each step (in inference mode) with the requests that are due a token and the logits that choose
    it, float32 [requests, vocab], before the tokens are appended: row i speaks of the token that comes after
    `requests[i].output`. The logits are overwritten by the next step.

    recorded: whether decode steps are recorded and replayed (`graphs.py`); by default on CUDA, where that saves time.
    """

    def __init__(
        self,
        loaded: Loaded,
        policy: Policy,
        limits: SchedulerLimits,
        *,
        memory_bytes: int,
        max_tokens: int,
        key_means: KeyMeans | None = None,
        on_logits: OnLogits | None = None,
        recorded: bool | None = None,
    ) -> None:
        self.loaded, self.policy, self.max_tokens = loaded, policy, max_tokens
        self.model = loaded.model
        self.device, self.on_logits = self.model.device, on_logits
        shape = CacheShape(loaded.layers, loaded.heads, loaded.kv_heads, loaded.head_dim)
        pool = f"a KV pool of {memory_bytes / GIB:.3g} GiB"
        with memory_told(f"{pool} does not fit in memory beside {loaded.name}; lower --kv-memory-gib"):
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
        self._counts = SlotCounts((), ())
        ends = self.model.generation_config.eos_token_id
        self.eos = frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)
        attend_through_cache(self.model)
        wanted = self.device.type == "cuda" if recorded is None else recorded
        self.steps = StepModel(loaded, self.cache, limits.max_num_seqs, wanted)

    @property
    def idle(self) -> bool:
        scheduler = self.scheduler
        return not (scheduler.decoding or scheduler.waiting or scheduler.prefilling)

    def refusal(self, prompt_tokens: int, output_tokens: int) -> str | None:
        """Why a request of these lengths cannot be served, or None."""
        total = prompt_tokens + output_tokens
        if total > self.max_tokens:
            return f"{prompt_tokens} + {output_tokens} tokens exceed the context of {self.max_tokens}"
        if (reason := past_window(self.steps.windows, total)) is not None:
            return reason
        return self.pages.refusal(prompt_tokens, output_tokens)

    def add(self, request: LiveRequest) -> None:
        """Queue a request. Raises InputError for one that can never be served."""
        reason = self.refusal(request.prompt_tokens, request.output_tokens)
        if reason is not None:
            raise InputError(f"request {request.request_id}: {reason}")
        self.scheduler.add(request)

    def step(self) -> list[LiveRequest]:
        """Schedule and compute one step; returns the requests that finished with it. Raises CacheFault."""
        start = self.clock.now()
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            if chunk.request.admitted_ps < 0:
                chunk.request.admitted_ps = start
        decoding = list(self.scheduler.decoding.values())
        waiting, scheduled = len(self.scheduler.waiting), self.clock.now()
        computed = self._computed(decoding, chunks)
        seen = read(computed.report, self.cache.tables.slots)
        tokens = self._choose(computed, seen.tokens)
        end = self.clock.now()
        given = sum(request.request_id in tokens and not request.interrupted for request in decoding)
        finished = self._report(decoding, chunks, tokens, end)
        row = self._row((start, scheduled, end), waiting, decoding, chunks, given, seen.counts)
        self.pages.stepped([high + low for high, low in seen.counts.pages])
        self._counts = seen.counts
        for request in finished:
            self.log.final.append(self.held(request))
            self.scheduler.finish(request)
        self.log.rows.append(replace(row, done_ps=self.clock.now()))
        return finished

    def held(self, request: LiveRequest) -> Held:
        """What a running request holds after the last step."""
        high, low, *tokens = self._counts.totals([request.slot])
        return Held(request.cached, high + low, (tokens[0], tokens[1]))

    def warm_up(self, record_all: bool = False) -> None:
        """Serve a short request, where one fits, and forget it: first calls allocate, compile and page in.

        On a GPU, where kernels are compiled for the lengths that they meet, so are prompts of every length's kind.

        record_all: record decode steps of every batch size now, where they are recorded, instead of when they come.
        """
        with torch.inference_mode():
            self.cache.rehearse()
        self._serve_and_forget(max(1, min(8, self.max_tokens - 3)))
        if self.device.type == "cuda":
            self._serve_every_kind()
        if record_all:
            self.steps.record_all()
        self.log = StepLog()

    def _serve_every_kind(self) -> None:
        """Prompts in one chunk, and one whose second chunk comes after a context, as far as they fit."""
        limits = self.scheduler.limits
        for prompt in rehearsed_prompts(min(limits.max_num_batched_tokens, self.max_tokens - 3)):
            self._serve_and_forget(prompt)
        if limits.chunked_prefill and limits.max_num_batched_tokens >= FIRST_CHUNK:
            self.scheduler.limits = SchedulerLimits(1, FIRST_CHUNK)
            try:
                self._serve_and_forget(min(2 * FIRST_CHUNK - 1, self.max_tokens - 3))
            finally:
                self.scheduler.limits = limits

    def _serve_and_forget(self, prompt: int) -> None:
        output = min(3, self.max_tokens - prompt)
        if prompt < 1 or self.refusal(prompt, output) is not None:
            return
        self.add(LiveRequest(-1, [0] * prompt, output, Sampling(ignore_eos=True)))
        while not self.idle:
            self.step()

    def _computed(self, decoding: list[LiveRequest], chunks: list[Chunk[LiveRequest]]) -> Computed:
        try:
            return self.steps.compute(decoding, chunks)
        except InputError:
            raise
        except ValueError as error:
            # On a CPU the cache refuses a bad key at once; on a GPU it counts it, and the report tells.
            raise CacheFault(str(error)) from error

    @torch.inference_mode()
    def _choose(self, computed: Computed, likeliest: Sequence[int]) -> dict[int, int]:
        """The new token of each request that is due one, by request id."""
        if self.on_logits is not None and computed.due:
            rows, requests = zip(*computed.due, strict=True)
            self.on_logits(requests, computed.logits[list(rows)].float())
        return choose(likeliest, computed.logits, computed.due)

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
            if request.interrupted:
                self.log.preemption_gaps_ps.append(now - request.last_token_ps)
            request.interrupted, request.last_token_ps = False, now
            if request.take(token, self.eos):
                request.finish_ps = now
                finished.append(request)
        return finished

    def _row(
        self,
        times: tuple[int, int, int],
        waiting: int,
        decoding: list[LiveRequest],
        chunks: list[Chunk[LiveRequest]],
        given: int,
        counts: SlotCounts,
    ) -> StepRow:
        """A step as the log keeps it; `done_ps` is still to come."""
        tier0, tier1, *_ = counts.totals([request.slot for request in self.scheduler.decoding.values()])
        return StepRow(
            *times,
            done_ps=times[-1],
            sequences=given,
            prompt_tokens=len(decoding) - given + sum(chunk.tokens for chunk in chunks),
            running=len(decoding) + len(chunks),
            waiting=waiting,
            preemptions=self.preemptions,
            staging=sum(high + low for high, low in counts.pages) - tier0 - tier1,
            tier0=tier0,
            tier1=tier1,
            decoding=len(decoding),
            attended=sum(request.cached for request in decoding),
            chunks=tuple((chunk.context, chunk.tokens) for chunk in chunks),
            completed=tuple(chunk.context + chunk.tokens for chunk in chunks if chunk.last),
        )

    def _preempted(self, request: LiveRequest) -> None:
        self.preemptions += 1
        if request.output:
            request.interrupted = True
