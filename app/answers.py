"""What was measured of the answers of a scenario's policies, for pages that compare throughput; nothing is inferred.

Figures are taken over only where model and policy, with all its knobs, are those that were evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leankv.app import found

HARM = 0.01  # a rise of perplexity beyond this is a loss of answers


@dataclass(frozen=True)
class Answers:
    """Scores by policy of the scenario. scores: as in quality.json; other policies were not measured."""

    folder: Path
    name: str
    scores: Mapping[str, Mapping[str, Any]]

    def loss(self, policy: str) -> tuple[float, tuple[float, float] | None] | None:
        """Relative rise of perplexity over fp16's, and its 95 % interval; None where it was not measured."""
        score = self.scores.get(policy, {}).get("perplexity")
        if score is None:
            return None
        if score["difference"] is None:
            return (0.0, None) if policy == "fp16" else None
        interval = score["difference_interval"]
        return score["difference"], (interval[0], interval[1]) if interval else None

    def value(self, policy: str, metric: str) -> float | None:
        score = self.scores.get(policy, {}).get(metric)
        return None if score is None else float(score["value"])


def measured(model: str, specifications: Mapping[str, str]) -> Answers | None:
    """The evaluation of this model that has most of these policies (name -> specification); None without any."""
    candidates = [_read(name, folder, model, specifications) for name, folder in found.offered("quality").items()]
    fitting = [each for each in candidates if each is not None and each.scores]
    return max(fitting, key=lambda each: len(each.scores), default=None)


def evaluated_models() -> list[str]:
    """The models of which there is any evaluation."""
    contents = (_content(folder) for folder in found.offered("quality").values())
    return sorted({content["model"]["name"] for content in contents if content})


def _read(name: str, folder: Path, model: str, specifications: Mapping[str, str]) -> Answers | None:
    content = _content(folder)
    if content is None or content["model"]["name"] != model:
        return None
    there = {_knobs(each["specification"]): each["scores"] for each in content["policies"].values()}
    scores = {policy: there[knobs] for policy, text in specifications.items() if (knobs := _knobs(text)) in there}
    return Answers(folder, name, scores)


def _content(folder: Path) -> dict[str, Any] | None:
    """quality.json alone: its scores are made, so no sample has to be read."""
    try:
        content: dict[str, Any] = json.loads((folder / found.MARKS["quality"]).read_text(encoding="utf-8"))
        complete = content["model"]["name"] and content["policies"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if complete else None


def _knobs(specification: str) -> str:
    """A policy's specification up to its retention, which measurements replace."""
    return specification.partition(", retention=")[0]


def sentence(answers: Answers | None, model: str, best: str, others: list[str]) -> str:
    """What is known of the winner's answers (Markdown)."""
    if answers is None:
        known = f" Measured: {', '.join(others)}." if others else ""
        return (
            f"**Answers**: no quality was measured for {model} under these policies, so a winner here may lose answers "
            f"and none is told.{known}"
        )
    loss = answers.loss(best)
    if loss is None:
        return f"**Answers**: {best} was not evaluated on {model}; what it does to answers is not known."
    change, interval = loss
    between = f" (95 %: {interval[0]:+.1%} to {interval[1]:+.1%})" if interval else ""
    return f"**Answers**: {best} changes perplexity by {change:+.1%}{between}, measured on {model} ({answers.name})."


def warning(answers: Answers | None, best: str) -> str | None:
    """One line where the winner is known to lose answers."""
    loss = answers.loss(best) if answers else None
    if loss is None or loss[0] <= HARM:
        return None
    change, interval = loss
    sure = "" if interval is None or interval[0] > 0 else ", which may be chance"
    return f"{best} wins, but loses answers: perplexity rises by {change:.1%}{sure}. See the Quality page."
