"""Pages as the live scheduler sees them, for both engines: `LateLedger` jumps, `LateCountingLedger` is its oracle.

The first reckons when a count must have arrived from the number of steps alone; the second is told after every step
and remembers, as `leankv.backend.page_account` does.
"""

from __future__ import annotations

from leankv.serving.page_bounds import STEPS_UNSEEN
from leankv.simulator.late_pages import LatePages
from leankv.simulator.ledger import LazyLedger, admission_pages
from leankv.simulator.prefixes import PrefixCache
from leankv.simulator.resident import Resident
from leankv.simulator.stepwise import CountingLedger


class LateLedger(LazyLedger):
    """A `LazyLedger` over late counts.

    A bound can fall at two moments only: when a request's first count after its prompt arrives, one step after the
    prompt was complete, and where a policy's window shrinks. A request that was refused is looked at again then, and
    one that lost its cache after a step, since what its prompt needs may be less than what it gave back.
    """

    late = True

    def __init__(self, late: LatePages, capacity: int, watermark: int, prefixes: PrefixCache | None = None) -> None:
        super().__init__(late, capacity, watermark, prefixes)
        self.late_pages = late
        self._completed_at = -1
        self._preempted_at = -1

    def admits(self, request: Resident) -> bool:
        if self.late_pages.shrinks or self.steps <= self._completed_at + 1:
            self._blocked = None
        return super().admits(request)

    def start_decode(self, request: Resident) -> None:
        super().start_decode(request)
        self._completed_at = self.steps

    def release(self, request: Resident) -> None:
        request.held_pages = request.reserved or self._seen_at_release(request)
        super().release(request)

    def recompute(self, request: Resident) -> None:
        """See `leankv.backend.page_account.LivePages.recompute`."""
        if self.late_pages.replays:
            request.prefill_target = request.prompt_tokens
        super().recompute(request)
        request.need = max(request.need, request.held_pages)
        self._preempted_at = self.steps

    def steps_that_fit(self, limit: int) -> int:
        blocked = self._blocked
        if self.steps == self._preempted_at or (blocked is not None and self.steps == self._completed_at):
            return 1
        if not self.late_pages.shrinks:
            return super().steps_that_fit(limit)
        room = self.capacity - self.reserved
        if blocked is None and self._bound(limit - 1) <= room:
            return limit
        opens = -1 if blocked is None else self._room_for(blocked)
        for steps in range(1, limit):
            total = self._total_after(steps)
            if total > room or total <= opens:
                return steps
        return limit

    def _pages_after(self, residents: list[Resident], steps: int) -> list[int]:
        return [self._seen_after(request, self.steps + steps) for request in residents]

    def _seen_after(self, request: Resident, steps: int) -> int:
        """Most pages with the next token, after so many steps of the replica."""
        shared = request.shared_tokens
        prompt, context = request.prompt_tokens - shared, request.offset + steps + 1 - shared
        if context == request.prefill_target + 1 - shared:
            return self.late_pages.pages(prompt, context)
        return self.late_pages.seen(prompt, context)

    def _seen_at_release(self, request: Resident) -> int:
        shared = request.shared_tokens
        prompt, context = request.prompt_tokens - shared, request.offset + self.steps - shared
        if context == request.prefill_target - shared:
            return self.late_pages.pages(prompt, context)
        return self.late_pages.seen_at_release(prompt, context)


class LateCountingLedger(CountingLedger):
    """A `CountingLedger` that learns of counts one step late: `counted` by request, `previous` those to come."""

    late = True

    def __init__(self, late: LatePages, capacity: int, watermark: int, prefixes: PrefixCache | None = None) -> None:
        super().__init__(late, capacity, watermark, prefixes)
        self.late_pages = late
        self.counted: dict[int, int] = {}
        self.previous: dict[int, int] = {}

    def stepped(self) -> None:
        """A step was executed. What was held before it becomes known now."""
        self.counted = {request_id: self.previous[request_id] for request_id in self.previous.keys() & self.decoding}
        self.previous = {
            request.request_id: self.late_pages.held(
                request.prompt_tokens - request.shared_tokens,
                self.contexts[request.request_id] - request.shared_tokens,
            )
            for request in self.decoding.values()
        }

    def release(self, request: Resident) -> None:
        request.held_pages = request.reserved or self._most(request, 0)
        self.previous.pop(request.request_id, None)
        self.counted.pop(request.request_id, None)
        super().release(request)

    def recompute(self, request: Resident) -> None:
        if self.late_pages.replays:
            request.prefill_target = request.prompt_tokens

    def _need(self, request: Resident) -> int:
        return max(admission_pages(self.memory, request), request.held_pages)

    def _held(self, request: Resident) -> int:
        return self._most(request, 1)

    def _most(self, request: Resident, ahead: int) -> int:
        shared = request.shared_tokens
        context = self.contexts[request.request_id] + ahead - shared
        by_rule = self.memory.pages(request.prompt_tokens - shared, context)
        counted = self.counted.get(request.request_id)
        if counted is None:
            return by_rule
        return min(by_rule, counted + (STEPS_UNSEEN + ahead) * self.late_pages.growth)
