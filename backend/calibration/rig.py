"""The live engine on a bench: any batch of decoding requests beside any chunks of prompts, one step at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from leankv.backend.cache_plan import KeyMeans
from leankv.backend.calibration.stored import StoredSteps, Text
from leankv.backend.engine import Engine
from leankv.backend.live_request import LiveRequest, Sampling
from leankv.backend.step_log import StepRow
from leankv.serving.policies.base import Policy
from leankv.serving.scheduler import SchedulerLimits

if TYPE_CHECKING:
    from leankv.backend.weights import Loaded

TO_LENGTH = Sampling(ignore_eos=True)
OUTPUT = 64
"""Tokens that a request may generate: more than any point's repetitions take."""
REST = 8
"""Tokens of a prompt that follow a chunk that is not its last."""


@dataclass(frozen=True)
class ChunkSpec:
    """`tokens` of a prompt after `context` earlier ones; `last` if they complete it."""

    context: int
    tokens: int
    last: bool = True


@dataclass(frozen=True)
class Timed:
    """A step: how long it lasted, what the engine wrote of it, and tokens held by its decoding requests, by tier.

    fewer: requests whose first tier held fewer tokens after it than before.
    """

    seconds: float
    row: StepRow
    held: tuple[int, int]
    fewer: int


class Rig:
    """An engine under one policy. `texts` are at least `max_tokens` long; requests take them in turn."""

    def __init__(
        self,
        loaded: Loaded,
        policy: Policy,
        limits: SchedulerLimits,
        memory_bytes: int,
        max_tokens: int,
        texts: Sequence[Text],
        key_means: KeyMeans | None,
    ) -> None:
        self.texts, self.limits = texts, limits
        self.engine = Engine(
            loaded, policy, limits, memory_bytes=memory_bytes, max_tokens=max_tokens, key_means=key_means
        )
        self.engine.warm_up(record_all=True)
        self._model = self.engine.steps
        self._stored = StoredSteps(self.engine.cache)
        self._requests = 0

    @property
    def decoding(self) -> list[LiveRequest]:
        return list(self.engine.scheduler.decoding.values())

    def fill(self, contexts: Sequence[int]) -> None:
        """Let requests with these contexts decode: as many of them, in their order, as the pool holds."""
        for context in contexts:
            self._add(context, OUTPUT)
        self._fill(sum(contexts) + len(contexts))
        self.engine.scheduler.waiting.clear()

    def keep(self, count: int) -> None:
        """Let go of all decoding requests but the first `count`."""
        for request in self.decoding[count:]:
            self.engine.scheduler.finish(request)

    def step(self, chunks: Sequence[ChunkSpec] = ()) -> Timed | None:
        """One step of all decoding requests and of the chunks; None where the pool does not hold these.

        Of several chunks, the first alone may have a context, and the last alone may leave its prompt unfinished.
        """
        before = self.decoding
        for chunk in chunks:
            self._add(chunk.context + chunk.tokens + (0 if chunk.last else REST), 2)
            if chunk.context:
                self._fill(len(before) + chunk.context, steps=1)
        self._allow(len(before) + sum(chunk.tokens for chunk in chunks))
        earlier = self.held(before)
        began = time.perf_counter()
        self.engine.step()
        seconds = time.perf_counter() - began
        row = self.engine.log.rows[-1]
        held = self.held(before)
        fewer = sum(now[0] < then[0] for then, now in zip(earlier, held, strict=True))
        timed = Timed(seconds, row, (sum(high for high, _ in held), sum(low for _, low in held)), fewer)
        self._clear(before)
        asked = tuple((chunk.context, chunk.tokens) for chunk in chunks)
        return timed if row.chunks == asked and row.decoding == len(before) else None

    def _add(self, prompt: int, output: int) -> None:
        text = self.texts[self._requests % len(self.texts)]
        self._stored.texts[self._requests] = text
        forced = text.tokens[prompt : prompt + output]
        self.engine.add(LiveRequest(self._requests, text.tokens[:prompt], output, TO_LENGTH, forced=forced))
        self._requests += 1

    def _fill(self, budget: int, steps: int | None = None) -> None:
        """Store what waits instead of computing it, until nothing waits or nothing more fits."""
        scheduler = self.engine.scheduler
        self._allow(budget)
        self.engine.steps = self._stored  # type: ignore[assignment]
        try:
            while (scheduler.waiting or scheduler.prefilling) and steps != 0:
                known = len(scheduler.waiting), scheduler.prefilling and scheduler.prefilling.computed
                self.engine.step()
                if known == (len(scheduler.waiting), scheduler.prefilling and scheduler.prefilling.computed):
                    return
                steps = None if steps is None else steps - 1
        finally:
            self.engine.steps = self._model

    def _allow(self, budget: int) -> None:
        """So many tokens in the next step."""
        budget = max(1, budget)
        self.engine.scheduler.limits = SchedulerLimits(min(self.limits.max_num_seqs, budget), budget)

    def _clear(self, staying: Sequence[LiveRequest]) -> None:
        """Finish the prompts that the step began, and let go of their requests."""
        stay = {request.request_id for request in staying}
        self.engine.scheduler.waiting = type(self.engine.scheduler.waiting)()
        if self.engine.scheduler.prefilling is not None:
            self._fill(len(staying) + REST)
        for request in self.decoding:
            if request.request_id not in stay:
                self.engine.scheduler.finish(request)

    @torch.inference_mode()
    def held(self, requests: Sequence[LiveRequest]) -> list[tuple[int, int]]:
        """Tokens of each request by tier, over all layers and heads. Waits for the device."""
        tables = self.engine.cache.tables
        by_slot = tables.counts.view(tables.slots, -1, 2).sum(1).tolist()
        return [(by_slot[request.slot][0], by_slot[request.slot][1]) for request in requests]
