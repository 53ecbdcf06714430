"""Budget rules: how many tokens of which head stay, in which tier. One small frozen dataclass a rule.

A rule is a specification that a selector carries out on the device; `groups` is its memory model.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal, Protocol

from leankv.serving.policies.curves import Decoded, HeadGroup, LayerBudgets, PromptBudget, Retained, Window
from leankv.serving.retention import Retention

HALF_PAGE = 0.5


class Budget(Protocol):
    """A rule. `read_groups` differs from `groups` where attention reads less than the cache holds."""

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        """Heads by what they hold, in a model (or rank) of `layers` layers with `kv_heads` KV heads each."""

    def read_groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        """The same, by the tokens that one decode step reads."""


class _ReadsAll:
    """Rules whose attention reads all that the cache holds."""

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        raise NotImplementedError

    def read_groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return self.groups(layers, kv_heads, retention)


@dataclass(frozen=True)
class KeepAll(_ReadsAll):
    """Every token, in the only tier."""

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return (HeadGroup(layers * kv_heads, (Window(),)),)


@dataclass(frozen=True)
class Residual(_ReadsAll):
    """The newest `recent` tokens in the first tier; a token that leaves that window moves to the second.

    Tokens move in blocks of `block`, the oldest first, so the window holds between `recent - block` and `recent`; the
    memory model counts `recent`.
    """

    recent: int
    block: int

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return (HeadGroup(layers * kv_heads, (Window(cap=self.recent), Window(skip=self.recent))),)


@dataclass(frozen=True)
class BoundaryLayers(_ReadsAll):
    """The first `first` and last `last` layers in the first tier, the layers between in the second."""

    first: int
    last: int

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        outer = min(layers, self.first + self.last)
        groups = HeadGroup(outer * kv_heads, (Window(), None)), HeadGroup((layers - outer) * kv_heads, (None, Window()))
        return tuple(group for group in groups if group.heads)


@dataclass(frozen=True)
class SinkRecent(_ReadsAll):
    """The first `sink` tokens and the newest `recent`."""

    sink: int
    recent: int

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return (HeadGroup(layers * kv_heads, (Window(cap=self.sink + self.recent),)),)


@dataclass(frozen=True)
class HeavyRecent(_ReadsAll):
    """Of the prompt's length, the share `heavy` by score and the share `recent` by age; the size then stays."""

    heavy: float
    recent: float

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        curve = PromptBudget(share=min(1.0, self.heavy + self.recent), grows=False)
        return (HeadGroup(layers * kv_heads, (curve,)),)


@dataclass(frozen=True)
class TopK(_ReadsAll):
    """`budget` tokens of the prompt in every head: the newest `window`, the rest by score; then all generated ones."""

    budget: int
    window: int

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return (HeadGroup(layers * kv_heads, (PromptBudget(cap=self.budget),)),)


@dataclass(frozen=True)
class Pyramid(_ReadsAll):
    """`TopK` with budgets that fall linearly over the layers, `budget` on average.

    Beside the window, the last layer has 1/`beta` of the mean and the first what keeps the mean (PyramidKV, section 4).
    """

    budget: int
    window: int
    beta: int

    def layer_budgets(self, layers: int) -> tuple[int, ...]:
        """Tokens of the prompt per head, for each layer."""
        mean = self.budget - self.window
        last = mean // self.beta
        first = 2 * mean - last
        step = (first - last) // max(1, layers - 1)
        return tuple(self.window + first - layer * step for layer in range(layers))

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return (HeadGroup(layers * kv_heads, (LayerBudgets(self.layer_budgets(layers)),)),)


@dataclass(frozen=True)
class AdaTopK(_ReadsAll):
    """A layer's heads share `budget` tokens a head by score, each keeping at least the share `safeguard` of it."""

    budget: int
    window: int
    safeguard: float

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return (HeadGroup(layers * kv_heads, (PromptBudget(cap=self.budget),), HALF_PAGE),)


@dataclass(frozen=True)
class TopShare(_ReadsAll):
    """The share `keep` of the prompt in every head, by score, the first `sink` always; then all generated tokens."""

    keep: float
    sink: int

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return (HeadGroup(layers * kv_heads, (PromptBudget(share=self.keep),)),)


@dataclass(frozen=True)
class HeadClasses(_ReadsAll):
    """The share `retrieval` of the heads keeps every token, the others the first `sink` and the newest `recent`.

    The fullest rank is counted as if every layer had the same share, rounded up to whole heads.
    """

    retrieval: float
    sink: int
    recent: int

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        full = min(kv_heads, ceil(self.retrieval * kv_heads))
        streaming = Window(cap=self.sink + self.recent)
        groups = HeadGroup(layers * full, (Window(),)), HeadGroup(layers * (kv_heads - full), (streaming,))
        return tuple(group for group in groups if group.heads)


@dataclass(frozen=True)
class ReadTopPages:
    """Every token is kept; a step reads the `budget` tokens on the best pages of `page` tokens.

    The first `dense_layers` layers read everything.
    """

    budget: int
    page: int
    dense_layers: int

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return (HeadGroup(layers * kv_heads, (Window(),)),)

    def read_groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        dense = min(layers, self.dense_layers)
        sparse = HeadGroup((layers - dense) * kv_heads, (Window(cap=self.budget),))
        return tuple(group for group in (HeadGroup(dense * kv_heads, (Window(),)), sparse) if group.heads)


@dataclass(frozen=True)
class Thresholds(_ReadsAll):
    """Tiers by significance relative to uniform attention, the newest `window` always high (LeanKV, section 5).

    Below `alpha_low`/N a token is pruned, below `alpha_high`/N it is in the second tier. `relative_to`: N is the prompt
    ("prompt", as the released code) or the token's own position ("position", as the paper).
    """

    alpha_high: float
    alpha_low: float
    window: int
    relative_to: Literal["prompt", "position"] = "prompt"

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return _retained(layers * kv_heads, retention, delay=0)


@dataclass(frozen=True)
class MassTiers(_ReadsAll):
    """Tiers by cumulated significance: the least significant tokens, up to a share `prune` of a head's mass, go.

    Those up to the share `low` are in the second tier; the newest `window` are always high. New tokens enter high and
    the whole head is classified again every `recompress_every` steps.
    """

    prune: float
    low: float
    window: int
    recompress_every: int

    def groups(self, layers: int, kv_heads: int, retention: Retention | None) -> tuple[HeadGroup, ...]:
        return _retained(layers * kv_heads, retention, delay=self.recompress_every)


def _retained(heads: int, retention: Retention | None, delay: int) -> tuple[HeadGroup, ...]:
    assert retention is not None, "a rule with thresholds needs a retention"
    if retention.growth is not None and not delay:
        decoded = tuple(Decoded(retention.growth, tier) for tier in range(retention.tiers))
        return (HeadGroup(heads, decoded, retention.slack_pages),)
    curves = tuple(
        Retained(retention, tier, delay, takes_new=delay > 0 and tier == 0) for tier in range(retention.tiers)
    )
    return (HeadGroup(heads, curves, retention.slack_pages),)
