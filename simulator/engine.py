"""One replica's engine core: `horizon` says how long the batch stays as it is, `advance` passes over that many steps.

While the same requests decode, the bytes read grow by the same amount each step, so step i costs `first + i * slope`
ticks and k steps cost `k * first + slope * k * (k - 1) / 2`, exactly, in integers. A step with prompt tokens in it is
taken alone. `stepwise.py` does the same one step at a time and is the oracle of this file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from heapq import heappop, heappush
from math import sqrt

from leankv.serving.scheduler import Chunk, Scheduler, SchedulerLimits
from leankv.simulator.clock import TICK_BITS
from leankv.simulator.costs import DecodeLine, StepCosts
from leankv.simulator.curves import ReadCurves
from leankv.simulator.ledger import LazyLedger
from leankv.simulator.recorder import ReplicaLog
from leankv.simulator.resident import Resident

ID_BITS = 40
ID_MASK = (1 << ID_BITS) - 1
FAR = 1 << 60


class JumpEngine:
    """Simulates one replica up to the first step boundary at or after a given instant.

    Args:
        limits: of the scheduler.
        ledger: its memory.
        costs: integer step costs of the policy on this device.
        curves: bytes read by context.
        on_finish: called with each finished request and its last token's time in ps.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        ledger: LazyLedger,
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
        self._read = 0
        self._read_slope = 0
        self._finishes: list[int] = []
        self._bends: list[int] = []
        self._resumes: list[int] = []
        self._replaying = 0
        self._next_change = FAR

    @property
    def idle(self) -> bool:
        scheduler = self.scheduler
        return not (scheduler.decoding or scheduler.waiting or scheduler.prefilling)

    def kv_use(self) -> float:
        return self.ledger.used() / self.ledger.capacity

    def add(self, request: Resident) -> None:
        self.scheduler.add(request)

    def run_until(self, limit: int, stop_at_finish: bool = False) -> None:
        """Run to the first step boundary at or after `limit` ticks, or until there is nothing to do.

        With `stop_at_finish`, also stop at a boundary where a request finished: in a closed loop it causes an arrival.
        """
        schedule, decoding = self.scheduler.schedule, self.decoding
        while self.clock < limit:
            chunks = schedule()
            if chunks:
                finished = self._step_with_prompts(chunks)
            elif decoding:
                finished = self.advance(limit)
            else:
                return
            if finished and stop_at_finish:
                return

    def horizon(self, limit: int, first: int, slope: int, line: DecodeLine) -> int:
        """Steps for which the batch, and the line that its step costs follow, stay as they are; at least 1.

        The earliest of: a request's last token, a bend in a read curve, the end of the step-time model's line, the
        first boundary at or after `limit`, the first step whose pages do not fit.
        """
        count = self._next_change - self.ledger.steps
        if self._read_slope > 0 and line.end < FAR:
            count = min(count, -((self._read - line.end) // self._read_slope))
        elif self._read_slope < 0 and line.start > 0:
            count = min(count, (self._read - line.start) // -self._read_slope + 1)
        distance = limit - self.clock
        if elapsed(count, first, slope) > distance:
            count = steps_to_reach(distance, first, slope, count)
        return self.ledger.steps_that_fit(count) if count > 1 else 1

    def advance(self, limit: int) -> int:
        """Decode until the horizon; returns how many requests finished there."""
        ledger = self.ledger
        sequences = len(self.decoding)
        read, read_slope, clock = self._read, self._read_slope, self.clock
        line = self.costs.decode_line(sequences, read)
        per_byte = line.slope
        first = line.constant + per_byte * read
        slope = per_byte * read_slope
        replaying = self._replaying
        if replaying:
            first += self.costs.tokens_and_logits(sequences, sequences - replaying) - line.linear
        count = self.horizon(limit, first, slope, line)
        waiting = len(self.scheduler.waiting)
        self.log.segments.add(
            (clock >> TICK_BITS, ledger.steps, count, first, slope, sequences - replaying, replaying, waiting)
        )
        self.clock = clock + count * first + slope * (count * (count - 1) // 2)
        self._read = read + count * read_slope
        ledger.steps += count
        return self._settle() if ledger.steps >= self._next_change else 0

    def _step_with_prompts(self, chunks: list[Chunk[Resident]]) -> int:
        """One step: every decoding request's token, and the chunks."""
        costs, ledger = self.costs, self.ledger
        sequences = len(self.decoding)
        given = sequences - self._replaying
        tokens, rows, ticks = sequences, given, 0
        now = self.clock >> TICK_BITS
        for chunk in chunks:
            request = chunk.request
            last = chunk.last
            tokens += chunk.tokens
            rows += last
            ticks += costs.prefill(chunk.tokens, chunk.context, last)
            if request.stay_ps < 0:
                self._admitted(request, now)
        if ledger.late:
            rows -= sum(chunk.last and not chunk.request.gives_token for chunk in chunks)
        ticks += costs.tokens_and_logits(tokens, rows) + costs.decode_beside_prompts(sequences, self._read)
        waiting = len(self.scheduler.waiting)
        self.log.segments.add((now, ledger.steps, 1, ticks, 0, given, tokens - given, waiting))
        self.clock += ticks
        if ledger.late:
            for chunk in chunks:
                self.log.chunk(chunk, now, self.clock >> TICK_BITS)
        self._read += self._read_slope
        ledger.steps += 1
        finished = self._settle() if ledger.steps >= self._next_change else 0
        for chunk in chunks:
            finished += self._finish_chunk(chunk)
        return finished

    def _admitted(self, request: Resident, now: int) -> None:
        request.stay_ps = now
        if request.admitted_ps < 0:
            request.admitted_ps = now

    def _finish_chunk(self, chunk: Chunk[Resident]) -> int:
        """After a prompt's last chunk its next token is out, and it joins the batch unless that was its last one."""
        self.scheduler.finish_chunk(chunk)
        if not chunk.last:
            return 0
        request, steps, now = chunk.request, self.ledger.steps, self.clock >> TICK_BITS
        request.decode_ps = now
        request.decode_step = steps
        if request.prefill_target == request.prompt_tokens + request.generated:
            request.resume_step = steps
            if request.first_token_ps < 0:
                request.first_token_ps = now
            else:
                self.log.preemption_gaps_ps.append(now - request.last_token_ps)
        else:
            self._replay(request, steps)
        request.generated += 1
        request.finish_step = request.resume_step + request.output_tokens - request.generated
        if request.finish_step == steps:
            self._finish(request)
            return 1
        heappush(self._finishes, request.finish_step << ID_BITS | request.request_id)
        if request.finish_step < self._next_change:
            self._next_change = request.finish_step
        self._follow_curve(request, steps)
        return 0

    def _replay(self, request: Resident, steps: int) -> None:
        """Only the prompt was computed anew: a step feeds each generated token, the last of which gives the next."""
        request.resume_step = steps + request.generated
        self._replaying += 1
        heappush(self._resumes, request.resume_step << ID_BITS | request.request_id)
        self._next_change = min(self._next_change, request.resume_step)

    def _resume(self, steps: int) -> None:
        """Requests that were fed all their tokens have a new one at this boundary."""
        resumes = self._resumes
        while resumes and resumes[0] >> ID_BITS <= steps:
            request = self.decoding.get(heappop(resumes) & ID_MASK)
            if request is not None and request.resume_step == steps:
                self._replaying -= 1
                self.log.preemption_gaps_ps.append((self.clock >> TICK_BITS) - request.last_token_ps)

    def _follow_curve(self, request: Resident, steps: int) -> None:
        """Take up the line of the read curve that holds for the next step."""
        context = steps + request.offset + 1
        start, end, value, slope = self.curves.segment_at(request.prompt_tokens, context)
        value += slope * (context - start)
        request.read_step = steps
        request.read_value = value
        request.read_slope = slope
        self._read += value
        self._read_slope += slope
        bend = end - 1 - request.offset
        if bend < request.finish_step:
            heappush(self._bends, bend << ID_BITS | request.request_id)
            self._next_change = min(self._next_change, bend)

    def _leave_curve(self, request: Resident, steps: int) -> None:
        self._read -= request.read_value + request.read_slope * (steps - request.read_step)
        self._read_slope -= request.read_slope

    def _settle(self) -> int:
        """Let go of the requests that this boundary finishes, bend the curves that bend here, find the next change."""
        steps, finishes, decoding = self.ledger.steps, self._finishes, self.decoding
        finished = 0
        if self._resumes:
            self._resume(steps)
        while finishes and finishes[0] >> ID_BITS <= steps:
            request = decoding.get(heappop(finishes) & ID_MASK)
            if request is not None and request.finish_step == steps:
                self._leave_curve(request, steps)
                request.generated = request.output_tokens
                self._finish(request)
                finished += 1
        bends = self._bends
        while bends and bends[0] >> ID_BITS <= steps:
            request = decoding.get(heappop(bends) & ID_MASK)
            if request is not None:
                self._leave_curve(request, steps)
                self._follow_curve(request, steps)
        self._next_change = self._find_next_change()
        return finished

    def _find_next_change(self) -> int:
        """The step at which a request finishes or resumes or a curve bends; not what belonged to an earlier stay."""
        finishes, bends, decoding = self._finishes, self._bends, self.decoding
        while finishes:
            request = decoding.get(finishes[0] & ID_MASK)
            if request is not None and request.finish_step == finishes[0] >> ID_BITS:
                break
            heappop(finishes)
        while bends:
            request = decoding.get(bends[0] & ID_MASK)
            if request is not None and request.read_step <= bends[0] >> ID_BITS <= request.finish_step:
                break
            heappop(bends)
        first = finishes[0] >> ID_BITS if finishes else FAR
        if self._resumes:
            first = min(first, self._resumes[0] >> ID_BITS)
        return min(first, bends[0] >> ID_BITS) if bends else first

    def _finish(self, request: Resident) -> None:
        now = self.clock >> TICK_BITS
        self.log.stay(request, now, self.ledger.steps, False)
        self.scheduler.finish(request)
        self.on_finish(request, now)

    def _preempt(self, request: Resident) -> None:
        """Called by the scheduler before it takes a request's pages."""
        now, steps = self.clock >> TICK_BITS, self.ledger.steps
        if request.decode_step >= 0:
            if steps >= request.resume_step:
                request.generated += steps - request.resume_step
                request.last_token_ps = now
            else:
                request.generated -= 1
                self._replaying -= 1
            self._leave_curve(request, steps)
        self.log.stay(request, now, steps, True)
        request.stay_ps = request.decode_ps = request.decode_step = -1
        request.finish_step = -1
        self._next_change = self._find_next_change()


def elapsed(steps: int, first: int, slope: int) -> int:
    """Ticks of `steps` steps of which step i costs `first + i * slope`."""
    return steps * first + slope * (steps * (steps - 1) // 2)


def steps_to_reach(distance: int, first: int, slope: int, enough: int) -> int:
    """The least k >= 1 with `elapsed(k) >= distance`, exactly. `enough` steps are known to reach it, each costs > 0."""
    if distance <= first:
        return 1
    if slope == 0:
        return -(-distance // first)
    if slope > 0:
        half = 2 * first - slope
        steps = max(1, int((sqrt(half * half + 8 * slope * distance) - half) / (2 * slope)))
        while elapsed(steps, first, slope) < distance:
            steps += 1
        while steps > 1 and elapsed(steps - 1, first, slope) >= distance:
            steps -= 1
        return steps
    return bisect_left(range(enough), distance, key=lambda steps: elapsed(steps, first, slope))
