"""The pool as the scheduler sees it: pages by slot as they were one step ago, and a reserve that makes this safe.

Nobody waits for the device to count. What a request may hold now is bounded by what it held at the last count that
has arrived plus one page a layer and head (two where tiers are formed anew) for each step since and the next, or by
what its policy allows at its length, whichever is less. A prompt in progress counts with its full bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leankv.backend.cache import KVCache
from leankv.backend.live_request import NO_SLOT, LiveRequest
from leankv.serving.page_bounds import STEPS_UNSEEN, most_growth, most_pages, most_prompt_pages
from leankv.serving.policies.budgets import KeepAll
from leankv.serving.scheduler import WATERMARK


@dataclass
class _Held:
    """reserved: pages for the prompt while it is computed. completed: the step that completed it, -1 before.

    counted: pages at the last count that has arrived, None before the first after the prompt.
    """

    request: LiveRequest
    reserved: int
    completed: int = -1
    counted: int | None = None


class LivePages:
    """A `PageAccount` over a cache of one policy; it also hands out the cache's slots."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.laid = cache.policies[0]
        self.rows = cache.shape.layers * cache.shape.kv_heads
        self.watermark = int(cache.pages * WATERMARK)
        self.growth = self.rows * most_growth(self.laid)
        self.steps = 0
        self._running: dict[int, _Held] = {}
        self._free_slots = list(range(cache.tables.slots))[::-1]
        self._previous: list[int] | None = None

    def short(self) -> bool:
        return self._with_next_token() > self.cache.pages

    def admits(self, request: LiveRequest) -> bool:
        watermark = self.watermark if self._running else 0
        return self._with_next_token() + self._need(request) + watermark <= self.cache.pages

    def admit(self, request: LiveRequest) -> None:
        request.slot = self._free_slots.pop()
        self.cache.admit(request.slot, request.prefill_target)
        self._running[request.request_id] = _Held(request, self._need(request))

    def start_decode(self, request: LiveRequest) -> None:
        self._running[request.request_id].completed = self.steps

    def release(self, request: LiveRequest) -> None:
        request.held_pages = self._most(self._running.pop(request.request_id), 0)
        self.cache.free([request.slot])
        self._free_slots.append(request.slot)
        request.slot, request.cached = NO_SLOT, 0

    def recompute(self, request: LiveRequest) -> None:
        """Unless the policy keeps everything, only the prompt is computed at once.

        It is compressed at its own end, then decode steps replay the generated tokens, so that the cache becomes what
        it was; a longer prompt would be compressed by other queries.
        """
        if not isinstance(self.laid.policy.budget, KeepAll):
            request.prefill_target = request.prompt_tokens

    def stepped(self, pages: Sequence[int]) -> None:
        """A step was executed. pages: by slot after it; they count from the next call on."""
        if self._previous is not None:
            for held in self._running.values():
                if 0 <= held.completed < self.steps:
                    held.counted = self._previous[held.request.slot]
        self._previous = list(pages)
        self.steps += 1

    def refusal(self, prompt: int, output: int) -> str | None:
        """Why a request can never be served, or None: alone it must fit from its first chunk to its last token."""
        row = max(most_prompt_pages(self.laid, prompt), most_pages(self.laid, prompt, prompt + output))
        if row * self.rows > self.cache.pages:
            return f"needs {row * self.rows} KV pages, the pool has {self.cache.pages}"
        return None

    def most_held(self) -> int:
        """Pages that all requests together may hold now."""
        return sum(self._most(held, 0) for held in self._running.values())

    def _with_next_token(self) -> int:
        return sum(self._most(held, 1) for held in self._running.values())

    def _most(self, held: _Held, ahead: int) -> int:
        """Pages that a request may hold after `ahead` more decode steps."""
        if held.completed < 0:
            return held.reserved
        request = held.request
        by_rule = self.rows * most_pages(self.laid, request.prompt_tokens, request.cached + ahead)
        if held.counted is None:
            return by_rule
        return min(by_rule, held.counted + (STEPS_UNSEEN + ahead) * self.growth)

    def _need(self, request: LiveRequest) -> int:
        return max(self.rows * most_prompt_pages(self.laid, request.prefill_target), request.held_pages)
