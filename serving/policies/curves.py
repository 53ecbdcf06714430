"""Tokens that one KV head holds, as functions of the prompt and of the context (prompt and generated tokens cached).

Every curve is piecewise linear and non-decreasing in the context, and gives the same value for numbers and for arrays.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import numpy as np

from leankv.serving.decode_growth import DecodeGrowth
from leankv.serving.retention import Retention

Ints = np.ndarray


class Curve(Protocol):
    """Tokens of one head in one tier. `follows_context`: the prompt's length does not matter."""

    @property
    def follows_context(self) -> bool: ...

    def at(self, prompt: int, context: int) -> float:
        """Tokens held at `context` >= `prompt`, the prompt compressed."""

    def at_array(self, prompts: Ints, contexts: Ints) -> np.ndarray:
        """`at` for arrays of one shape."""

    def growth(self, prompt: int, tokens: int) -> float:
        """Upper bound of what any `tokens` consecutive generated tokens add, after this prompt or a longer one."""

    def breakpoints(self, prompt: int) -> tuple[int, ...]:
        """Contexts between which the curve is linear in the context."""


@dataclass(frozen=True)
class Window:
    """All tokens after the first `skip`, up to `cap`: plain caches, sliding windows, and what leaves them."""

    skip: int = 0
    cap: int | None = None

    @property
    def follows_context(self) -> bool:
        return True

    def at(self, prompt: int, context: int) -> int:
        held = context - self.skip
        if held < 0:
            return 0
        return held if self.cap is None or held < self.cap else self.cap

    def at_array(self, prompts: Ints, contexts: Ints) -> np.ndarray:
        return np.clip(contexts - self.skip, 0, self.cap)

    def growth(self, prompt: int, tokens: int) -> float:
        return tokens if self.cap is None else min(tokens, self.cap - self.at(prompt, prompt))

    def breakpoints(self, prompt: int) -> tuple[int, ...]:
        return (self.skip,) if self.cap is None else (self.skip, self.skip + self.cap)


@dataclass(frozen=True)
class PromptBudget:
    """Of the prompt at most `cap` tokens and the share `share` (rounded up); then every generated token, if it `grows`.

    Without growth a generated token takes the place of an older one.
    """

    cap: int | None = None
    share: float = 1.0
    grows: bool = True

    @property
    def follows_context(self) -> bool:
        return False

    def at(self, prompt: int, context: int) -> int:
        kept = ceil(self.share * prompt) if self.share < 1 else prompt
        if self.cap is not None and kept > self.cap:
            kept = self.cap
        return kept + context - prompt if self.grows else kept

    def at_array(self, prompts: Ints, contexts: Ints) -> np.ndarray:
        kept = np.ceil(self.share * prompts).astype(np.int64) if self.share < 1 else prompts
        if self.cap is not None:
            kept = np.minimum(kept, self.cap)
        return kept + contexts - prompts if self.grows else kept

    def growth(self, prompt: int, tokens: int) -> float:
        return tokens if self.grows else 0

    def breakpoints(self, prompt: int) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class LayerBudgets:
    """`PromptBudget` with a cap for every layer; the mean over the layers."""

    caps: tuple[int, ...]

    @property
    def follows_context(self) -> bool:
        return False

    def by_layer(self, prompt: int, context: int) -> list[int]:
        """Tokens of a head, for each layer."""
        generated = context - prompt
        return [(cap if cap < prompt else prompt) + generated for cap in self.caps]

    def at(self, prompt: int, context: int) -> float:
        return sum(self.by_layer(prompt, context)) / len(self.caps)

    def at_array(self, prompts: Ints, contexts: Ints) -> np.ndarray:
        return self.by_layer_array(prompts, contexts).sum(axis=0) / len(self.caps)

    def by_layer_array(self, prompts: Ints, contexts: Ints) -> np.ndarray:
        """int64[layers, n]."""
        return np.minimum(np.asarray(self.caps)[:, None], prompts) + (contexts - prompts)

    def growth(self, prompt: int, tokens: int) -> float:
        return tokens

    def breakpoints(self, prompt: int) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True)
