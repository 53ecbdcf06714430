"""The tasks of a preset: `quick` in minutes on two cores with a small model, `full` for figures to quote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leankv.backend.evaluation.answers import Answers
from leankv.backend.evaluation.choice import Choice
from leankv.backend.evaluation.items import Task
from leankv.backend.evaluation.needle import Needle
from leankv.backend.evaluation.perplexity import Perplexity
from leankv.backend.texts import Text, essays, read_texts
from leankv.serving.quality_amounts import PRESETS, Amounts


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
