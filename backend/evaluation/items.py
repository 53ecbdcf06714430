"""What an evaluation asks of the engine, sample by sample, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Item:
    """One sample. The prompt is computed at once; `forced` tokens follow one by one, through the cache.

    Of `forced`, those from `scored_from` on are the reference, scored one by one. After them up to `generated` tokens
    are chosen freely, until the text ends. options: tokens that compete at the last forced one. compared: whether the
    distributions at scored tokens are held against the baseline's. about: columns of the sample that are known before.
    """

    sample_id: str
    prompt: Sequence[int]
    forced: Sequence[int] = ()
    scored_from: int = 0
    generated: int = 0
    options: Sequence[int] = ()
    compared: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output_tokens(self) -> int:
        return len(self.forced) + self.generated


@dataclass
class Outcome:
    """What one policy made of an item. By scored token: its log-probability, whether it was the likeliest, whether the
    likeliest is the baseline's, and the divergence from the baseline's distribution.

    options: log-probability of each. output: tokens chosen freely, of which the last may be the one that ended the
    text (`stopped`). The bytes are what the request held, mean over its decode steps, as each began.
    """

    log_probabilities: list[float] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    options: list[float] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    stopped: bool = False
    fp16_bytes: int = 0
    payload_bytes: int = 0
    page_bytes: int = 0


class Task(Protocol):
    """One kind of sample: its items, and how an outcome becomes a row of the samples."""

    @property
    def name(self) -> str:
        """One of `serving.quality.TASKS`."""

    def settings(self) -> dict[str, Any]:
        """All that the samples depend on, for `quality.json`."""

    def items(self, tokenizer: Any) -> list[Item]:
        """All samples, the same every time. Raises InputError where the texts or the data do not suffice."""

    def graded(self, item: Item, outcome: Outcome, baseline: Outcome, tokenizer: Any) -> dict[str, Any]:
        """The columns of `serving.quality.COLUMNS` that follow from the outcome."""