class Retained:
    """One tier of a measured or published retention.

    With `delay` tokens between recompressions the newest `delay` generated tokens are still unclassified; the tier
    with `takes_new` holds them all (so this is the peak just before a recompression, not the mean).
    """

    retention: Retention
    tier: int
    delay: int = 0
    takes_new: bool = False

    @property
    def follows_context(self) -> bool:
        return self.delay == 0

    def at(self, prompt: int, context: int) -> float:
        classified = max(prompt, context - self.delay)
        held = self.retention.tokens(self.tier, classified)
        return held + (context - classified) if self.takes_new else held

    def at_array(self, prompts: Ints, contexts: Ints) -> np.ndarray:
        classified = np.maximum(prompts, contexts - self.delay)
        knots = np.asarray(self.retention.contexts)
        knot = np.searchsorted(knots, classified, side="right") - 1
        values, slopes = np.asarray(self.retention.values[self.tier]), np.asarray(self.retention.slopes[self.tier])
        held = values[knot] + slopes[knot] * (classified - knots[knot])
        return held + (contexts - classified) if self.takes_new else held

    def growth(self, prompt: int, tokens: int) -> float:
        knot = bisect_right(self.retention.contexts, prompt) - 1
        classified = max(self.retention.slopes[self.tier][knot:]) * tokens
        return min(tokens, classified + self.delay) if self.takes_new else classified

    def breakpoints(self, prompt: int) -> tuple[int, ...]:
        knots = tuple(knot + self.delay for knot in self.retention.contexts if knot > prompt)
        return (prompt + self.delay, *knots) if self.delay else knots


@dataclass(frozen=True)
class Decoded:
    """One tier of a retention that was measured while decoding, too; it knows its pages as well as its tokens."""

    measured: DecodeGrowth
    tier: int

    @property
    def follows_context(self) -> bool:
        return False

    def at(self, prompt: int, context: int) -> float:
        if context <= self.measured.whole:
            return 0.0 if self.tier else float(context)
        return self.measured.at("tokens", self.tier, prompt, context)

    def at_array(self, prompts: Ints, contexts: Ints) -> np.ndarray:
        held = self.measured.at_array("tokens", self.tier, prompts, contexts)
        return np.where(contexts <= self.measured.whole, 0.0 if self.tier else contexts, held)

    def growth(self, prompt: int, tokens: int) -> float:
        return tokens * max(self.measured.steepest("tokens", self.tier), 0.0 if self.tier else 1.0)

    def breakpoints(self, prompt: int) -> tuple[int, ...]:
        start = max(prompt, self.measured.whole)
        return tuple(start + generated for generated in self.measured.generated)

    def pages(self, prompt: int, context: int, tokens_per_page: int) -> float:
        """Mean pages of a head, and never fewer than its tokens fill: beyond what was measured pages must follow."""
        if context <= self.measured.whole:
            return 0.0 if self.tier else float(-(-context // tokens_per_page))
        filled = self.measured.at("tokens", self.tier, prompt, context) / tokens_per_page
        return max(self.measured.at("pages", self.tier, prompt, context), filled)

    def pages_array(self, prompts: Ints, contexts: Ints, tokens_per_page: int) -> np.ndarray:
        """`pages` for arrays."""
        whole = 0.0 if self.tier else -(-contexts // tokens_per_page)
        filled = self.measured.at_array("tokens", self.tier, prompts, contexts) / tokens_per_page
        held = np.maximum(self.measured.at_array("pages", self.tier, prompts, contexts), filled)
        return np.where(contexts <= self.measured.whole, whole, held)

    def pages_growth(self, prompt: int, tokens: int, tokens_per_page: int) -> float:
        """Upper bound of the mean pages that any `tokens` consecutive generated tokens add, but for rounding."""
        filled = self.measured.steepest("tokens", self.tier) / tokens_per_page
        steep = max(self.measured.steepest("pages", self.tier), filled) * tokens
        if self.tier or prompt >= self.measured.whole:
            return steep
        return steep + -(-min(tokens, self.measured.whole) // tokens_per_page)


@dataclass(frozen=True)
class HeadGroup:
    """`heads` KV heads (over all layers) that hold the same number of tokens, or the same mean where they differ.

    curves: one per tier, None where these heads have nothing in it.
    slack_pages: None where every head holds exactly the curve's tokens; else the expected pages per head and tier
        beyond tokens over a page's, since each head's last page is partly empty.
    """

    heads: int
    curves: tuple[Curve | None, ...]
    slack_pages: float | None = None
