"""Pages in use, known to the page but counted only when it matters.

The scheduler asks at every step whether pages suffice. A bound on what the decoding requests can have grown since the
last count answers nearly always; near the capacity the pages are counted exactly, and the first step that would run
short is found by bisection, since a request's pages never shrink while it decodes.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

import numpy as np

from leankv.simulator.prefixes import PrefixCache
from leankv.simulator.resident import Resident

VECTORISE_FROM = 64
BLOCK_BITS = 6
BLOCK = 1 << BLOCK_BITS
COUNT_EVERY = 32


class PageModel(Protocol):
    """What the ledger asks of `leankv.serving.memory.MemoryModel`."""

    def pages(self, prompt: int, context: int) -> int: ...

    def pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray: ...

    def prefill_pages(self, prompt: int, done: int) -> int: ...

    def growth_bound(self, tokens: int) -> int: ...


def admission_pages(memory: PageModel, request: Resident) -> int:
    """Pages reserved while a prompt is computed: its staging, or what a recomputed request holds at its end."""
    shared = request.shared_tokens
    prompt, target = request.prompt_tokens - shared, request.prefill_target - shared
    return max(memory.prefill_pages(prompt, prompt), memory.pages(prompt, target))


class LazyLedger:
    """A `PageAccount` for the jumping engine. `steps` is advanced by the engine, `decoding` is the scheduler's.

    The bound is tabulated by blocks of BLOCK tokens; after COUNT_EVERY blocks the pages are counted anew.
    late: whether counts come late, and preempted requests may be fed their tokens again.
    """

    late = False

    def __init__(self, memory: PageModel, capacity: int, watermark: int, prefixes: PrefixCache | None = None) -> None:
        self.memory = memory
        self.capacity = capacity
        self.watermark = watermark
        self.prefixes = prefixes
        self.steps = 0
        self.decoding: dict[int, Resident] = {}
        self.reserved = 0
        self._counted = 0
        self._counted_at = 0
        self._growth = [memory.growth_bound(block * BLOCK) if block else 0 for block in range(COUNT_EVERY)]
        self._blocked: Resident | None = None

    def short(self) -> bool:
        blocks = self.steps - self._counted_at + BLOCK - 1 >> BLOCK_BITS
        if blocks < COUNT_EVERY:
            held = self._counted + self._growth[blocks] * len(self.decoding)
            if held + self.reserved <= self.capacity:
                return False
        self._count()
        return self._counted + self.reserved > self.capacity

    def admits(self, request: Resident) -> bool:
        if request is self._blocked:
            return False
        room = self._room_for(request)
        if self._bound(0) <= room:
            return True
        self._count()
        if self._counted <= room:
            return True
        self._blocked = request
        return False

    def admit(self, request: Resident) -> None:
        if self.prefixes is not None:
            request.hit_tokens, taken = self.prefixes.take(request.request_id, self.capacity - self.used())
            request.computed = request.hit_tokens
            self.reserved += taken
        request.reserved = request.need
        self.reserved += request.need

    def start_decode(self, request: Resident) -> None:
        self.reserved -= request.reserved
        request.reserved = 0
        request.offset = request.prefill_target - self.steps
        request.held = request.first_held
        self._counted += request.held
        self._blocked = None

    def recompute(self, request: Resident) -> None:
        """The request was preempted and restarted: what it needs now depends on the tokens it had generated."""
        request.need = admission_pages(self.memory, request)
        shared = request.shared_tokens
        request.first_held = self.memory.pages(request.prompt_tokens - shared, request.prefill_target - shared + 1)

    def release(self, request: Resident) -> None:
        self.reserved -= request.reserved
        self._counted -= request.held
        request.reserved = request.held = 0
        self._blocked = None
        if self.prefixes is not None:
            self.reserved -= self.prefixes.give_back(request.request_id)

    def used(self) -> int:
        """Pages of prompts in progress, and of every decoding request with its next token."""
        self._count()
        return self._counted + self.reserved

    def steps_that_fit(self, limit: int) -> int:
        """How many of the next `limit` decode steps fit; the first is known to."""
        room = self.capacity - self.reserved
        if self._bound(limit - 1) <= room:
            return limit
        self._count()
        if self._bound(limit - 1) <= room or self._total_after(limit - 1) <= room:
            return limit
        return bisect_left(range(limit - 1), True, lo=1, key=lambda steps: self._total_after(steps) > room)

    def _room_for(self, request: Resident) -> int:
        """Pages that decoding requests may hold for this one to be admitted."""
        room = self.capacity - self.reserved - request.need
        if self.prefixes is not None:
            room -= self.prefixes.missing_pages(request.request_id)
        return room - self.watermark if self.decoding or self.reserved else room

    def _bound(self, ahead: int) -> int:
        """At most so many pages are held by decoding requests for the step that follows `ahead` more."""
        blocks = self.steps - self._counted_at + ahead + BLOCK - 1 >> BLOCK_BITS
        growth = self._growth
        if blocks >= len(growth):
            growth.extend(self.memory.growth_bound(block * BLOCK) for block in range(len(growth), blocks + 1))
        return self._counted + growth[blocks] * len(self.decoding)

    def _count(self) -> None:
        if self._counted_at == self.steps:
            return
        residents = list(self.decoding.values())
        for resident, held in zip(residents, self._pages_after(residents, 0), strict=True):
            resident.held = held
        self._counted = sum(resident.held for resident in residents)
        self._counted_at = self.steps

    def _total_after(self, steps: int) -> int:
        return sum(self._pages_after(list(self.decoding.values()), steps))

    def _pages_after(self, residents: list[Resident], steps: int) -> list[int]:
        """Pages of each for the step that follows `steps` more."""
        shift = self.steps + steps + 1
        if len(residents) < VECTORISE_FROM:
            pages = self.memory.pages
            return [pages(r.prompt_tokens - r.shared_tokens, r.offset - r.shared_tokens + shift) for r in residents]
        prompts = np.array([r.prompt_tokens - r.shared_tokens for r in residents], dtype=np.int64)
        contexts = np.array([r.offset - r.shared_tokens for r in residents], dtype=np.int64) + shift
        return self.memory.pages_array(prompts, contexts).tolist()
