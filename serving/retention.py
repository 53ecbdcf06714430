"""How many tokens a score-driven policy keeps, by tier, as a context grows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor
from typing import Any

from leankv.serving.decode_growth import GRID, DecodeGrowth
from leankv.serving.errors import InputError


@dataclass(frozen=True)
class Retention:
    """Mean tokens kept per KV head and tier, piecewise linear in the context; the last slope continues.

    contexts: knots in tokens, increasing, the first 0.
    kept: for each knot the tokens kept in each tier; (0, ..., 0) at the first.
    spread: relative standard deviation of a request's kept tokens around this mean, over requests.
    source: "literature" or "measured on <model>".
    slack_pages: pages that a head holds in a tier beyond its tokens over a page's, because heads differ: a half on
        average, unless it was measured.
    growth: what decoding adds after a prompt, where it was measured; else generated tokens count like a longer prompt.

    Slopes lie on a grid of 2**-20 tokens a token, so that floats carry the curve without rounding and a jump over many
    tokens gives exactly what single steps give.

    Raises:
        InputError: a tier shrinks, or the tiers together outgrow the context.
    """

    contexts: tuple[int, ...]
    kept: tuple[tuple[float, ...], ...]
    spread: float
    source: str
    slack_pages: float = 0.5
    growth: DecodeGrowth | None = None

    def __post_init__(self) -> None:
        if len(self.contexts) < 2 or len(self.contexts) != len(self.kept) or self.contexts[0] or any(self.kept[0]):
            raise InputError(f"retention ({self.source}): give two knots or more, the first at 0 tokens")
        for before, after in zip(self.contexts, self.contexts[1:], strict=False):
            if after <= before:
                raise InputError(
                    f"retention ({self.source}): knot {after} does not come after {before}; sort the knots"
                )
        for before_kept, after_kept, context in zip(self.kept, self.kept[1:], self.contexts[1:], strict=False):
            if any(after < before for before, after in zip(before_kept, after_kept, strict=True)):
                raise InputError(f"retention ({self.source}): a tier shrinks before {context} tokens; it may only grow")
            if sum(after_kept) > context:
                raise InputError(f"retention ({self.source}): more kept than the {context} tokens there are; lower it")

    @classmethod
    def from_shares(
        cls,
        contexts: Sequence[int],
        shares: Sequence[Sequence[float]],
        spread: float,
        source: str,
        slack_pages: float = 0.5,
    ) -> Retention:
        """From the share of the context that each tier keeps at each of `contexts` (all above 0)."""
        kept = tuple(tuple(share * context for share in row) for context, row in zip(contexts, shares, strict=True))
        start = (0.0,) * len(kept[0])
        return cls((0, *contexts), (start, *kept), spread, source, slack_pages)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Retention:
        """From a profile's entry, as `to_dict` writes it."""
        return cls(
            tuple(stored["contexts"]),
            tuple(tuple(row) for row in stored["kept"]),
            stored["spread"],
            stored["source"],
            stored["slack_pages"],
            DecodeGrowth.from_dict(stored["growth"]) if stored.get("growth") else None,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "contexts": list(self.contexts),
            "kept": [list(row) for row in self.kept],
            "spread": self.spread,
            "source": self.source,
            "slack_pages": self.slack_pages,
            "growth": self.growth.to_dict() if self.growth else None,
        }

    @property
    def tiers(self) -> int:
        return len(self.kept[0])

    @cached_property
    def slopes(self) -> tuple[tuple[float, ...], ...]:
        """Per tier: tokens kept per further token after each knot, on the grid; the last one repeats."""
        return tuple(self._slopes(tier) for tier in range(self.tiers))

    @cached_property
    def values(self) -> tuple[tuple[float, ...], ...]:
        """Per tier: tokens kept at each knot, on the grid."""
        return tuple(self._values(slopes) for slopes in self.slopes)

    def tokens(self, tier: int, context: int) -> float:
        """Tokens kept in `tier` at `context`."""
        knot = bisect_right(self.contexts, context) - 1
        return self.values[tier][knot] + self.slopes[tier][knot] * (context - self.contexts[knot])

    def _slopes(self, tier: int) -> tuple[float, ...]:
        ends = zip(self.contexts, self.contexts[1:], self.kept, self.kept[1:], strict=False)
        slopes = [floor(GRID * (high[tier] - low[tier]) / (after - before)) / GRID for before, after, low, high in ends]
        return (*slopes, slopes[-1])

    def _values(self, slopes: tuple[float, ...]) -> tuple[float, ...]:
        values = [0.0]
        for before, after, slope in zip(self.contexts, self.contexts[1:], slopes, strict=False):
            values.append(values[-1] + slope * (after - before))
        return tuple(values)
