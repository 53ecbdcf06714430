"""What the live engine writes down: a row a step, on a monotonic clock in picoseconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

PS_PER_NS = 1000


class Clock:
    """Picoseconds since `start`, which is construction unless it is called again."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._began = time.monotonic_ns()

    def now(self) -> int:
        return (time.monotonic_ns() - self._began) * PS_PER_NS


@dataclass(frozen=True)
class StepRow:
    """One step. sequences: requests that were given a token by it and one by the step before. prompt_tokens: computed
    beside them, or replayed, up to the token that ends a replay: it came after a gap of its own.

    running, waiting, preemptions (so far): after scheduling. staging, tier0, tier1: pages after the step.

    What was computed: a token for each of `decoding` requests (replayed ones, too), which attended to `attended`
    positions together; chunks of prompts (context, tokens); and `completed`, the lengths of prompts that were finished.
    From `start_ps` the scheduler decides, from `scheduled_ps` the model computes, at `end_ps` the tokens are there;
    until `done_ps` they are reported and pages given back. A step under load lasts from `done_ps` to `done_ps`.
    """

    start_ps: int
    scheduled_ps: int
    end_ps: int
    done_ps: int
    sequences: int
    prompt_tokens: int
    running: int
    waiting: int
    preemptions: int
    staging: int
    tier0: int
    tier1: int
    decoding: int
    attended: int
    chunks: tuple[tuple[int, int], ...]
    completed: tuple[int, ...]


@dataclass(frozen=True)
class SlotCounts:
    """What each slot holds after a step, over all layers and heads: (high, low) pages and tokens."""

    pages: Sequence[tuple[int, int]]
    tokens: Sequence[tuple[int, int]]

    def totals(self, slots: Sequence[int]) -> tuple[int, int, int, int]:
        """Pages of the high and the low tier, then tokens, of these slots together."""
        pages, tokens = ([of[slot] for slot in slots] for of in (self.pages, self.tokens))
        return sum(p for p, _ in pages), sum(p for _, p in pages), sum(t for t, _ in tokens), sum(t for _, t in tokens)


@dataclass(frozen=True)
class Held:
    """What a request holds between two steps: positions cached, pages, tokens by tier over all layers and heads."""

    cached: int
    pages: int
    tokens: tuple[int, int]


@dataclass
class StepLog:
    """A row a step, and what every request that finished held at its end.

    preemption_gaps_ps: from a token to the next one of its request, where it lost its cache in between.
    """

    rows: list[StepRow] = field(default_factory=list)
    final: list[Held] = field(default_factory=list)
    preemption_gaps_ps: list[int] = field(default_factory=list)

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """int64 [steps], of a field that holds one number."""
        return np.fromiter((getattr(row, name) for row in self.rows), np.int64, len(self.rows))
