"""Needle retrieval: five digits hidden in essays, by length of the context and depth (G. Kamradt, 2023).

The answer's beginning is given, so that every digit is read through the policy's cache; it is right when each digit is
the likeliest after the true ones before it, which is when greedy decoding would give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from leankv.backend.evaluation.chat import begun, frame, ids
from leankv.backend.evaluation.items import Item, Outcome
from leankv.backend.texts import Text, digest_of
from leankv.serving.errors import InputError

TASK = "Remember the magic number that is hidden in the following text.\n\n"
NEEDLE = " The magic number is {}. "
QUESTION = "\n\nWhat is the magic number that is hidden in the text?"
LEAD = "The magic number is "


@dataclass(frozen=True)
class Needle:
    """`repeats` needles for every length in `contexts` (tokens of the prompt) and every depth from 0 to 1."""

    texts: Sequence[Text]
    contexts: Sequence[int]
    depths: Sequence[float]
    repeats: int
    seed: int = 0
    name: str = "needle"

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        shape = {"contexts": list(self.contexts), "depths": list(self.depths), "repeats": self.repeats}
        texts = {"texts": [text.name for text in self.texts], "texts_sha256": digest_of(self.texts)}
        return {**shape, "seed": self.seed, **texts}

    def items(self, tokenizer: Any) -> list[Item]:
        """See `Task`."""
        hay = ids(tokenizer, "\n\n".join(text.content for text in self.texts))
        random = Random(self.seed)
        found = []
        for context in self.contexts:
            for depth in self.depths:
                for repeat in range(self.repeats):
                    digits, start = f"{random.randrange(10_000, 100_000)}", random.random()
                    found.append(self._item(tokenizer, hay, context, depth, repeat, digits, start))
        return found

    def graded(self, item: Item, outcome: Outcome, baseline: Outcome, tokenizer: Any) -> dict[str, Any]:
        """See `Task`."""
        return {
            "score": float(list(item.forced[item.scored_from :]) == outcome.likeliest),
            "log_probability_nats": sum(outcome.log_probabilities),
            "scored_tokens": len(outcome.log_probabilities),
            "answer": tokenizer.decode(outcome.likeliest).strip(),
        }

    def _item(
        self, tokenizer: Any, hay: list[int], context: int, depth: float, repeat: int, digits: str, start: float
    ) -> Item:
        before, after = frame(tokenizer)
        head, tail = ids(tokenizer, before + TASK), ids(tokenizer, QUESTION + after)
        needle = ids(tokenizer, NEEDLE.format(digits))
        room = context - len(head) - len(needle) - len(tail)
        if room < 0 or room > len(hay):
            raise InputError(
                f"a needle's context of {context:,} tokens: the question takes {context - room}, the texts hold "
                f"{len(hay):,}; choose a length between"
            )
        first = int(start * (len(hay) - room))
        cut = first + round(depth * room)
        prompt = [*head, *hay[first:cut], *needle, *hay[cut : first + room], *tail]
        forced, scored_from = begun(tokenizer, LEAD, digits)
        about = {"subject": "essays", "context_tokens": context, "depth": depth, "reference": digits}
        name = f"needle-{context:06}-{round(100 * depth):03}-{repeat:02}"
        return Item(name, prompt, forced, scored_from, about={**about, "question": QUESTION.strip()})
