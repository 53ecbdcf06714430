"""A deployment of small numbers for hypothesis to bend: memory, reads and costs with more corners than real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leankv.serving.scheduler import SchedulerLimits
from leankv.simulator.costs import UNBOUNDED, DecodeLine
from leankv.simulator.curves import ReadCurves


@dataclass(frozen=True)
class SmallMemory:
    """Pages of `per_page` tokens; beyond `knee` tokens a request holds every `thin`-th. Prompts can be staged whole."""

    per_page: int
    knee: int
    thin: int
    staged: bool

    def _held(self, prompt: int, context: int) -> int:
        return context if context <= self.knee else self.knee + (context - self.knee) // self.thin

    def pages(self, prompt: int, context: int) -> int:
        return -(-self._held(prompt, context) // self.per_page)

    def pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        return np.array([self.pages(p, c) for p, c in zip(prompts.tolist(), contexts.tolist(), strict=True)])

    def tier_pages_array(self, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        return self.pages_array(prompts, contexts)[:, None]

    def prefill_pages(self, prompt: int, done: int) -> int:
        return -(-prompt // self.per_page) + 1 if self.staged else self.pages(prompt, prompt)

    def growth_bound(self, tokens: int) -> int:
        return -(-tokens // self.per_page)

    def kv_read(self, prompt: int, context: int) -> tuple[float, ...]:
        return (7.25 * min(context, self.knee), 3.5 * max(0, context - self.knee))

    @property
    def reads_follow_context(self) -> bool:
        return True

    def breakpoints(self, prompt: int) -> tuple[int, ...]:
        return (self.knee,)


@dataclass(frozen=True)
class SmallCosts:
    """Integer ticks; decode attention bends at `bend` bytes."""

    fixed: int
    per_token: int
    per_byte: int
    bend: int

    def tokens_and_logits(self, tokens: int, sequences: int) -> int:
        return self.fixed + self.per_token * tokens + sequences

    def decode_line(self, sequences: int, read: int) -> DecodeLine:
        linear = self.tokens_and_logits(sequences, sequences)
        fixed = linear + 14 * sequences
        if read < self.bend:
            return DecodeLine(fixed, self.per_byte, 0, self.bend, linear)
        steeper = 2 * self.per_byte + 1
        return DecodeLine(fixed + self.bend * (self.per_byte - steeper), steeper, self.bend, UNBOUNDED, linear)

    def decode_beside_prompts(self, sequences: int, read: int) -> int:
        if sequences == 0:
            return 0
        line = self.decode_line(sequences, read)
        return line.constant - line.linear + line.slope * read

    def prefill(self, chunk: int, context: int, last: bool) -> int:
        return chunk * (context + chunk // 2 + 1) + (50 if last else 0)


@dataclass(frozen=True)
class SmallWorld:
    memory: SmallMemory
    costs: SmallCosts
    limits: SchedulerLimits
    capacity: int
    watermark: int

    def curves(self) -> ReadCurves:
        return ReadCurves(self.memory, (1.0, 1.3))
