"""What decoding makes of a score-driven policy's cache: tokens and pages by tier, as measured after prompts.

Rules treat what is generated otherwise than a prompt: LeanKV moves at most one token a head and step out of its high
tier, so that tier grows far faster than it would with a longer prompt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from math import floor
from typing import Any, Literal, NamedTuple

import numpy as np

from leankv.serving.errors import InputError

GRID = 2**20
Kind = Literal["tokens", "pages"]
Table = tuple[tuple[tuple[float, ...], ...], ...]


class Line(NamedTuple):
    """Values at the knots of `generated`, and slopes after each."""

    values: tuple[float, ...]
    slopes: tuple[float, ...]


@dataclass(frozen=True)
class DecodeGrowth:
    """Means per KV head and tier, linear between prompts and between generated tokens; the last slopes go on.

    whole: up to this context every head holds everything, in the first tier. prompts: lengths, increasing, the first
    `whole` (a shorter prompt grows to it first). generated: tokens since the prompt, increasing, the first 0. tokens,
    pages: [prompt][generated][tier], which do not fall while tokens are generated.

    Values and slopes lie on a grid of 2**-20, as those of `Retention`, so that a jump gives what single steps give.

    Raises:
        InputError: knots out of order, or a table that does not fit them or falls.
    """

    whole: int
    prompts: tuple[int, ...]
    generated: tuple[int, ...]
    tokens: Table
    pages: Table

    def __post_init__(self) -> None:
        for knots, first in ((self.prompts, self.whole), (self.generated, 0)):
            if len(knots) < 2 or knots[0] != first or any(after <= before for before, after in pairwise(knots)):
                raise InputError(f"growth while decoding: knots {knots} do not rise from {first}; calibrate again")
        for table in (self.tokens, self.pages):
            if len(table) != len(self.prompts) or any(len(row) != len(self.generated) for row in table):
                raise InputError("growth while decoding: a table does not fit its knots; calibrate again")
            for row in table:
                for before, after in pairwise(row):
                    if any(a < b for b, a in zip(before, after, strict=True)):
                        raise InputError("growth while decoding: a tier shrinks; calibrate again")

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> DecodeGrowth:
        """As `to_dict` writes it."""
        tokens, pages = (tuple(tuple(map(tuple, row)) for row in stored[name]) for name in ("tokens", "pages"))
        return cls(stored["whole"], tuple(stored["prompts"]), tuple(stored["generated"]), tokens, pages)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def at(self, kind: Kind, tier: int, prompt: int, context: int) -> float:
        """Tokens or pages at `context` >= `whole`, `prompt` of it (or `whole`, where that is more) a prompt."""
        start = max(prompt, self.whole)
        line, generated = self._line(kind, tier, start), context - start
        knot = bisect_right(self.generated, generated) - 1
        return line.values[knot] + line.slopes[knot] * (generated - self.generated[knot])

    def at_array(self, kind: Kind, tier: int, prompts: np.ndarray, contexts: np.ndarray) -> np.ndarray:
        """`at` for int64 arrays of one length, by the same operations; below `whole` the value at it."""
        starts = np.maximum(prompts, self.whole)
        distinct, row = np.unique(starts, return_inverse=True)
        lines = [self._line(kind, tier, start) for start in distinct.tolist()]
        values, slopes = (np.array([getattr(line, name) for line in lines]) for name in Line._fields)
        generated = np.maximum(contexts - starts, 0)
        knots = np.asarray(self.generated)
        knot = np.searchsorted(knots, generated, side="right") - 1
        found: np.ndarray = values[row, knot] + slopes[row, knot] * (generated - knots[knot])
        return found

    def steepest(self, kind: Kind, tier: int) -> float:
        """The most that one generated token adds, on average over heads."""
        return self._steepest[kind, tier]

    @cached_property
    def _steepest(self) -> dict[tuple[Kind, int], float]:
        tiers = range(len(self.tokens[0][0]))
        kinds: tuple[Kind, ...] = ("tokens", "pages")
        lines = {(kind, tier): [self._line(kind, tier, p) for p in self.prompts] for kind in kinds for tier in tiers}
        return {key: max(max(line.slopes) for line in each) for key, each in lines.items()}

    @cached_property
    def _lines(self) -> dict[tuple[Kind, int, int], Line]:
        return {}

    def _line(self, kind: Kind, tier: int, prompt: int) -> Line:
        found = self._lines.get((kind, tier, prompt))
        if found is None:
            found = self._lines[kind, tier, prompt] = self._new_line(kind, tier, prompt)
        return found

    def _new_line(self, kind: Kind, tier: int, prompt: int) -> Line:
        """Between the rows of two prompts; beyond the last, its start goes on as between the last two."""
        left = min(bisect_right(self.prompts, prompt), len(self.prompts) - 1) - 1
        share = (prompt - self.prompts[left]) / (self.prompts[left + 1] - self.prompts[left])
        table = self.tokens if kind == "tokens" else self.pages
        low, high = ([point[tier] for point in table[row]] for row in (left, left + 1))
        values, slopes = [_on_grid(max(0.0, low[0] + share * (high[0] - low[0])))], list[float]()
        share = min(share, 1.0)
        for knot, (before, after) in enumerate(pairwise(self.generated)):
            rises = low[knot + 1] - low[knot], high[knot + 1] - high[knot]
            slopes.append(_on_grid((rises[0] + share * (rises[1] - rises[0])) / (after - before)))
            values.append(values[-1] + slopes[-1] * (after - before))
        return Line(tuple(values), (*slopes, slopes[-1]))


def _on_grid(value: float) -> float:
    return floor(GRID * value) / GRID
