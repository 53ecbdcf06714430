"""How much is evaluated: `quick` in minutes on two cores with a small model, `full` for figures to quote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leankv.backend.evaluation.answers import Answers
from leankv.backend.evaluation.choice import Choice
from leankv.backend.evaluation.items import Task
from leankv.backend.evaluation.needle import Needle
from leankv.backend.evaluation.perplexity import Perplexity
from leankv.backend.texts import Text, essays, read_texts


@dataclass(frozen=True)
class Amounts:
    """windows of prefix + 1 + scored tokens; needles by context, depth and repeat; questions; answers of each kind."""

    windows: int
    prefix: int
    scored: int
    contexts: tuple[int, ...]
    depths: tuple[float, ...]
    repeats: int
    questions: int
    each: int
    cap: int


PRESETS: Mapping[str, Amounts] = {
    "quick": Amounts(16, 512, 32, (512, 1024), (0.1, 0.5, 0.9), 2, 16, 4, 48),
    "full": Amounts(40, 1024, 64, (512, 1024, 2048), (0.0, 0.25, 0.5, 0.75, 1.0), 4, 64, 32, 160),
}


@dataclass(frozen=True)
class Sources:
    """Files in place of what is packaged or made: texts for windows, MMLU's archive, GSM8K's problems."""

    texts: Sequence[Path] = ()
    mmlu: Path | None = None
    gsm8k: Path | None = None


def changed(preset: str, **others: int | tuple[int, ...] | None) -> Amounts:
    """A preset with the amounts, by name, that are not None."""
    given: dict[str, Any] = {name: value for name, value in others.items() if value is not None}
    return replace(PRESETS[preset], **given)


def tasks_of(amounts: Amounts, names: Sequence[str], sources: Sources, seed: int) -> list[Task]:
    """The tasks of these names, in the order of TASKS. Raises InputError for texts that are missing."""
    hay = essays()
    texts: Sequence[Text] = read_texts(sources.texts) if sources.texts else hay
    every: list[Task] = [
        Perplexity(texts, amounts.windows, amounts.prefix, amounts.scored),
        Needle(hay, amounts.contexts, amounts.depths, amounts.repeats, seed),
        Choice(amounts.questions, mmlu=sources.mmlu, seed=seed),
        Answers(hay, amounts.each, amounts.cap, gsm8k=sources.gsm8k, seed=seed),
    ]
    return [task for task in every if task.name in names] if names else every
