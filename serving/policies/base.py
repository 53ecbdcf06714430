"""What a KV-cache policy is: a frozen specification of who is kept and how, with its memory and work models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leankv.serving.errors import InputError
from leankv.serving.formats import KVFormat
from leankv.serving.models import ModelSpec
from leankv.serving.policies.budgets import Budget
from leankv.serving.policies.curves import HeadGroup
from leankv.serving.policies.work import Work, chunk_work, decode_work, prompt_work
from leankv.serving.retention import Retention

KeyTransformName = Literal["none", "centred", "rotated", "centred+rotated", "rope-centred", "rope-centred+rotated"]
ScoreSource = Literal["none", "recent-window", "all-queries", "expected", "head-class", "page-bounds"]


@dataclass(frozen=True)
class Score:
    """How a cached token is scored.

    source: "recent-window": attention from the prompt's last `window` queries; "all-queries": from every query so far;
        "expected": from a model of future queries, whose statistics come from the prompt; "head-class": by a label of
        the head, fixed in advance; "page-bounds": bounds per page, at reading; "none".
    over_queries: how probabilities of several queries combine; over_group: how the heads of a GQA group combine.
    pooling: width of the max-pooling along tokens that follows, 0 for none.
    """

    source: ScoreSource = "none"
    window: int = 0
    over_queries: Literal["sum", "mean"] = "sum"
    over_group: Literal["max", "mean"] = "max"
    pooling: int = 0

    @property
    def needs_prompt(self) -> bool:
        """Whether nothing can be dropped before the prompt's last query is known."""
        return self.source in ("recent-window", "all-queries", "expected")


@dataclass(frozen=True)
class Trigger:
    """When tokens are dropped or change tier: never, once after the prompt, or then every `steps` decode steps, too."""

    when: Literal["never", "prefill-end", "every-step", "every-n"] = "never"
    steps: int = 0


@dataclass(frozen=True)
class Tier:
    name: str
    format: KVFormat


@dataclass(frozen=True)
class Policy:
    """What becomes of a request's KV cache.

    paper: link. summary: one line. live: whether the live engine runs it, too.
    tiers: the first is the high one, where new tokens enter.
    bookkeeping: bytes a token for score and position. page_vectors: float16 vectors of head_dim kept beside each page.
    shares_prefix: whether requests with a common prefix can share its pages.
    retention: mean tokens kept, for rules whose outcome depends on the scores; a measured one replaces it.

    Raises:
        InputError: the retention has another number of tiers; keys are centred by position, and none is kept.
    """

    name: str
    paper: str
    summary: str
    live: bool
    score: Score
    budget: Budget
    trigger: Trigger
    tiers: tuple[Tier, ...]
    shares_prefix: bool
    key_transform: KeyTransformName = "none"
    bookkeeping: int = 0
    page_vectors: int = 0
    retention: Retention | None = None

    def __post_init__(self) -> None:
        if self.retention is not None and self.retention.tiers != len(self.tiers):
            raise InputError(
                f"policy {self.name!r} has {len(self.tiers)} tiers, its retention ({self.retention.source}) "
                f"{self.retention.tiers}; measure it again with this policy"
            )
        if self.key_transform.startswith("rope") and not self.bookkeeping:
            raise InputError(f"policy {self.name!r} keeps no positions to centre keys by; choose key_transform=centred")

    @property
    def staged(self) -> bool:
        """Whether the prompt waits in FP16 staging pages, since its last queries decide what stays."""
        return self.score.needs_prompt

    def groups(self, layers: int, kv_heads: int) -> tuple[HeadGroup, ...]:
        """KV heads by what they hold."""
        return self.budget.groups(layers, kv_heads, self.retention)

    def read_groups(self, layers: int, kv_heads: int) -> tuple[HeadGroup, ...]:
        """KV heads by what one decode step reads of them."""
        return self.budget.read_groups(layers, kv_heads, self.retention)

    def held_tokens(self, prompt: int, context: int, layers: int = 32, kv_heads: int = 8) -> tuple[float, ...]:
        """Mean tokens per KV head and tier at `context` cached positions, the prompt compressed.

        The shape matters only to rules that treat layers or heads unlike.
        """
        return self._mean_tokens(self.groups(layers, kv_heads), prompt, context)

    def read_tokens(self, prompt: int, context: int, layers: int = 32, kv_heads: int = 8) -> tuple[float, ...]:
        """Mean tokens per KV head and tier that one decode step reads."""
        return self._mean_tokens(self.read_groups(layers, kv_heads), prompt, context)

    def breakpoints(self, prompt: int, layers: int = 32, kv_heads: int = 8) -> tuple[int, ...]:
        """Contexts above `prompt` between which held and read tokens are linear in the context."""
        groups = self.groups(layers, kv_heads) + self.read_groups(layers, kv_heads)
        curves = [curve for group in groups for curve in group.curves if curve is not None]
        return tuple(sorted({point for curve in curves for point in curve.breakpoints(prompt) if point > prompt}))

    def chunk_work(self, chunk: int, context: int, model: ModelSpec, tp: int = 1) -> Work:
        """Work on one rank beyond plain attention, for `chunk` prompt tokens after `context` earlier ones."""
        return chunk_work(self, chunk, context, model, tp)

    def prompt_work(self, prompt: int, model: ModelSpec, tp: int = 1) -> Work:
        """Work on one rank when a prompt of `prompt` tokens is complete."""
        return prompt_work(self, prompt, model, tp)

    def decode_work(self, model: ModelSpec, tp: int = 1) -> Work:
        """Work of one request's decode step on one rank, beyond the reads that attention itself does."""
        return decode_work(self, model, tp)

    def _mean_tokens(self, groups: tuple[HeadGroup, ...], prompt: int, context: int) -> tuple[float, ...]:
        totals = [0.0] * len(self.tiers)
        for group in groups:
            for tier, curve in enumerate(group.curves):
                if curve is not None:
                    totals[tier] += group.heads * curve.at(prompt, context)
        heads = sum(group.heads for group in groups)
        return tuple(total / heads for total in totals)
