"""What a decode step reads of one request's cache, as integer line segments over its context."""

from __future__ import annotations

from typing import NamedTuple, Protocol

LAST_SEGMENT_TOKENS = 1 << 20


class KVReads(Protocol):
    """Bytes read per decode step, by context; `leankv.serving.memory.MemoryModel` is one."""

    def kv_read(self, prompt: int, context: int) -> tuple[float, ...]: ...

    def breakpoints(self, prompt: int) -> tuple[int, ...]: ...

    @property
    def reads_follow_context(self) -> bool:
        """Whether `kv_read` depends on the context alone, so that one curve serves every prompt."""


class Segment(NamedTuple):
    """`value + slope * (context - start)` effective bytes, for contexts from `start` up to, not including, `end`."""

    start: int
    end: int
    value: int
    slope: int

    def at(self, context: int) -> int:
        return self.value + self.slope * (context - self.start)


class ReadCurves:
    """Segments by prompt length. Rounded once, so every engine adds up the same integers.

    Args:
        reads: the policy's memory model.
        multipliers: per tier, effective over stored bytes (dequantization, from the step-time model).
    """

    def __init__(self, reads: KVReads, multipliers: tuple[float, ...]) -> None:
        self._reads = reads
        self._multipliers = multipliers
        self._by_prompt: dict[int, tuple[Segment, ...]] = {}
        self._every_prompt = self._build(1) if reads.reads_follow_context else None

    def segments(self, prompt: int) -> tuple[Segment, ...]:
        if self._every_prompt is not None:
            return self._every_prompt
        found = self._by_prompt.get(prompt)
        if found is None:
            found = self._by_prompt[prompt] = self._build(prompt)
        return found

    def segment_at(self, prompt: int, context: int) -> Segment:
        for segment in self._every_prompt or self.segments(prompt):
            if context < segment.end:
                return segment
        raise AssertionError("the last segment has no end within any context")

    def _build(self, prompt: int) -> tuple[Segment, ...]:
        inner = [point for point in self._reads.breakpoints(prompt) if point > prompt]
        starts = [prompt, *inner]
        ends = [*inner, starts[-1] + LAST_SEGMENT_TOKENS]
        return tuple(self._segment(prompt, start, end) for start, end in zip(starts, ends, strict=True))

    def _segment(self, prompt: int, start: int, end: int) -> Segment:
        value = self._effective_bytes(prompt, start)
        slope = (self._effective_bytes(prompt, end) - value) / (end - start)
        return Segment(start, end, round(value), round(slope))

    def _effective_bytes(self, prompt: int, context: int) -> float:
        tiers = self._reads.kv_read(prompt, context)
        return sum(stored * factor for stored, factor in zip(tiers, self._multipliers, strict=True))
