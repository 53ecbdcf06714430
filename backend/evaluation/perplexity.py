"""Perplexity of real text in decode mode: a prefix is the prompt, the tokens after it come one by one.

Every scored token is predicted through the policy's cache, which evicts and quantizes on the way: the first token after
the prefix, which the prompt's own pass predicts, is fed but not scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from leankv.backend.evaluation.items import Item, Outcome
from leankv.backend.texts import Text, digest_of, windows


@dataclass(frozen=True)
class Perplexity:
    """`windows` disjoint windows of `prefix` + 1 + `scored` tokens. skip: tokens of the texts left to calibrations."""

    texts: Sequence[Text]
    windows: int
    prefix: int
    scored: int
    skip: int = 2048
    name: str = "perplexity"

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        shape = {"windows": self.windows, "prefix_tokens": self.prefix, "scored_tokens": self.scored}
        texts = {"texts": [text.name for text in self.texts], "texts_sha256": digest_of(self.texts)}
        return {**shape, "skip_tokens": self.skip, **texts}

    def items(self, tokenizer: Any) -> list[Item]:
        """See `Task`."""
        found = windows(self.texts, tokenizer, self.prefix + 1 + self.scored, self.windows, self.skip)
        return [self._item(place, window.tolist()) for place, window in enumerate(found)]

    def graded(self, item: Item, outcome: Outcome, baseline: Outcome, tokenizer: Any) -> dict[str, Any]:
        """See `Task`."""
        total, tokens = sum(outcome.log_probabilities), len(outcome.log_probabilities)
        return {
            "score": exp(total / tokens),
            "log_probability_nats": total,
            "scored_tokens": tokens,
            "agreement": sum(outcome.agreed) / tokens if outcome.agreed else 1.0,
            "kl_nats": sum(outcome.divergences) / tokens,
        }

    def _item(self, place: int, window: Sequence[int]) -> Item:
        about = {"subject": "text", "context_tokens": self.prefix}
        forced = window[self.prefix :]
        return Item(f"window-{place:04}", window[: self.prefix], forced, 1, compared=True, about=about)
